"""Columns of pictures: JPEG bytes one after another with offsets, decoded when they are taken."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from robot_rl.errors import StorageError


class Pictures:
    """M pictures of `shape` (height, width, 3); picture i is bytes offsets[i] to offsets[i + 1].

    `read(begin, end)` returns bytes of the column, wherever they lie. A row without a picture
    has no bytes and is black.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[int, int], bytes | np.ndarray],
        offsets: np.ndarray,
        shape: tuple[int, int, int],
        origin: str = 'pictures',
    ):
        self.offsets, self.shape = offsets, (len(offsets) - 1, *shape)
        self._read, self._origin = read, origin

    @classmethod
    def of(cls, jpegs: list[bytes], shape: tuple[int, int, int]) -> Pictures:
        """Return a column of JPEG files that are in memory."""
        data = b''.join(jpegs)
        offsets = np.cumsum([0, *map(len, jpegs)], dtype=np.int64)
        return cls(lambda begin, end: data[begin:end], offsets, shape)

    def __len__(self) -> int:
        return self.shape[0]

    def bytes(self, begin: int, end: int) -> bytes | np.ndarray:
        """Return the JPEG bytes of rows [begin, end), one after another."""
        return self._read(int(self.offsets[begin]), int(self.offsets[end]))

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return the pictures of `rows` [...] as RGB uint8 [..., height, width, 3].

        A row that is asked for several times is decoded once. Raises StorageError for bytes that
        are no picture of this shape.
        """
        wanted, place = np.unique(rows, return_inverse=True)
        decoded = np.zeros((len(wanted), *self.shape[1:]), np.uint8)
        for picture, row in zip(decoded, wanted.tolist(), strict=True):
            self._decode(row, picture)
        return decoded[place.reshape(np.shape(rows))]

    def _decode(self, row: int, into: np.ndarray) -> None:
        data = np.frombuffer(self.bytes(row, row + 1), np.uint8)
        if not data.size:
            return
        try:
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            picture = None
        if picture is None or picture.shape != into.shape:
            found = 'no picture' if picture is None else f'a picture of {list(picture.shape)}'
            raise StorageError(
                f'{self._origin}: row {row} is {found}, expected one of {list(into.shape)}'
            )
        cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=into)
