"""Message streams as MCAP files: raw CDR with true times, readable by Foxglove and rosbag2."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from mcap.records import Channel, Chunk, Message, MessageIndex, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC, Writer
from mcap_ros2.decoder import DecoderFactory

from robot_rl.errors import StorageError
from robot_rl.specs.base import Spec
from robot_rl.storage.files import opened

# A killed process loses what came since the last flush: half a second at the most, also where the
# thread that flushes is late.
FLUSH_PERIOD_S = 0.25
# What ends an MCAP file that has no summary: the records DataEnd and Footer, and the magic bytes.
_END = struct.pack('<BQI', 0x0F, 4, 0) + struct.pack('<BQQQI', 0x02, 20, 0, 0, 0) + MCAP0_MAGIC


# Below this share of what is required an episode is flagged, if so much is missing [s]: the first
# and the last moments of a short one are no fault.
LEAST_SHARE, LEAST_MISSING_S = 0.9, 0.25
# So many messages at the most, one after another, may still be sent again by their publisher.
_SENT_AGAIN = 10_000
# The stamp in a serialised message whose first field is a header: seconds and nanoseconds.
_STAMP_AT = 4
_HEADERS = 'std_msgs/Header', 'std_msgs/msg/Header', 'Header'


class TopicReport(Spec):
    """How one topic came in: times are those of arrival."""

    # The message type, package/msg/Name.
    type: str
    # Messages stored.
    count: pydantic.NonNegativeInt = 0
    # Messages missing, by gaps in the publication sequence numbers of each publisher.
    lost: pydantic.NonNegativeInt = 0
    # The longest time between two messages [s].
    longest_gap_s: pydantic.NonNegativeFloat = 0.0
    # Mean rate between the first and the last message [Hz].
    rate_hz: pydantic.NonNegativeFloat = 0.0
    # The rate that the robot or the contract asks for [Hz]; None: none is asked for.
    required_hz: pydantic.PositiveFloat | None = None
    # What that comes to while the episode ran, and what came [messages].
    expected: pydantic.NonNegativeInt | None = None
    got: pydantic.NonNegativeInt | None = None
    # From stamp to arrival, mean and longest [s]; None: nothing stamps it.
    delay_s: float | None = None
    longest_delay_s: float | None = None

    @property
    def is_short(self) -> bool:
        """Whether much less came than is required."""
        if self.required_hz is None or self.expected is None or self.got is None:
            return False
        missing_s = (self.expected - self.got) / self.required_hz
        return self.got < LEAST_SHARE * self.expected and missing_s > LEAST_MISSING_S


class Required(NamedTuple):
    """What is asked of a topic while the episode runs."""

    type: str
    rate_hz: float
    # From its first message on: nobody may command for a while, but who does goes on.
    from_first: bool = False


class StoredFile(Spec):
    """One line of an episode's manifest."""

    # The name inside the episode's directory.
    file: str
    sha256: str
    bytes: pydantic.NonNegativeInt


class StreamMessage(NamedTuple):
    """One decoded message; `message` has the fields of the ROS type as attributes."""

    topic: str
    type: str
    log_time_ns: int
    publish_time_ns: int
    sequence: int
    message: Any


