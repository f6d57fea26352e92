import os
import subprocess
import sys
from ctypes.util import find_library

import mujoco
import numpy as np
import pytest

from robot_rl import registry
from robot_rl.control.observation import with_history
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.sim.cameras import view_of
from robot_rl.sim.rendering import Renderer

pytest.importorskip('dm_control')
SMALL = {'fixed': (32, 32)}


@pytest.fixture(scope='module')
def renderer():
    try:
        renderer = Renderer(64, 48, fast=True)
    except RobotRLError as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


def test_each_environments_picture_is_its_scene_drawn(renderer):
    """By a renderer of another size, that loads each model anew; a camera has its own size."""
    cameras = {'fixed': (48, 64), 'lookatcart': (20, 30)}
    environment = registry.make_environment('suite/cartpole-swingup', 3, cameras=cameras)
    fields = {field.name: field for field in environment.contract.observation}
    assert (fields['fixed'].shape, fields['fixed'].encoding) == ((48, 64, 3), 'rgb8')
    assert fields['lookatcart'].source == 'lookatcart.image' and fields['fixed'].is_picture
    environment.reset([1, 2, 3])
    for _ in range(3):
        step = environment.step(np.ones((3, 1)))
    assert step.observation['lookatcart'].shape == (3, 20, 30, 3)
    for index in range(3):
        picture = renderer.frame(*environment.scene(index), 'fixed')
        np.testing.assert_array_equal(step.observation['fixed'][index], picture)
    assert (step.observation['fixed'][0] != step.observation['fixed'][1]).any()
    environment.close()


def test_a_marker_is_in_a_corner_of_every_picture_and_nowhere_else(renderer):
    """The state goes on as without it; the corner is a quarter as high as the picture."""
    view = {'cameras': {'fixed': (32, 48), 'lookatcart': (20, 20)}}
    marked = registry.make_environment('suite/cartpole-swingup', 2, marker=(255, 0, 7), **view)
    plain = registry.make_environment('suite/cartpole-swingup', 2, **view)
    marked.reset([3, 4]), plain.reset([3, 4])
    for name, side in (('fixed', 8), ('lookatcart', 5)):
        seen, expected = (e.step(np.ones((2, 1))).observation for e in (marked, plain))
        np.testing.assert_array_equal(seen['position'], expected['position'])
        assert (expected[name][:, :side, :side] != (255, 0, 7)).any()
        expected[name][:, :side, :side] = (255, 0, 7)
        np.testing.assert_array_equal(seen[name], expected[name])
    for environment in (marked, plain):
        environment.close()
    with pytest.raises(SpecError, match=r'marker: nothing is drawn; cameras=.* is right'):
        registry.make_environment('suite/cartpole-swingup', marker=(255, 0, 7))


def test_overview_is_the_first_camera_where_none_is_called_so(renderer):
    cameras = {'overview': (32, 32), 'side': (32, 32), 'back': (32, 32)}
    environment = registry.make_environment('suite/walker-walk', cameras=cameras)
    seen = environment.reset([0]).observation
    np.testing.assert_array_equal(seen['overview'], seen['side'])
    assert (seen['overview'] != seen['back']).mean() > 0.2
    environment.close()


def test_pictures_of_workers_are_those_of_one_process(renderer):
    """With a history, which is each environment's own, through the end of an episode."""
    view = {'cameras': {'overview': (32, 32)}, 'history': {'overview': 3, 'orientation': 2}}
    alone = registry.make_environment('suite/pendulum-swingup', 2, seed=5, **view)
    shared = registry.make_environment('suite/pendulum-swingup', 2, seed=5, workers=2, **view)
    assert alone.contract == shared.contract
    steps = [(alone.reset(), shared.reset())]
    for environment in (alone, shared):
        environment.take(np.zeros((2, 1)), np.array([4, 9]))
    action = np.random.default_rng(0).uniform(-1, 1, (12, 2, 1))
    steps += [(alone.step(a), shared.step(a)) for a in action]
    for one, other in steps:
        assert other.observation['overview'].shape == (2, 3, 32, 32, 3)
        assert other.observation['orientation'].shape == (2, 2, 2)
        for name, values in one.observation.items():
            assert values.dtype == other.observation[name].dtype
            np.testing.assert_array_equal(values, other.observation[name])
    shared.close()
    alone.close()


