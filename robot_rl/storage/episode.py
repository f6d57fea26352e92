"""Episodes as directories, the only truth: episode.json, and streams.mcap or steps.npz.

What a robot recorded are streams, of which columns are computed. What came from elsewhere, or from
a simulation in one process, may have columns only: its steps.npz is the primary data, and the
manifest names it.

An episode is written as '<id>.partial' and renamed to '<id>' when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from robot_rl.errors import SpecError, StorageError
from robot_rl.specs import Contract, RobotSpec, Spec
from robot_rl.specs.files import RECORDED
from robot_rl.storage import column_file, rewards, streams
from robot_rl.storage.claims import Claim
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
from robot_rl.storage.rewards import Int64, RewardInfo
from robot_rl.storage.streams import StoredFile, StreamMessage, StreamWriter, TopicReport

HEADER_FILE = 'episode.json'
STREAMS_FILE = 'streams.mcap'
# Columns: a cache of what was computed of the streams, or the primary data where there are none.
STEPS_FILE = 'steps.npz'
PARTIAL, DISCARDED = '.partial', '.discarded'
# Room that is kept for the end of a recording on a disk that gets full meanwhile.
RESERVE_FILE, RESERVE_BYTES = 'episode.json.reserve', 2**16

# Packages of messages that sensors stamp; a command has the stamp of what it answers.
_MEASURED = 'sensor_msgs/', 'geometry_msgs/'

# What turns the fields that version N of the header has into those of N + 1.
_MIGRATIONS: dict[int, Migration] = {
    1: lambda fields: fields,  # 2 has git_revision besides
    # and 3 what is required of a topic, delays, and interventions
    2: lambda fields: fields,
}


class EpisodeHeader(Spec):
    """episode.json: what an episode is, how it went and what its directory holds."""

    _context = RECORDED

    schema_version: Literal[3] = 3
    # Unique everywhere; it names the directory.
    id: str = pydantic.Field(default_factory=new_id, pattern=ID_PATTERN)
    # The task's name, e.g. 'ur5e/reach'.
    task: str = ''
    # Who commanded: 'policy', 'teleop', ...
    source: str = ''
    # The policy's id ('random', 'constant' without a file) and the hash of its file.
    policy: str = ''
    policy_sha256: str = ''
    # The person beside the arm.
    operator: str = ''
    # The arm's name, and its description as it was then.
    robot: str = ''
    robot_spec: RobotSpec | None = None
    # A simulated arm or a real one.
    world: Literal['sim', 'real'] = 'sim'
    # Fixed the initial condition, where something did.
    seed: Int64 | None = None
    # What the source saw and commanded.
    contract: Contract | None = None
    # How the session ended: success, failure, truncated, estop, discarded.
    result: str = ''
    # Judged by a person or by the task's predicate; None: not judged.
    success: bool | None = None
    # Why it ended, in words.
    termination: str = ''
    # How often a person took over from the policy; None: nobody has counted.
    interventions: Int64 | None = None
    tags: tuple[str, ...] = ()
    # The version of robot_rl that recorded it, and the revision where it ran from a checkout.
    code_version: str = ''
    git_revision: str = ''
    # Nanoseconds since the epoch.
    start_time_ns: Int64 = pydantic.Field(default_factory=time.time_ns)
    end_time_ns: Int64 | None = None
    # How each topic came in.
    topics: dict[str, TopicReport] = pydantic.Field(default_factory=dict)
    # The manifest of the primary data; what can be derived from it is not listed.
    files: tuple[StoredFile, ...] = ()
    # What came from elsewhere and has no field here.
    extra: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode='before')
    @classmethod
    def _unseal(cls, fields: Any) -> Any:
        return unsealed(fields, _MIGRATIONS)

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; None: not known, as where the clock was set back."""
        if self.end_time_ns is None or self.end_time_ns < self.start_time_ns:
            return None
        return (self.end_time_ns - self.start_time_ns) * 1e-9

    @property
    def flags(self) -> list[str]:
        """What makes the episode a doubtful one: a line for each required topic that was short."""
        return [
            f'{name}: {topic.got} of {topic.expected} messages, '
            f'longest gap {topic.longest_gap_s:.2f} s'
            for name, topic in self.topics.items()
            if topic.is_short
        ]

    @property
    def skew_s(self) -> float | None:
        """How far apart sensors' clocks or ways are: the greatest difference of mean delays [s].

        Of topics that are stamped when they were measured; None: there are not two of them.
        """
        delays = [
            topic.delay_s
            for topic in self.topics.values()
            if topic.delay_s is not None and topic.type.startswith(_MEASURED)
        ]
        return max(delays) - min(delays) if len(delays) > 1 else None


