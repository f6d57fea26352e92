"""The shelf of deployed policies: all that were ever promoted to a name, and which counts now.

<root>/<name>/<sha256>.onnx are the files, <root>/<name>/history.json says what was promoted and
rolled back, oldest first. Nothing is ever taken off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pydantic

from robot_rl.errors import PolicyFileError, SpecError, UnknownName
from robot_rl.specs import Spec

# The folder of the shelf, where ~/.robot_rl/policies is not meant.
ROOT_VARIABLE = 'ROBOT_RL_POLICIES'
# Names of policies that have no file.
RESERVED = ('random', 'constant', 'scripted')
_NAME = re.compile(r'[A-Za-z_][\w-]*')


class Promotion(Spec):
    """One entry of a name's history."""

    sha256: str
    # The id of its card.
    policy: str
    # Where the file came from.
    source: str
    # When, by the system's clock, in UTC: 2026-01-31T12:00:00Z.
    at: str
    # How many entries before this one it goes back to; 0: it was promoted.
    rolled_back: pydantic.NonNegativeInt = 0


class History(Spec):
    """All that happened to a name; the last entry counts."""

    schema_version: int = 1
    entries: tuple[Promotion, ...] = pydantic.Field(min_length=1)


class PolicyShelf:
    """The deployed policies below a folder."""

    def __init__(self, root: str | Path | None = None):
        default = Path.home() / '.robot_rl' / 'policies'
        self.root = Path(root or os.environ.get(ROOT_VARIABLE) or default)

    def names(self) -> list[str]:
        """Return the names to which policies were promoted, sorted."""
        return sorted(file.parent.name for file in self.root.glob('*/history.json'))

    def history(self, name: str) -> tuple[Promotion, ...]:
        """Return what happened to `name`, oldest first. Raises UnknownName."""
        file = self.root / name / 'history.json'
        if name not in self.names():
            raise UnknownName('promoted policy', name, self.names(), 'robot-rl policies')
        return History.from_json(file.read_text(encoding='utf-8'), origin=str(file)).entries

    def current(self, name: str) -> Path:
        """Return the file that `name` stands for now. Raises UnknownName and PolicyFileError."""
        return self._file(name, self.history(name)[-1])

    def promote(self, path: str | Path, name: str, policy: str) -> Promotion:
        """Put a copy of the file `path`, of a policy with this id, under `name`.

        Raises SpecError for a name that is none, and PolicyFileError.
        """
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise SpecError(
                f'name {name!r}: letters, digits, - and _ are right, a letter first, and none of '
                f'{", ".join(RESERVED)}'
            )
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PolicyFileError(f'{path}: cannot be read ({error.strerror})') from None
        digest = hashlib.sha256(data).hexdigest()
        entry = Promotion(sha256=digest, policy=policy, source=str(path), at=_now())
        with self._alone(name):
            entries = self.history(name) if name in self.names() else ()
            file = self.root / name / f'{digest}.onnx'
            if not file.exists():
                _write(file, data)
            self._keep(name, (*entries, entry))
        return entry

    def rollback(self, name: str) -> Promotion:
        """Make `name` stand for what it stood for before. Raises UnknownName and PolicyFileError.

        Twice goes back by two: what was rolled back is passed over.
        """
        self.history(name)
        with self._alone(name):
            entries = self.history(name)
            place = _before(entries)
            if place is None:
                raise PolicyFileError(f'{name}: nothing was promoted before {entries[-1].policy}')
            self._file(name, entries[place])
            back = {'rolled_back': len(entries) - place, 'at': _now()}
            entry = entries[place].replace(**back)
            self._keep(name, (*entries, entry))
        return entry

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Let nobody else change what `name` stands for meanwhile."""
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / 'lock').open('a') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise PolicyFileError(f'{folder}: cannot be written ({error.strerror})') from None

    def _file(self, name: str, entry: Promotion) -> Path:
        file = self.root / name / f'{entry.sha256}.onnx'
        if not file.is_file():
            raise PolicyFileError(
                f'{file}: {name} stands for {entry.policy}, and its file is gone'
            )
        return file

    def _keep(self, name: str, entries: tuple[Promotion, ...]) -> None:
        text = History(entries=entries).to_json()
        _write(self.root / name / 'history.json', text.encode('utf-8'))


def _before(entries: tuple[Promotion, ...]) -> int | None:
    """Return the place of what counted before the last entry; None: nothing did."""
    place = len(entries) - 1
    while entries[place].rolled_back:
        place -= entries[place].rolled_back
    return place - 1 if place > 0 else None


def _write(file: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises PolicyFileError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            partial.write(data)
            partial.flush()
            os.fsync(partial.fileno())
            os.fchmod(partial.fileno(), 0o644)  # others may run what one has promoted
        os.replace(partial.name, file)
    except OSError as error:
        raise PolicyFileError(f'{file}: cannot be written ({error.strerror})') from None


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
