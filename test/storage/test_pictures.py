"""Pictures as a column against plain arrays; the file of columns against damage."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.images import decoded, lossless
from robot_rl.storage import column_file
from robot_rl.storage.pictures import Pictures


def noise(seed, height=12, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def column():
    """Seven rows that show three of four PNGs, and the array that they are."""
    files, rows = [lossless(noise(seed)) for seed in range(4)], np.array([0, 0, 1, 1, 3, 3, 0])
    return Pictures.of(files, rows, (12, 16)), np.stack([noise(row) for row in rows])


def test_a_column_is_indexed_as_the_array_that_it_stands_for(column):
    pictures, array = column
    assert pictures.shape == array.shape and len(pictures) == 7 and pictures.dtype == array.dtype
    assert len(pictures.offsets) == 4  # three files: each once, and not the one nobody shows
    np.testing.assert_array_equal(np.asarray(pictures), array)
    assert isinstance(pictures[2], np.ndarray)
    many = np.array([5, 0, 5]), np.array([[1, 2], [6, 4]]), [3], array[:, 0, 0, 0] > 99
    for index in (2, -1, *many):
        assert pictures[index].shape == array[index].shape
        np.testing.assert_array_equal(np.asarray(pictures[index]), array[index])
    for index in many[:3]:
        np.testing.assert_array_equal(pictures.take(index), array.take(index, axis=0))
    assert isinstance(pictures[1:], Pictures) and isinstance(pictures[many[1]], Pictures)
    stacked = pictures[many[1]]  # a history of two
    np.testing.assert_array_equal(stacked[1, 0], array[6])
    np.testing.assert_array_equal(stacked.take(np.array([1, 1])), array[[[6, 4], [6, 4]]])
    assert pictures.astype(np.uint8) is pictures
    np.testing.assert_array_equal(pictures.astype(np.float32), array.astype(np.float32))
    np.testing.assert_array_equal(pictures[1:][::2][1], array[1:][::2][1])
    np.testing.assert_array_equal(np.asarray(pictures[4:4]), array[4:4])
    joined = Pictures.concatenate([pictures[3:], pictures])
    np.testing.assert_array_equal(np.asarray(joined), np.concatenate([array[3:], array]))
    with pytest.raises(StorageError, match=r'sizes \[\(6, 8\), \(12, 16\)\]'):
        Pictures.concatenate([pictures, Pictures.of([], np.array([], int), (6, 8))])


def test_files_are_kept_as_they_came_and_made_as_small_as_is_wanted():
    jpeg = cv2.imencode('.jpg', noise(1, 48, 64))[1].tobytes()
    pictures = Pictures.of([jpeg], np.array([0]), (12, 16))
    assert pictures.file(0) == jpeg
    np.testing.assert_array_equal(pictures[0], decoded(jpeg, (12, 16, 3)))
    broken = Pictures.of([jpeg[:90]], np.array([0]), (12, 16))
    with pytest.raises(StorageError, match='picture 0 of a column: 90 bytes are no whole JPEG'):
        np.asarray(broken)


def test_columns_come_back_from_their_file_and_pictures_are_mapped(tmp_path, column):
    path = tmp_path / 'ö ä' / 'steps.npz'
    path.parent.mkdir()
    columns = {
        'time': np.arange(7.0),
        'action/requested': np.ones((6, 2)),
        'wrist.image': column[0],
    }
    column_file.write(path, 'key', columns)
    assert [p.name for p in path.parent.iterdir()] == ['steps.npz']
    found = column_file.read(path, 'key')
    assert set(found) == set(columns)
    np.testing.assert_array_equal(found['action/requested'], columns['action/requested'])
    np.testing.assert_array_equal(np.asarray(found['wrist.image']), column[1])
    assert isinstance(found['wrist.image'].blob.base, np.memmap)
    assert column_file.read(path, 'another') is None
    assert column_file.read(tmp_path / 'none.npz') is None
    column_file.write(path, 'another', {})  # who holds the former columns keeps them
    np.testing.assert_array_equal(np.asarray(found['wrist.image']), column[1])
    with pytest.raises(OSError):
        column_file.write(tmp_path / 'gone' / 'steps.npz', '', {})


@settings(max_examples=300, deadline=None)
@example(where=0.8952639090065063, bit=1, cut=False)  # some members were not seen any more
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_is_told_or_harmless(tmp_path_factory, where, bit, cut):
    folder = tmp_path_factory.mktemp('damage')
    path, array = folder / 'steps.npz', np.stack([noise(0), noise(1)])
    column = Pictures.of([lossless(noise(0)), lossless(noise(1))], np.arange(2), (12, 16))
    column_file.write(path, 'key', {'time': np.arange(2.0), 'wrist.image': column})
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    data[place] ^= 1 << bit
    path.write_bytes(data[:place] if cut else data)
    try:
        found = column_file.read(path, 'key')
        assert found is not None and set(found) == {'time', 'wrist.image'}
    except StorageError as error:
        assert str(path) in str(error) and '\n' not in str(error)
    else:  # a bit that says nothing of the content, as a member's date
        np.testing.assert_array_equal(found['time'], [0, 1])
        np.testing.assert_array_equal(np.asarray(found['wrist.image']), array)
