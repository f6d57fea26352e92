"""The reward-sketching data set, read without TensorFlow: files made byte by byte, and theirs."""

import sqlite3
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.cli import main as cli
from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.specs import Contract
from robot_rl.storage import sketchy, transfer
from robot_rl.storage.checksums import check
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.store import Store
from robot_rl.storage.tfrecord import parse_example, read_examples, read_records

pytest.importorskip('google_crc32c', reason='needs the extra `doors`')

# Beside the checkout, where somebody has put it: it is not ours to ship.
REAL = Path(__file__).parents[3] / 'shared' / 'data' / 'sketchy_example.tfrecords'
FILE = '100_b615'
START_S = 1_561_731_241


def crc32c(data):
    """CRC-32C bit by bit (Castagnoli, reflected): RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def record(data):
    length = struct.pack('<Q', len(data))
    return length + masked(length) + data + masked(data)


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values, packed=True):
    values = np.asarray(values) if not isinstance(values, bytes) else values
    if isinstance(values, bytes):
        return field(1, field(1, values))
    if values.dtype.kind == 'f':
        parts = [struct.pack('<f', value) for value in values.tolist()]
        one_by_one = b''.join(varint(1 << 3 | 5) + part for part in parts)
        return field(2, field(1, b''.join(parts)) if packed else one_by_one)
    parts = [varint(value % 2**64) for value in values.tolist()]
    one_by_one = b''.join(varint(1 << 3) + part for part in parts)
    return field(3, field(1, b''.join(parts)) if packed else one_by_one)


def example(features, packed=True):
    entries = [
        field(1, field(1, name.encode()) + field(2, feature(values, packed)))
        for name, values in features.items()
    ]
    return field(1, b''.join(entries))


def jpeg(shade):
    return cv2.imencode('.jpg', np.full((8, 12, 3), shade, np.uint8))[1].tobytes()


def frames(count=5):
    rng = np.random.default_rng(3)
    return [
        {
            'actions': rng.uniform(-1, 1, 7).astype(np.float32),
            'sawyer/joints/angle': rng.normal(size=7).astype(np.float32),
            'sawyer/joints/velocity': rng.normal(size=7).astype(np.float32),
            'wrist/force': rng.normal(size=3).astype(np.float32),
            'gripper/grasp': np.array([-1 + number]),
            'pixels/usbcam0': jpeg(40 * number),
            'pixels/royale_camera_driver_depth': rng.random(171 * 224).astype(np.float32),
        }
        for number in range(count)
    ]


def small(count=3):
    """Frames without the depth picture: a checksum bit by bit takes a while."""
    return [
        {name: values for name, values in frame.items() if 'depth' not in name}
        for frame in frames(count)
    ]


def write(path, told):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b''.join(record(example(frame)) for frame in told))
    return path


def write_metadata(folder, rewards=(), data_path=FILE):
    """metadata.sqlite with the tables of metadata_schema.py."""
    database = sqlite3.connect(folder / 'metadata.sqlite')
    with database:
        database.executescript(
            'CREATE TABLE Episodes (EpisodeId VARCHAR PRIMARY KEY, TaskId VARCHAR, DataPath '
            'VARCHAR, Timestamp INTEGER, EpisodeType VARCHAR);'
            'CREATE TABLE Tags (Name VARCHAR PRIMARY KEY);'
            'CREATE TABLE EpisodeTags (EpisodeId VARCHAR, Tag VARCHAR);'
            'CREATE TABLE RewardSequences (EpisodeId VARCHAR, RewardSequenceId VARCHAR, '
            'RewardTaskId VARCHAR, Type VARCHAR, User VARCHAR, "Values" BLOB);'
            'CREATE TABLE ArchiveFiles (EpisodeId VARCHAR, ArchiveFile VARCHAR);'
        )
        database.execute(
            'INSERT INTO Episodes VALUES (?, ?, ?, ?, ?)',
            ('100', 'stack_green_on_red', data_path, START_S, 'EPISODE_ROBOT_TELEOPERATION'),
        )
        database.execute("INSERT INTO EpisodeTags VALUES ('100', 'rgb30, all')")
        database.execute("INSERT INTO ArchiveFiles VALUES ('100', '42.tar.bz2')")
        database.executemany(
            "INSERT INTO RewardSequences VALUES ('100', ?, ?, 'REWARD_SKETCH', ?, ?)", rewards
        )
    database.close()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / 'store')


def take(store, path):
    return transfer.import_steps(store, sketchy.episodes(path))


def test_the_checksum_here_is_the_standard_one():
    assert crc32c(b'123456789') == 0xE3069283


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.binary(max_size=20),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9).map(
                lambda values: np.array(values, np.float32)
            ),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9).map(
                lambda values: np.array(values, np.int64)
            ),
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_an_example_is_read_packed_or_not(features, packed):
    found = parse_example(example(features, packed))
    assert found.keys() == features.keys()
    for name, values in features.items():
        if isinstance(values, bytes):
            assert found[name] == [values]
        else:
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_a_value_error(data):
    try:
        assert isinstance(parse_example(data), dict)
    except ValueError as error:
        assert str(error)


def test_an_episode_becomes_columns_in_the_store(store, tmp_path):
    told = frames()
    write(tmp_path / 'in' / 'archive_1' / FILE, told)
    sketch = np.linspace(0, 1, 5, dtype='<f4')
    other = sketch[::-1].copy()
    rewards = [('1', 'stack_green_on_red', 'anna', sketch.tobytes()),
               ('2', 'lift_green', 'ben', other.tobytes())]  # fmt: skip
    write_metadata(tmp_path / 'in', rewards)

    assert take(store, tmp_path / 'in') == (['100'], [], {}, [])

    (header,) = store.episodes('task=stack_green_on_red source=teleop tag=rgb30_all world=real')
    assert (header.id, header.robot) == ('100', 'sawyer')
    assert header.start_time_ns == START_S * 10**9
    assert header.duration_s == pytest.approx(0.4)
    about = header.extra['sketchy']
    assert about['ArchiveFile'] == '42.tar.bz2'
    assert about['EpisodeType'] == 'EPISODE_ROBOT_TELEOPERATION'
    assert about['last_action'] == told[-1]['actions'].tolist()

    episode = store.open('100')
    columns = aligned_columns(episode)
    np.testing.assert_allclose(columns['time'] - START_S, [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    for name, of in (
        ('joint_states.position', 'sawyer/joints/angle'),
        ('joint_states.velocity', 'sawyer/joints/velocity'),
        ('wrist.force', 'wrist/force'),
        ('gripper.grasp', 'gripper/grasp'),
    ):
        np.testing.assert_array_equal(columns[name], [frame[of] for frame in told])
    depth = columns['royale_camera_driver_depth.depth']
    assert depth.shape == (5, 171, 224)
    np.testing.assert_array_equal(depth[3].ravel(), told[3]['pixels/royale_camera_driver_depth'])
    actions = np.array([frame['actions'] for frame in told])
    for kind in ('requested', 'applied'):
        np.testing.assert_array_equal(columns[f'action/{kind}'], actions[:-1])
    assert columns['usbcam0.image'].file(2) == told[2]['pixels/usbcam0']
    assert abs(int(columns['usbcam0.image'][2].mean()) - 80) <= 2

    told_rewards = {info.author: info for info in episode.rewards()}
    assert {info.task for info in told_rewards.values()} == {'stack_green_on_red', 'lift_green'}
    np.testing.assert_array_equal(episode.reward(told_rewards['anna'].id), sketch)
    np.testing.assert_array_equal(episode.reward(told_rewards['ben'].id), other)
    assert store.episodes('reward=sketch:anna').ids == ['100']
    assert check(episode.path).damaged == () == check(episode.path).unverifiable
    assert episode.damage() is None


def test_an_episode_that_is_imported_twice_is_one(store, tmp_path):
    path = write(tmp_path / 'in' / FILE, small())
    write_metadata(tmp_path / 'in', [('1', 't', 'anna', bytes(12))])
    take(store, path)
    assert take(store, path) == ([], ['100'], {}, [])
    assert len(store.open('100').rewards()) == 1


def test_without_metadata_the_file_tells_what_it_can(store, tmp_path):
    take(store, write(tmp_path / 'some name.tfrecords', small()))
    (header,) = store.episodes()
    assert (header.id, header.task, header.source, header.tags) == ('some-name', '', '', ())


def test_a_reward_of_another_length_is_left_and_told(store, tmp_path):
    path = write(tmp_path / FILE, small(3))
    write_metadata(tmp_path, [('1', 't', 'anna', bytes(8)), ('2', 't', 'ben', bytes(12))])
    done = take(store, path)
    assert done.added == ['100']
    assert [info.author for info in store.open('100').rewards()] == ['ben']
    (line,) = done.refused
    assert 'metadata.sqlite: reward 1 of 100: 2 values for 3 frames' in line


def test_columns_serve_a_contract_that_reads_less_and_no_other_rate(store, tmp_path):
    take(store, write(tmp_path / FILE, small()))
    episode = store.open(store.episodes().ids[0])
    contract = episode.header.contract.to_dict()
    fewer = [f for f in contract['observation'] if f['source'] == 'usbcam0.image']
    fewer[0]['shape'] = [4, 6, 3]
    (action,) = contract['action']
    for part in ('names', 'lower', 'upper'):
        action[part] = action[part][::-1]
    found = aligned_columns(episode, Contract.parse(contract | {'observation': fewer}))
    assert found['usbcam0.image'].shape == (3, 4, 6, 3)
    own = aligned_columns(episode)
    np.testing.assert_array_equal(found['action/applied'], own['action/applied'][:, ::-1])
    with pytest.raises(ContractMismatch, match='no other rate'):
        aligned_columns(episode, Contract.parse(contract | {'rate_hz': 20}))
    fewer[0]['source'] = 'usbcam7.image'
    with pytest.raises(StorageError, match=r'nothing recorded for .usbcam7.image'):
        aligned_columns(episode, Contract.parse(contract | {'observation': fewer}))


def test_primary_columns_are_verified_carried_and_never_garbage(store, tmp_path, capsys):
    take(store, write(tmp_path / FILE, small()))
    (id,) = store.episodes().ids
    steps = store.root / id / 'steps.npz'
    args = ['--store', str(store.root)]
    assert cli.main(['episodes', 'export', str(tmp_path / 'a.tar'), *args]) == 0
    assert cli.main(['episodes', 'gc', '--yes', *args]) == 0
    assert steps.exists()
    other = ['--store', str(tmp_path / 'other')]
    assert cli.main(['episodes', 'import', str(tmp_path / 'a.tar'), *other]) == 0
    copied = aligned_columns(Store(tmp_path / 'other').open(id))
    np.testing.assert_array_equal(
        copied['action/applied'], aligned_columns(store.open(id))['action/applied']
    )
    data = bytearray(steps.read_bytes())
    data[len(data) // 2] ^= 4
    steps.write_bytes(data)
    capsys.readouterr()
    assert cli.main(['episodes', 'verify', *args]) == 1
    assert f'{steps}: SHA-256' in capsys.readouterr().out


def test_the_command_imports_and_shows(tmp_path, capsys):
    write(tmp_path / 'in' / FILE, small())
    write_metadata(tmp_path / 'in', [('1', 't', 'anna', bytes(12))])
    store = ['--store', str(tmp_path / 'store')]
    assert cli.main(['episodes', 'import', str(tmp_path / 'in'), *store]) == 0
    assert '1 episode taken into' in capsys.readouterr().out
    shown = str(tmp_path / 'shown')
    assert cli.main(['episodes', 'show', '100', '--out', shown, *store]) == 0
    assert 'anna' in capsys.readouterr().out
    names = {path.name for path in Path(shown).iterdir()}
    assert names == {'signals.png', 'commands.png', 'rewards.png', 'pictures.png'}


def test_a_folder_without_episodes_is_refused(store, tmp_path):
    (tmp_path / 'in').mkdir()
    with pytest.raises(StorageError, match='no TFRecord file of an episode here'):
        take(store, tmp_path / 'in')


WHOLE = b''.join(record(example(frame)) for frame in small(2))
ENDS = {0, len(WHOLE), len(record(example(small(2)[0])))}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_cut_or_flipped_file_is_one_line_that_names_it(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged.tfrecords'
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(WHOLE) - 1).filter(lambda at: at not in ENDS))
        path.write_bytes(WHOLE[:cut])
    else:
        flipped = bytearray(WHOLE)
        flipped[data.draw(st.integers(0, len(WHOLE) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(flipped)
    with pytest.raises(StorageError) as caught:
        list(read_examples(path))
    assert str(caught.value).startswith(f'{path}: cut off or damaged after ')
    assert '\n' not in str(caught.value)


def test_a_damaged_file_is_told_and_the_others_are_taken(store, tmp_path):
    write(tmp_path / 'in' / 'good.tfrecords', small())
    path = write(tmp_path / 'in' / 'bad.tfrecords', small())
    data = bytearray(path.read_bytes())
    data[3] ^= 1  # in its very first length
    path.write_bytes(data)
    done = take(store, tmp_path / 'in')
    assert done.added == ['good']
    (line,) = done.refused
    assert line.startswith(f'{path}: cut off or damaged after 0 records')
    assert sorted(p.name for p in store.root.iterdir() if p.name[0] != '.') == ['good']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda told: told[1].pop('wrist/force'), 'wrist/force is missing in some of 3 frames'),
        (lambda told: told[1].update({'wrist/force': np.ones(2)}), 'wrist/force differs in kind'),
        (lambda told: told[0].update({'pixels/usbcam0': b'no'}), 'no JPEG or PNG'),
        (lambda told: told[2].update({'actions': np.full(7, np.nan)}), 'actions are not all fin'),
        (lambda told: told.__delitem__(slice(1, 3)), '1 frames; there are no steps'),
    ],
)
def test_frames_that_do_not_fit_together_are_refused(store, tmp_path, change, words):
    told = small()
    change(told)
    path = write(tmp_path / FILE, told)
    done = take(store, path)
    assert done.added == []
    assert done.refused[0].startswith(f'{path}: ')
    assert words in done.refused[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7), st.booleans())
def test_damaged_metadata_is_one_line_that_names_it(tmp_path_factory, place, bit, cut):
    folder = tmp_path_factory.mktemp('damaged')
    path = write(folder / FILE, small(2))
    write_metadata(folder, [('1', 't', 'anna', bytes(8))])
    file = folder / 'metadata.sqlite'
    data = bytearray(file.read_bytes())
    place %= len(data)
    data[place] ^= 1 << bit
    file.write_bytes(data[:place] if cut else data)
    try:
        done = take(Store(folder / 'store'), path)
    except StorageError as error:
        assert str(error).startswith(f'{file}: ')
    else:
        assert len(done.added) == 1 or str(folder) in done.refused[0]


@pytest.mark.skipif(not REAL.exists(), reason='the real example is not here')
def test_the_real_example_is_read(store):
    assert len(list(read_records(REAL))) == 4
    assert take(store, REAL).added == [REAL.stem]
    columns = aligned_columns(store.open(REAL.stem))
    assert columns['joint_states.position'].shape == (4, 7)
    assert columns['action/applied'].shape == (3, 7)
    assert columns['usbcam0.image'].shape == (4, 768, 1024, 3)
    assert columns['usbcam0.image'][3].std() > 10  # a picture of something
    assert (np.abs(columns['joint_states.position']) < 3.2).all()
    turn = columns['sawyer_tcp.pose'][:, 3:]  # a unit quaternion, in whatever order
    np.testing.assert_allclose(np.linalg.norm(turn, axis=1), 1, atol=1e-3)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_primary_columns_are_one_line_that_names_the_file(
    tmp_path_factory, place, bit, cut
):
    store = Store(tmp_path_factory.getbasetemp() / 'primary')
    if not store.episodes().ids:
        take(store, write(store.root.with_name('primary.tfrecords'), small()))
    episode = store.open('primary')
    whole = episode.steps_path.read_bytes()
    expected = aligned_columns(episode)
    data = bytearray(whole)
    data[int(place * len(whole))] ^= 1 << bit
    try:
        episode.steps_path.write_bytes(whole[: int(place * len(whole))] if cut else data)
        found = aligned_columns(episode)
        assert not cut and found.keys() == expected.keys()
        for name, column in expected.items():  # what no reader looks at: a date, say
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(column))
    except StorageError as error:
        assert str(error).startswith(f'{episode.steps_path}: ')
        assert '\n' not in str(error)
    finally:
        episode.steps_path.write_bytes(whole)
    assert check(episode.path).damaged == ()
