"""Mends an episode whose recorder was killed, up to its last flush."""

from __future__ import annotations

from pathlib import Path

from robot_rl.errors import StorageError
from robot_rl.storage.checksums import stored_file
from robot_rl.storage.claims import Claim
from robot_rl.storage.episode import (
    PARTIAL,
    STREAMS_FILE,
    read_header,
    release,
    sync_directory,
    write_header,
)
from robot_rl.storage.streams import StreamWriter, raw_messages

# The bytes as the recorder left them, beside what could be read of them.
CUT_FILE = 'streams.cut.mcap'
_MENDED_FILE = 'streams.mended.mcap'


def recover(path: Path) -> Path:
    """Turn '<id>.partial' into an episode like any other and return its directory, '<id>'.

    Its result is 'truncated', and its termination says that it was cut. Where the streams are not
    whole, what the recorder left stays as streams.cut.mcap. Dying inside leaves a partial episode
    that can be recovered. Raises StorageError, and changes nothing, where it is being recorded,
    where no message was flushed, and where an episode of that id is there.
    """
    if not path.name.endswith(PARTIAL):
        raise StorageError(f'{path}: only what is called <id>{PARTIAL} can be recovered')
    final = path.with_name(path.name.removesuffix(PARTIAL))
    with Claim(path):
        header = read_header(path)
        if header.id != final.name:
            raise StorageError(f'{path}: holds episode {header.id}; rename the directory')
        if final.exists():
            raise StorageError(f'{final}: this episode exists already')
        damage, fields = _mend(path)
        files = [stored_file(path, name) for name in (STREAMS_FILE, CUT_FILE)[: 1 + bool(damage)]]
        why = 'recovered up to the last flush' if damage else 'complete up to there'
        try:
            release(path)
            write_header(
                path,
                header.replace(
                    **fields,
                    files=files,
                    result='truncated',
                    termination=f'cut: the recording ended without a commit ({why})',
                ),
            )
            path.rename(final)
            sync_directory(final.parent)
        except OSError as error:
            raise StorageError(f'{path}: cannot be recovered ({error.strerror})') from None
    return final


def _mend(path: Path) -> tuple[str | None, dict]:
    """Leave whole streams in `path`; return what was wrong and the header's fields about them."""
    streams, cut, mended = (path / name for name in (STREAMS_FILE, CUT_FILE, _MENDED_FILE))
    # Who died while mending may have moved the original already.
    original = cut if cut.exists() else streams
    mended.unlink(missing_ok=True)
    try:
        writer = StreamWriter(mended)
        try:
            damage = _copy(original, writer)
        finally:
            writer.close()
        if writer.last_time_ns is None:
            raise StorageError(
                f'{path}: no message reached the disk; there is nothing to recover'
                f'{f" ({damage})" if damage else ""}'
            )
        if damage:
            if original == streams:
                streams.rename(cut)
            mended.rename(streams)
            sync_directory(path)
    finally:
        mended.unlink(missing_ok=True)
    return damage, {'topics': writer.report(), 'end_time_ns': writer.last_time_ns}


def _copy(path: Path, writer: StreamWriter) -> str | None:
    """Copy every readable message to `writer`; return what ended them too early, if anything."""
    try:
        for channel, schema, message in raw_messages(path):
            if schema is None:
                return f'{path}: the messages on {channel.topic} have no type'
            writer.write(
                channel.topic,
                schema.name,
                schema.data.decode(errors='replace'),
                message.data,
                message.log_time,
                message.publish_time,
                message.sequence,
            )
    except StorageError as error:
        return str(error)
    return None
