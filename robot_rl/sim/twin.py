"""The twin: one simulated arm behind joint commands, stepped by whoever keeps the time."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import ContractMismatch
from robot_rl.sim.reach import InitialCondition, ReachTask
from robot_rl.sim.scene import ArmIndex


class Twin:
    """One arm and its task's target, ROS-free; joints in the order of RobotSpec.joints.

    Give it a command, let time pass, read it. Its steps are those of ArmEnvironment, number for
    number.
    """

    def __init__(self, task: ReachTask):
        self.task = task
        self.model = task.model()
        self.data = mujoco.MjData(self.model)
        self._arm = ArmIndex.of(self.model, task.robot.model_joints)
        self._left_over = 0.0
        self.reset(0)

    def reset(self, seed: int) -> InitialCondition:
        """Place arm and target as this seed's episode starts, at rest and at time 0."""
        start = self.task.initial(seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._arm.qpos] = start.joint_position
        self.data.ctrl[self._arm.ctrl] = start.joint_position
        self.data.mocap_pos[self._arm.marker] = start.target
        mujoco.mj_forward(self.model, self.data)
        self._left_over = 0.0
        return start

    def set_command(self, positions: ArrayLike) -> None:
        """Let the servos hold these joint positions [n] [rad] from now on.

        Raises ContractMismatch for another number of positions or a value that is not finite.
        """
        positions = np.asarray(positions, dtype=float)
        if positions.shape != (len(self.task.robot.joints),) or not np.isfinite(positions).all():
            raise ContractMismatch(
                f'the twin of {self.task.robot.name} takes {len(self.task.robot.joints)} finite '
                f'joint positions, found {positions.tolist()}'
            )
        self.data.ctrl[self._arm.ctrl] = positions

    def advance(self, seconds: float) -> None:
        """Let time pass in whole physics steps; what is left over waits for the next call."""
        self._left_over += seconds
        steps = int(self._left_over / self.model.opt.timestep + 1e-6)
        if steps > 0:
            mujoco.mj_step(self.model, self.data, steps)
            self._left_over -= steps * self.model.opt.timestep

    @property
    def time(self) -> float:
        """Simulated seconds since the reset."""
        return self.data.time

    @property
    def state(self) -> np.ndarray:
        """What a picture needs: time, qpos, qvel, mocap_pos, mocap_quat, one after the other."""
        data = self.data
        parts = (data.qpos, data.qvel, data.mocap_pos.ravel(), data.mocap_quat.ravel())
        return np.concatenate([[data.time], *parts])

    @property
    def joint_position(self) -> np.ndarray:
        """Measured joint positions [n] [rad]."""
        return self.data.qpos[self._arm.qpos]

    @property
    def joint_velocity(self) -> np.ndarray:
        """Measured joint velocities [n] [rad/s]."""
        return self.data.qvel[self._arm.qvel]

    @property
    def command(self) -> np.ndarray:
        """The joint positions [n] [rad] that the servos hold."""
        return self.data.ctrl[self._arm.ctrl]

    @property
    def target_position(self) -> np.ndarray:
        """The target [3] [m] in base_frame."""
        return self.data.mocap_pos[self._arm.marker].copy()

    @property
    def target_orientation(self) -> np.ndarray:
        """The target's orientation [4], wxyz."""
        return self.data.mocap_quat[self._arm.marker].copy()
