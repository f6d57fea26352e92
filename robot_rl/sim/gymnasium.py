"""Gymnasium environments with continuous actions as Environments."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import math
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import mujoco
import numpy as np

from robot_rl.errors import ContractMismatch, RobotRLError, SpecError, UnknownName
from robot_rl.registry import GYMNASIUM
from robot_rl.sim.environment import StepType
from robot_rl.sim.serial import SerialEnvironment, Step
from robot_rl.specs import Contract

# Where an environment tells neither the time between steps nor frames a second.
_ASSUMED_RATE_HZ = 20.0
# Some state the largest float for an action without limits.
_UNBOUNDED = 1e9
# Evaluation waits for the end of an episode: those without a time limit get this one, in steps.
_ASSUMED_STEPS = 10_000
# gymnasium.make's own form: [module:][namespace/]name[-v<version>].
_ID = re.compile(r'(?P<module>[\w.]+:)?([\w-]+/)?[\w.-]+')
# The continuous ones of classic control, and the version of the MuJoCo ones, that are listed.
_CLASSIC, _MUJOCO_VERSION = ('MountainCarContinuous', 'Pendulum'), 5


class Part(NamedTuple):
    """A field of the observation, and the keys that lead to it."""

    name: str
    path: tuple
    shape: tuple[int, ...]
    dtype: str


class GymnasiumEnvironment(SerialEnvironment):
    """A Gymnasium environment `num_envs` times, one after the other in this process.

    `task` is 'gym/<id>' or 'gym/<module>:<id>', which gymnasium.make takes. A Box of observations
    is the field 'observation'; a Dict of them is a field each, nested keys joined by '_'; a scalar
    has shape (1,). The action is one generic field, a Box of more dimensions flattened.
    An environment registered without a time limit is truncated after 10,000 steps.
    Every episode begins with reset(seed=episode seed). Gymnasium's generators take any such seed;
    an environment with one of its own must take seeds up to 2^32.
    See sim.environment.Environment for the semantics, and SerialEnvironment for `view`.
    """

    def __init__(self, task: str, num_envs: int = 1, seed: int = 0, **view: Any):
        self._task, first = task, _load(task)
        parts = list(_parts(task, first))
        self._paths = [part.path for part in parts]
        contract = _contract(task, first, parts)
        with _mujoco_is_quiet():  # what there is to say about the model was said once
            envs = [first, *(_load(task) for _ in range(num_envs - 1))]
        # Gymnasium has no place for the range of rewards.
        super().__init__(envs, contract, seed, first.spec.max_episode_steps, None, **view)

    def scene(self, index: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and the present state of environment `index`, to be drawn only.

        Raises RobotRLError for an environment that is not built on MuJoCo.
        """
        env = self._envs[index].unwrapped
        model, data = getattr(env, 'model', None), getattr(env, 'data', None)
        if not (isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData)):
            raise RobotRLError(
                f'task {self._task!r} is not built on MuJoCo and cannot be drawn; '
                'evaluate gives the returns of a policy'
            )
        return model, data

    def close(self) -> None:
        """Close the environments."""
        super().close()
        for env in self._envs:
            env.close()

    def _begin(self, env: Any, seed: int) -> Step:
        """Start the episode of this seed; where an Autoreset wrapper stands, it has no say."""
        observation, _ = env.reset(seed=seed)
        return Step(StepType.FIRST, 0.0, 1.0, self._read(observation))

    def _advance(self, env: Any, action: np.ndarray) -> Step:
        space = env.action_space
        action = action.reshape(space.shape).astype(space.dtype)
        observation, reward, terminated, truncated, _ = env.step(action)
        return Step(
            step_type=StepType.LAST if terminated or truncated else StepType.MID,
            reward=np.asarray(reward).item(),  # some return an array of one
            discount=0.0 if terminated else 1.0,
            observation=self._read(observation),
        )

    def _read(self, observation: Any) -> dict[str, np.ndarray]:
        """Return the contract's fields. Raises ContractMismatch for another shape."""
        fields = {}
        for field, path in zip(self._own, self._paths, strict=True):
            value = functools.reduce(operator.getitem, path, observation)
            fields[field.name] = np.atleast_1d(np.asarray(value, field.dtype))
            if fields[field.name].shape != field.shape:
                raise ContractMismatch(
                    f'task {self._task!r}: observation {field.name}: shape '
                    f'{list(np.shape(value))}, its space says {list(field.shape)}'
                )
        return fields


def task_names() -> dict[str, list[str]]:
    """Return the names of Gymnasium's own MuJoCo and continuous classic tasks as {'gym': [...]}.

    Others can be named as well. Without gymnasium there are none: {}.
    """
    try:
        registered = _package().registry.values()
    except RobotRLError:
        return {}
    names = [
        GYMNASIUM + spec.id
        for spec in registered
        if (_is_of(spec, 'classic_control') and spec.name in _CLASSIC)
        or (_is_of(spec, 'mujoco') and spec.version == _MUJOCO_VERSION)
    ]
    return {'gym': sorted(names)}


def _package() -> Any:
    """Import gymnasium. Raises RobotRLError that says how to install it."""
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise RobotRLError(
            f"gym tasks need the package {error.name!r}: pip install 'robot_rl[train]'"
        ) from None
    return gymnasium