class EpisodeWriter:
    """Records one episode below `root` (which is made where it is missing).

    Until `commit` the directory is called '<id>.partial'; it keeps that name, and all that was
    written, when the process dies or when `close` is called (leaving a `with` block calls it).
    Raises StorageError where nothing can be written.
    """

    def __init__(self, root: str | Path, header: EpisodeHeader):
        self.header = header
        self.root = Path(root)
        self.path = self.root / f'{header.id}{PARTIAL}'
        if (self.root / header.id).exists():
            raise StorageError(f'{self.root / header.id}: this episode exists already')
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
            self._claim = Claim(self.path)  # nobody mends or clears away what is being recorded
            # A killed recorder must not take along what is known at the start.
            write_header(self.path, header)
            reserve(self.path)
            self._streams = StreamWriter(self.path / STREAMS_FILE)
        except OSError as error:
            if hasattr(self, '_claim'):  # the directory is ours, and nothing is in it
                shutil.rmtree(self.path, ignore_errors=True)
                self._claim.release()
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f'{self.root}: no episode can be recorded here '
                f'({error.strerror}); choose a folder that can be written'
            ) from None
        # See StreamWriter: write(topic, type_name, definition, data, log_time_ns, ...), report().
        self.write = self._streams.write
        self.report = self._streams.report
        self.run_from, self.run_until = self._streams.run_from, self._streams.run_until

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._streams.closed:
            return  # whatever went wrong then has been raised
        with contextlib.suppress(*[StorageError] if kind else []):  # the first error tells more
            self.close()

    def commit(self, **fields: Any) -> Path:
        """Finish the episode and return its directory, '<id>'.

        `fields` are those of EpisodeHeader that are known at the end (result, success,
        termination, tags, end_time_ns; by default the time of the last message). Raises
        StorageError, and leaves '<id>.partial', where it cannot be finished.
        """
        return self._finish('', fields)

    def discard(self, **fields: Any) -> Path:
        """Finish as `commit` does, but as '<id>.discarded': kept, and found by no query."""
        return self._finish(DISCARDED, {'result': 'discarded', **fields})

    def cut(self, termination: str) -> Path:
        """Finish, as truncated, an episode that could not be committed: the disk is full, say.

        What reached the disk is an episode like any other then; it needs no more room. Raises
        StorageError, and leaves '<id>.partial', where nothing did or even that cannot be done.
        """
        release(self.path)
        stored = self._streams.end_whole()
        if self._streams.last_time_ns is None:
            raise StorageError(f'{self.path}: no message reached the disk')
        fields = {'result': 'truncated', 'success': None, 'termination': termination}
        return self._place('', fields | {'end_time_ns': self._streams.last_time_ns}, stored)

    def close(self) -> None:
        """End the recording where it is; what was not committed stays '<id>.partial'."""
        try:
            self._streams.close()
        finally:
            self._claim.release()

    def _finish(self, suffix: str, fields: dict[str, Any]) -> Path:
        fields = {'end_time_ns': self._streams.last_time_ns, **fields}
        self.header.replace(**fields)  # a wrong field is refused before anything is closed
        return self._place(suffix, fields, self._streams.close())

    def _place(self, suffix: str, fields: dict[str, Any], stored: StoredFile) -> Path:
        """Write the header for the last time and give the directory its name."""
        self.header = self.header.replace(**fields, topics=self._streams.report(), files=(stored,))
        final = self.root / f'{self.header.id}{suffix}'
        try:
            release(self.path)
            write_header(self.path, self.header)
            self.path.rename(final)
            sync_directory(self.root)
        except OSError as error:
            raise StorageError(f'{self.path}: cannot be committed ({error.strerror})') from None
        self._claim.release()
        self.path = final
        return final