def test_a_history_begins_anew_with_each_episode():
    """Against control.observation.with_history on the same episode without one."""
    plain = registry.make_environment('gym/Pendulum-v1', 2, seed=3)
    stacked = registry.make_environment('gym/Pendulum-v1', 2, seed=3, history={'observation': 4})
    one, other, action = [plain.reset()], [stacked.reset()], np.full((2, 1), 0.5)
    for _ in range(210):
        one.append(plain.step(action))
        other.append(stacked.step(action))
    begins = [i for i, step in enumerate(one) if step.step_type[0] == 0]
    assert begins == [0, 201]
    for first, last in ((0, 201), (201, 211)):
        episode = np.stack([step.observation['observation'][1] for step in one[first:last]])
        expected = with_history(stacked.contract, {'observation': episode})['observation']
        found = [step.observation['observation'][1] for step in other[first:last]]
        np.testing.assert_array_equal(np.stack(found), expected)


def test_vision_tasks_show_pictures_by_the_same_names(renderer):
    names = registry.task_names()['manipulation']
    vision = [name for name in names if name.endswith('_vision')]
    assert len(vision) == 12 and 'manipulation/lift_brick_vision' in vision
    environment = registry.make_environment('manipulation/reach_duplo_vision')
    fields = {field.name: field for field in environment.contract.observation}
    assert fields['front_close'].shape == (84, 84, 3) and fields['front_close'].is_picture
    assert not any('duplo' in name for name in fields)  # where it is, the picture says
    first, again = environment.reset([3]), environment.reset([3])
    np.testing.assert_array_equal(
        first.observation['front_close'], again.observation['front_close']
    )
    environment.close()
    small = registry.make_environment(
        'manipulation/reach_duplo_vision', cameras={'front_close': (32, 32)}
    )
    assert small.reset([3]).observation['front_close'].shape == (1, 32, 32, 3)
    small.close()


OWN = """
import os
os.environ['MUJOCO_GL'] = 'egl'
import numpy as np
from dm_control import manipulation
env = manipulation.load('reach_site_vision', seed=0)
env.random_state.seed(11)
np.save('own.npy', env.reset().observation['front_close'])
"""


@pytest.mark.slow
def test_a_vision_task_shows_what_dm_control_draws(renderer, tmp_path):
    """But for shadows and smoothed edges: the same camera, upright, red first."""
    subprocess.run([sys.executable, '-c', OWN], cwd=tmp_path, check=True)
    own = np.load(tmp_path / 'own.npy').reshape(84, 84, 3).astype(int)
    environment = registry.make_environment('manipulation/reach_site_vision')
    found = environment.reset([11]).observation['front_close'][0].astype(int)
    environment.close()

    def away(picture):
        return np.abs(picture - own).mean()

    assert away(found) < 0.5 * min(away(found[::-1]), away(found[:, ::-1]), away(found[..., ::-1]))


@pytest.mark.parametrize('workers', [0, 2])
def test_wrong_cameras_and_histories_are_one_clear_line(renderer, workers):
    def make(task, **view):
        registry.make_environment(task, 2, workers=workers, **view)

    with pytest.raises(SpecError, match=r"no camera 'fixd'; it has \['fixed', 'lookatcart'\]"):
        make('suite/cartpole-balance', cameras={'fixd': (32, 32)})
    with pytest.raises(SpecError, match=r"history: no observation field 'fixd'.*'fixed'"):
        make('suite/cartpole-balance', cameras=SMALL, history={'fixd': 3})
    with pytest.raises(RobotRLError, match='not built on MuJoCo'):
        make('gym/Pendulum-v1', cameras=SMALL)
    with pytest.raises(SpecError, match=r"camera 'a/b'.*source"):
        make('suite/cartpole-balance', cameras={'a/b': (32, 32)})