class StreamWriter:
    """Appends raw messages to an MCAP file; a thread brings them to the disk all the time.

    Each flush ends a chunk, so that the file can be read up to there whatever happens next.
    `write` may be called from several threads. Raises StorageError where the file cannot be
    written; a failure of the flushing thread is raised by the next call.
    """

    def __init__(self, path: Path):
        self.path = path
        self._topics: dict[str, _Topic] = {}
        self._schemas: dict[str, int] = {}
        self._required: Mapping[str, Required] = {}
        self._run = _Run()
        self._failure: OSError | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        try:
            self._file = _HashedFile(path)
            self._mcap = Writer(self._file)
            self._mcap.start(profile='ros2', library='robot_rl')
            # Up to where the file is whole, once there is a failure; and is on the disk.
            self._whole = self._synced = self._file.bytes
        except OSError as error:
            raise self._error(error) from None
        self._thread = threading.Thread(target=self._keep_flushing, daemon=True)
        self._thread.start()

    def write(
        self,
        topic: str,
        type_name: str,
        definition: str,
        data: bytes,
        log_time_ns: int,
        publish_time_ns: int | None = None,
        sequence: int = 0,
        publisher: bytes = b'',
    ) -> None:
        """Append one serialised message.

        `definition` is schemas.message_definition(type_name), `sequence` the publication sequence
        number (0: not known) of `publisher`, any name of who published it; the times are those of
        arrival and of publication.
        """
        with self._lock:
            if self._failure or self.closed:
                raise self._error(self._failure)
            known = self._topics.get(topic)
            if known and known.type != type_name:
                raise StorageError(
                    f'{self.path}: topic {topic} holds {known.type}, not {type_name}'
                )
            with self._noting_failure():
                known = known or self._register(topic, type_name, definition)
                self._mcap.add_message(
                    known.channel,
                    log_time_ns,
                    data,
                    log_time_ns if publish_time_ns is None else publish_time_ns,
                    sequence,
                )
            known.count_in(log_time_ns, sequence, publisher, data)

    def run_from(self, time_ns: int, required: Mapping[str, Required]) -> None:
        """Say that the episode runs from now on, and what is asked of its topics meanwhile."""
        with self._lock:
            self._required, self._run.start_ns = required, time_ns
            self._run.end_ns = None

    def run_until(self, time_ns: int) -> None:
        """Say that the episode ran until now: what comes later was on its way."""
        with self._lock:
            self._run.end_ns = time_ns

    def report(self) -> dict[str, TopicReport]:
        """Return what came in so far, by topic; what is required may not have come at all."""
        with self._lock:
            silent = self._required.keys() - self._topics.keys()
            topics = self._topics | {
                name: _Topic(self._required[name].type, 0, self._run) for name in silent
            }
            newest_ns = max((topic.last_ns for topic in topics.values()), default=0)
            until_ns = self._run.end_ns or newest_ns
            return {
                name: topics[name].report(self._required.get(name), until_ns)
                for name in sorted(topics)
            }

    @property
    def last_time_ns(self) -> int | None:
        """The arrival time of the newest message."""
        return max((topic.last_ns for topic in self._topics.values()), default=None)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def close(self) -> StoredFile:
        """Finish the file, bring it to the disk and return its line for the manifest."""
        if not self.closed:
            self._closing.set()
            self._thread.join()
            if not self._failure:
                self._flush()
            if not self._failure:
                with contextlib.suppress(StorageError), self._noting_failure():
                    self._mcap.finish()
                    self._file.sync()
            with contextlib.suppress(OSError):  # what it cannot write is reported below
                self._file.close()
        if self._failure:
            raise self._error(self._failure)
        return StoredFile(
            file=self.path.name, sha256=self._file.sha256.hexdigest(), bytes=self._file.bytes
        )

    def end_whole(self) -> StoredFile:
        """Finish the file; where it could not be written it is whole up to what reached the disk.

        Returns its line for the manifest; report() and last_time_ns are of what is in it then.
        Needs next to no space. Raises StorageError where even that is not there.
        """
        with contextlib.suppress(StorageError):
            return self.close()  # it is whole
        try:
            with self.path.open('r+b') as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(_END)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError as error:
            raise self._error(error) from None
        self._topics = {}
        for channel, schema, message in raw_messages(self.path):
            new = _Topic(schema.name, channel.id, self._run, schema.data.decode(errors='replace'))
            topic = self._topics.setdefault(channel.topic, new)
            topic.count_in(message.log_time, message.sequence, b'', message.data)
        size = self._whole + len(_END)
        return StoredFile(file=self.path.name, sha256=digest, bytes=size)

    def _register(self, topic: str, type_name: str, definition: str) -> _Topic:
        if type_name not in self._schemas:
            self._schemas[type_name] = self._mcap.register_schema(
                type_name, 'ros2msg', definition.encode()
            )
        channel = self._mcap.register_channel(topic, 'cdr', self._schemas[type_name])
        self._topics[topic] = _Topic(type_name, channel, self._run, definition)
        return self._topics[topic]

    def _keep_flushing(self) -> None:
        due = time.monotonic()
        while True:
            due = max(
                due + FLUSH_PERIOD_S, time.monotonic()
            )  # a slow disk delays no flush but one
            if self._closing.wait(due - time.monotonic()):
                return
            self._flush()
            if self._failure:
                return

    def _flush(self) -> None:
        """End the chunk and bring it to the disk; a failure is noted."""
        with contextlib.suppress(StorageError):
            with self._lock, self._noting_failure():
                self._mcap.flush()
                flushed = self._file.bytes
            try:
                self._file.sync()  # slow, and so outside the lock
                self._synced = flushed
            except OSError as error:
                self._failure, self._whole = error, self._synced

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Raise StorageError for what could not be written, and note where the file is whole."""
        whole = self._file.bytes
        try:
            yield
        except OSError as error:
            self._failure, self._whole = error, whole
            raise self._error(error) from None

    def _error(self, error: OSError | None) -> StorageError:
        reason = (error.strerror or str(error)) if error else 'it is closed'
        return StorageError(f'{self.path}: cannot be written ({reason})')


def read_messages(path: Path, topics: Collection[str] | None = None) -> Iterator[StreamMessage]:
    """Yield the messages of an MCAP file (of `topics` only) in the order of arrival, decoded.

    Raises StorageError, after the last message of the last whole chunk, where the file is cut
    off or damaged; one line says where. Whatever a serialiser appended to a message is ignored.
    """
    for channel, schema, record in raw_messages(path):
        if topics is None or channel.topic in topics:
            yield StreamMessage(
                channel.topic,
                schema.name if schema else '',
                record.log_time,
                record.publish_time,
                record.sequence,
                _decode(path, channel, schema, record.data),
            )


def raw_messages(path: Path) -> Iterator[tuple[Channel, Schema | None, Message]]:
    """Yield what `read_messages` does as it stands in the file, not decoded."""
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    for record in _records(path):
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel):
            channels[record.id] = record
        elif isinstance(record, Message):
            channel = channels[record.channel_id]
            yield channel, schemas.get(channel.schema_id), record


def damage(path: Path) -> str | None:
    """Return what is wrong with an MCAP file, in one line; None: it is whole."""
    try:
        for _ in _records(path):
            pass
    except StorageError as error:
        return str(error)
    return None


def topic_types(path: Path) -> dict[str, str]:
    """Return {topic: message type} of an MCAP file, of its readable part where it is damaged."""
    schemas: dict[int, str] = {}
    types: dict[str, str] = {}
    with contextlib.suppress(StorageError):
        for record in _records(path):
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                types[record.topic] = schemas.get(record.schema_id, '')
    return types


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of an MCAP file; raise StorageError where they end too early."""
    try:
        data = opened(path)
    except OSError as error:
        raise StorageError(f'{path}: cannot be read ({error.strerror})') from None
    count = 0
    with data:
        # No record is longer than its file: a damaged length must not become an allocation.
        size = os.fstat(data.fileno()).st_size
        reader = StreamReader(data, emit_chunks=True, validate_crcs=True, record_size_limit=size)
        records = _unpacked(reader.records)
        while True:
            try:
                record = next(records, None)
            except Exception as error:  # damaged bytes make the library raise almost anything
                reason = str(error) or type(error).__name__
                raise StorageError(
                    f'{path}: cut off or damaged after {count} messages '
                    f'(byte {data.tell()} of {size}: {reason}); what stands before is readable'
                ) from None
            if record is None:
                return
            count += isinstance(record, Message)
            yield record


