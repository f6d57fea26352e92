"""Pictures as cameras send them, against arithmetic on single pixels."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import ContractMismatch
from robot_rl.images import as_jpeg, decoded, fitted, lossless, unpacked


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'mono8'])
@pytest.mark.parametrize('padding', [0, 5])
def test_raw_pictures_become_rgb_whatever_their_order_and_row_length(encoding, padding):
    picture = noise(4, 6)
    sent = {'rgb8': picture, 'bgr8': picture[..., ::-1], 'mono8': picture[..., :1]}[encoding]
    rows = np.pad(sent.reshape(4, -1), ((0, 0), (0, padding)), constant_values=77)
    data = array.array('B', rows.tobytes())
    seen = unpacked(data, encoding, (4, 6), rows.shape[1], (4, 6, 3))
    expected = np.repeat(sent, 3, axis=2) if encoding == 'mono8' else picture
    np.testing.assert_array_equal(seen, expected)
    assert seen.dtype == np.uint8


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_compressed_pictures_become_rgb(suffix):
    picture = cv2.GaussianBlur(noise(48, 64), (0, 0), 6)
    picture[..., 2] //= 3  # little blue
    sent = cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()
    seen = decoded(array.array('B', sent), (48, 64, 3))
    assert np.abs(seen.astype(int) - picture).max() <= (0 if suffix == '.png' else 12)


def test_what_is_kept_is_the_picture_or_close_to_it():
    picture = cv2.GaussianBlur(noise(48, 64), (0, 0), 3)
    picture[20:24, 30:34] = (250, 20, 20)  # small, and of a colour of its own
    np.testing.assert_array_equal(decoded(lossless(picture), picture.shape), picture)
    file = as_jpeg(picture)
    assert file.startswith(b'\xff\xd8')
    off = np.abs(decoded(file, picture.shape).astype(int) - picture)
    assert off.mean() < 1.5 and off[20:24, 30:34].max() < 25


def test_a_grey_jpeg_has_three_equal_channels():
    sent = cv2.imencode('.png', np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()
    seen = decoded(sent, (8, 8, 3))
    np.testing.assert_array_equal(seen, np.arange(64).reshape(8, 8, 1).repeat(3, axis=2))


def test_a_smaller_picture_has_the_means_of_the_middle_part():
    picture = noise(8, 24)
    middle = picture[:, 6:18].astype(float)  # 3:2 of 3:1
    expected = middle.reshape(2, 4, 3, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fitted(picture, (2, 3, 3)), expected, atol=0.51)
    tall = noise(24, 8)
    expected = tall[8:16].astype(float).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fitted(tall, (4, 4, 3)), expected, atol=0.51)
    assert fitted(picture, picture.shape) is picture


@settings(max_examples=50, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_any_size_becomes_the_one_that_is_wanted_or_is_refused(height, width, tall, wide):
    picture = np.full((tall, wide, 3), 9, np.uint8)
    if tall < height or wide < width:
        with pytest.raises(ContractMismatch, match=f'^{wide} x {tall} pixels, the policy needs'):
            fitted(picture, (height, width, 3))
    else:
        seen = fitted(picture, (height, width, 3))
        assert seen.shape == (height, width, 3) and (seen == 9).all()


@pytest.mark.parametrize(
    ('encoding', 'size', 'step', 'told'),
    [
        ('16UC1', (4, 6), 12, "encoding '16UC1', right is one of rgb8, bgr8, mono8"),
        ('rgb8', (4, 6), 17, '72 bytes in rows of 17 do not hold 6 x 4 rgb8'),
        ('rgb8', (5, 6), 18, '72 bytes in rows of 18 do not hold 6 x 5'),
        ('rgb8', (4, 0), 0, '72 bytes in rows of 0 do not hold'),
    ],
)
def test_what_is_no_raw_picture_is_told(encoding, size, step, told):
    with pytest.raises(ContractMismatch, match=told):
        unpacked(bytes(72), encoding, size, step, (4, 6, 3))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 600))
def test_broken_files_are_refused_and_never_a_crash(rubbish, cut):
    whole = cv2.imencode('.png', noise(8, 8))[1].tobytes()
    for data in (rubbish, whole[: min(cut, len(whole) - 30)]):
        try:
            assert decoded(data, (8, 8, 3)).shape == (8, 8, 3)
        except ContractMismatch as error:
            assert 'are no whole JPEG or PNG' in str(error) or 'pixels' in str(error)
