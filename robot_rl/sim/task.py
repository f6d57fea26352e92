"""What a task for an arm is, apart from how it is simulated: the same beside a real arm.

A task is a YAML file in config/tasks and a small module: a config, how an episode starts, and pure
functions of columns. Columns are arrays '<stream>.<quantity>' with any leading axes, in
base_frame, recorded in simulation or beside an arm: joint_states, command, tool, gripper.width,
and a stream '<body>_pose' of each body that the task is about. A body with a free joint in the
scene is an object, a mocap body a goal or a fixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import mujoco
import numpy as np
import pydantic

from robot_rl import resources
from robot_rl.errors import SpecError, did_you_mean
from robot_rl.robots import quaternions
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import find
from robot_rl.sim.cameras import Sizes, picture_field
from robot_rl.sim.randomisation import Amount, Randomisation, Range
from robot_rl.sim.scene import extent, load_scene
from robot_rl.specs import (
    ActionField,
    Box,
    Contract,
    ObservationField,
    RobotSpec,
    Spec,
    require_fit,
)
from robot_rl.specs.contract import FROM_TOOL

Columns = Mapping[str, np.ndarray]
ActionKind = Literal['joint_delta', 'joint_velocity', 'cartesian_twist']

TOOL, WIDTH = 'tool.position', 'gripper.width'
TARGET_POSE = 'target_pose'
UPRIGHT = (1.0, 0.0, 0.0, 0.0)

# Ages beyond which a policy stops rather than act on what was: several periods of a 100 Hz arm,
# of a camera that tracks objects, and of a target that is seen a few times a second, on a
# computer that is not real-time.
_JOINTS_MAX_AGE_S, _OBJECT_MAX_AGE_S, _GOAL_MAX_AGE_S = 0.25, 0.5, 1.0


# How far above an object the tip of a tool begins that would begin in it [m].
CLEARANCE = 0.005
# By how much a task's file and its scene may differ about the size of an object [m].
SAME_SIZE = 1e-3
# How often two places are drawn until they are far enough apart.
_DRAWS = 1000


class Sway(NamedTuple):
    """A motion about a place, axis by axis: amplitude * sin(pulse * t + phase), each [..., 3]."""

    amplitude: np.ndarray  # [m]
    pulse: np.ndarray  # [rad/s]
    phase: np.ndarray  # [rad]

    def at(self, time: np.ndarray) -> np.ndarray:
        """Return the displacement [..., 3] [m] at times [..., 1] or one time [s]."""
        return self.amplitude * np.sin(self.pulse * time + self.phase)


class Pose(NamedTuple):
    """Where a body stands at the start, in base_frame, and how a goal moves from then on."""

    position: np.ndarray  # [3] [m]
    orientation: np.ndarray = np.array(UPRIGHT)  # [4], wxyz
    sway: Sway | None = None

    def at(self, time: float) -> np.ndarray:
        """Return the position [3] so many seconds after the start."""
        return self.position if self.sway is None else self.position + self.sway.at(time)


class InitialCondition(NamedTuple):
    """How an episode starts: joint positions [n] [rad], poses by stream, the gripper's width."""

    joint_position: np.ndarray
    poses: Mapping[str, Pose] = {}
    # What the gripper is told until an action does [m]; None: as its model stands.
    width: float | None = None

    @property
    def target(self) -> np.ndarray:
        """The target [3] [m]."""
        return self.poses[TARGET_POSE].position


class Area(Spec):
    """A rectangle on the table, in base_frame [m]: x, y."""

    lower: tuple[float, float]
    upper: tuple[float, float]

    @pydantic.model_validator(mode='after')
    def _ordered(self) -> Self:
        if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f'lower {self.lower} must not be above upper {self.upper}')
        return self


class Standing(Spec):
    """An object, or a fixture, that stands somewhere on the table, z = 0."""

    # Edge lengths of the box that it is, or fills [m].
    size: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat, pydantic.PositiveFloat]
    place: Area
    # Turned about z by an angle in this range [rad].
    yaw: Range = (0.0, 0.0)

    def drawn(self, rng: np.random.Generator) -> Pose:
        """Draw a pose, that of its middle."""
        x, y = rng.uniform(self.place.lower, self.place.upper)
        half = rng.uniform(*self.yaw) / 2
        orientation = np.array([np.cos(half), 0.0, 0.0, np.sin(half)])
        return Pose(np.array([x, y, self.size[2] / 2]), orientation)


