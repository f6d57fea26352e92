"""What cameras see of a batch of simulated scenes, as fields of an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import numpy as np

from robot_rl.control.observation import Observation
from robot_rl.errors import SpecError, did_you_mean
from robot_rl.registry import WITHOUT_STREAMS
from robot_rl.robots.mjcf import named
from robot_rl.sim.rendering import CAMERA, Renderer
from robot_rl.specs import Contract, ObservationField

Scene = tuple[mujoco.MjModel, mujoco.MjData]
Sizes = Mapping[str, tuple[int, int]]  # {camera: (height, width)}


class Cameras:
    """Draws a picture by each camera of each of N scenes, fast: see sim.rendering.Renderer.

    `sizes` name cameras of the model; 'overview' may be missing there and is its first one then.
    Raises SpecError for another that the model has not, and RobotRLError where offscreen OpenGL
    fails.
    """

    def __init__(self, sizes: Sizes, num_envs: int, model: mujoco.MjModel):
        for name in sizes:
            if name != CAMERA:
                named(model, 'camera', name)
        self._sizes, self._num_envs = dict(sizes), num_envs
        height, width = (max(size[axis] for size in sizes.values()) for axis in (0, 1))
        self._renderer = Renderer(width, height, fast=True, models=num_envs)

    def draw(self, scene: Callable[[int], Scene]) -> Observation:
        """Return {camera: [N, height, width, 3] uint8} of scene(0), ..., scene(N - 1)."""
        pictures = {
            name: np.empty((self._num_envs, *size, 3), np.uint8)
            for name, size in self._sizes.items()
        }
        for index in range(self._num_envs):
            model, data = scene(index)
            for name, size in self._sizes.items():
                camera = None if name == CAMERA else name
                pictures[name][index] = self._renderer.frame(model, data, camera, size)
        return pictures

    def close(self) -> None:
        """Release the graphics."""
        self._renderer.close()


def with_view(
    contract: Contract,
    cameras: Sizes,
    history: Mapping[str, int],
    constants: Mapping[str, float] = {},
) -> Contract:
    """Return `contract` with a field for each camera and constant, and `history` steps of some.

    Raises SpecError for a history of a field that is not there.
    """
    fields = [*contract.observation, *(_field(name, size) for name, size in cameras.items())]
    fields += [
        ObservationField(name=name, source=f'constant.{name}', shape=(1,)) for name in constants
    ]
    known = [field.name for field in fields]
    for name in history:
        if name not in known:
            raise SpecError(f'history: no observation field {name!r}{did_you_mean(name, known)}')
    fields = [field.replace(history=history.get(field.name, field.history)) for field in fields]
    return contract.replace(observation=[field.to_dict() for field in fields])


def view_of(task: str, contract: Contract) -> dict[str, Any]:
    """Return the options of make_environment by which `task` shows what `contract` wants.

    Nothing for the task of an arm, whose contract says all of it.
    """
    if not task.startswith(WITHOUT_STREAMS):
        return {}
    fields = contract.observation
    options = {
        'cameras': {field.name: field.shape[:2] for field in fields if field.encoding},
        'history': {field.name: field.history for field in fields if field.history > 1},
    }
    return {name: value for name, value in options.items() if value}


def _field(name: str, size: tuple[int, int]) -> ObservationField:
    data = {'name': name, 'source': f'{name}.image', 'shape': (*size, 3)}
    return ObservationField.parse(
        data | {'dtype': 'uint8', 'encoding': 'rgb8'}, f'camera {name!r}'
    )