def _load(task: str) -> Any:
    """Return a new gymnasium.Env.

    Raises UnknownName, SpecError for a name of another form, and RobotRLError where something
    that the environment needs is not installed.
    """
    gymnasium, name = _package(), task.removeprefix(GYMNASIUM)
    form = _ID.fullmatch(name)
    if form is None:
        raise SpecError(f"task {task!r}: 'gym/<id>' or 'gym/<module>:<id>' is right")
    module = form['module'] or ''
    try:
        if module:
            importlib.import_module(module.removesuffix(':'))
        with warnings.catch_warnings():
            # To name an old version is a choice; where it is gone, the error says more.
            warnings.filterwarnings('ignore', '.*is out of date', DeprecationWarning)
            env = gymnasium.make(name)
            if env.spec.max_episode_steps is None:
                env = gymnasium.make(name, max_episode_steps=_ASSUMED_STEPS)
            return env
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv):
        raise UnknownName('task', task, _known(module), 'robot-rl tasks') from None
    except ModuleNotFoundError as error:
        raise RobotRLError(
            f'task {task!r} needs the module {error.name!r}, which is not found: install it or, '
            'if it is your own, name its folder in PYTHONPATH'
        ) from None
    except (gymnasium.error.Error, ImportError) as error:  # such as DependencyNotInstalled
        raise RobotRLError(f'task {task!r}: {" ".join(str(error).split())}') from None


def _known(module: str) -> list[str]:
    """Return the newest version of everything registered, or of what is not Gymnasium's own."""
    newest = {}
    specs = _package().registry.values()
    for spec in sorted(specs, key=lambda spec: spec.version or 0):
        if not (module and _is_of(spec)):
            newest[spec.namespace, spec.name] = f'{GYMNASIUM}{module}{spec.id}'
    return list(newest.values())


def _is_of(spec: Any, family: str = '') -> bool:
    """Tell whether Gymnasium itself brings an environment, of this family if one is named."""
    return str(spec.entry_point).startswith(f'gymnasium.envs.{family}')


@contextlib.contextmanager
def _mujoco_is_quiet() -> Iterator[None]:
    """Keep back MuJoCo's warnings."""
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


def _parts(task: str, env: Any) -> Iterator[Part]:
    """Yield the parts of an observation in their order. Raises SpecError."""
    space = env.observation_space
    # Gymnasium's MuJoCo environments say how many numbers are of which kind.
    structure = getattr(env.unwrapped, 'observation_structure', None) or {}
    sizes = {name: n for name, n in structure.items() if n and not name.startswith('skipped_')}
    if not sizes or space.shape != (sum(sizes.values()),):
        for path, box in _boxes(task, space):
            kind = 'uint8' if box.dtype == np.uint8 else 'float32'
            yield Part(_field_name(path), path, box.shape or (1,), kind)
        return
    ends = itertools.accumulate(sizes.values())
    for (name, size), end in zip(sizes.items(), ends, strict=True):
        yield Part(name, (slice(end - size, end),), (size,), 'float32')


def _boxes(task: str, space: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yield every Box of observations and the keys that lead to it. Raises SpecError."""
    spaces = _package().spaces
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _boxes(task, inner, (*path, key))
    elif isinstance(space, spaces.Box):
        yield path, space
    else:
        raise SpecError(
            f'task {task!r}: {_field_name(path)} is a {type(space).__name__} space; a Box, or a '
            'Dict of them, is right'
        )


def _field_name(path: tuple) -> str:
    """Join the keys to a name that is fit for ONNX."""
    return re.sub(r'\W|^(?=\d)', '_', '_'.join(map(str, path))) or 'observation'


def _contract(task: str, env: Any, parts: Sequence[Part]) -> Contract:
    """Describe what the environment shows, as `parts`, and takes. Raises SpecError."""
    observation = [
        {
            'name': part.name,
            'source': f'env.{part.name}',
            'shape': part.shape,
            'dtype': part.dtype,
        }
        for part in parts
    ]
    lower, upper = _bounds(task, env.action_space)
    names = [f'action_{i}' for i in range(len(lower))]
    action = {'name': 'action', 'kind': 'generic', 'names': names, 'lower': lower, 'upper': upper}
    data = {'rate_hz': _rate_hz(env), 'observation': observation, 'action': [action]}
    return Contract.parse(data, f'task {task!r}')


def _bounds(task: str, space: Any) -> tuple[list[float], list[float]]:
    """Return lower and upper bound of every action [A]. Raises SpecError."""
    spaces = _package().spaces
    if not (isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)):
        kind = f'{type(space).__name__} space' + (f' of {space.dtype}' if space.dtype else '')
        raise SpecError(
            f'task {task!r}: the action is a {kind}; continuous actions, a Box of floats, are '
            'right'
        )
    lower, upper = space.low.ravel().tolist(), space.high.ravel().tolist()
    for i, bounds in enumerate(zip(lower, upper, strict=True)):
        if not all(abs(bound) < _UNBOUNDED for bound in bounds):
            raise SpecError(
                f'task {task!r}: action_{i} lies in [{bounds[0]:g}, {bounds[1]:g}]; finite bounds '
                'are right: register it with a clipped space, as gymnasium.wrappers.'
                'TransformAction sets it'
            )
    return lower, upper


def _rate_hz(env: Any) -> float:
    """Return how often the environment decides."""
    period_s = getattr(env.unwrapped, 'dt', None)
    frames_a_second = (env.metadata or {}).get('render_fps')
    if isinstance(period_s, Real) and 0 < period_s < math.inf:
        return 1.0 / float(period_s)
    if isinstance(frames_a_second, Real) and 0 < frames_a_second < math.inf:
        return float(frames_a_second)
    return _ASSUMED_RATE_HZ
