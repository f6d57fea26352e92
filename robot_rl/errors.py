"""The errors that a user can mend, each with one line that says what, where and what is right."""

import difflib
from collections.abc import Iterable


class RobotRLError(Exception):
    """Base of every error caused by input; the command line prints it without a traceback."""


class SpecError(RobotRLError, ValueError):
    """A robot, contract, task or agent description does not say what it should."""


class ContractMismatch(RobotRLError, ValueError):
    """A policy's contract does not fit the robot or the streams that are there."""


class PolicyFileError(RobotRLError, ValueError):
    """A policy file is missing, damaged or was not written by robot_rl."""


class StorageError(RobotRLError, OSError):
    """An episode or the folder that holds episodes cannot be read or written."""


class UnknownName(RobotRLError, KeyError):
    """A task, agent, robot or command of that name is not known."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listed_by: str = ''):
        self.kind, self.name, self.known = kind, name, sorted(known)
        self._listed_by = listed_by
        hint = did_you_mean(name, self.known, listed_by)
        super().__init__(f'unknown {kind} {name!r}{hint}')

    def __str__(self) -> str:
        return self.args[0]  # KeyError would show the repr of the message

    def __reduce__(self) -> tuple:
        return UnknownName, (self.kind, self.name, self.known, self._listed_by)


def did_you_mean(name: str, known: Iterable[str], listed_by: str = '') -> str:
    """Return '; did you mean ...?' for a near miss, else what is known, or what lists it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return '; did you mean ' + ' or '.join(repr(n) for n in near) + '?'
    if listed_by:
        return f'; {listed_by} lists them'
    listed = ', '.join(known[:8]) + (', ...' if len(known) > 8 else '')
    return f'; known: {listed}' if known else ''
