"""The screen's node on a pseudo-terminal, with words of the test in place of nodes."""

from __future__ import annotations

import io
import json
import re
import signal

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import Log
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rich.console import Console
from std_msgs.msg import String

from robot_rl.control.session import SessionInfo
from robot_rl.nodes.board import Board
from robot_rl.nodes.support import speaker
from test.nodes.conftest import LATCHED

ROSOUT = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # as rcl has it


@pytest.fixture
def screen(supervisor, observer, terminal):
    """A screen, and what nodes say to it."""

    class Screen:
        child = supervisor.start('screen', {'terminal': terminal.path, 'device': 'none'})
        session = observer.node.create_publisher(String, 'session/state', LATCHED)
        diagnostics = observer.publisher(DiagnosticArray, '/diagnostics')
        rosout = observer.publisher(Log, '/rosout', ROSOUT)

        def say(self, state: str, **fields) -> None:
            text = json.dumps({'episode': 'e1', 'task': 'ur5e/reach', 'state': state} | fields)
            self.session.publish(String(data=text))

        def report(self, node: str, message: str, level: bytes = b'\0', **values) -> None:
            pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
            status = DiagnosticStatus(name=node, message=message, level=level, values=pairs)
            self.diagnostics.publish(DiagnosticArray(status=[status]))

        def shows(self, *words: str) -> None:
            try:
                observer.until(lambda: all(word in terminal.text() for word in words))
            except AssertionError:
                raise AssertionError(f'no {words} in {terminal.text()[-2000:]}') from None

    supervisor.wait_ready()
    return Screen()


def test_it_shows_episodes_guard_rates_gaps_and_room(screen, terminal):
    for index, result in enumerate(('success', 'discarded', 'success')):
        screen.say('ended', episode=f'd{index}', index=index, result=result)
        screen.shows(f'episode {index + 1}: {result}')
    screen.say('ready', index=2)
    screen.report('session', 'ready', index=2, episodes=10)
    screen.report('command_guard', 'holding', DiagnosticStatus.WARN)
    rates = {'/joint_states [Hz]': 99.8, '/joint_states gap [s]': 0.017, 'lost': 3}
    screen.report('episode_recorder', 'recording', disk_free_gb=41.5, **rates)
    screen.shows('ur5e/reach  episode 3 of 10  2 success, 1 discarded', '41.5 GB free')
    screen.shows('command_guard     holding')
    words = terminal.text()
    assert re.search(r'rate \[Hz\] +longest gap \[s\]', words)
    assert re.search(r'/joint_states +99\.8 +0\.017', words)
    assert re.search(r'messages lost +3', words)
    screen.report('episode_recorder', 'recording', disk_free_gb=41.5, episodes_left=812)
    screen.shows('room for 812 episodes')


def test_the_bell_rings_where_an_episode_starts_and_where_it_stops(screen, observer, terminal):
    screen.say('prepare')
    screen.say('ready')
    screen.shows(' ready')
    assert terminal.drawn.count(b'\a') == 0
    screen.say('running')
    screen.shows(' running ')
    observer.until(lambda: re.search(r' running [1-9]', terminal.text()), 'its time stands')
    assert terminal.drawn.count(b'\a') == 1
    screen.say('ended', result='success')
    screen.shows('episode 1: success')
    screen.say('prepare', episode='e2', index=1)
    screen.shows('episode 2')
    assert terminal.drawn.count(b'\a') == 2


def test_warnings_and_what_the_device_says_are_shown_and_no_other_arm_s(screen, terminal):
    def say(name, line, level):
        screen.rosout.publish(Log(name=name, msg=line, level=level))

    say('sim_robot', 'of no importance', Log.INFO)
    say('other.command_guard', "the other arm's", Log.ERROR)
    screen.report('other/command_guard', 'of the other arm')
    say('command_guard', 'refused: too fast', Log.ERROR)
    say('teleop', 'success: done', Log.INFO)
    screen.shows('command_guard: refused: too fast', 'teleop: success: done')
    for words in ('of no importance', 'other arm'):
        assert words not in terminal.text()


def test_lines_of_nodes_in_a_namespace_of_two_words_are_known(observer):
    """rcl calls the logger of /cell/arm1/teleop cell.arm1.teleop."""
    own = Node('screen', context=observer.node.context, namespace='cell/arm1')
    other = Node('teleop', context=observer.node.context, namespace='cell/arm2')
    name = own.get_logger().name.replace('screen', 'teleop')
    assert speaker(own, Log(name=name)) == 'teleop'
    for name in (other.get_logger().name, 'teleop', 'arm1.teleop'):
        assert speaker(own, Log(name=name)) == ''
    assert speaker(observer.node, Log(name='teleop')) == 'teleop'
    own.destroy_node()
    other.destroy_node()


def test_it_ends_with_a_line_where_there_is_no_terminal_or_no_more(
    screen, supervisor, terminal, tmp_path
):
    supervisor.start('screen', {'terminal': str(tmp_path / 'none')}, name='nowhere')
    assert supervisor.children['nowhere'].wait(20) == 2
    assert 'none: no terminal to draw on (No such file' in supervisor.log('nowhere')
    screen.shows('idle')
    terminal.hang_up()
    assert screen.child.wait(20) == 2
    assert 'no terminal to draw on (' in supervisor.log('screen')


def test_an_episode_that_is_taken_back_counts_no_more():
    board, console = Board(), Console(width=100, record=True, file=io.StringIO())
    for episode, result in (('e1', 'success'), ('e2', 'success')):
        board.on_session(SessionInfo(state='ended', episode=episode, result=result), 0.0)
    board.on_session(SessionInfo(state='prepare', episode='e3', instead_of='e2'), 1.0)
    console.print(board.draw(2.0))
    assert '  1 success  ' in console.export_text()


def test_the_last_picture_counts_the_last_episode_and_names_none(screen, terminal):
    screen.say('ended', index=2, result='failure')
    screen.shows('episode 3 ', '1 failure')
    terminal.drawn = b''
    screen.say('idle', episode='', index=0, task='')
    screen.shows('  1 failure', 'idle')
    assert 'episode 1' not in terminal.text()


def test_the_last_picture_stays_and_the_cursor_comes_back(screen, terminal):
    screen.say('ready')
    screen.shows(' ready')
    screen.child.send_signal(signal.SIGINT)
    assert screen.child.wait(20) == 0
    assert terminal.drawn.rstrip().endswith(b'\x1b[?25h')
