"""Reward sequences of an episode: rewards/<id>.npy, each with a sidecar rewards/<id>.json.

An episode has any number of them: sketched by annotators or predicted by reward models, for any
task; and what a simulated environment paid, where no task computes it from columns. The sidecar is
written last and makes the sequence exist; a sequence is never replaced.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from robot_rl.errors import SpecError, StorageError, UnknownName
from robot_rl.specs import Spec
from robot_rl.storage.files import (
    ID_PATTERN,
    Migration,
    new_id,
    read_bytes,
    sealed,
    sync_directory,
    unsealed,
    write_whole,
)

REWARDS_FOLDER = 'rewards'
# Of its values there is one a step, as the environment gave it.
SIMULATED = 'simulated'
Int64 = Annotated[int, pydantic.Field(ge=0, lt=2**63)]

# What turns the fields that version N of the sidecar has into those of N + 1.
_MIGRATIONS: dict[int, Migration] = {
    1: lambda fields: fields,  # 2 has the kind 'simulated' besides
}


class RewardInfo(Spec):
    """The sidecar of one reward sequence: what it rewards, who made it, and what it belongs to."""

    schema_version: Literal[2] = 2
    # Unique everywhere; it names the files.
    id: str = pydantic.Field(default_factory=new_id, pattern=ID_PATTERN)
    # The task that is rewarded; it may be another than the episode's.
    task: str = pydantic.Field(min_length=1)
    # Drawn by a person, computed by a reward model, or paid by a simulated environment.
    kind: Literal['sketch', 'predicted', 'simulated']
    # The annotator, the id of the reward model, or the name of the environment.
    author: str = pydantic.Field(min_length=1)
    # The hash of the reward model's file; '' without one.
    model_sha256: str = ''
    # When it was drawn or computed, nanoseconds since the epoch.
    created_ns: Int64 = pydantic.Field(default_factory=time.time_ns)
    # Values: one for each step of the episode's primary time base ...
    length: pydantic.PositiveInt
    # ... or at these times, ascending [ns since the epoch].
    times_ns: tuple[Int64, ...] | None = None
    # The hash of the file of values.
    sha256: str
    # What came from elsewhere and has no field here.
    extra: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode='before')
    @classmethod
    def _unseal(cls, fields: Any) -> Any:
        return unsealed(fields, _MIGRATIONS)

    @pydantic.model_validator(mode='after')
    def _belongs_together(self) -> RewardInfo:
        if self.kind != 'predicted' and self.model_sha256:
            raise ValueError(f'model_sha256: a {self.kind} has no model; is kind predicted?')
        if self.times_ns is not None:
            if len(self.times_ns) != self.length:
                raise ValueError(f'times_ns: {len(self.times_ns)} times, {self.length} values')
            if any(b <= a for a, b in zip(self.times_ns, self.times_ns[1:], strict=False)):
                raise ValueError('times_ns: must ascend')
        return self


def prepare(values: npt.ArrayLike, about: Mapping[str, Any]) -> tuple[RewardInfo, bytes]:
    """Return the sidecar and the file of values for `add`; `about` are fields of RewardInfo.

    `values` are [T], finite. Raises SpecError where something does not fit.
    """
    try:
        array = np.asarray(values, dtype='<f4')
    except (TypeError, ValueError) as error:
        raise SpecError(f'reward: the values are no numbers ({error})') from None
    if array.ndim != 1 or not array.size:
        raise SpecError(f'reward: one value a step is needed, found shape {list(array.shape)}')
    if not np.isfinite(array).all():
        step = int(np.argmin(np.isfinite(array)))
        raise SpecError(f'reward: value {step} of {array.size} is {array[step]}, not finite')
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    data = file.getvalue()
    made = {'length': array.size, 'sha256': hashlib.sha256(data).hexdigest()}
    return RewardInfo.parse({**about, **made}), data


def add(path: Path, info: RewardInfo, data: bytes) -> None:
    """Add what `prepare` made to the episode in `path`; one process at a time.

    Raises StorageError where it cannot be written or a sequence of that id is there.
    """
    folder = path / REWARDS_FOLDER
    if _sidecar(path, info.id).exists():
        raise StorageError(
            f'{_sidecar(path, info.id)}: this reward exists already, and none is ever replaced'
        )
    try:
        folder.mkdir(exist_ok=True)
        sync_directory(path)
        write_whole(_values(path, info.id), data)
        write_whole(_sidecar(path, info.id), sealed(info.model_dump_json(indent=1)))
    except OSError as error:
        raise StorageError(f'{folder}: no reward can be added ({error.strerror})') from None


def infos(path: Path, damaged: dict[str, str] | None = None) -> list[RewardInfo]:
    """Return the sidecars of the episode in `path`, oldest first.

    One that cannot be read is left out and told in `damaged`: {'rewards/<id>.json': why}.
    """
    found = []
    for file in sorted((path / REWARDS_FOLDER).glob('*.json')):
        try:
            found.append(info(path, file.stem))
        except StorageError as error:
            if damaged is not None:
                damaged[f'{REWARDS_FOLDER}/{file.name}'] = str(error)
    return sorted(found, key=lambda info: (info.created_ns, info.id))


def info(path: Path, id: str) -> RewardInfo:
    """Return one sidecar. Raises UnknownName where there is none, StorageError if damaged."""
    file = _sidecar(path, id)
    if Path(id).name != id or not file.exists():
        known = [file.stem for file in (path / REWARDS_FOLDER).glob('*.json')]
        raise UnknownName('reward', id, known)
    try:
        found = RewardInfo.from_json(read_bytes(file).decode(), origin=str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f'{file}: cannot be read ({error})') from None
    except SpecError as error:
        raise StorageError(str(error)) from None
    if found.id != id:
        raise StorageError(f'{file}: holds reward {found.id}; rename the file')
    return found


def read(path: Path, id: str) -> np.ndarray:
    """Return the values of one sequence, float32 [T].

    Raises UnknownName where there is none, StorageError that names the damaged file.
    """
    about, file = info(path, id), _values(path, id)
    try:
        data = read_bytes(file)
    except OSError as error:
        raise StorageError(f'{file}: cannot be read ({error.strerror})') from None
    if hashlib.sha256(data).hexdigest() != about.sha256:
        raise StorageError(f'{file}: differs from its hash in {_sidecar(path, id).name}: damaged')
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise StorageError(f'{file}: no file of values ({error})') from None
    if values.shape != (about.length,) or values.dtype != np.float32:
        raise StorageError(
            f'{file}: holds {values.dtype} {list(values.shape)}, '
            f'its sidecar says float32 [{about.length}]'
        )
    return values


def _sidecar(path: Path, id: str) -> Path:
    return path / REWARDS_FOLDER / f'{id}.json'


def _values(path: Path, id: str) -> Path:
    return path / REWARDS_FOLDER / f'{id}.npy'
