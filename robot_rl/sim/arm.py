"""N simulated arms, stepped together on all cores, behind the batched environment interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Self

import mujoco
import mujoco.rollout
import numpy as np

from robot_rl.control.actions import gripper_width, joint_target, require_supported
from robot_rl.control.limiter import Limits, limit
from robot_rl.control.motion import AccelerationLimited, Line
from robot_rl.control.observation import History, Observer
from robot_rl.errors import ContractMismatch
from robot_rl.sim.cameras import Cameras, camera_names
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.sim.randomisation import Domain
from robot_rl.sim.scene import ArmIndex, Bodies, Jaw
from robot_rl.sim.serial import GO_ON, SeededEnvironment
from robot_rl.sim.task import ArmTask, InitialCondition, Pose, Sway
from robot_rl.sim.worlds import Worlds
from robot_rl.specs import Contract, require_fit

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
_CONTROL = mujoco.mjtState.mjSTATE_CTRL
_MOCAP = mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT


class ArmEnvironment(SeededEnvironment):
    """An arm task over `num_envs` environments; see sim.environment.Environment.

    A step is what happens beside the arm, without delay: the action becomes a joint target, is
    limited, and the servos are led there at the controller's rate, as command_guard does, but
    without its bounds on jerk and workspace. `contract` (default: the task's) may be any that the
    task's streams, and the cameras of robot and scene, serve. Where the task randomises, each
    environment has a model of its own, and the joints and the gripper are told as they are
    measured: late and noisy, to the reward too. Raises what sim.cameras does.
    """

    def __init__(
        self,
        task: ArmTask,
        num_envs: int = 1,
        seed: int = 0,
        threads: int | None = None,
        contract: Contract | None = None,
    ):
        super().__init__(num_envs, contract or task.contract(), seed)
        self.task, self._model = task, task.model()
        self.reward_range, self.max_steps = task.reward_range, task.max_steps
        _require_served(self.contract, task, self._model)
        self._limits = Limits.from_spec(task.robot)
        self._history, self._observer = History(self.contract), Observer(self.contract, task.chain)
        sources = {field.source for field in self.contract.observation}
        self._reads_orientation = 'tool.orientation' in sources
        self._start_physics(threads)
        self._cameras = Cameras.of(self.contract, num_envs, self._model, task.robot)
        n = len(task.robot.joints)
        self._command = np.zeros((num_envs, n))
        self._motion = AccelerationLimited(np.zeros((num_envs, n)), np.zeros((num_envs, n)))
        self._width = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=int)
        self._streams: dict[str, dict[str, np.ndarray]] = {}
        self._sense()

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The present state as float64 columns '<stream>.<quantity>' -> [N, ...]."""
        return {name: values.copy() for name, values in self._columns().items()}

    @property
    def domains(self) -> list[Domain]:
        """The worlds [N] that the present episodes are in, as far as the task randomises them."""
        return list(self._worlds.domains)

    def take(self, action: np.ndarray, seeds: np.ndarray) -> TimeStep:
        """Take actions [N, A] within the bounds; where `seeds` [N] is not GO_ON, begin anew."""
        first = seeds != GO_ON
        action = np.where(first[:, None], 0.0, action)
        self._move(action, ~first)
        self._begin(first, seeds[first].tolist())
        self._sense()
        reward = self.task.reward(self._columns(), action)
        return self._timestep(np.where(first, 0.0, reward), first)

    def scene(self, index: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and the present state of environment `index`, to be drawn only."""
        model, data = self._worlds.models[index], self._data[0]
        mujoco.mj_setState(model, data, self._state[index], _STATE)
        marks = self._goals()
        self._bodies.place(data, {s: (p[index], way[index]) for s, (p, way) in marks.items()})
        mujoco.mj_forward(model, data)
        return model, data

    def close(self) -> None:
        """Release the threads and the graphics."""
        self._rollout.close()
        if self._cameras is not None:
            self._cameras.close()

    def _start_physics(self, threads: int | None) -> None:
        """Find what moves in the scene and start the thread pool, no wider than the batch."""
        self._arm = ArmIndex.of(self._model, self.task.robot.model_joints)
        self._arm.require_servos(self._model)
        self._jaw = Jaw.of(self._model, self.task.robot)
        self._bodies = Bodies.of(self._model, (*self.task.objects, *self.task.goals))
        self._marks = {stream: _Marks.at_rest(self.num_envs) for stream in self._bodies.marks}
        cores = threads or len(os.sched_getaffinity(0))
        threads = max(1, min(cores, self.num_envs))
        self._data = [mujoco.MjData(self._model) for _ in range(threads)]
        # One thread is the caller's own: no pool, no hand-over.
        self._rollout = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._rest = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data[0], self._rest, _STATE)
        self._state = np.tile(self._rest, (self.num_envs, 1))
        steps = self.task.ticks * self.task.substeps
        # Where bodies that are put can be touched, the physics has to know where they are.
        self._control_spec = _CONTROL | _MOCAP if self._bodies.solid else _CONTROL
        size = mujoco.mj_stateSize(self._model, self._control_spec)
        rest = np.empty(size)
        mujoco.mj_getState(self._model, self._data[0], rest, self._control_spec)
        self._control = np.tile(rest, (self.num_envs, steps, 1))
        self._states = np.empty((self.num_envs, steps, len(self._rest)))
        self._sensors = np.empty((self.num_envs, steps, self._model.nsensordata))
        # FULLPHYSICS begins with time, then qpos, then qvel.
        self._qpos = 1 + self._arm.qpos
        self._qvel = 1 + self._model.nq + self._arm.qvel
        # What is measured: joint positions [n], velocities [n], the jaw's position.
        jaw = [] if self._jaw is None else 1 + self._jaw.qpos[:1]
        self._sensed = np.concatenate([self._qpos, self._qvel, jaw]).astype(int)
        self._measured = self._state[:, self._sensed]
        self._worlds = Worlds(self.task, self._model, self._arm, self._sensed, self.num_envs)

    def _begin(self, lanes: np.ndarray, seeds: Sequence[int]) -> None:
        """Start an episode, of the next of `seeds`, in every lane where `lanes` [N] is true."""
        index = np.flatnonzero(lanes)
        if not index.size:
            return
        starts = self.task.initials(seeds)
        for lane, seed, start in zip(index, seeds, starts, strict=True):
            self._place(lane, start)
            self._worlds.enter(lane, seed, self._command[lane], self._state[lane])
        self._measured[index] = self._state[index][:, self._sensed]
        self._steps[index] = 0

    def _place(self, lane: int, start: InitialCondition) -> None:
        """Let an episode start in one lane, at rest."""
        self._state[lane] = self._rest
        self._state[lane, self._qpos] = start.joint_position
        self._command[lane] = self._motion.position[lane] = start.joint_position
        self._motion.velocity[lane] = 0.0
        if self._jaw is not None:
            gripper, jaw = self.task.robot.gripper, 1 + self._jaw.qpos
            if start.width is not None:
                self._state[lane, jaw] = gripper.position(start.width)
            self._width[lane] = gripper.width(self._state[lane, jaw[0]])
        for stream, pose in start.poses.items():
            if stream in self._marks:
                self._marks[stream].put(lane, pose)
            else:
                first = 1 + self._bodies.free[stream]
                self._state[lane, first : first + 7] = [*pose.position, *pose.orientation]
        if self._bodies.solid:
            self._tell_where_marks_are(lane)

    def _tell_where_marks_are(self, lane: int) -> None:
        model, control = self._model, self._control[lane]
        places = control[:, model.nu : model.nu + 3 * model.nmocap]
        ways = control[:, model.nu + 3 * model.nmocap :]
        for stream, mark in self._bodies.marks.items():
            marks = self._marks[stream]
            places[:, 3 * mark : 3 * mark + 3] = marks.position[lane]
            ways[:, 4 * mark : 4 * mark + 4] = marks.orientation[lane]

    def _goals(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return where the marks stand now: {stream: (position [N, 3], orientation [N, 4])}."""
        time = self._steps[:, None] * self.contract.period_s
        return {
            stream: (marks.position + marks.sway.at(time), marks.orientation)
            for stream, marks in self._marks.items()
        }

    def _move(self, action: np.ndarray, lanes: np.ndarray) -> None:
        """Let one control period pass in the lanes where `lanes` [N] is true."""
        if not lanes.any():
            return
        wanted = joint_target(
            self.contract, action, self._command, self.task.robot, self.task.chain
        )
        target = limit(wanted, self._command, self.contract.period_s, self._limits)
        path = self._lead(Line(self._command, target, 0.0, self.contract.period_s), lanes)
        path = self._worlds.told(path, lanes)
        actuators = self._arm.actuators
        controls = actuators.towards(np.repeat(path, self.task.substeps, axis=1))
        self._control[..., actuators.ctrl] = controls
        self._move_jaw(action, lanes)
        moving = np.flatnonzero(lanes)
        states = self._states[: len(moving)]
        self._rollout.rollout(
            [self._worlds.models[lane] for lane in moving],
            self._data,
            self._state[lanes],
            self._control[lanes],
            control_spec=self._control_spec,
            nstep=states.shape[1],
            state=states,
            sensordata=self._sensors[: len(moving)],
            skip_checks=True,  # these take longer than an arm's step
        )
        self._state[lanes] = states[:, -1]
        self._measured[lanes] = self._worlds.measured(states, lanes)
        self._command[lanes] = target[lanes]
        self._steps[lanes] += 1

    def _move_jaw(self, action: np.ndarray, lanes: np.ndarray) -> None:
        """Tell the gripper at once what the action asks of it, or what it was told before."""
        if self._jaw is None:
            return
        wanted = gripper_width(self.contract, action, self.task.robot)
        if wanted is not None:
            self._width[lanes] = wanted[lanes]
        position = self.task.robot.gripper.position(self._width)
        self._control[..., self._jaw.actuators.ctrl] = self._jaw.towards(position[:, None, None])

    def _lead(self, line: Line, lanes: np.ndarray) -> np.ndarray:
        """Follow `line` [N, n] where `lanes` [N] is true; return the way [N, ticks, n]."""
        motion, path, dt = self._motion, [], self.task.robot.controller.period_s
        for tick in range(self.task.ticks):
            motion = motion.follow(line, (tick + 1) * dt, dt, self._limits)
            path.append(motion.position)
        self._motion.position[lanes] = motion.position[lanes]
        self._motion.velocity[lanes] = motion.velocity[lanes]
        return np.stack(path, axis=1)

    def _sense(self) -> None:
        """Read the streams off what is measured, and off the physics state."""
        measured, n = self._worlds.noisy(self._measured, self._steps), len(self._qpos)
        position = measured[:, :n]
        tool = {'position': self.task.chain.position(position)}
        if self._reads_orientation:  # costs as much as the position
            tool['orientation'] = self.task.chain.forward(position)[1]
        self._streams = {
            'joint_states': {'position': position, 'velocity': measured[:, n : 2 * n]},
            'command': {'position': self._command},
            'tool': tool,
        }
        if self._jaw is not None:
            width = self.task.robot.gripper.width(measured[:, 2 * n :])
            self._streams['gripper'] = {'width': width}
        for stream, first in self._bodies.free.items():
            pose = self._state[:, 1 + first : 8 + first]
            self._streams[stream] = {'position': pose[:, :3], 'orientation': pose[:, 3:]}
        for stream, (place, way) in self._goals().items():
            self._streams[stream] = {'position': place, 'orientation': way}

    def _columns(self) -> dict[str, np.ndarray]:
        return {
            f'{stream}.{quantity}': values
            for stream, quantities in self._streams.items()
            for quantity, values in quantities.items()
        }

    def _timestep(self, reward: np.ndarray, first: np.ndarray) -> TimeStep:
        pictures = {} if self._cameras is None else self._cameras.draw(self.scene)
        images = {name: {'image': shown} for name, shown in pictures.items()}
        observation = self._observer.observe(self._streams | images)
        ended = ~first & (self._steps >= self.max_steps)
        step_type = np.where(ended, StepType.LAST, StepType.MID)
        return TimeStep(
            step_type=np.where(first, StepType.FIRST, step_type).astype(np.int8),
            reward=reward.astype(np.float32),
            discount=np.ones(self.num_envs, dtype=np.float32),
            observation=self._history.push(observation, first),
        )


class _Marks(NamedTuple):
    """Where a goal or fixture was put in N environments, and how it moves from there."""

    position: np.ndarray  # [N, 3]
    orientation: np.ndarray  # [N, 4]
    sway: Sway  # of [N, 3] each

    @classmethod
    def at_rest(cls, count: int) -> Self:
        """Return marks that are still to be put."""
        sway = Sway(*np.zeros((3, count, 3)))
        return cls(np.zeros((count, 3)), np.zeros((count, 4)), sway)

    def put(self, lane: int, pose: Pose) -> None:
        """Put one where its episode wants it."""
        self.position[lane], self.orientation[lane] = pose.position, pose.orientation
        for part, given in zip(self.sway, pose.sway or np.zeros((3, 3)), strict=True):
            part[lane] = given


def _require_served(contract: Contract, task: ArmTask, model: mujoco.MjModel) -> None:
    """Raise ContractMismatch where the task cannot serve `contract`."""
    cameras = dict.fromkeys(camera_names(model, task.robot), ())
    require_fit(contract, task.streams() | cameras, where=f'task {task.name}')
    require_supported(contract, task.robot)
    if contract.rate_hz != task.config.rate_hz:
        raise ContractMismatch(
            f'task {task.name}: decides at {task.config.rate_hz} Hz, the contract at '
            f'{contract.rate_hz} Hz'
        )
