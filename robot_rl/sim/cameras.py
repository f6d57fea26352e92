"""What cameras see of a batch of simulated scenes, as fields of an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import mujoco
import numpy as np

from robot_rl import registry
from robot_rl.control.observation import Observation
from robot_rl.errors import SpecError, did_you_mean
from robot_rl.robots.mjcf import named, names
from robot_rl.sim.rendering import CAMERA, Renderer
from robot_rl.specs import Contract, ObservationField, RobotSpec

Scene = tuple[mujoco.MjModel, mujoco.MjData]
Sizes = Mapping[str, tuple[int, int]]  # {camera: (height, width)}
Colour = tuple[int, int, int]  # red, green, blue of 0 to 255
# A marker is a square in a picture's corner, so many times smaller than its height.
_MARKER_PART = 4


class Cameras:
    """Draws a picture by each camera of each of N scenes, fast: see sim.rendering.Renderer.

    `sizes` name cameras of the model, but for those that `mjcf` {name: name in the model} says
    otherwise of; 'overview' may be missing there and is its first one then. Each picture has a
    `marker`, if any: a square of that colour in its upper left corner. Raises SpecError for
    another camera that the model has not, and RobotRLError where offscreen OpenGL fails.
    """

    def __init__(
        self,
        sizes: Sizes,
        num_envs: int,
        model: mujoco.MjModel,
        mjcf: Mapping[str, str] = {},
        marker: Colour | None = None,
    ):
        self._mjcf = {name: mjcf.get(name, name) for name in sizes}
        for name in self._mjcf.values():
            if name != CAMERA:
                named(model, 'camera', name)
        self._sizes, self._num_envs, self._marker = dict(sizes), num_envs, marker
        height, width = (max(size[axis] for size in sizes.values()) for axis in (0, 1))
        self._renderer = Renderer(width, height, fast=True, models=num_envs)

    @classmethod
    def of(
        cls, contract: Contract, num_envs: int, model: mujoco.MjModel, robot: RobotSpec
    ) -> Self | None:
        """Return those that a contract's pictures come from; None: it has no pictures."""
        sizes = {f.stream: f.shape[:2] for f in contract.observation if f.encoding}
        mjcf = {camera.name: camera.mjcf_name for camera in robot.cameras}
        return cls(sizes, num_envs, model, mjcf) if sizes else None

    def draw(self, scene: Callable[[int], Scene]) -> Observation:
        """Return {camera: [N, height, width, 3] uint8} of scene(0), ..., scene(N - 1)."""
        pictures = {
            name: np.empty((self._num_envs, *size, 3), np.uint8)
            for name, size in self._sizes.items()
        }
        for index in range(self._num_envs):
            model, data = scene(index)
            for name, size in self._sizes.items():
                camera = None if self._mjcf[name] == CAMERA else self._mjcf[name]
                pictures[name][index] = self._renderer.frame(model, data, camera, size)
        if self._marker is not None:
            for drawn in pictures.values():
                side = drawn.shape[1] // _MARKER_PART
                drawn[:, :side, :side] = self._marker
        return pictures

    def close(self) -> None:
        """Release the graphics."""
        self._renderer.close()


def camera_names(model: mujoco.MjModel, robot: RobotSpec) -> list[str]:
    """Return the names of the cameras that can show a robot's scene."""
    inside = names(model, 'camera')
    own = [camera.name for camera in robot.cameras if camera.mjcf_name in inside]
    return [*own, *inside, CAMERA]


def with_view(
    contract: Contract,
    cameras: Sizes,
    history: Mapping[str, int],
    constants: Mapping[str, float] = {},
) -> Contract:
    """Return `contract` with a field for each camera and constant, and `history` steps of some.

    Raises SpecError for a history of a field that is not there.
    """
    pictures = [picture_field(name, size) for name, size in cameras.items()]
    numbers = [
        ObservationField(name=name, source=f'constant.{name}', shape=(1,)) for name in constants
    ]
    fields = [*contract.observation, *pictures, *numbers]
    known = [field.name for field in fields]
    for name in history:
        if name not in known:
            raise SpecError(f'history: no observation field {name!r}{did_you_mean(name, known)}')
    fields = [field.replace(history=history.get(field.name, field.history)) for field in fields]
    return contract.replace(observation=[field.to_dict() for field in fields])


def view_of(task: str, contract: Contract) -> dict[str, Any]:
    """Return the options of make_environment by which `task` shows what `contract` wants.

    The task of an arm serves any contract that its streams and cameras do.
    """
    if not task.startswith(registry.WITHOUT_STREAMS):
        return {'contract': contract}
    fields = contract.observation
    options = {
        'cameras': {field.name: field.shape[:2] for field in fields if field.encoding},
        'history': {field.name: field.history for field in fields if field.history > 1},
        'rate_hz': contract.rate_hz,
    }
    return {name: value for name, value in options.items() if value}


def picture_field(name: str, size: tuple[int, int]) -> ObservationField:
    """Return the field of what a camera shows, as it is drawn: raw, of `size` (height, width)."""
    data = {'name': name, 'source': f'{name}.image', 'shape': (*size, 3)}
    data |= {'dtype': 'uint8', 'encoding': 'rgb8', 'lossless': True}
    return ObservationField.parse(data, f'camera {name!r}')
