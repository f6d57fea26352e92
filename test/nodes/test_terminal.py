"""Keys of a terminal: decoding, what they ask for, and that a terminal is given back."""

from __future__ import annotations

import os
import pty
import termios
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.errors import RobotRLError
from robot_rl.nodes.keys import HELD_S, JogKeys
from robot_rl.nodes.terminal import Terminal, decoded, given_back


@pytest.fixture
def ends():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ('data', 'keys'),
    [
        (b'aA1 +', ['a', 'A', '1', ' ', '+']),
        (b'\x1b[A\x1b[B\x1bOC\x1b[D', ['up', 'down', 'right', 'left']),
        (b'\r\n\x7f\x08', ['enter', 'enter', 'backspace', 'backspace']),
        (b'\x1b[5~\x1b[6~', ['pageup', 'pagedown']),
        (b'\x1b[1;5Aw', ['w']),  # with Ctrl: no key of ours, and nothing of it is one
        (b'\x1b[200~', []),
        (b'\x00\xc3\xa9\x01', []),
        (b'\x1bx', ['x']),  # Alt-x: the stop is not to be missed
    ],
)
def test_keys_are_decoded(data, keys):
    assert decoded(data, more=False) == (keys, b'')


@given(st.lists(st.sampled_from([b'a', b'\x1b[A', b'\x1bOD', b'\x1b[5~', b'\x1b[1;2B', b'\r'])))
def test_keys_that_come_in_pieces_are_the_same(parts):
    data, rest, found = b''.join(parts), b'', []
    for index in range(len(data)):
        keys, rest = decoded(rest + data[index : index + 1], more=True)
        found += keys
    assert found == decoded(data, more=True)[0] and rest == b''


@given(st.binary(max_size=40))
def test_no_bytes_are_too_odd(data):
    keys, rest = decoded(data, more=False)
    assert rest == b'' and all(keys)


def test_a_terminal_is_read_without_echo_and_given_back(ends):
    master, slave = ends
    former = termios.tcgetattr(slave)
    terminal = Terminal(os.ttyname(slave))
    os.write(master, b'w\x1b[A')
    until = time.monotonic() + 5
    keys = []
    while len(keys) < 2 and time.monotonic() < until:
        keys += terminal.pressed()
    assert keys == ['w', 'up'] and terminal.pressed() == []
    assert termios.tcgetattr(slave)[3] & termios.ISIG  # Ctrl-C ends it
    terminal.close()
    terminal.close()
    assert termios.tcgetattr(slave) == former
    os.set_blocking(master, False)
    with pytest.raises(BlockingIOError):  # no echo
        os.read(master, 100)


def test_a_terminal_is_given_back_though_its_reader_was_killed(ends):
    _, slave = ends
    former = termios.tcgetattr(slave)
    with given_back(os.ttyname(slave)):
        Terminal(os.ttyname(slave))  # which is never closed
        assert termios.tcgetattr(slave) != former
    assert termios.tcgetattr(slave) == former


def test_what_is_no_terminal_is_told_in_one_line(tmp_path):
    file = tmp_path / 'file'
    file.touch()
    for path in (file, tmp_path / 'missing'):
        with pytest.raises(RobotRLError, match=f'{path.name}: no terminal to read keys from'):
            Terminal(str(path))
        with pytest.raises(RobotRLError, match='no terminal'), given_back(str(path)):
            pass


def test_a_key_that_repeats_is_held_and_silence_lets_go():
    keys = JogKeys(6)
    assert not keys.wish(0.0).enabled
    keys.press('up', 10.0)
    np.testing.assert_array_equal(keys.wish(10.0 + 0.9 * HELD_S).twist, [1, 0, 0, 0, 0, 0])
    assert not keys.wish(10.0 + 1.1 * HELD_S).enabled  # before it repeats
    for repeat in range(20):
        keys.press('up', 10.5 + repeat / 25)
        assert keys.wish(10.5 + (repeat + 0.99) / 25).enabled
    keys.press('m', 11.3)
    assert not keys.wish(11.3).enabled


def test_keys_of_the_session_call_and_move_nothing():
    keys = JogKeys(6)
    for key in ('enter', 'y', 'n', 'backspace', 'r', ' ', 'Z', 'q'):
        keys.press(key, 0.0)
    assert keys.calls() == [
        'start', 'success', 'failure', 'discard', 'rerecord', 'estop', 'estop_reset',
    ]  # fmt: skip
    assert keys.calls() == [] and not keys.wish(0.0).enabled


def test_modes_frames_joints_and_speed():
    keys = JogKeys(6)
    keys.press('b', 0.0)
    keys.press('l', 0.0)
    wish = keys.wish(0.0)
    assert wish.frame == 'tool' and wish.joints is None
    np.testing.assert_array_equal(wish.twist, [0, 0, 0, 0, 0, -1])
    keys.press('m', 0.0)
    assert not keys.wish(0.0).enabled  # the key was for the tool
    keys.press('3', 0.0)
    keys.press('-', 0.0)
    keys.press('down', 0.0)
    wish = keys.wish(0.0)
    assert wish.twist is None
    np.testing.assert_allclose(wish.joints, [0, 0, -0.8, 0, 0, 0])
    keys.press('7', 0.1)  # there is none
    assert keys.joint == 2
    for _ in range(50):
        keys.press('-', 0.1)
    assert keys.gear == 0.05
    for _ in range(50):
        keys.press('+', 0.1)
    assert keys.gear == 1.0


def test_the_gripper_moves_beside_the_arm():
    keys = JogKeys(6)
    keys.press('c', 0.0)
    assert keys.wish(0.1).grip == -1 and keys.wish(0.1).twist is None
    keys.press('w', 0.1)
    wish = keys.wish(0.15)
    assert wish.grip == -1 and wish.twist[2] == 1
    keys.press('v', 0.2)
    assert keys.wish(0.25).grip == 1
    assert keys.wish(0.35).grip == 1 and keys.wish(0.35).twist is None
