"""What perturbs an episode on the twin: what, by how much, when; and nothing else."""

from __future__ import annotations

import re

import mujoco
import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import SpecError
from robot_rl.sim.perturbation import perturbed
from robot_rl.sim.twin import AtHome, Twin
from robot_rl.specs import RobotSpec

STEP_S = 0.002


def run(task, kind, seed, seconds, piece_s=0.01, begin=True):
    """Let an arm stand through an episode; return qpos and mocap_pos, piece by piece."""
    twin = Twin(registry.make_task(task), kind)
    twin.reset(seed)
    if begin:
        twin.begin()
    rows = []
    for _ in range(round(seconds / piece_s)):
        twin.advance(piece_s)
        rows.append(np.concatenate([twin.data.qpos, twin.data.mocap_pos.ravel()]))
    return np.array(rows), twin


def test_a_target_is_led_to_another_place_and_stays_there():
    rows, twin = run('ur5e/reach', 'target', 7, 3.0)
    task = registry.make_task('ur5e/reach')
    targets = rows[:, -3:]
    moved = np.linalg.norm(np.diff(targets, axis=0), axis=1) > 1e-9
    first, last = np.flatnonzero(moved)[[0, -1]]
    assert 0.2 * 3.0 - 0.02 <= first * 0.01 <= 0.5 * 3.0 + 0.01
    assert (last - first) * 0.01 == pytest.approx(0.5, abs=0.03) and moved[first : last + 1].all()
    np.testing.assert_allclose(targets[0], task.initial(7).target)
    box = task.config.target
    assert (targets[-1] >= box.lower).all() and (targets[-1] <= box.upper).all()
    # On a straight line at one speed.
    way = targets[first + 2 : last - 1] - targets[0]
    shares = way @ (targets[-1] - targets[0]) / np.sum((targets[-1] - targets[0]) ** 2)
    np.testing.assert_allclose(np.diff(shares), 0.01 / 0.5, rtol=1e-6)
    np.testing.assert_allclose(way, shares[:, None] * (targets[-1] - targets[0]), atol=1e-12)
    # Nothing else changes.
    still, _ = run('ur5e/reach', 'none', 7, 3.0)
    np.testing.assert_array_equal(rows[:, :-3], still[:, :-3])
    assert not twin.domain.camera_shift


def test_a_swaying_target_sways_on_about_its_new_place():
    rows, _ = run('ur5e/match', 'target', 3, 6.0)
    still, _ = run('ur5e/match', 'none', 3, 6.0)
    apart = rows[:, -3:] - still[:, -3:]
    np.testing.assert_allclose(apart[:100], 0.0, atol=1e-12)
    np.testing.assert_allclose(apart[-200:], np.broadcast_to(apart[-1], (200, 3)), atol=1e-9)
    assert np.linalg.norm(apart[-1]) > 0.01


def test_a_knock_gives_one_object_a_speed_at_once():
    """A step's change of speed, beyond what the same step makes of the state before it."""
    task, found = registry.make_task('ur5e/lift'), []
    for seed in range(12):
        twin = Twin(task, 'knock')
        twin.reset(seed)
        twin.begin()
        dofs = twin.model.body('cube').dofadr[0] + np.arange(3)
        for step in range(round(task.config.duration_s / STEP_S)):
            before = twin.data.qvel[dofs].copy()
            twin.advance(STEP_S)
            change = twin.data.qvel[dofs] - before
            if np.linalg.norm(change[:2]) > 0.2:
                found.append((step * STEP_S / task.config.duration_s, *change))
                break
    when, x, y, z = np.array(found).T
    assert len(found) == 12 and (when >= 0.19).all() and (when <= 0.51).all()
    # Friction takes some of it within the first step.
    speed = np.hypot(x, y)
    assert (speed > 0.25).all() and (speed < 0.82).all() and np.abs(z).max() < 0.1
    angles = np.arctan2(y, x)
    assert np.ptp(when) > 0.1 and np.ptp(speed) > 0.1 and np.ptp(angles) > 2.0