def _unpacked(records: Iterable[Any]) -> Iterator[Any]:
    """Yield records, those inside of chunks as well; raise ValueError where a chunk is missing.

    What kind a record is, no checksum covers before the end of the file, and the library passes
    over kinds that it does not know. But every chunk is followed by one index for each of its
    channels: a second one for the same channel belongs to a chunk that was not recognised.
    """
    channels: set[int] = set()
    indexed: set[int] = set()
    chunked = False
    for record in records:
        if isinstance(record, MessageIndex) and record.channel_id in indexed:
            raise ValueError('an index without its chunk')
        if isinstance(record, Message) and chunked:
            raise ValueError('a message outside of a chunk')
        inside = [record]
        if isinstance(record, Chunk):
            chunked, indexed, inside = True, set(), breakup_chunk(record, validate_crc=True)
        elif isinstance(record, MessageIndex):
            indexed.add(record.channel_id)
        for part in inside:
            if isinstance(part, Channel):
                channels.add(part.id)
            elif isinstance(part, Message) and part.channel_id not in channels:
                raise ValueError(f'a message of channel {part.channel_id}, which is not declared')
            yield part


def _decode(path: Path, channel: Channel, schema: Schema | None, data: bytes) -> Any:
    try:
        if schema and (channel.message_encoding, schema.encoding) == ('cdr', 'ros2msg'):
            return _decoder(schema.name, schema.data)(data)
        reason = f'its encoding is {channel.message_encoding!r}, not CDR with a ros2msg schema'
    except Exception as error:  # a definition or bytes that do not fit: any error of the parser
        reason = str(error) or type(error).__name__
    raise StorageError(f'{path}: a message on {channel.topic} cannot be decoded ({reason})')


@functools.lru_cache(maxsize=256)
def _decoder(type_name: str, definition: bytes) -> Callable[[bytes], Any]:
    """Return a decoder; parsing a definition takes longer than decoding a short episode."""
    schema = Schema(id=0, name=type_name, encoding='ros2msg', data=definition)
    return DecoderFactory().decoder_for('cdr', schema)


