"""Arm tasks from cameras: what is shown, that it is the scene, and that nothing else is told."""

import os
import subprocess
import sys

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import ContractMismatch, SpecError

pytestmark = pytest.mark.usefixtures('offscreen')

NAMES = registry.arm_task_names()
SMALL = {'overview': (32, 32)}


@pytest.mark.parametrize('name', NAMES)
def test_from_cameras_no_pose_is_told(name):
    task, seen = registry.make_task(name), registry.make_task(f'{name}_vision')
    assert seen.name == f'{name}_vision' and seen.robot == task.robot
    contract = seen.contract()
    assert contract.action == task.contract().action
    told = {field.stream for field in contract.observation if not field.is_picture}
    assert told <= {'joint_states', 'command', 'tool', 'gripper'}
    pictures = [field for field in contract.observation if field.is_picture]
    assert [field.shape for field in pictures] == [(84, 84, 3)]
    assert pictures[0].source == f'{next(iter(task.config.cameras))}.image'


def test_poses_beside_pictures_are_there_for_who_asks(tmp_path):
    config = registry.make_task('ur5e/lift').config.replace(sees='both', cameras=SMALL)
    (tmp_path / 'lift.yaml').write_text(config.to_yaml())
    environment = registry.make_environment(str(tmp_path / 'lift.yaml'), history={'overview': 2})
    seen = environment.reset([1]).observation
    assert seen['cube_position'].shape == (1, 3) and seen['overview'].shape == (1, 2, 32, 32, 3)
    environment.close()


# MuJoCo's own renderer, without shadows and smoothed edges, on states from a file.
OWN = """
import sys
import mujoco
import numpy as np
from robot_rl import registry
task, states = registry.make_task(sys.argv[1]), np.load('states.npz')
model = task.model()
model.vis.quality.offsamples = 0
data, pictures = mujoco.MjData(model), []
with mujoco.Renderer(model, *states['size']) as renderer:
    for qpos, place, way in zip(states['qpos'], states['mocap_pos'], states['mocap_quat']):
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = qpos, place, way
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, sys.argv[2])
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        pictures.append(renderer.render())
np.save('pictures.npy', pictures)
"""


@pytest.mark.parametrize(
    ('name', 'camera'), [('ur5e/match', 'overview'), ('ur5e/insert', 'front')]
)
def test_pictures_are_what_mujoco_draws_of_the_same_state(name, camera, tmp_path):
    """Bit by bit, of two arms, with a goal that moves and a fixture that is put."""
    size = (48, 64)
    environment = registry.make_environment(name, 2, cameras={camera: size})
    environment.reset([4, 5])
    action = np.random.default_rng(0).uniform(-1, 1, (2, environment.contract.action_size))
    for _ in range(12):
        step = environment.step(action)
    states = {key: [] for key in ('qpos', 'mocap_pos', 'mocap_quat')}
    for index in range(2):
        _, data = environment.scene(index)
        for key, rows in states.items():
            rows.append(getattr(data, key).copy())
    environment.close()
    np.savez(tmp_path / 'states.npz', size=size, **states)
    environ = os.environ | {'MUJOCO_GL': 'egl'}
    words = [sys.executable, '-c', OWN, name, camera]
    subprocess.run(words, cwd=tmp_path, env=environ, check=True)
    pictures = np.load(tmp_path / 'pictures.npy')
    np.testing.assert_array_equal(step.observation[camera], pictures)
    assert (pictures[0] != pictures[1]).any()


def test_pictures_and_columns_of_workers_are_those_of_one_process():
    view = {'cameras': SMALL, 'history': {'overview': 3}}
    alone = registry.make_environment('ur5e/reach', 3, seed=5, **view)
    shared = registry.make_environment('ur5e/reach', 3, seed=5, workers=2, **view)
    assert alone.contract == shared.contract and shared.max_steps == 60
    steps = [(alone.reset(), shared.reset())]
    action = np.random.default_rng(0).uniform(-0.1, 0.1, (65, 3, 6))
    for a in action:
        steps.append((alone.step(a), shared.step(a)))
        for name, values in alone.columns.items():
            np.testing.assert_array_equal(values, shared.columns[name])
    assert [int(one.step_type[0]) for one, _ in steps[60:62]] == [2, 0]
    for one, other in steps:
        assert other.observation['overview'].shape == (3, 3, 32, 32, 3)
        for part in ('step_type', 'reward', 'discount'):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
        for name, values in one.observation.items():
            assert values.dtype == other.observation[name].dtype
            np.testing.assert_array_equal(values, other.observation[name])
    shared.close()
    alone.close()


def test_a_robot_s_camera_goes_by_its_own_name(tmp_path):
    """As the twin's does: the robot's file says what it is called in the model."""
    task = registry.make_task('ur5e/lift')
    wrist = {'name': 'scene', 'mjcf': 'front', 'width': 640, 'height': 480}
    (tmp_path / 'arm.yaml').write_text(task.robot.replace(cameras=[wrist]).to_yaml())
    config = task.config.replace(
        robot=str(tmp_path / 'arm.yaml'), sees='pictures', cameras={'scene': (32, 32)}
    )
    (tmp_path / 'lift.yaml').write_text(config.to_yaml())
    found = registry.make_environment(str(tmp_path / 'lift.yaml'))
    right = registry.make_environment('ur5e/lift', cameras={'front': (32, 32)})
    np.testing.assert_array_equal(
        found.reset([2]).observation['scene'], right.reset([2]).observation['front']
    )
    found.close()
    right.close()


@pytest.mark.parametrize('workers', [0, 2])
def test_wrong_cameras_are_one_clear_line(workers):
    with pytest.raises(ContractMismatch, match=r"no stream 'fornt' \(available: .*front"):
        registry.make_environment('ur5e/lift', 2, workers=workers, cameras={'fornt': (32, 32)})
    with pytest.raises(SpecError, match=r"history: no observation field 'fornt'.*'front'"):
        registry.make_environment('ur5e/lift_vision', 2, workers=workers, history={'fornt': 2})
    with pytest.raises(SpecError, match='sees'):
        registry.make_task('ur5e/lift').seeing('picture')


MISSING = """
import sys
from robot_rl.cli import main
sys.exit(main.main(['play', '--policy', 'random', '--task', 'ur5e/lift_vision', '--out', 'x.mp4']))
"""


def test_where_nothing_can_draw_there_is_one_clear_line(tmp_path):
    environ = {key: value for key, value in os.environ.items() if 'GL' not in key}
    done = subprocess.run(
        [sys.executable, '-c', MISSING],
        cwd=tmp_path,
        env=environ | {'MUJOCO_EGL_DEVICE_ID': '99'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert 'EGL or OSMesa, and egl does not work here' in line
