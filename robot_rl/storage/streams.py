"""Message streams as MCAP files: raw CDR with true times, readable by Foxglove and rosbag2."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
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
            known.count_in(log_time_ns, sequence, publisher)

    def report(self) -> dict[str, TopicReport]:
        """Return what came in so far, by topic."""
        with self._lock:
            return {name: topic.report() for name, topic in sorted(self._topics.items())}

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
            topic = self._topics.setdefault(channel.topic, _Topic(schema.name, channel.id))
            topic.count_in(message.log_time, message.sequence, b'')
        size = self._whole + len(_END)
        return StoredFile(file=self.path.name, sha256=digest, bytes=size)

    def _register(self, topic: str, type_name: str, definition: str) -> _Topic:
        if type_name not in self._schemas:
            self._schemas[type_name] = self._mcap.register_schema(
                type_name, 'ros2msg', definition.encode()
            )
        channel = self._mcap.register_channel(topic, 'cdr', self._schemas[type_name])
        self._topics[topic] = _Topic(type_name, channel)
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


class _Topic:
    """The tally of one topic."""

    def __init__(self, type_name: str, channel: int):
        self.type, self.channel = type_name, channel
        self.count = self.lost = 0
        self.sequences: dict[bytes, int] = {}  # the newest, by publisher
        self.first_ns = self.last_ns = self.longest_gap_ns = 0

    def count_in(self, log_time_ns: int, sequence: int, publisher: bytes) -> None:
        if self.count:
            self.longest_gap_ns = max(self.longest_gap_ns, log_time_ns - self.last_ns)
            # A smaller number is a publisher that started anew.
            last = self.sequences.get(publisher, 0)
            if 0 < last < sequence:
                self.lost += sequence - last - 1
        else:
            self.first_ns = log_time_ns
        self.count += 1
        self.sequences[publisher], self.last_ns = sequence, log_time_ns

    def report(self) -> TopicReport:
        span_s = (self.last_ns - self.first_ns) * 1e-9
        return TopicReport(
            type=self.type,
            count=self.count,
            lost=self.lost,
            longest_gap_s=self.longest_gap_ns * 1e-9,
            rate_hz=(self.count - 1) / span_s if span_s > 0 else 0.0,
        )


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
