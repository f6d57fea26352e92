"""Pictures as cameras send them, made into those that a policy sees: live and from recordings."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from robot_rl.errors import ContractMismatch

# The raw encodings that are read: channels, and how they become RGB.
_RAW = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
}


def decoded(data: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Return a JPEG or PNG as RGB of `shape`, see fitted(). Raises ContractMismatch."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bytes_ = np.frombuffer(data, np.uint8)
    try:
        picture = cv2.imdecode(bytes_, flags) if bytes_.size else None
    except cv2.error:
        picture = None
    if picture is None:
        raise ContractMismatch(f'{bytes_.size} bytes are no whole JPEG or PNG')
    return cv2.cvtColor(fitted(picture, shape), cv2.COLOR_BGR2RGB)


def unpacked(
    data: Sequence[int], encoding: str, size: tuple[int, int], step: int, shape: tuple
) -> np.ndarray:
    """Return a raw picture of `size` (height, width) as RGB of `shape`, see fitted().

    `step` is the length of a row in `data` [bytes]. Raises ContractMismatch.
    """
    if encoding not in _RAW:
        raise ContractMismatch(f'encoding {encoding!r}, right is one of {", ".join(_RAW)}')
    (channels, conversion), (height, width) = _RAW[encoding], size
    row, bytes_ = width * channels, np.frombuffer(data, np.uint8)
    if not row or step < row or bytes_.size < step * height:
        raise ContractMismatch(
            f'{bytes_.size} bytes in rows of {step} do not hold {width} x {height} {encoding}'
        )
    rows = bytes_[: step * height].reshape(height, step)[:, :row]
    picture = fitted(rows.reshape(height, width, channels), shape)
    return picture if conversion is None else cv2.cvtColor(picture, conversion)


def as_jpeg(picture: np.ndarray) -> bytes:
    """Return an RGB picture [height, width, 3] uint8 as the JPEG that is kept of it.

    Whatever is small in a picture of a policy has a colour of its own: colours are not halved.
    """
    whole = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _encoded('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 95, *whole])


def lossless(picture: np.ndarray) -> bytes:
    """Return an RGB picture [height, width, 3] uint8 as a PNG, which decoded() gives back."""
    # Level 1 is as small as the default for pictures of cameras.
    return _encoded('.png', picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def fitted(picture: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the largest middle part of a picture with the aspect of `shape`, made as small.

    What is square stays square; each pixel is the mean of those that it stands for. Raises
    ContractMismatch for a picture that is too small: nothing is made up.
    """
    (height, width), (found_height, found_width) = shape[:2], picture.shape[:2]
    scale = min(found_height / height, found_width / width)
    if scale < 1:
        raise ContractMismatch(
            f'{found_width} x {found_height} pixels, the policy needs {width} x {height} or more'
        )
    if (height, width) == (found_height, found_width):
        return picture
    tall, wide = round(height * scale), round(width * scale)
    top, left = (found_height - tall) // 2, (found_width - wide) // 2
    part = picture[top : top + tall, left : left + wide]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)


def _encoded(suffix: str, picture: np.ndarray, options: Sequence[int]) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, bgr, options)[1].tobytes()
