"""The reach task: bring the tool to a target and keep it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import mujoco
import numpy as np
import pydantic

from robot_rl import resources
from robot_rl.errors import SpecError
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim.scene import load_scene
from robot_rl.specs import ActionField, Box, Contract, ObservationField, RobotSpec, Spec

Columns = Mapping[str, np.ndarray]

TOOL, TARGET = 'tool.position', 'target_pose.position'

# Ages beyond which a policy stops rather than act on what was: several periods of a 100 Hz arm,
# and of a target that is seen a few times a second, on a computer that is not real-time.
_JOINTS_MAX_AGE_S, _TARGET_MAX_AGE_S = 0.25, 1.0


class InitialCondition(NamedTuple):
    """How an episode starts: joint positions [n] [rad], and the target [3] [m] in base_frame."""

    joint_position: np.ndarray
    target: np.ndarray | None = None  # where there is no task


class ReachReward(Spec):
    """The shape of the reward over the distance d between tool and target.

    (1 - near_share) (1 - tanh(d / far)) + near_share exp(-(d / near)^2), in [0, 1].
    """

    # The distance over which the tool feels drawn to the target from afar [m].
    far: pydantic.PositiveFloat = 0.3
    # The distance over which precision pays [m].
    near: pydantic.PositiveFloat = 0.04
    near_share: float = pydantic.Field(0.5, ge=0, le=1)


class ReachConfig(Spec):
    """Everything that config/tasks/<task>.yaml says."""

    schema_version: Literal[1] = 1
    name: str
    # A name in config/robots or a path of a YAML file.
    robot: str
    # The MJCF of arm and surroundings, whose world frame is the robot's base frame.
    scene: str
    rate_hz: pydantic.PositiveFloat = 20.0
    physics_timestep_s: pydantic.PositiveFloat = 0.002
    duration_s: pydantic.PositiveFloat = 3.0
    # Largest change of a joint's command in one decision [rad].
    max_delta: pydantic.PositiveFloat = 0.08
    # Largest displacement of a joint from home at the start [rad].
    joint_noise: pydantic.NonNegativeFloat = 0.05
    # Where targets are drawn from, uniformly, in base_frame [m].
    target: Box
    # Success: within this distance [m] in each of the last `success_rows` rows.
    success_distance: pydantic.PositiveFloat = 0.02
    success_rows: pydantic.PositiveInt = 5
    reward: ReachReward = ReachReward()


class ReachTask:
    """What is to be done, apart from how it is simulated: the same beside a real arm.

    Columns are arrays '<stream>.<quantity>' with any leading axes; reward, success and
    final_distance read 'tool.position' and 'target_pose.position', both [..., 3] in base_frame.
    """

    reward_range = (0.0, 1.0)

    def __init__(self, config: ReachConfig):
        self.config = config
        self.name = config.name
        self.robot = RobotSpec.load(config.robot)
        self.chain = KinematicChain.from_spec(self.robot)
        self.max_steps = round(config.duration_s * config.rate_hz)
        # Per decision: commands to the arm; per command: physics steps.
        self.ticks = _whole(self.robot.controller.rate_hz / config.rate_hz, 'commands', config)
        self.substeps = _whole(
            1.0 / (self.robot.controller.rate_hz * config.physics_timestep_s), 'steps', config
        )

    @classmethod
    def load(cls, name: str) -> Self:
        """Read the task called e.g. 'ur5e/reach' from config/tasks, or a YAML file by its path."""
        file = name if name.endswith(('.yaml', '.yml')) else name.replace('/', '_')
        return cls(ReachConfig.from_yaml(resources.find('config/tasks', file)))

    def contract(self) -> Contract:
        """Return what a policy sees of this task and commands in it."""
        joints, bound = self.robot.joints, (self.config.max_delta,) * len(self.robot.joints)
        vector = {'names': joints, 'shape': (len(joints),)}
        observation = (
            ObservationField(
                name='joint_position',
                source='joint_states.position',
                unit='rad',
                max_age_s=_JOINTS_MAX_AGE_S,
                **vector,
            ),
            ObservationField(
                name='joint_velocity',
                source='joint_states.velocity',
                unit='rad/s',
                fill='difference',
                **vector,
            ),
            ObservationField(name='command', source='command.position', unit='rad', **vector),
            ObservationField(name='tool_position', source=TOOL, unit='m', shape=(3,)),
            ObservationField(
                name='target_from_tool',
                source='target_pose.from_tool',
                unit='m',
                shape=(3,),
                goal=True,
                max_age_s=_TARGET_MAX_AGE_S,
            ),
        )
        action = ActionField(
            name='joint_delta',
            kind='joint_delta',
            names=joints,
            lower=tuple(-b for b in bound),
            upper=bound,
            unit='rad',
        )
        return Contract(rate_hz=self.config.rate_hz, observation=observation, action=(action,))

    def streams(self) -> dict[str, tuple[str, ...]]:
        """Return the streams that the arm and this task have, with their elements' names."""
        joints = self.robot.joints
        return {'joint_states': joints, 'command': joints, 'tool': (), 'target_pose': ()}

    def initial(self, seed: int) -> InitialCondition:
        """Return how the episode of this seed starts, in simulation and on the twin alike."""
        rng = np.random.default_rng(seed)
        noise = self.config.joint_noise
        position = self.robot.home_position + rng.uniform(-noise, noise, len(self.robot.joints))
        target = rng.uniform(self.config.target.lower, self.config.target.upper)
        return InitialCondition(np.clip(position, self.robot.lower, self.robot.upper), target)

    def reward(self, state: Columns, action: np.ndarray) -> np.ndarray:
        """Return the reward [...] in [0, 1] of arriving in `state`; the action costs nothing."""
        del action
        shape = self.config.reward
        distance = self.distance(state)
        far = 1 - np.tanh(distance / shape.far)
        near = np.exp(-np.square(distance / shape.near))
        return (1 - shape.near_share) * far + shape.near_share * near

    def distance(self, state: Columns) -> np.ndarray:
        """Return the distance [...] [m] from the tool to the target."""
        return np.linalg.norm(np.asarray(state[TOOL]) - np.asarray(state[TARGET]), axis=-1)

    def success(self, columns: Columns) -> np.ndarray:
        """Tell from a whole episode's columns [T + 1, ..., 3] whether it reached -> bool [...]."""
        last = self.distance(columns)[-self.config.success_rows :]
        return (last <= self.config.success_distance).all(axis=0)

    def final_distance(self, columns: Columns) -> np.ndarray:
        """Return the distance [...] [m] in the last row of columns [T + 1, ..., 3]."""
        return self.distance({key: np.asarray(columns[key])[-1] for key in (TOOL, TARGET)})

    def model(self) -> mujoco.MjModel:
        """Compile the scene: arm, surroundings and target marker."""
        return load_scene(self.config.scene, self.config.physics_timestep_s)


def _whole(ratio: float, what: str, config: ReachConfig) -> int:
    """Return `ratio` as the whole number it is. Raises SpecError where it is none."""
    if abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
        raise SpecError(
            f'task {config.name}: rate_hz {config.rate_hz}, the controller rate of robot '
            f'{config.robot} and physics_timestep_s {config.physics_timestep_s} must divide one '
            f'another; {ratio:g} {what} fit'
        )
    return round(ratio)
