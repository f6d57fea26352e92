"""Pictures of a recorded episode: drawn by MuJoCo, or as lines where there is no OpenGL."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.sim.rendering import Renderer
from robot_rl.sim.scene import ArmIndex, Bodies
from robot_rl.sim.task import ArmTask

_SIZE = 480, 360


def episode_pictures(task: ArmTask, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {caption: RGB uint8 [H, W, 3]} of an episode's start, first second and end."""
    model = task.model()
    data, arm = mujoco.MjData(model), ArmIndex.of(model, task.robot.model_joints)
    bodies = Bodies.of(model, (*task.objects, *task.goals))
    rows = {0: 'start', round(task.config.rate_hz): 'after 1 s', -1: 'end'}
    draw = _drawing()
    pictures = {}
    for row, caption in rows.items():
        data.qpos[arm.qpos] = columns['joint_states.position'][row]
        for stream in (*task.objects, *task.goals):
            pose = columns[f'{stream}.position'][row], columns[f'{stream}.orientation'][row]
            bodies.place(data, {stream: pose})
        mujoco.mj_forward(model, data)
        pictures[caption] = draw(model, data)
    return pictures


def _drawing():
    """Return what draws a state: MuJoCo, or matplotlib where there is no OpenGL."""
    try:
        return Renderer(*_SIZE).frame
    except RobotRLError:
        return _draw_lines


def _draw_lines(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Draw the arm as a line through its bodies, and mocap bodies as points."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(_SIZE[0] / 100, _SIZE[1] / 100), dpi=100)
    axes = figure.add_subplot(projection='3d')
    jointed = [body for body in range(model.nbody) if model.body_jntnum[body] > 0]
    axes.plot(*data.xpos[jointed].T, 'o-', linewidth=4, color='#4a5a6a')
    axes.plot(*data.mocap_pos.T, 'o', markersize=10, color='#c8372d')
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(0, 1.2))
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return picture
