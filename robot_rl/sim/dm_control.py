"""The tasks of the dm_control suite, and its manipulation tasks, as Environments."""

from __future__ import annotations

import functools
import importlib
import math
import os
from typing import Any

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError, UnknownName
from robot_rl.sim.cameras import Sizes
from robot_rl.sim.serial import SerialEnvironment, Step
from robot_rl.specs import ActionField, Contract, ObservationField

# The suite's LQR tasks have actuators without limits and episodes without end. A policy needs
# bounds and evaluation an end: they get these (in the actuator's unit, and seconds).
_ASSUMED_BOUND, _ASSUMED_TIME_LIMIT_S = 1.0, 20.0
# dm_control states 1e10 for an actuator without limits.
_UNBOUNDED = 1e9
_LQR = 'suite/lqr-'


class DmControlEnvironment(SerialEnvironment):
    """A dm_control task over `num_envs` environments, one after the other in this process.

    An observation field stands for each of the task's observations, in its own shape (a scalar
    as (1,)), named after it with '/' written '_'; the action is one generic field in the task's
    own units. Pictures of a task with vision are drawn as those of other `cameras` are, which
    take their place where they are given.
    See sim.environment.Environment for the semantics, and SerialEnvironment for `view`.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        seed: int = 0,
        cameras: Sizes | None = None,
        **view: Any,
    ):
        envs = [_load(task) for _ in range(num_envs)]
        cameras = cameras or _own_cameras(envs[0])
        # The design of all others: rewards of one step lie in [0, 1].
        rewards = None if task.startswith(_LQR) else (0.0, 1.0)
        steps = _max_steps(envs[0])
        super().__init__(envs, _contract(envs[0]), seed, steps, rewards, cameras, **view)

    def scene(self, index: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and the present state of environment `index`, to be drawn only."""
        physics = self._envs[index].physics
        return physics.model.ptr, physics.data.ptr

    def _begin(self, env: Any, seed: int) -> Step:
        """Start the episode of this seed."""
        composer = hasattr(env, 'random_state')
        (env.random_state if composer else env.task.random).seed(seed)
        # The reassemble tasks shuffle the order of the last episode, not a fresh one.
        order = getattr(env.task, '_initial_order', None)
        if order is not None:
            order.sort()
        return self._read(env.reset())

    def _advance(self, env: Any, action: np.ndarray) -> Step:
        """Take an action [A] that lies within the bounds."""
        return self._read(env.step(action))

    def _read(self, timestep: Any) -> Step:
        """Turn a dm_env.TimeStep, whose first one has neither reward nor discount, into ours."""
        observation = {
            field.name: np.atleast_1d(timestep.observation[field.quantity]) for field in self._own
        }
        discount = 1.0 if timestep.discount is None else timestep.discount
        return Step(int(timestep.step_type), timestep.reward or 0.0, discount, observation)


def task_names() -> dict[str, list[str]]:
    """Return the names of all tasks as {'suite': [...], 'manipulation': [...]}.

    Without dm_control there are none: {}.
    """
    try:
        suite, manipulation = _package('suite'), _package('manipulation')
    except RobotRLError:
        return {}
    return {
        'suite': sorted(f'suite/{domain}-{task}' for domain, task in suite.ALL_TASKS),
        'manipulation': sorted(
            f'manipulation/{name}'
            for tag in ('features', 'vision')
            for name in manipulation.get_environments_by_tag(tag)
        ),
    }


@functools.cache
def _package(name: str) -> Any:
    """Import dm_control.<name>. Raises RobotRLError that says how to install it."""
    chosen = os.environ.get('MUJOCO_GL')
    # On import dm_control looks for a way to draw, and fails where the chosen one does not work;
    # sim.rendering draws, and says so in one line.
    os.environ['MUJOCO_GL'] = 'disabled'
    try:
        return importlib.import_module(f'dm_control.{name}')
    except ModuleNotFoundError as error:
        raise RobotRLError(
            f'suite and manipulation tasks need the package {error.name!r}: '
            "pip install 'robot_rl[train]'"
        ) from None
    finally:
        del os.environ['MUJOCO_GL']
        if chosen is not None:
            os.environ['MUJOCO_GL'] = chosen


def _load(task: str) -> Any:
    """Return a new dm_control environment. Raises UnknownName."""
    family, _, name = task.partition('/')
    package = _package(family)
    known = [name for names in task_names().values() for name in names]
    if task not in known:
        raise UnknownName('task', task, known)
    # The seed fixes what is drawn once, at construction; episodes are seeded as they begin.
    if family == 'manipulation':
        return _load_manipulation(package, name)
    endless = {'time_limit': _ASSUMED_TIME_LIMIT_S} if task.startswith(_LQR) else {}
    env = package.load(*name.split('-', 1), task_kwargs={'random': 0, **endless})
    # quadruped-escape would open dm_control's OpenGL at every reset; sim.rendering draws instead.
    physics = type(env.physics)
    env.physics.__class__ = type(physics.__name__, (physics,), {'contexts': None})
    return env


def _load_manipulation(package: Any, name: str) -> Any:
    """Do what package.load(name, seed=0) does, but let nothing be drawn by dm_control.

    Its OpenGL is chosen when it is first imported, and would be another one than sim.rendering's.
    """
    task = importlib.import_module(f'{package.__name__}.shared.registry').get_constructor(name)()
    pictures = {key: o.array_spec.shape for key, o in task.observables.items() if o.array_spec}
    for key in pictures:
        task.observables[key].enabled = False
    composer = importlib.import_module('dm_control.composer')
    env = composer.Environment(task, time_limit=package._TIME_LIMIT, random_state=0)
    env.pictures = pictures if name.endswith('vision') else {}
    return env


def _own_cameras(env: Any) -> dict[str, tuple[int, int]]:
    """Return {camera: (height, width)} of the pictures that a task shows by itself."""
    pictures = getattr(env, 'pictures', {})
    return {camera: (height, width) for camera, (height, width, _) in pictures.items()}


def _max_steps(env: Any) -> int | None:
    """Return how many steps the time limit allows; neither family tells it in public."""
    if hasattr(env, '_step_limit'):
        return None if math.isinf(env._step_limit) else math.ceil(env._step_limit)
    return round(env._time_limit / env.control_timestep())


def _contract(env: Any) -> Contract:
    """Describe what the environment shows and takes."""
    observation = tuple(
        ObservationField(
            name=key.replace('/', '_'), source=f'env.{key}', shape=tuple(spec.shape) or (1,)
        )
        for key, spec in env.observation_spec().items()
    )
    spec = env.action_spec()
    size = math.prod(spec.shape)
    lower, upper = (
        [float(b) if abs(b) < _UNBOUNDED else float(np.sign(b)) * _ASSUMED_BOUND for b in bounds]
        for bounds in (np.broadcast_to(b, size) for b in (spec.minimum, spec.maximum))
    )
    names = (spec.name or '').split('\t')
    if len(set(names)) != size or not all(names):
        names = [f'action_{i}' for i in range(size)]
    action = ActionField(name='action', kind='generic', names=names, lower=lower, upper=upper)
    return Contract(
        rate_hz=1.0 / env.control_timestep(), observation=observation, action=(action,)
    )