class EpisodeReader:
    """Reads an episode's directory, a partial or discarded one as well, without ROS."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.header = read_header(self.path)
        self.streams_path = self.path / STREAMS_FILE
        self.steps_path = self.path / STEPS_FILE

    @property
    def is_steps_only(self) -> bool:
        """Whether columns are the primary data: there are no streams."""
        return any(stored.file == STEPS_FILE for stored in self.header.files)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[StreamMessage]:
        """Yield decoded messages (of `topics` only) in the order in which they arrived.

        Raises StorageError after the last readable message where the file is cut or damaged.
        """
        return streams.read_messages(self.streams_path, topics)

    def damage(self) -> str | None:
        """Return what is wrong with the primary data, in one line; None: it is whole."""
        if not self.is_steps_only:
            return streams.damage(self.streams_path)
        try:
            column_file.read_whole(self.steps_path)
        except StorageError as error:
            return str(error)
        return None

    def types(self) -> dict[str, str]:
        """Return the message type of every topic that has messages: {topic: package/msg/Name}."""
        if self.header.topics or self.is_steps_only:
            topics = self.header.topics.items()
            return {topic: report.type for topic, report in topics if report.count}
        return streams.topic_types(self.streams_path)  # the recorder died before it could tell

    def rewards(self, damaged: dict[str, str] | None = None) -> list[RewardInfo]:
        """Return what the reward sequences are, oldest first; Store.add_reward adds one.

        One that cannot be read is left out and told in `damaged`: {'rewards/<id>.json': why}.
        """
        return rewards.infos(self.path, damaged)

    def reward(self, id: str) -> np.ndarray:
        """Return the values of one reward sequence, float32 [T].

        Raises UnknownName where there is none, StorageError that names a damaged file.
        """
        return rewards.read(self.path, id)


def set_aside(path: Path) -> Path:
    """Discard an episode that was committed: it is kept as '<id>.discarded', found by no query.

    Returns its new directory. Raises StorageError where there is no such episode.
    """
    header = read_header(path)
    final = path.with_name(f'{header.id}{DISCARDED}')
    with Claim(path):
        try:
            write_header(path, header.replace(result='discarded'))
            path.rename(final)
            sync_directory(path.parent)
        except OSError as error:
            raise StorageError(f'{path}: cannot be set aside ({error.strerror})') from None
    return final


def reserve(path: Path) -> None:
    """Keep room for the end of the recording in `path`. Raises OSError where there is none."""
    with (path / RESERVE_FILE).open('wb') as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def release(path: Path) -> None:
    """Give the room back that was kept in `path`."""
    (path / RESERVE_FILE).unlink(missing_ok=True)


def read_header(path: Path) -> EpisodeHeader:
    """Read the episode.json in `path`. Raises StorageError that names the file."""
    file = path / HEADER_FILE
    try:
        return EpisodeHeader.from_json(read_bytes(file).decode(), origin=str(file))
    except OSError as error:
        raise StorageError(f'{file}: cannot be read ({error.strerror}); no episode?') from None
    except (UnicodeDecodeError, SpecError) as error:
        where = '' if isinstance(error, SpecError) else f'{file}: '
        raise StorageError(f'{where}{error}') from None


def write_header(path: Path, header: EpisodeHeader) -> None:
    """Replace the episode.json in `path` at one stroke: a reader sees the old or the new one."""
    write_whole(path / HEADER_FILE, sealed(header.model_dump_json(indent=1)))