def test_until_the_knock_and_in_all_but_the_object_an_episode_is_as_without_it():
    rows, twin = run('ur5e/stack', 'knock', 5, 6.0)
    still, _ = run('ur5e/stack', 'none', 5, 6.0)
    differs = np.abs(rows - still) > 1e-9
    first = np.flatnonzero(differs.any(axis=1))[0]
    duration_s = registry.make_task('ur5e/stack').config.duration_s
    assert 0.2 * duration_s - 0.02 <= first * 0.01 <= 0.5 * duration_s
    addresses = {twin.model.body(name).jntadr[0]: name for name in ('green', 'red')}
    moved = [
        name
        for joint, name in addresses.items()
        if differs[:, twin.model.jnt_qposadr[joint] : twin.model.jnt_qposadr[joint] + 3].any()
    ]
    assert len(moved) == 1
    first = twin.model.jnt_qposadr[twin.model.body(moved[0]).jntadr[0]]
    assert np.linalg.norm((rows - still)[-1, first : first + 2]) > 0.005


@pytest.mark.parametrize(('task', 'kind'), [('ur5e/reach', 'target'), ('ur5e/lift', 'knock')])
def test_the_same_seed_is_the_same_however_time_passes(task, kind):
    one, _ = run(task, kind, 4, 3.0, piece_s=0.01)
    again, _ = run(task, kind, 4, 3.0, piece_s=0.05)
    np.testing.assert_array_equal(one[4::5], again)
    other, _ = run(task, kind, 5, 3.0)
    assert np.abs(one[-1] - other[-1]).max() > 1e-3


@pytest.mark.parametrize(('task', 'kind'), [('ur5e/reach', 'target'), ('ur5e/lift', 'knock')])
def test_nothing_comes_before_the_episode_begins(task, kind):
    rows, _ = run(task, kind, 4, 3.0, begin=False)
    still, _ = run(task, 'none', 4, 3.0, begin=False)
    np.testing.assert_array_equal(rows, still)


def test_cameras_are_shifted_and_turned_and_the_physics_is_the_same():
    task, shifts, turns = registry.make_task('ur5e/lift'), [], []
    plain = task.model()
    for seed in range(8):
        twin = Twin(task, 'camera')
        twin.reset(seed)
        shifts += np.linalg.norm(twin.model.cam_pos - plain.cam_pos, axis=1).tolist()
        for own, turned in zip(plain.cam_quat, twin.model.cam_quat, strict=True):
            turns.append(2 * np.arccos(min(1.0, abs(own @ turned))))
    assert min(shifts) > 0.0199 and max(shifts) < 0.0501 and np.ptp(shifts) > 0.005
    assert min(turns) > 0.0199 and max(turns) < 0.0601 and np.ptp(turns) > 0.005
    rows, twin = run('ur5e/lift', 'camera', 7, 1.0)
    still, nominal = run('ur5e/lift', 'none', 7, 1.0)
    np.testing.assert_allclose(rows, still, atol=1e-9)
    data = mujoco.MjData(nominal.model)
    mujoco.mj_forward(nominal.model, data)
    np.testing.assert_array_equal(twin.model.geom_rgba, nominal.model.geom_rgba)
    np.testing.assert_allclose(twin.model.light_dir, nominal.model.light_dir, atol=1e-12)


@pytest.mark.parametrize(
    ('task', 'kind', 'told'),
    [
        ('ur5e/reach', 'knock', 'ur5e/reach has no object; it can be perturbed by target, camera'),
        ('ur5e/lift', 'target', 'ur5e/lift has no goal; it can be perturbed by knock, camera'),
    ],
)
def test_what_a_scene_does_not_have_is_not_perturbed(task, kind, told):
    with pytest.raises(SpecError, match=re.escape(told)):
        perturbed(registry.make_task(task), kind)


def test_an_arm_without_a_task_has_nothing_to_perturb():
    with pytest.raises(SpecError, match='perturbation target: ur5e alone has nothing'):
        Twin(AtHome(RobotSpec.load('ur5e')), 'target')