@dataclasses.dataclass
class _Run:
    """When the episode ran [ns]; None: not yet, or still."""

    start_ns: int | None = None
    end_ns: int | None = None

    def includes(self, time_ns: int) -> bool:
        return (
            self.start_ns is not None
            and time_ns >= self.start_ns
            and (self.end_ns is None or time_ns <= self.end_ns)
        )


class _Topic:
    """The tally of one topic."""

    def __init__(self, type_name: str, channel: int, run: _Run, definition: str = ''):
        self.type, self.channel, self._run = type_name, channel, run
        self.count = self.lost = 0
        self.sequences: dict[bytes, int] = {}  # the newest, by publisher
        self.first_ns = self.last_ns = self.longest_gap_ns = 0
        self._missing: dict[bytes, set[int]] = {}  # numbers that may still come, by publisher
        self._stamped = _begins_with_header(definition)
        self._got, self._got_first_ns = 0, None  # while the episode ran
        self._delays, self._delay_ns = 0, 0  # how many, and their sum
        self._longest_delay_ns: float = -math.inf

    def count_in(self, log_time_ns: int, sequence: int, publisher: bytes, data: bytes) -> None:
        if self.count:
            self.longest_gap_ns = max(self.longest_gap_ns, log_time_ns - self.last_ns)
            self._count_lost(sequence, publisher)
        else:
            self.first_ns = log_time_ns
            self.sequences[publisher] = sequence
        self.count += 1
        self.last_ns = log_time_ns
        if self._run.includes(log_time_ns):
            self._got += 1
            self._got_first_ns = self._got_first_ns or log_time_ns
        if self._stamped and (stamp_ns := _stamp_ns(data)):
            delay_ns = log_time_ns - stamp_ns
            self._longest_delay_ns = max(self._longest_delay_ns, delay_ns)
            self._delays, self._delay_ns = self._delays + 1, self._delay_ns + delay_ns

    def _count_lost(self, sequence: int, publisher: bytes) -> None:
        """Count the numbers that are left out; one that was sent again comes after later ones."""
        last, missing = (
            self.sequences.get(publisher, 0),
            self._missing.setdefault(publisher, set()),
        )
        if sequence in missing:
            missing.remove(sequence)
            self.lost -= 1
            return
        if 0 < last < sequence:
            self.lost += sequence - last - 1
            missing.update(range(max(last + 1, sequence - _SENT_AGAIN), sequence))
        else:  # a smaller number is a publisher that started anew
            missing.clear()
        self.sequences[publisher] = sequence

    def report(self, required: Required | None, until_ns: int) -> TopicReport:
        span_s, longest_gap_ns = (self.last_ns - self.first_ns) * 1e-9, self.longest_gap_ns
        fields: dict[str, Any] = {}
        if required and self._run.start_ns is not None:
            since_ns = self._got_first_ns if required.from_first else self._run.start_ns
            since_ns = until_ns if since_ns is None else min(since_ns, until_ns)
            expected = round((until_ns - since_ns) * 1e-9 * required.rate_hz)
            fields = {'required_hz': required.rate_hz, 'got': self._got, 'expected': expected}
            # It may have begun too late, and ended too early.
            ends = until_ns - max(self.last_ns, since_ns), self.first_ns - since_ns
            longest_gap_ns = max(longest_gap_ns, *ends)
        if self._delays:
            fields['delay_s'] = self._delay_ns / self._delays * 1e-9
            fields['longest_delay_s'] = self._longest_delay_ns * 1e-9
        return TopicReport(
            type=self.type,
            count=self.count,
            lost=self.lost,
            longest_gap_s=longest_gap_ns * 1e-9,
            rate_hz=(self.count - 1) / span_s if span_s > 0 else 0.0,
            **fields,
        )


def _begins_with_header(definition: str) -> bool:
    lines = (line.split('#')[0].split() for line in definition.splitlines())
    return next((line[0] in _HEADERS for line in lines if line), False)


def _stamp_ns(data: bytes) -> int:
    """Return the stamp of a message that begins with a header [ns]; 0: it has none."""
    if len(data) < _STAMP_AT + 8:
        return 0
    seconds, nanoseconds = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, _STAMP_AT)
    return seconds * 10**9 + nanoseconds


class _HashedFile:
    """An append-only file that knows its SHA-256: closing a long recording stays short."""

    def __init__(self, path: Path):
        # Without a buffer: what could not be written is not tried again behind our back.
        self._file = path.open('xb', buffering=0)
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:  # where there is room for some of it only, the next one fails
            left = left[self._file.write(left) :]
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        pass  # there is no buffer

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
