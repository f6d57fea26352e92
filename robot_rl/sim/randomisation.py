"""Domain randomisation: what of a simulated world differs from episode to episode.

A task's file declares it; by default nothing does. An episode's world is drawn from its seed, each
quantity by itself: the same seed gives the same world again, whatever else is drawn beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import mujoco
import numpy as np
import pydantic

from robot_rl.errors import SpecError, did_you_mean
from robot_rl.robots import quaternions
from robot_rl.robots.mjcf import named, names
from robot_rl.sim.imperfections import LONGEST_DELAY_S, MOST, Imperfections
from robot_rl.specs import RobotSpec, Spec

# What MuJoCo gives a geom without a colour; one that has a material then takes that one's.
_NO_COLOUR = (0.5, 0.5, 0.5, 1.0)


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    lower, upper = value
    if lower > upper:
        raise ValueError(f'lower {lower:g} must not be above upper {upper:g}')
    return value


_RANGE = pydantic.BeforeValidator(_as_range), pydantic.AfterValidator(_ordered)
_Positive = Annotated[float, pydantic.Field(gt=0, le=MOST)]
_NonNegative = Annotated[float, pydantic.Field(ge=0, le=MOST)]
# [lower, upper], both drawn; or one number, for what is always so much.
Range = Annotated[tuple[float, float], *_RANGE]
Factor = Annotated[tuple[_Positive, _Positive], *_RANGE]
Amount = Annotated[tuple[_NonNegative, _NonNegative], *_RANGE]
Steps = Annotated[tuple[pydantic.NonNegativeInt, pydantic.NonNegativeInt], *_RANGE]
_Unit = Annotated[float, pydantic.Field(ge=0, le=1)]
Share = Annotated[tuple[_Unit, _Unit], *_RANGE]

Vector = tuple[float, float, float]


class Randomisation(Spec):
    """Ranges [lower, upper] from which each episode's world is drawn, uniformly; or one number.

    Bodies are named as in the scene, or by a pattern as of file names: '*_link'. Each that fits
    has a draw of its own; of several patterns that fit the last one holds. The table and the floor
    are of the body 'world'.
    """

    mass: dict[str, Factor] = pydantic.Field({})
    """masses of bodies, inertia with them, as multiples of the model's: {body: range}"""
    contact_friction: dict[str, Factor] = pydantic.Field({})
    """friction of what touches a body, as a multiple of the model's: {body: range}"""
    friction: Amount = (0.0, 0.0)
    """dry friction of each of the arm's joints beyond the model's [N m]"""
    gain: Factor = (1.0, 1.0)
    """stiffness of each joint's servo, as a multiple of the model's"""
    command_delay: Steps = (0, 0)
    """time until a command to the arm acts [periods of its controller: 10 ms at 100 Hz]"""
    sensor_delay: Steps = (0, 0)
    """age of what is measured of joints and gripper [periods of the controller]"""
    position_noise: Amount = (0.0, 0.0)
    """standard deviation of measured joint positions [rad]"""
    velocity_noise: Amount = (0.0, 0.0)
    """standard deviation of measured joint velocities [rad/s]"""
    colour: dict[str, Share] = pydantic.Field({})
    """how much of a random colour covers a body's own, 0 to 1: {body: range}"""
    light_brightness: Factor = (1.0, 1.0)
    """of all lights, as a multiple of the model's"""
    light_turn: Amount = (0.0, 0.0)
    """by how much each light shines from elsewhere, about a random axis [rad]"""
    camera_shift: Amount = (0.0, 0.0)
    """how far each camera is from its place, in a random direction [m]"""
    camera_turn: Amount = (0.0, 0.0)
    """by how much each camera is turned, about a random axis [rad]"""

    @property
    def is_on(self) -> bool:
        """Whether anything differs from the model."""
        return self != Randomisation()

    def require_bounded(self, period_s: float) -> None:
        """Raise SpecError for longer delays than a world may have, with this controller's period.

        Else it would be an episode that draws one that ends with it.
        """
        for field in ('command_delay', 'sensor_delay'):
            periods = max(getattr(self, field))
            if periods * period_s > LONGEST_DELAY_S:
                raise SpecError(
                    f'randomisation.{field} {periods}: periods of {period_s:g} s, so that at most '
                    f'{LONGEST_DELAY_S / period_s:.0f} are right ({LONGEST_DELAY_S:g} s)'
                )

    def drawn(self, seed: int, model: mujoco.MjModel, robot: RobotSpec) -> Domain:
        """Return the world of the episode of this seed. Raises SpecError for an unknown body."""
        if not self.is_on:
            return Domain()
        joints, period_s = len(robot.joints), robot.controller.period_s

        def uniform(field: str, size: int | None = None) -> Any:
            return generator(seed, field).uniform(*getattr(self, field), size)

        def delay_s(field: str) -> float:
            periods = generator(seed, field).integers(*getattr(self, field), endpoint=True)
            return int(periods) * period_s

        def vectors(field: str, count: int) -> list[list[float]]:
            rng = generator(seed, field)
            return [_vector(rng, getattr(self, field)) for _ in range(count)]

        imperfections = {
            'gain': uniform('gain', joints).tolist(),
            'friction': uniform('friction', joints).tolist(),
            'position_noise': uniform('position_noise'),
            'velocity_noise': uniform('velocity_noise'),
            'command_delay_s': delay_s('command_delay'),
            'sensor_delay_s': delay_s('sensor_delay'),
        }
        return Domain.parse(
            {
                'imperfections': imperfections,
                'mass': self._of_bodies('mass', seed, model, _uniform),
                'contact_friction': self._of_bodies('contact_friction', seed, model, _uniform),
                'colour': self._of_bodies('colour', seed, model, _colour),
                'light_brightness': uniform('light_brightness'),
                'light_turn': vectors('light_turn', model.nlight),
                'camera_shift': vectors('camera_shift', model.ncam),
                'camera_turn': vectors('camera_turn', model.ncam),
            }
        )

    def told(self, domain: Domain) -> dict[str, Any]:
        """Return what an episode's header says of its world: what it was drawn from, what came.

        Nothing where nothing is drawn.
        """
        return {'randomisation': self.to_dict(), 'domain': domain.to_dict()} if self.is_on else {}

    def _of_bodies(
        self, field: str, seed: int, model: mujoco.MjModel, draw: Any
    ) -> dict[str, Any]:
        """Return a draw for each body that the field names."""
        bodies = [name for name in names(model, 'body') if name]
        ranges = _by_body(getattr(self, field), field, bodies)
        return {body: draw(generator(seed, f'{field}/{body}'), r) for body, r in ranges.items()}