class Start(Spec):
    """Where the tool starts, turned as at home and then about z; how far the gripper is open."""

    tool: Box
    # [rad]
    yaw: Range = (0.0, 0.0)
    # [m]
    width: Amount | None = None


class Closeness(Spec):
    """The shape of what is paid for a distance d.

    (1 - near_share) (1 - tanh(d / far)) + near_share exp(-(d / near)^2), in [0, 1].
    """

    # 'sparse' pays 1 where the task is done, and nothing else.
    kind: Literal['dense', 'sparse'] = 'dense'
    # The distance over which the tool feels drawn to the target from afar [m].
    far: pydantic.PositiveFloat = 0.3
    # The distance over which precision pays [m].
    near: pydantic.PositiveFloat = 0.04
    near_share: float = pydantic.Field(0.5, ge=0, le=1)

    def of(self, distance: np.ndarray) -> np.ndarray:
        """Return what a distance [...] [m] is worth [...]."""
        far = 1 - np.tanh(distance / self.far)
        near = np.exp(-np.square(distance / self.near))
        return (1 - self.near_share) * far + self.near_share * near


class TaskConfig(Spec):
    """What config/tasks/<task>.yaml says of every task."""

    schema_version: Literal[1] = 1
    kind: str
    name: str
    # A name in config/robots or a path of a YAML file.
    robot: str
    # The MJCF of arm and surroundings, whose world frame is the robot's base frame.
    scene: str
    rate_hz: pydantic.PositiveFloat = 20.0
    physics_timestep_s: pydantic.PositiveFloat = 0.002
    duration_s: pydantic.PositiveFloat = 3.0
    # What the policy commands the arm by, and within which bounds.
    action: ActionKind = 'joint_delta'
    # Largest change of a joint's command in one decision [rad].
    max_delta: pydantic.PositiveFloat = 0.08
    # [rad/s]
    max_joint_velocity: pydantic.PositiveFloat = 1.6
    # Of the elements of a twist that are commanded [m/s, rad/s]; the others stay zero.
    max_twist: dict[str, pydantic.PositiveFloat] = pydantic.Field(
        default_factory=lambda: {
            'linear_x': 0.3, 'linear_y': 0.3, 'linear_z': 0.3, 'angular_z': 1.5
        },
        min_length=1,
    )  # fmt: skip
    # Whether the gripper's width is an action.
    gripper: bool = False
    # What is seen beside the arm: where bodies stand, what cameras show of them, or both.
    sees: Literal['poses', 'pictures', 'both'] = 'poses'
    # The cameras that show it, with the height and width of their pictures [pixels].
    cameras: dict[str, tuple[pydantic.PositiveInt, pydantic.PositiveInt]] = pydantic.Field(
        {'overview': (84, 84)}, min_length=1
    )
    # Largest displacement of a joint from home at the start [rad].
    joint_noise: pydantic.NonNegativeFloat = 0.05
    # Where the tool starts instead; joint_noise comes on top.
    start: Start | None = None
    # Success: within this distance [m] in each of the last `success_rows` rows.
    success_distance: pydantic.PositiveFloat = 0.02
    success_rows: pydantic.PositiveInt = 5
    reward: Closeness = Closeness()
    # What of the simulated world differs from episode to episode; nothing by default.
    randomisation: Randomisation = Randomisation()


