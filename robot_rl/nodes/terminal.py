"""A terminal whose keys are read as they are pressed; what it was like is given back. ROS-free."""

from __future__ import annotations

import contextlib
import os
import select
import termios
from collections.abc import Iterator

from robot_rl.errors import RobotRLError

# What xterm and its kin send for keys that are no characters.
_SEQUENCES = {
    b'\x1b[A': 'up', b'\x1b[B': 'down', b'\x1b[C': 'right', b'\x1b[D': 'left',
    b'\x1bOA': 'up', b'\x1bOB': 'down', b'\x1bOC': 'right', b'\x1bOD': 'left',
    b'\x1b[5~': 'pageup', b'\x1b[6~': 'pagedown', b'\x1b[3~': 'delete',
}  # fmt: skip
_NAMED = {'\r': 'enter', '\n': 'enter', '\x7f': 'backspace', '\x08': 'backspace', '\t': 'tab'}
_SHOW_CURSOR = b'\x1b[?25h'  # DECTCEM
# What is read at once: a key that repeats while nobody reads has no meaning of its own.
_MOST = 1024


class Terminal:
    """Keys of a terminal, without echo. Nothing is written to it.

    Ctrl-C stays what it is. Ctrl-Z and Ctrl-\\ are no keys: a reader that they suspend or kill
    would leave the terminal to a shell that cannot use it. Raises RobotRLError where `path` is no
    terminal that can be opened.
    """

    def __init__(self, path: str = '/dev/tty'):
        self._reader: int | None
        self._reader, self._former = _opened(path)
        self._rest = b''
        changed = termios.tcgetattr(self._reader)
        changed[0] &= ~(termios.ICRNL | termios.IXON)
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
        changed[6][termios.VSUSP] = changed[6][termios.VQUIT] = b'\0'
        # What was typed before was not for the arm.
        termios.tcsetattr(self._reader, termios.TCSAFLUSH, changed)

    def pressed(self) -> list[str]:
        """Return the keys that were pressed since the last call: characters, and names.

        A terminal that is gone has none.
        """
        data = b''
        with contextlib.suppress(OSError):
            if self._reader is not None and select.select([self._reader], [], [], 0)[0]:
                data = os.read(self._reader, _MOST)
        found, self._rest = decoded(self._rest + data, bool(data))
        return found

    def close(self) -> None:
        """Give the terminal back as it was; once is enough."""
        if self._reader is None:
            return
        reader, self._reader = self._reader, None
        with contextlib.suppress(termios.error, OSError):  # it is gone
            termios.tcsetattr(reader, termios.TCSADRAIN, self._former)
        with contextlib.suppress(OSError):
            os.close(reader)


@contextlib.contextmanager
def given_back(path: str) -> Iterator[None]:
    """Leave a terminal as it was found, also where the reader of its keys was killed.

    Raises RobotRLError where `path` is no terminal that can be opened.
    """
    terminal, former = _opened(path)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):  # it is gone
            if termios.tcgetattr(terminal) != former:
                termios.tcsetattr(terminal, termios.TCSADRAIN, former)
        os.close(terminal)


@contextlib.contextmanager
def cursor_shown(path: str) -> Iterator[None]:
    """Show the cursor of a terminal at the end: who had hidden it to draw may have been killed."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is gone
            terminal = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            os.write(terminal, _SHOW_CURSOR)
            os.close(terminal)


def _opened(path: str) -> tuple[int, list]:
    """Open a terminal; return its descriptor, and what it is like. Raises RobotRLError."""
    terminal = None
    try:
        terminal = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        return terminal, termios.tcgetattr(terminal)
    except (OSError, termios.error) as error:
        if terminal is not None:
            os.close(terminal)
        words = error.args[-1] if error.args else error
        raise RobotRLError(
            f'{path}: no terminal to read keys from ({words}); start it in a terminal, or set '
            'the parameter terminal'
        ) from None


def decoded(data: bytes, more: bool) -> tuple[list[str], bytes]:
    """Return the keys that `data` is, and what of it may be the beginning of a further one.

    `more`: the rest of that may be on its way. Escape sequences of other keys are no keys.
    """
    keys = []
    while data:
        if data[:1] == b'\x1b':
            size = _sequence_size(data)
            if size == 0:  # not whole
                return keys, data if more else b''
            if name := _SEQUENCES.get(data[:size]):
                keys.append(name)
            data = data[size:]
            continue
        text, data = data[:1].decode('latin-1'), data[1:]
        if text in _NAMED or ' ' <= text <= '~':
            keys.append(_NAMED.get(text, text))
    return keys, b''


def _sequence_size(data: bytes) -> int:
    """Return how long the escape sequence at the beginning of `data` is; 0: it is not whole.

    ECMA-48, 5.4: ESC [ parameters, intermediates, a final byte; and ESC O, one byte (SS3).
    """
    if data[1:2] == b'O':
        return 3 if len(data) > 2 else 0
    if data[1:2] != b'[':
        return 1 if len(data) > 1 else 0
    for index in range(2, len(data)):
        if 0x40 <= data[index] <= 0x7E:
            return index + 1
        if not 0x20 <= data[index] <= 0x3F:
            return index  # no such sequence: what begins here is another key
    return 0
