"""robot-rl episodes show --out: what is on the sheet and in the plots is what was recorded."""

import json

import cv2
import numpy as np
import pytest

from robot_rl.cli import episode_pictures
from robot_rl.cli.main import main
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader, EpisodeWriter
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store

START_NS = 1_700_000_000 * 10**9
FRAMES = 15


@pytest.fixture
def episode(tmp_path):
    """A person moves two joints before two cameras: red getting brighter, and blue."""
    pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`) for real CDR bytes')
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CompressedImage, Image, JointState
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    def write(topic, message, seconds):
        kind = f'{type(message).__module__.split(".")[0]}/msg/{type(message).__name__}'
        if hasattr(message, 'header'):
            message.header.stamp.sec = START_NS // 10**9
            message.header.stamp.nanosec = int(seconds * 1e9)
        data = serialize_message(message)
        writer.write(topic, kind, message_definition(kind), data, START_NS + int(seconds * 1e9))

    header = EpisodeHeader(id='e', task='lab/wave', source='teleop', start_time_ns=START_NS)
    with EpisodeWriter(tmp_path / 'store', header) as writer:
        for i in range(FRAMES):
            at = i / 20
            names, where = ['a', 'b'], [at, -at]
            write('/joint_states', JointState(name=names, position=where), at)
            for topic, offset in (('/policy/command', 0.5), ('/command_guard/applied', 0.25)):
                point = JointTrajectoryPoint(positions=[at + offset, -at])
                write(topic, JointTrajectory(joint_names=names, points=[point]), at)
            red = np.zeros((120, 160, 3), np.uint8)
            red[..., 2] = 10 * i
            png = cv2.imencode('.png', red)[1].tobytes()
            write('/cam/compressed', CompressedImage(format='png', data=png), at)
            blue = np.zeros((48, 64, 3), np.uint8)
            blue[..., 2] = 200
            raw = Image(height=48, width=64, step=192, encoding='rgb8', data=blue.tobytes())
            write('/wrist', raw, at)
        writer.commit()
    return EpisodeReader(tmp_path / 'store' / 'e')


def test_the_sheet_has_pictures_at_even_times_for_each_camera(episode, tmp_path):
    notes = []
    drawn = episode_pictures.draw(episode, tmp_path / 'out', notes.append)
    assert [path.name for path in drawn] == ['signals.png', 'commands.png', 'pictures.png']
    sheet = cv2.imread(str(tmp_path / 'out' / 'pictures.png'))
    assert sheet.shape == (16 + 120 + 16 + 48, 8 * 160, 3)
    reds = sheet[16 + 60, 80::160, 2]
    np.testing.assert_array_equal(reds, 10 * np.linspace(0, FRAMES - 1, 8).round())
    wrist = sheet[16 + 120 + 16 + 24, : 8 * 64]
    np.testing.assert_array_equal(wrist, np.broadcast_to([200, 0, 0], (8 * 64, 3)))
    assert len(notes) == 1 and 'no columns without a contract' in notes[0]


def test_the_curves_are_the_recorded_numbers(episode):
    signals, commands = episode_pictures._from_streams(episode, pytest.fail)
    at = np.arange(FRAMES) / 20
    position = next(c for c in signals if c.label == '/joint_states position')
    np.testing.assert_allclose(position.x, at, atol=1e-6)
    np.testing.assert_allclose(position.values, np.stack([at, -at], axis=1))
    panels = episode_pictures._by_name(commands)
    assert [panel[0].label for panel in panels] == ['a', 'b']
    assert [(c.names[0], c.style) for c in panels[0]] == [
        ('/policy/command', '-'),
        ('/command_guard/applied', '--'),
    ]
    for curves, offset in zip(panels[0], (0.5, 0.25), strict=True):
        np.testing.assert_allclose(curves.values[:, 0], at + offset)


def test_stored_rewards_are_drawn_and_a_damaged_one_is_told(episode, tmp_path):
    store = Store(episode.path.parent)
    times = tuple(START_NS + i * 10**8 for i in range(3))
    about = {'task': 'lab/wave', 'kind': 'sketch'}
    info = store.add_reward('e', [0, 0.5, 1], **about, author='anna', times_ns=times)
    bad = store.add_reward('e', [0, 1], **about, author='ben')
    (episode.path / 'rewards' / f'{bad.id}.npy').write_bytes(b'')
    notes = []
    (curves,) = episode_pictures._rewards(episode, {}, notes.append)
    np.testing.assert_allclose(curves.x, [0, 0.1, 0.2], atol=1e-6)
    np.testing.assert_array_equal(curves.values[:, 0], [0, 0.5, 1])
    assert (curves.names, curves.label) == ([info.id], 'sketch by anna for lab/wave')
    assert len(notes) == 1 and bad.id in notes[0]
    assert 'rewards.png' in [p.name for p in episode_pictures.draw(episode, tmp_path / 'out')]


def test_a_cut_recording_is_drawn_as_far_as_it_goes(episode, tmp_path):
    streams = episode.path / 'streams.mcap'
    streams.write_bytes(streams.read_bytes()[:-200])
    notes = []
    drawn = episode_pictures.draw(episode, tmp_path / 'out', notes.append)
    assert 'signals.png' in [path.name for path in drawn]
    assert any('cut off or damaged' in note for note in notes)
    assert all('\n' not in note for note in notes)


def test_show_tells_what_it_drew(episode, tmp_path, capsys):
    out = tmp_path / 'out'
    argv = ['show', 'e', '--store', str(episode.path.parent), '--out', str(out), '--json']
    assert main(['episodes', *argv]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data['drawn'] == [str(out / f'{n}.png') for n in ('signals', 'commands', 'pictures')]
    assert all(cv2.imread(path) is not None for path in data['drawn'])
    (tmp_path / 'file').write_text('')
    argv[-2] = str(tmp_path / 'file')
    assert main(['episodes', *argv]) == 2
    assert 'file: cannot be written' in capsys.readouterr().err


def test_a_folder_without_pictures_gets_no_sheet(tmp_path):
    with EpisodeWriter(tmp_path, EpisodeHeader(id='e')) as writer:
        path = writer.commit()
    notes = []
    assert episode_pictures.draw(EpisodeReader(path), tmp_path / 'out', notes.append) == []