class ArmTask:
    """What ArmEnvironment, the twin, the control loop and recorded episodes need to know.

    A task's own module says which streams its episodes have, how an episode starts (`_poses`), and
    in pure functions of columns how far it is from done (`distance`), what that is worth
    (`_dense`), and whether it is done (`done`).
    """

    Config: type[TaskConfig]
    # The streams of the bodies that it is about.
    objects: tuple[str, ...] = ()
    goals: tuple[str, ...] = ()
    reward_range = (0.0, 1.0)

    def __init__(self, config: TaskConfig):
        self.config = config
        self.name = config.name
        self.randomisation = config.randomisation
        self.robot = RobotSpec.load(config.robot)
        self.chain = KinematicChain.from_spec(self.robot)
        self.max_steps = round(config.duration_s * config.rate_hz)
        # Per decision: commands to the arm; per command: physics steps.
        self.ticks = _whole(self.robot.controller.rate_hz / config.rate_hz, 'commands', config)
        self.substeps = _whole(
            1.0 / (self.robot.controller.rate_hz * config.physics_timestep_s), 'steps', config
        )
        self._require_possible()

    @classmethod
    def load(cls, name: str, changes: Sequence[str] = ()) -> Self:
        """Read the task called e.g. 'ur5e/reach' from config/tasks, or a YAML file by its path.

        `changes` are 'randomisation.<key>=<value>', which makes worlds differ, and 'duration_s=8':
        nothing by which another contract or another success than the file's would come.
        """
        settable = ['duration_s', *(f'randomisation.{key}' for key in Randomisation.model_fields)]
        for change in changes:
            key = change.partition('=')[0]
            if key not in ('duration_s', 'randomisation') and not key.startswith('randomisation.'):
                raise SpecError(
                    f'--set {change}: of a task only randomisation.<key> and duration_s are set '
                    'so; for the rest copy its file and name the copy: --task FILE.yaml'
                    + did_you_mean(key, settable)
                )
        return cls(cls.Config.from_yaml_with(task_file(name), {}, changes))

    def seeing(self, sees: str, **changes: Any) -> Self:
        """Return this task with another view (TaskConfig.sees), and further changes."""
        return type(self)(self.config.replace(sees=sees, **changes))

    def commanded_by(self, action: ActionKind) -> Self:
        """Return this task with another kind of action (TaskConfig.action)."""
        return type(self)(self.config.replace(action=action))

    @property
    def cameras(self) -> Sizes:
        """The cameras that show it to a policy, {name: (height, width)}; none where none does."""
        return self.config.cameras if self.config.sees != 'poses' else {}

    def with_cameras(self, cameras: Sizes) -> Self:
        """Return this task as seen by `cameras`, in the place of poses unless both were seen."""
        sees = 'both' if self.config.sees == 'both' else 'pictures'
        return self.seeing(sees, cameras=cameras)

    def distance(self, columns: Columns) -> np.ndarray:
        """Return how far [...] [m] the columns' rows are from done."""
        raise NotImplementedError

    def done(self, columns: Columns) -> np.ndarray:
        """Tell whether the distance is small enough -> bool [...], row by row."""
        return self.distance(columns) <= self.config.success_distance

    def reward(self, state: Columns, action: np.ndarray) -> np.ndarray:
        """Return the reward [...] in [0, 1] of arriving in `state`; the action costs nothing."""
        del action
        if self.config.reward.kind == 'sparse':
            return self.done(state).astype(float)
        return self._dense(state)

    def success(self, columns: Columns) -> np.ndarray:
        """Tell from a whole episode's columns [T + 1, ...] whether it ended well -> bool [...]."""
        return self.done(_rows(columns, slice(-self.config.success_rows, None))).all(axis=0)

    def final_distance(self, columns: Columns) -> np.ndarray:
        """Return the distance [...] [m] in the last row of columns [T + 1, ...]."""
        return self.distance(_rows(columns, -1))

    def streams(self) -> dict[str, tuple[str, ...]]:
        """Return the streams that the arm and this task have, with their elements' names."""
        joints, poses = self.robot.joints, dict.fromkeys((*self.objects, *self.goals), ())
        own = {'joint_states': joints, 'command': joints, 'tool': ()}
        return own | ({'gripper': ()} if self.robot.gripper else {}) | poses

    def require_shown(self, contract: Contract) -> None:
        """Raise ContractMismatch where a policy's contract reads what this task does not have.

        Its pictures are not looked at: which cameras there are, the scene says.
        """
        pictures = {field.stream: () for field in contract.pictures}
        require_fit(contract, self.streams() | pictures, where=f'task {self.name}')

    def initial(self, seed: int) -> InitialCondition:
        """Return how the episode of this seed starts, in simulation and on the twin alike."""
        return self.initials([seed])[0]

    def initials(self, seeds: Sequence[int]) -> list[InitialCondition]:
        """Return how the episodes of these seeds start; it is the same one by one, but slower."""
        rngs = [np.random.default_rng(seed) for seed in seeds]
        noise, start, count = self.config.joint_noise, self.config.start, len(self.robot.joints)
        joints = np.array([rng.uniform(-noise, noise, count) for rng in rngs])
        joints += self.robot.home_position
        widths = [None] * len(rngs)
        if start is not None:
            places = [rng.uniform(start.tool.lower, start.tool.upper) for rng in rngs]
            yaws = np.array([rng.uniform(*start.yaw) for rng in rngs])
            if start.width is not None:
                widths = [float(rng.uniform(*start.width)) for rng in rngs]
        poses = [self._poses(rng) for rng in rngs]
        if start is not None:
            clear = np.array(list(map(self._clear_of_objects, places, widths, poses)))
            joints = self._reaching(clear, yaws, joints)
        joints = np.clip(joints, self.robot.lower, self.robot.upper)
        return [InitialCondition(*parts) for parts in zip(joints, poses, widths, strict=True)]

    def contract(self) -> Contract:
        """Return what a policy sees of this task and commands in it."""
        action = (self._arm_action(), *([self._gripper_action()] if self.config.gripper else ()))
        return Contract(
            rate_hz=self.config.rate_hz,
            observation=(*self._seen_of_arm(), *self._seen_around()),
            action=action,
        )

    def model(self) -> mujoco.MjModel:
        """Compile the scene: arm, surroundings, objects and markers.

        Raises SpecError for an object of another size than the task's file says.
        """
        model = load_scene(self.config.scene, self.config.physics_timestep_s)
        for name in type(self.config).model_fields:
            standing = getattr(self.config, name)
            if not isinstance(standing, Standing) or find(model, 'body', name) is None:
                continue
            found = extent(model, name)
            if found is not None and np.abs(found - standing.size).max() > SAME_SIZE:
                raise SpecError(
                    f'task {self.name}: {name}.size {list(standing.size)}: in the scene '
                    f'{self.config.scene} it is {found.round(4).tolist()}'
                )
        return model

    def _dense(self, state: Columns) -> np.ndarray:
        """Pay for the distance."""
        return self.config.reward.of(self.distance(state))

    def _poses(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Draw where the bodies stand, by stream."""
        raise NotImplementedError

    def _clear_of_objects(
        self, place: np.ndarray, width: float | None, poses: Mapping[str, Pose]
    ) -> np.ndarray:
        """Return a place [3] of the tool, or one above it where its tip would be in an object.

        Its fingers are open by `width`.
        """
        tip, (x, y, z) = self.robot.tip, place
        reach = tip.radius + (width or 0.0) / 2
        for stream in self.objects:
            wide, deep, high = getattr(self.config, stream.removesuffix('_pose')).size
            away = np.hypot(*(poses[stream].position[:2] - (x, y)))
            if away < np.hypot(wide, deep) / 2 + reach:
                z = max(z, high + tip.reach + CLEARANCE)
        return np.array([x, y, z])

    def _reaching(self, places: np.ndarray, yaws: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Return joint positions [N, n] with the tool at `places` [N, 3].

        It is turned by `yaws` [N] about z against home.
        """
        _, home = self.chain.forward(self.robot.home_position)
        turns = quaternions.from_rotation_vector(yaws[:, None] * (0.0, 0.0, 1.0))
        return self.chain.inverse(places, quaternions.multiply(turns, home), near)

    def _require_possible(self) -> None:
        """Raise SpecError for what an episode would only show later, or never."""
        config, gripper = self.config, self.robot.gripper
        try:
            self.randomisation.require_bounded(self.robot.controller.period_s)
        except SpecError as error:
            raise SpecError(f'task {self.name}: {error}') from None
        if self.max_steps < 1:
            raise SpecError(
                f'task {self.name}: duration_s {config.duration_s:g} is over before the first '
                f'decision of {1.0 / config.rate_hz:g} s'
            )
        if config.success_rows > self.max_steps + 1:
            raise SpecError(
                f'task {self.name}: success_rows {config.success_rows}: an episode of '
                f'{config.duration_s:g} s has {self.max_steps + 1} rows'
            )
        width = config.start.width if config.start else None
        if width is not None and (gripper is None or width[1] > gripper.open_width):
            opens = f'opens {gripper.open_width:g} m' if gripper else 'has no gripper'
            raise SpecError(
                f'task {self.name}: start.width {list(width)}: {self.robot.name} {opens}'
            )

    def _arm_action(self) -> ActionField:
        config, joints = self.config, self.robot.joints
        kind, unit, bounds = {
            'joint_delta': ('joint_delta', 'rad', dict.fromkeys(joints, config.max_delta)),
            'joint_velocity': (
                'joint_velocity', 'rad/s', dict.fromkeys(joints, config.max_joint_velocity)
            ),
            'cartesian_twist': ('tool_twist', 'm/s, rad/s', config.max_twist),
        }[config.action]  # fmt: skip
        return ActionField(
            name=kind,
            kind=config.action,
            names=tuple(bounds),
            lower=tuple(-bound for bound in bounds.values()),
            upper=tuple(bounds.values()),
            unit=unit,
        )

    def _gripper_action(self) -> ActionField:
        if self.robot.gripper is None:
            raise SpecError(f'task {self.name}: robot {self.robot.name} has no gripper')
        return ActionField(
            name='gripper',
            kind='gripper',
            names=('width',),
            lower=(0.0,),
            upper=(self.robot.gripper.open_width,),
            unit='m',
        )

    def _seen_of_arm(self) -> tuple[ObservationField, ...]:
        joints = self.robot.joints
        vector = {'names': joints, 'shape': (len(joints),)}
        fields = (
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
        )
        width = ObservationField(name='gripper_width', source=WIDTH, unit='m', shape=(1,))
        return (*fields, width) if self.config.gripper else fields

    def _seen_around(self) -> tuple[ObservationField, ...]:
        bodies = self._seen_of_bodies() if self.config.sees != 'pictures' else ()
        return (*bodies, *(picture_field(name, size) for name, size in self.cameras.items()))

    def _seen_of_bodies(self) -> tuple[ObservationField, ...]:
        objects = [
            ObservationField(
                name=f'{stream.removesuffix("_pose")}_{quantity}',
                source=f'{stream}.{quantity}',
                unit='m' if size == 3 else '',
                shape=(size,),
                max_age_s=_OBJECT_MAX_AGE_S,
            )
            for stream in self.objects
            for quantity, size in (('position', 3), ('orientation', 4), (FROM_TOOL, 3))
        ]
        return (*objects, *(self._seen_of_goal(stream) for stream in self.goals))

    def _seen_of_goal(self, stream: str, history: int = 1) -> ObservationField:
        return ObservationField(
            name=f'{stream.removesuffix("_pose")}_{FROM_TOOL}',
            source=f'{stream}.{FROM_TOOL}',
            unit='m',
            shape=(3,),
            goal=True,
            max_age_s=_GOAL_MAX_AGE_S,
            history=history,
        )


def apart(
    rng: np.random.Generator, one: Standing, other: Standing, distance: float
) -> tuple[Pose, Pose]:
    """Draw two poses that are at least `distance` [m] from each other, seen from above.

    Raises SpecError where that seems to be impossible.
    """
    for _ in range(_DRAWS):
        pair = one.drawn(rng), other.drawn(rng)
        if np.linalg.norm((pair[0].position - pair[1].position)[:2]) >= distance:
            return pair
    raise SpecError(f'places {one.place} and {other.place} are hardly ever {distance} m apart')


def task_file(name: str) -> str:
    """Return the path of a task's YAML file, by its name or path. Raises UnknownName."""
    file = name if name.endswith(('.yaml', '.yml')) else name.replace('/', '_', 1)
    return str(resources.find('config/tasks', file))


def _rows(columns: Columns, rows: int | slice) -> dict[str, np.ndarray]:
    return {name: np.asarray(values)[rows] for name, values in columns.items()}


def _whole(ratio: float, what: str, config: TaskConfig) -> int:
    """Return `ratio` as the whole number it is. Raises SpecError where it is none."""
    if abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
        raise SpecError(
            f'task {config.name}: rate_hz {config.rate_hz}, the controller rate of robot '
            f'{config.robot} and physics_timestep_s {config.physics_timestep_s} must divide one '
            f'another; {ratio:g} {what} fit'
        )
    return round(ratio)
