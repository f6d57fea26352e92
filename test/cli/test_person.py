"""A person at the terminal of a command that runs trials; the store is the test's."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

# A trial that ended by itself is to be judged, in a store that cannot be written.
PROGRAM = """
from robot_rl.cli.person import Person
from robot_rl.cli.up import Stop
from robot_rl.errors import StorageError

class Full:
    def label(self, episode, success):
        raise StorageError('index.sqlite: disk full')

class Here(Person):
    def _read(self):
        print('waits', flush=True)
        super()._read()

Stop()
person = Here(Full(), judges=True, starts=False)
person.has_ended('e1', 'truncated')
person.finish()
print('reported', flush=True)
"""


@pytest.fixture
def at():
    """Return the program and the end of its terminal at which a person sits."""
    ours, theirs = pty.openpty()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM], stdin=theirs, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout.readline() == 'waits\n'
    yield process, ours
    process.kill()
    process.communicate()
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_for_a_judgement(at, number):
    """SIGTERM was noted, and the command waited on."""
    process, _ = at
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == 'reported\n'


def test_a_judgement_that_cannot_be_written_is_told_and_left_open(at):
    process, ours = at
    os.write(ours, b'y\n')
    said, told = process.communicate(timeout=20)
    assert said == 'reported\n'
    assert told.endswith('\nrobot-rl: index.sqlite: disk full; it is left open\n')
