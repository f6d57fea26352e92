"""PolicyCard: what a policy file is; it travels as the metadata of the ONNX file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import pydantic

from robot_rl.errors import PolicyFileError, SpecError
from robot_rl.specs.base import Spec
from robot_rl.specs.contract import Contract

METADATA_KEY = 'robot_rl.policy_card'


class StateField(Spec):
    """One recurrent state: `shape` without a batch axis, and its flat initial value."""

    name: str
    shape: tuple[pydantic.PositiveInt, ...]
    initial: tuple[float, ...]

    @pydantic.model_validator(mode='after')
    def _initial_fills_shape(self) -> Self:
        if len(self.initial) != math.prod(self.shape):
            raise ValueError(f'initial: {len(self.initial)} values for shape {list(self.shape)}')
        return self


class PolicyCard(Spec):
    """The identity of a policy: its contract, its recurrent state and where it comes from."""

    schema_version: Literal[1] = 1
    id: str
    contract: Contract
    recurrent_state: tuple[StateField, ...] = ()
    task: str = ''
    robot: str = ''
    agent: str = ''
    git_revision: str = ''
    training: dict[str, Any] = pydantic.Field(default_factory=dict)
    opset: pydantic.PositiveInt = 18

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata properties to be written into an ONNX model."""
        return {METADATA_KEY: self.to_json()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str = '') -> PolicyCard:
        """Read the card from an ONNX model's metadata.

        Raises PolicyFileError where there is no card or it cannot be read.
        """
        where = origin or 'the policy'
        if METADATA_KEY not in metadata:
            raise PolicyFileError(
                f'{where}: an ONNX file without a policy card (metadata {METADATA_KEY!r}); '
                'export it with robot-rl export, which writes the contract into the file'
            )
        try:
            return cls.from_json(metadata[METADATA_KEY])
        except SpecError as error:
            raise PolicyFileError(f'{where}: its policy card cannot be read: {error}') from None
