"""How a simulated arm falls short of its model: what sensors, wires and gears do to it."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pydantic

from robot_rl.errors import SpecError
from robot_rl.specs import RobotSpec, Spec

# Beyond this no fault of an arm goes, nor a factor; and no delay beyond this [s].
MOST, LONGEST_DELAY_S = 1000.0, 5.0


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


# One number for all joints, or one for each in the order of RobotSpec.joints.
PerJoint = Annotated[
    tuple[Annotated[float, pydantic.Field(ge=0, le=MOST)], ...],
    pydantic.BeforeValidator(_as_tuple),
    pydantic.Field(min_length=1),
]


class Imperfections(Spec):
    """Faults of a simulated arm. The descriptions are those of sim_robot's ROS parameters."""

    position_noise: PerJoint = pydantic.Field(
        (0.0,),
        description='standard deviation of measured positions, for all joints or each [rad]',
    )
    velocity_noise: PerJoint = pydantic.Field(
        (0.0,), description='standard deviation of measured velocities, for all or each [rad/s]'
    )
    sensor_delay_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.0,
        le=LONGEST_DELAY_S,
        description='joint states tell what was so long before they are stamped [s]',
    )
    dropout: float = pydantic.Field(
        0.0, ge=0, lt=1, description='share of the joint states that are never published'
    )
    command_delay_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.0, le=LONGEST_DELAY_S, description='time until a command to the arm begins to act [s]'
    )
    gain: PerJoint = pydantic.Field(
        (1.0,), description='stiffness of the servos, as a multiple of that in the model'
    )
    friction: PerJoint = pydantic.Field(
        (0.0,), description="dry friction of the joints beyond the model's, for all or each [N m]"
    )

    def each(self, field: str, robot: RobotSpec) -> np.ndarray:
        """Return a field that is per joint as [n]. Raises SpecError for another number."""
        values, n = getattr(self, field), len(robot.joints)
        if len(values) not in (1, n):
            raise SpecError(
                f'{field}: one number, or one for each of the {n} joints of {robot.name}, is '
                f'needed; found {len(values)}'
            )
        return np.full(n, values)

    def beside(self, other: Imperfections, robot: RobotSpec) -> Imperfections:
        """Return what an arm is like that has these and others, independent of each other."""

        def both(field: str, join: np.ufunc) -> list[float]:
            return join(self.each(field, robot), other.each(field, robot)).tolist()

        return Imperfections(
            position_noise=both('position_noise', np.hypot),
            velocity_noise=both('velocity_noise', np.hypot),
            sensor_delay_s=self.sensor_delay_s + other.sensor_delay_s,
            dropout=1 - (1 - self.dropout) * (1 - other.dropout),
            command_delay_s=self.command_delay_s + other.command_delay_s,
            gain=both('gain', np.multiply),
            friction=both('friction', np.add),
        )