class Domain(Spec):
    """One world: how it differs from its model."""

    imperfections: Imperfections = Imperfections()
    """of the arm; delays are whole periods of its controller"""
    mass: dict[str, float] = pydantic.Field({})
    """{body: factor}"""
    contact_friction: dict[str, float] = pydantic.Field({})
    """{body: factor}"""
    colour: dict[str, tuple[float, float, float, float]] = pydantic.Field({})
    """what lies over a body's own colour: red, green, blue, opacity, all 0 to 1"""
    light_brightness: float = 1.0
    """a factor"""
    light_turn: tuple[Vector, ...] = ()
    """of each light, a rotation vector [rad]"""
    camera_shift: tuple[Vector, ...] = ()
    """of each camera [m], in the frame of the body that carries it"""
    camera_turn: tuple[Vector, ...] = ()
    """of each camera, a rotation vector [rad], in that frame"""

    def embody(self, model: mujoco.MjModel, nominal: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Make `model`, a copy of `nominal`, the model of this world; `data` is scratch.

        All but the arm's imperfections, which act on more than a model. Of one randomisation: a
        body that one world names all others must name.
        """
        self._weigh(model, nominal)
        for body, factor in self.contact_friction.items():
            geoms = model.geom_bodyid == named(model, 'body', body)
            model.geom_friction[geoms] = nominal.geom_friction[geoms] * factor
        self._paint(model, nominal)
        self._light(model, nominal)
        for camera, (shift, turn) in enumerate(
            zip(self.camera_shift, self.camera_turn, strict=True)
        ):
            model.cam_pos[camera] = nominal.cam_pos[camera] + shift
            turned = quaternions.from_rotation_vector(np.array(turn))
            model.cam_quat[camera] = quaternions.multiply(turned, nominal.cam_quat[camera])
        mujoco.mj_setConst(model, data)  # what the compiler computed of masses and places

    def _weigh(self, model: mujoco.MjModel, nominal: mujoco.MjModel) -> None:
        for name, factor in self.mass.items():
            body = named(model, 'body', name)
            model.body_mass[body] = nominal.body_mass[body] * factor
            model.body_inertia[body] = nominal.body_inertia[body] * factor
            # What compensates gravity goes by the masses that the arm is thought to have.
            model.body_gravcomp[body] = nominal.body_gravcomp[body] / factor

    def _paint(self, model: mujoco.MjModel, nominal: mujoco.MjModel) -> None:
        for body, (*over, opacity) in self.colour.items():
            for geom in np.flatnonzero(model.geom_bodyid == named(model, 'body', body)):
                own, material = nominal.geom_rgba[geom], nominal.geom_matid[geom]
                if material >= 0 and tuple(own) == _NO_COLOUR:
                    own = nominal.mat_rgba[material]
                mixed = (1 - opacity) * own[:3] + opacity * np.array(over)
                model.geom_rgba[geom] = [*mixed, own[3]]

    def _light(self, model: mujoco.MjModel, nominal: mujoco.MjModel) -> None:
        for part in ('ambient', 'diffuse', 'specular'):
            lights, own = getattr(model, f'light_{part}'), getattr(nominal, f'light_{part}')
            lights[:] = own * self.light_brightness
            own = getattr(nominal.vis.headlight, part)
            getattr(model.vis.headlight, part)[:] = own * self.light_brightness
        for light, turn in enumerate(self.light_turn):
            turned = quaternions.from_rotation_vector(np.array(turn))
            model.light_dir[light] = quaternions.rotate(turned, nominal.light_dir[light])


def _by_body(ranges: Mapping[str, Any], field: str, bodies: list[str]) -> dict[str, Any]:
    """Return the range of each body that a pattern names. Raises SpecError where none does."""
    found = {}
    for pattern, values in ranges.items():
        fitting = [body for body in bodies if fnmatchcase(body, pattern)]
        if not fitting:
            near = did_you_mean(pattern, bodies)
            raise SpecError(f'randomisation.{field}: the scene has no body {pattern!r}{near}')
        found |= dict.fromkeys(fitting, values)
    return found


def generator(seed: int, what: str) -> np.random.Generator:
    """Return what one quantity of an episode is drawn from."""
    return np.random.default_rng([seed, zlib.crc32(what.encode())])


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return rng.uniform(*bounds)


def _colour(rng: np.random.Generator, opacity: tuple[float, float]) -> list[float]:
    return [*rng.uniform(size=3), rng.uniform(*opacity)]


def _vector(rng: np.random.Generator, length: tuple[float, float]) -> list[float]:
    """Draw a vector of a length in this range, in any direction."""
    direction = rng.standard_normal(3)
    return (rng.uniform(*length) * direction / np.linalg.norm(direction)).tolist()
