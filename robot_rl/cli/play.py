"""Watch a policy: draw its episodes into an mp4 or GIF file, or in a window."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import glfw
import mujoco.viewer
import numpy as np
import pydantic

from robot_rl import registry
from robot_rl.cli import common
from robot_rl.control.runtime import Policy, load_policy
from robot_rl.control.shelf import RESERVED
from robot_rl.errors import RobotRLError
from robot_rl.sim.environment import HELD_OUT, Environment, StepType
from robot_rl.sim.rendering import Renderer

EXAMPLE = 'robot-rl play --policy runs/reach/policy.onnx --out reach.mp4'
_MOST_FRAMES_PER_S = 50


class Options(common.TaskOptions):
    """What to watch, and where to."""

    policy: str = pydantic.Field(
        description="an .onnx file, a name in pretrained/, 'random', 'constant' or 'scripted'"
    )
    task: str = pydantic.Field('', description='task; default: the one the policy was trained on')
    episodes: pydantic.PositiveInt = pydantic.Field(1, description='how many episodes')
    seed: common.Seed = pydantic.Field(
        0, description='number of the first held-out episode seed, and of the random policy'
    )
    out: Path | None = pydantic.Field(None, description='an .mp4 or .gif file; default: a window')
    width: int = pydantic.Field(640, ge=16, le=4096, description='of the picture [pixels]')
    height: int = pydantic.Field(480, ge=16, le=4096, description='of the picture [pixels]')


def main(argv: list[str]) -> int:
    """Run the episodes, show them and print each one's return."""
    options = common.parse(Options, argv, 'play', __doc__, EXAMPLE)
    task = options.task or _task_of(options.policy)
    view = registry.view_for(options.policy, task)
    environment = registry.make_environment(task, changes=options.set, **view)
    try:
        policy = registry.make_policy(options.policy, task, environment.contract, options.seed)
        screen = _screen(options, environment)
        with screen:
            returns = [
                sum(_episode(environment, policy, HELD_OUT + options.seed + i, screen))
                for i in range(options.episodes)
            ]
    finally:
        environment.close()
    shown = str(options.out) if options.out else 'window'
    text = '\n'.join(f'episode {i}: return {value:.2f}' for i, value in enumerate(returns))
    data = {'task': task, 'policy': options.policy, 'shown': shown, 'returns': returns}
    common.emit(data, options.as_json, f'{text}\n{shown}')
    return 0


def _task_of(policy: str) -> str:
    if policy in RESERVED:
        raise RobotRLError(f'--task: the {policy} policy was trained on none; name one')
    task = load_policy(policy).card.task
    if not task:
        raise RobotRLError(f'--task: {policy} does not say what it was trained on; name a task')
    return task


def _episode(environment: Environment, policy: Policy, seed: int, screen: Any) -> Iterator[float]:
    """Run one episode, show every state and yield every reward."""
    step, state = environment.reset([seed]), policy.initial_state(1)
    screen.show()
    while step.step_type[0] != StepType.LAST:
        action, state = policy.select(step.observation, state)
        step = environment.step(action)
        screen.show()
        yield float(step.reward[0])


def _screen(options: Options, environment: Environment) -> Any:
    """Return the film or the window. Raises RobotRLError where neither can be."""
    environment.scene()  # before a file is begun: not every task can be drawn
    if options.out is None:
        return _Window(environment)
    return _Film(options.out, environment, (options.width, options.height))


class _Mp4:
    """An mp4 file of pictures of one size, in OpenCV's order of colours."""

    def __init__(self, path: Path, rate_hz: float, size: tuple[int, int]):
        codec = cv2.VideoWriter.fourcc(*'mp4v')
        self._writer = cv2.VideoWriter(str(path), codec, rate_hz, size)
        if not self._writer.isOpened():
            raise RobotRLError(f'--out: {path}: cannot be written')

    def add(self, picture: np.ndarray) -> None:
        self._writer.write(picture)

    def close(self) -> None:
        self._writer.release()


class _Gif:
    """A GIF that goes on and on; its pictures are kept until it is written as a whole."""

    def __init__(self, path: Path, rate_hz: float, size: tuple[int, int]):
        del size  # of the first picture
        if not hasattr(cv2, 'Animation'):
            raise RobotRLError(f'--out: {path}: a GIF takes OpenCV 4.11 or later')
        self._path, self._milliseconds = path, round(1e3 / rate_hz)
        self._pictures: list[np.ndarray] = []
        try:
            path.touch()  # what cannot be written is told before the episode
        except OSError:
            raise RobotRLError(f'--out: {path}: cannot be written') from None

    def add(self, picture: np.ndarray) -> None:
        self._pictures.append(picture)

    def close(self) -> None:
        film = cv2.Animation()
        film.frames = self._pictures
        film.durations = [self._milliseconds] * len(self._pictures)
        if not (self._pictures and cv2.imwriteanimation(str(self._path), film)):
            raise RobotRLError(f'--out: {self._path}: could not be written')


_FILES = {'.mp4': _Mp4, '.gif': _Gif}


class _Film:
    """A file that shows time as it passed."""

    def __init__(self, path: Path, environment: Environment, size: tuple[int, int]):
        kind = path.suffix.lower()
        if kind not in _FILES:
            raise RobotRLError(f'--out: {path}: an .mp4 or .gif file is written, name it so')
        self._environment = environment
        rate_hz = environment.contract.rate_hz
        self._every, self._count = math.ceil(rate_hz / _MOST_FRAMES_PER_S), 0
        self._renderer = Renderer(*size)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _FILES[kind](path, rate_hz / self._every, size)

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()
        self._file.close()

    def show(self) -> None:
        if self._count % self._every == 0:
            picture = self._renderer.frame(*self._environment.scene())
            self._file.add(np.ascontiguousarray(picture[..., ::-1]))  # OpenCV: blue first
        self._count += 1


def _require_window() -> None:
    """Raise RobotRLError where no window opens: MuJoCo's viewer would wait for one for ever."""
    display = os.environ.get('WAYLAND_DISPLAY') or os.environ.get('DISPLAY')
    if not display:
        raise RobotRLError('there is no display for a window; name a file: --out play.mp4')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # glfw warns of what is told here
        opened = False
        if glfw.init():
            glfw.window_hint(glfw.VISIBLE, glfw.FALSE)
            opened = bool(glfw.create_window(16, 16, 'robot-rl', None, None))
            glfw.terminate()
    if not opened:
        raise RobotRLError(f'display {display!r} opens no window; name a file: --out play.mp4')


class _Window:
    """MuJoCo's viewer, in real time."""

    def __init__(self, environment: Environment):
        _require_window()
        self._environment, self._period = environment, environment.contract.period_s
        self._viewer: Any = None
        self._model: Any = None
        self._next = time.monotonic()

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self._viewer is not None:
            self._viewer.close()

    def show(self) -> None:
        model, data = self._environment.scene()
        if model is not self._model:  # the first, or a task that compiles one an episode
            self.__exit__()
            self._viewer = mujoco.viewer.launch_passive(model, data)
            self._model = model
        if not self._viewer.is_running():
            raise KeyboardInterrupt  # the person closed the window
        self._viewer.sync()
        self._next = max(self._next + self._period, time.monotonic() - self._period)
        time.sleep(max(0.0, self._next - time.monotonic()))