MISSING = """
import sys
from robot_rl import registry
from robot_rl.errors import RobotRLError
try:
    view = {'workers': int(sys.argv[1]), 'cameras': {'fixed': (32, 32)}}
    registry.make_environment('suite/cartpole-balance', 2, **view)
except RobotRLError as error:
    print(error)
"""


DRAWN = """
import sys
import numpy as np
from robot_rl import registry
environment = registry.make_environment('suite/cartpole-balance', cameras={'fixed': (64, 64)})
np.save(sys.argv[1], environment.reset([3]).observation['fixed'])
environment.close()
"""


@pytest.mark.skipif(not find_library('OSMesa'), reason='no OSMesa here: apt install libosmesa6')
def test_osmesa_draws_what_egl_draws(renderer, tmp_path):
    pictures = {}
    for backend in ('egl', 'osmesa'):
        file = tmp_path / f'{backend}.npy'
        environ = {key: value for key, value in os.environ.items() if 'GL' not in key}
        command = [sys.executable, '-c', DRAWN, str(file)]
        subprocess.run(command, env=environ | {'MUJOCO_GL': backend}, check=True)
        pictures[backend] = np.load(file).astype(int)
    assert np.ptp(pictures['egl']) > 100
    assert np.abs(pictures['osmesa'] - pictures['egl']).mean() < 1


WITHOUT_EGL = """
import ctypes.util, sys
ctypes.util.find_library = lambda name: 'libOSMesa.so' if name == 'OSMesa' else None
sys.modules['OpenGL.osmesa'] = None
"""


@pytest.mark.parametrize(
    ('workers', 'before', 'backend'), [(0, '', 'egl'), (2, '', 'egl'), (0, WITHOUT_EGL, 'osmesa')]
)
def test_where_neither_egl_nor_osmesa_works_there_is_one_clear_line(workers, before, backend):
    """No such GPU for EGL; and PyOpenGL has no OSMesa."""
    environ = {key: value for key, value in os.environ.items() if 'GL' not in key}
    done = subprocess.run(
        [sys.executable, '-c', before + MISSING, str(workers)],
        env=environ | {'MUJOCO_EGL_DEVICE_ID': '99'},
        capture_output=True,
        text=True,
    )
    (line,) = done.stdout.splitlines()
    assert f'EGL or OSMesa, and {backend} does not work here' in line
    assert 'apt install libegl1' in line and 'Traceback' not in done.stderr


def test_a_renderer_keeps_as_many_models_as_it_is_told(renderer):
    scenes = []
    for red in (0.0, 0.5, 1.0):
        model = mujoco.MjModel.from_xml_string(
            '<mujoco><visual><headlight ambient="1 1 1"/></visual><worldbody>'
            f'<geom type="sphere" size="1" rgba="{red} 0 0 1"/></worldbody></mujoco>'
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        scenes.append((model, data))
    expected = [renderer.frame(*scene) for scene in scenes]
    drawing = Renderer(64, 48, fast=True, models=2)
    for index in (0, 1, 0, 2, 1, 1, 2, 0):
        np.testing.assert_array_equal(drawing.frame(*scenes[index]), expected[index])
        assert len(drawing._loaded) <= 2
    drawing.close()


def test_a_contract_tells_the_view_that_serves_it():
    view = {'cameras': {'fixed': (32, 40)}, 'history': {'fixed': 3, 'velocity': 2}}
    view |= {'rate_hz': 25.0}
    environment = registry.make_environment('suite/cartpole-balance', **view)
    assert view_of('suite/cartpole-balance', environment.contract) == view
    environment.close()
