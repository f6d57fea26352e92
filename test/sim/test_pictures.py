import json
from types import SimpleNamespace

import cv2
import mujoco
import numpy as np
import pytest

from robot_rl import registry, resources
from robot_rl.cli import main as command_line
from robot_rl.control.clocks import VirtualClock
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.sim import rendering


@pytest.fixture(scope='module')
def renderer():
    try:
        renderer = rendering.Renderer(160, 120)
    except RobotRLError as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


def orange(picture):
    """Pixels of the target marker's colour."""
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return ((red > 180) & (green < 140) & (blue < 110)).sum()


def alike(one, other):
    """Software rendering in threads rounds a little differently every time."""
    return np.abs(one.astype(int) - other).max() < 20


def test_a_picture_shows_the_target_where_it_is(renderer, reach):
    environment = registry.make_environment('ur5e/reach', num_envs=2)
    environment.reset([1, 2])
    model, data = environment.scene(0)
    one = renderer.frame(model, data)
    other = renderer.frame(*environment.scene(1))
    assert one.shape == (120, 160, 3) and one.dtype == np.uint8
    assert orange(one) > 3 and orange(other) > 3
    assert (one != other).any()
    model, data = environment.scene(0)
    assert alike(renderer.frame(model, data), one)
    data.mocap_pos[:] = [0, 0, -5]
    assert orange(renderer.frame(*_forwarded(model, data))) == 0


def _forwarded(model, data):
    mujoco.mj_forward(model, data)
    return model, data


def test_one_renderer_draws_several_models_in_turn(renderer):
    pytest.importorskip('dm_control')
    arm = registry.make_environment('ur5e/reach')
    pole = registry.make_environment('suite/cartpole-swingup')
    arm.reset([0])
    pole.reset([0])
    before = renderer.frame(*arm.scene())
    assert (renderer.frame(*pole.scene()) != before).mean() > 0.5
    assert alike(renderer.frame(*arm.scene()), before)


def test_terrain_that_changes_between_episodes_is_drawn_anew(renderer):
    pytest.importorskip('dm_control')
    environment = registry.make_environment('suite/quadruped-escape')
    environment.reset([1])
    model, data = environment.scene()
    before = renderer.frame(model, data)
    model.hfield_data[:] = 0
    assert not alike(renderer.frame(model, data), before)


MARKERS = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0"/></visual>
  <worldbody>
    <body pos="0.1 -0.2 0.7" euler="100 20 30">
      <camera name="wide" fovy="75"/>
      <camera name="narrow" pos="0.05 0 0" fovy="40"/>
    </body>
    <camera name="lens" focal="0.02 0.02" sensorsize="0.01 0.01" resolution="64 64"/>
    <body name="marker" mocap="true"><geom type="sphere" size="0.012" rgba="0 1 0 1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize(('camera', 'fovy'), [('wide', 75), ('narrow', 40)])
@pytest.mark.parametrize(('width', 'height'), [(160, 120), (97, 131)])
def test_the_intrinsics_say_where_a_point_is_drawn(renderer, camera, fovy, width, height):
    """The middle of a small ball against K times where it is in the optical frame."""
    model = mujoco.MjModel.from_xml_string(MARKERS)
    data = mujoco.MjData(model)
    matrix = rendering.intrinsics(model, camera, width, height)
    assert matrix[1, 1] == pytest.approx(height / 2 / np.tan(np.radians(fovy / 2)))
    drawing = rendering.Renderer(width, height)
    mujoco.mj_forward(model, data)
    # x right, y down, z forward, in MuJoCo's x right, y up, z backward
    axes = data.camera(camera).xmat.reshape(3, 3) * [1, -1, -1]
    reach = np.array([width, height]) / 2 / matrix[0, 0] * 0.85
    for x, y in [(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1), (0.3, -0.6)]:
        seen = np.array([x * reach[0], y * reach[1], 1.0]) * 0.6
        data.mocap_pos[0] = data.camera(camera).xpos + axes @ seen
        picture = drawing.frame(*_forwarded(model, data), camera).astype(float)
        weight = picture[..., 1] * (picture[..., 0] < 128)
        rows, columns = np.mgrid[:height, :width]
        middle = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        np.testing.assert_allclose(middle, (matrix @ seen / seen[2])[:2], atol=0.25)
    drawing.close()


def test_fast_pictures_show_the_same_in_another_light(renderer):
    environment = registry.make_environment('ur5e/reach')
    environment.reset([1])
    model, data = environment.scene()
    fine = renderer.frame(model, data, 'overview').astype(int)
    drawing = rendering.Renderer(160, 120, fast=True)
    fast = drawing.frame(model, data, 'overview').astype(int)
    drawing.close()
    # And leave the model as it was: it can still be drawn well.
    drawing = rendering.Renderer(160, 120)
    np.testing.assert_array_equal(drawing.frame(model, data, 'overview'), fine)
    drawing.close()
    assert orange(fast) == pytest.approx(orange(fine), abs=6)
    differences = np.abs(fast - fine).max(axis=-1)
    # The lighting is another one, the arm stands where it stood.
    assert (differences > 15).mean() > 0.3 and (differences > 60).mean() < 0.05


