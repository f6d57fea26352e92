import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.shards import ShardedSteps, ShardWriter, chunks
from robot_rl.storage.steps import FIRST, LAST, MID, Steps


def episode(rng, steps, number=0):
    """Return an episode of `steps` steps: its columns [steps + 1, ...]."""
    kinds = np.full(steps + 1, MID, np.int8)
    kinds[0], kinds[-1] = FIRST, LAST
    discount = np.ones(steps + 1, np.float32)
    discount[-2] = rng.integers(2)  # a termination or a truncation
    return {
        'observation/x': rng.normal(size=(steps + 1, 3)).astype(np.float32),
        'observation/number': np.full((steps + 1, 1), number, np.int32),
        'action': rng.normal(size=(steps + 1, 2)),
        'reward': rng.normal(size=steps + 1).astype(np.float32),
        'discount': discount,
        'step_type': kinds,
    }


def write(folder, episodes, **options):
    with ShardWriter(folder, **options) as writer:
        return [writer.append(one) for one in episodes]


def picture(rng, size=(8, 12)):
    return rng.integers(0, 255, (*size, 3), dtype=np.uint8)


def png(rgb):
    return cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()


def pictures_of(rng, shown):
    """Return a column whose row t shows one of some pictures, and these, decoded."""
    seen = [picture(rng) for _ in range(max(shown) + 1)]
    return Pictures.of([png(p) for p in seen], np.array(shown), (8, 12)), np.stack(seen)[shown]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(1, 3000),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_shards_serve_what_arrays_in_memory_do(tmp_path_factory, lengths, size, n_step, seed):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp('shards')
    episodes = [episode(rng, steps, number) for number, steps in enumerate(lengths)]
    spans = write(folder / 's', episodes, shard_bytes=size)
    stored, plain = ShardedSteps(folder / 's'), Steps.concatenate(episodes)
    np.testing.assert_array_equal(stored.spans, spans)
    for name, column in plain.flat.items():
        rows = rng.integers(len(column), size=(3, 5))
        taken = stored.flat[name].take(rows, axis=0)
        assert taken.dtype == column.dtype and type(taken) is np.ndarray
        np.testing.assert_array_equal(taken, column[rows])
        np.testing.assert_array_equal(np.concatenate(list(chunks(stored.flat[name], 7))), column)
    ours, theirs = (WindowSampler(steps, n_step, 0.9, seed) for steps in (stored, plain))
    for draw in (lambda s: s.transitions(32), lambda s: s.sequences(16, 3, 2)):
        for one, other in zip(draw(ours), draw(theirs), strict=True):
            np.testing.assert_equal(one, other)


def test_several_shards_come_about_and_none_is_left_partial(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / 's', [episode(rng, 20) for _ in range(10)], shard_bytes=3000)
    assert len(list((tmp_path / 's').iterdir())) > 2
    assert not list((tmp_path / 's').glob('*.partial'))


@pytest.mark.parametrize('shard_bytes', [1, 2**20])
def test_pictures_are_kept_as_files_and_decoded_when_taken(tmp_path, shard_bytes):
    rng = np.random.default_rng(1)
    episodes, seen = [], []
    for shown in ([0, 0, 1, 2], [2, 1, 1, 0, 3], [0]):
        column, decoded = pictures_of(rng, shown)
        steps = episode(rng, 7)  # a slice of a column is a view of all its files
        steps = {name: values[: len(shown)] for name, values in steps.items()}
        episodes.append(steps | {'observation/camera': column[:]})
        seen.append(decoded)
    write(tmp_path / 's', episodes, shard_bytes=shard_bytes)
    camera, expected = (
        ShardedSteps(tmp_path / 's').flat['observation/camera'],
        np.concatenate(seen),
    )
    assert camera.shape == (10, 8, 12, 3) and camera.dtype == np.uint8
    rows = rng.integers(10, size=(4, 6))
    np.testing.assert_array_equal(camera.take(rows), expected[rows])


def test_a_slice_of_pictures_brings_only_the_files_that_it_shows(tmp_path):
    rng = np.random.default_rng(2)
    column, decoded = pictures_of(rng, [0, 1, 1, 2, 3])
    steps = {name: values[:2] for name, values in episode(rng, 4).items()}
    write(tmp_path / 's', [steps | {'observation/camera': column[1:3]}])
    camera = ShardedSteps(tmp_path / 's').flat['observation/camera']
    assert len(camera.offsets) == 2
    np.testing.assert_array_equal(camera.take(np.arange(2)), decoded[1:3])


def test_a_history_of_pictures_is_rows_and_no_second_copy(tmp_path):
    rng = np.random.default_rng(3)
    column, decoded = pictures_of(rng, [0, 1, 2, 2])
    history = np.array([[0, 0], [0, 1], [1, 2], [2, 3]])
    steps = episode(rng, 3) | {'observation/camera': column[history]}
    write(tmp_path / 's', [steps, steps])
    camera = ShardedSteps(tmp_path / 's').flat['observation/camera']
    assert camera.shape == (8, 2, 8, 12, 3) and len(camera.offsets) == 2 * 3 + 1
    rows = np.array([[3, 6], [1, 7]])
    np.testing.assert_array_equal(camera.take(rows), decoded[np.tile(history, (2, 1))][rows])


def test_what_cannot_be_shards_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(StorageError, match='no shards here'):
        ShardedSteps(tmp_path)
    with ShardWriter(tmp_path / 's') as writer:
        writer.append(episode(rng, 3))
        with pytest.raises(StorageError, match=r'columns action <f8\[3\].*the first one'):
            writer.append(episode(rng, 3) | {'action': np.zeros((4, 3))})
        with pytest.raises(StorageError, match=r'columns of \[2, 4\] rows'):
            writer.append(episode(rng, 3) | {'reward': np.zeros(2, np.float32)})
    with pytest.raises(StorageError, match='not empty'):
        ShardWriter(tmp_path / 's')
    assert ShardedSteps(tmp_path / 's').size == 4


def test_a_shard_that_was_not_finished_is_not_read(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / 's') as writer:
        writer.append(episode(rng, 3))
        raise KeyboardInterrupt
    with pytest.raises(StorageError, match='no shards here'):
        ShardedSteps(tmp_path / 's')


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_shard_names_its_file_or_serves(tmp_path_factory, data):
    """Files are cut or have bytes changed: never anything but a StorageError that names one."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp('shards') / 's'
    column, _ = pictures_of(rng, [0, 1, 1, 2])
    write(folder, [episode(rng, 3) | {'observation/camera': column}])
    file = data.draw(st.sampled_from(sorted((folder / '000000').iterdir())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        steps = ShardedSteps(folder)
    except StorageError as error:
        assert str(folder) in str(error) and '\n' not in str(error)
        return
    try:
        steps.flat['observation/camera'].take(np.arange(4))
    except StorageError as error:
        assert 'picture' in str(error)


def test_a_column_of_another_type_in_a_later_shard_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / 's', [episode(rng, 3), episode(rng, 3)], shard_bytes=1)
    file = tmp_path / 's' / '000001' / 'shard.json'
    header = json.loads(file.read_text())
    header['columns']['reward']['dtype'] = '<i4'
    file.write_text(json.dumps(header))
    with pytest.raises(StorageError, match=r'000001: columns .*reward <i4'):
        ShardedSteps(tmp_path / 's')
