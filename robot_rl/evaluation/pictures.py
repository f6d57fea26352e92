"""Pictures of a recorded episode: drawn by MuJoCo, or as lines where there is no OpenGL."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.sim.rendering import Renderer
from robot_rl.sim.scene import ArmIndex, Bodies, Jaw
from robot_rl.sim.task import WIDTH, ArmTask

_SIZE = 480, 360


class EpisodePictures:
    """Draws rows of columns of a task: where the arm, its gripper and the bodies were."""

    def __init__(self, task: ArmTask, size: tuple[int, int] = _SIZE):
        self._task, self._model = task, task.model()
        self._data = mujoco.MjData(self._model)
        self._arm = ArmIndex.of(self._model, task.robot.model_joints)
        self._jaw = Jaw.of(self._model, task.robot)
        self._bodies = Bodies.of(self._model, (*task.objects, *task.goals))
        self._draw = _drawing(size)

    def of(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return {caption: RGB uint8 [H, W, 3]} of an episode's start, first second and end."""
        rows = {0: 'start', round(self._task.config.rate_hz): 'after 1 s', -1: 'end'}
        known = len(columns['time'])
        return {text: self._row(columns, row) for row, text in rows.items() if row < known}

    def _row(self, columns: Mapping[str, np.ndarray], row: int) -> np.ndarray:
        task, data = self._task, self._data
        data.qpos[self._arm.qpos] = columns['joint_states.position'][row]
        if self._jaw is not None and WIDTH in columns:
            data.qpos[self._jaw.qpos] = task.robot.gripper.position(columns[WIDTH][row])
        for stream in (*task.objects, *task.goals):
            pose = columns[f'{stream}.position'][row], columns[f'{stream}.orientation'][row]
            self._bodies.place(data, {stream: pose})
        mujoco.mj_forward(self._model, data)
        return self._draw(self._model, data)


def _drawing(size: tuple[int, int]):
    """Return what draws a state: MuJoCo, or matplotlib where there is no OpenGL."""
    try:
        return Renderer(*size).frame
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