def test_an_unknown_camera_or_lens_is_told(renderer):
    model = mujoco.MjModel.from_xml_string(MARKERS)
    told = r"no camera 'narow'; it has \['lens', 'wide', 'narrow'\]"
    with pytest.raises(SpecError, match=told):
        renderer.frame(model, mujoco.MjData(model), 'narow')
    with pytest.raises(SpecError, match="camera 'lens' of the model needs fovy"):
        rendering.intrinsics(model, 'lens', 64, 64)


def test_missing_opengl_is_one_clear_line(monkeypatch):
    import mujoco.egl

    def broken(*_):
        raise ImportError('Cannot initialize\na EGL device display')

    monkeypatch.setattr(mujoco.egl, 'GLContext', broken)
    with pytest.raises(RobotRLError, match='apt install libegl1') as caught:
        rendering.Renderer()
    assert '\n' not in str(caught.value)


def test_play_writes_a_film_that_can_be_read(renderer, tmp_path, capsys):
    out = tmp_path / 'films' / 'reach.mp4'
    words = ['play', '--policy', 'random', '--task', 'ur5e/reach', '--out', str(out), '--json']
    assert command_line.main([*words, '--width', '160', '--height', '120']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer['task'] == 'ur5e/reach' and len(answer['returns']) == 1
    film = cv2.VideoCapture(str(out))
    frames = []
    while (read := film.read())[0]:
        frames.append(read[1])
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    assert len(frames) == 61 and frames[0].shape == (120, 160, 3)
    assert (frames[0] != frames[-1]).any()
    # Blue caps on a grey arm: the channels are in the right order.
    blue, _, red = frames[0][..., 0], frames[0][..., 1], frames[0][..., 2]
    assert (blue.astype(int) - red > 60).sum() > 20


def test_play_writes_a_gif_of_an_arm_seen_by_cameras(renderer, tmp_path, capsys):
    pil = pytest.importorskip('PIL.Image')
    if not hasattr(cv2, 'Animation'):
        pytest.skip('OpenCV older than 4.11')
    out = tmp_path / 'films' / 'lift.gif'
    words = ['play', '--policy', 'scripted', '--task', 'ur5e/reach_vision', '--out', str(out)]
    assert command_line.main([*words, '--width', '160', '--height', '120']) == 0
    with pil.open(out) as film:
        assert (film.size, film.n_frames) == ((160, 120), 61)
        first = np.asarray(film.convert('RGB')).astype(int)
        assert film.info['duration'] == 50 and film.info['loop'] == 0
    assert (first[..., 2] - first[..., 0] > 60).sum() > 20  # blue caps


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--policy', 'random'], 'name one'),
        (['--policy', 'random', '--task', 'ur5e/reach'], 'there is no display'),
        (['--policy', 'random', '--task', 'ur5e/rech'], "did you mean 'ur5e/reach'"),
        (['--policy', 'lost.onnx', '--task', 'ur5e/reach'], 'lost.onnx: cannot be read'),
        (['--policy', 'random', '--task', 'ur5e/reach', '--out', 'a.avi'], 'an .mp4 or .gif file'),
        (['--policy', 'random', '--task', 'ur5e/reach', '--out', '/proc/x/a.mp4'], 'be written'),
    ],
)
def test_play_says_what_is_wrong(renderer, words, message, capsys, monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    assert command_line.main(['play', *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count('\n') == 0


def test_a_display_that_opens_no_window_is_one_line(capsys, monkeypatch):
    """MuJoCo's viewer waits for ever there."""
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    monkeypatch.setenv('DISPLAY', ':77')
    assert command_line.main(['play', '--policy', 'scripted', '--task', 'ur5e/reach']) == 2
    error = capsys.readouterr().err.strip()
    assert "display ':77' opens no window; name a file" in error and error.count('\n') == 0


def test_tasks_lists_every_name(capsys):
    pytest.importorskip('dm_control')
    assert command_line.main(['tasks', '--json']) == 0
    families = json.loads(capsys.readouterr().out)['tasks']
    files = resources.names('config/tasks')
    assert families['arm'] == sorted(name.replace('_', '/') for name in files)
    assert 'suite/cartpole-swingup' in families['suite'] and len(families['suite']) == 51
    assert 'manipulation/reach_site_features' in families['manipulation']
    assert command_line.main(['tasks']) == 0
    printed = capsys.readouterr().out.split()
    assert {name for names in families.values() for name in names} <= set(printed)


def test_play_shows_a_window_in_real_time_and_ends_when_it_is_closed(monkeypatch, capsys):
    import mujoco.viewer

    shown, clock = [], VirtualClock()

    class Window:
        def __init__(self, model, data):
            self.data = data

        def is_running(self):
            return len(shown) < 30

        def sync(self):
            shown.append(self.data.qpos.copy())

        def close(self):
            shown.append('closed')

    monkeypatch.setattr('robot_rl.cli.play._require_window', lambda: None)
    monkeypatch.setattr(mujoco.viewer, 'launch_passive', Window)
    time = SimpleNamespace(monotonic=clock.now, sleep=clock.advance)
    monkeypatch.setattr('robot_rl.cli.play.time', time)
    words = ['play', '--policy', 'random', '--task', 'ur5e/reach']
    assert command_line.main(words) == 130
    assert shown[-1] == 'closed' and len(shown) == 31
    assert np.abs(shown[29] - shown[0]).max() > 0
    assert clock.now() == pytest.approx(30 * 0.05)
