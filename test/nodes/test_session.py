"""The session's node, with participants of the test in place of nodes."""

from __future__ import annotations

import json
import threading

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from robot_rl.nodes.session import Ending, SessionNode

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
READER = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def play(supervisor, observer):
    """Return `start(**parameters)`: a session and the participants 'arm' and 'actor'."""

    class Play:
        def __init__(self, **parameters):
            names = parameters.setdefault('participants', ['arm', 'actor'])
            self.child = supervisor.start('session', parameters)
            self.states = observer.listen(String, 'session/state', READER)
            self.status = {
                name: observer.node.create_publisher(String, f'{name}/status', LATCHED)
                for name in names
            }

        def info(self, state: str, index: int = 0, but: str = '') -> dict:
            """Wait until an episode numbered `index`, not the one called `but`, is in `state`."""

            def found():
                infos = [json.loads(message.data) for message in self.states]
                infos = [i for i in infos if i['episode'] != but]
                return [i for i in infos if (i['state'], i['index']) == (state, index)]

            return observer.until(found, f'{state} {index}')[-1]

        def answer(self, info: dict, state: str, *names: str, detail: str = '') -> None:
            text = json.dumps({'episode': info['episode'], 'state': state, 'detail': detail})
            for name in names or self.status:
                self.status[name].publish(String(data=text))

        def lines(self) -> list[dict]:
            text = (supervisor.log_dir / 'session.out').read_text()
            return [json.loads(line) for line in text.splitlines()]

    return Play


def test_episodes_run_one_after_another_until_the_last(play, observer):
    session = play(episodes=2, first_seed=40, max_steps=7, policy='random', tags=['a', 'b'])
    ids = []
    for index in range(2):
        info = session.info('prepare', index)
        assert (info['seed'], info['max_steps'], info['policy']) == (40 + index, 7, 'random')
        assert (info['robot'], info['tags']) == ('ur5e', ['a', 'b'])
        assert info['contract']['rate_hz'] == 20
        session.answer({'episode': 'another'}, 'ready')  # of no importance here
        session.answer(info, 'ready', 'arm')
        session.answer(info, 'ready', 'actor')
        running = session.info('running', index)
        session.answer(running, 'done', 'actor', detail='7 ticks')
        ended = session.info('ended', index)
        assert ended['result'] == 'truncated' and ended['reason'] == 'actor is done (7 ticks)'
        ids.append(ended['episode'])
    assert session.child.wait(20) == 0
    lines = session.lines()
    assert [line['episode'] for line in lines] == ids and len(set(ids)) == 2
    assert [line['seed'] for line in lines] == [40, 41]
    assert json.loads(session.states[-1].data)['state'] == 'idle'


def test_it_says_who_is_not_ready_and_ends_with_code_2(play, observer, supervisor):
    session = play(ready_timeout_s=8.0)  # in which the two discover each other on a busy machine
    info = session.info('prepare')
    session.answer(info, 'ready', 'arm')
    session.answer(info, 'preparing', 'actor', detail='joint_states: none has come')
    assert session.info('ended')['result'] == 'discarded'
    assert session.child.wait(20) == 2
    late = 'actor is preparing (joint_states: none has come)'
    for words in ('not ready yet', 'not ready within 8 s'):
        assert f'{words}: {late}' in supervisor.log('session')


def test_an_error_before_the_start_discards_and_one_in_the_run_truncates(play, supervisor):
    session = play(episodes=2)
    info = session.info('prepare')
    session.answer(info, 'ready')
    session.info('running')
    session.answer(info, 'error', 'arm', detail='estop: the emergency stop was called')
    assert session.info('ended')['result'] == 'estop'
    info = session.info('prepare', 1)
    session.answer(info, 'error', 'actor', detail='no policy')
    assert session.info('ended', 1)['result'] == 'discarded'
    assert session.child.wait(20) == 2
    assert 'actor is error (no policy)' in supervisor.log('session')


def test_an_actor_that_falls_silent_is_not_waited_for_for_ever(play):
    session = play(max_steps=2, run_margin_s=0.5)
    session.answer(session.info('prepare'), 'ready')
    assert session.info('ended')['reason'] == 'nobody ended it within 0.6 s'
    assert session.child.wait(20) == 0 and session.lines()[0]['result'] == 'truncated'


def test_a_person_starts_and_judges_manual_episodes(play, observer):
    session = play(manual=True, episodes=2, source='teleop', participants=['arm'], operator='ada')
    info = session.info('prepare')
    assert (info['source'], info['max_steps'], info['operator']) == ('teleop', None, 'ada')
    assert not observer.call('session/success').success
    session.answer(info, 'ready')
    session.info('ready')
    assert observer.call('session/start').success
    session.info('running')
    assert not observer.call('session/start').success
    assert observer.call('session/discard').success
    assert session.info('ended')['result'] == 'discarded'
    for index, result in enumerate(('success', 'failure')):
        former = info['episode']
        info = session.info('prepare', index, but=former)
        session.answer(info, 'ready')
        session.info('ready', index, but=former)
        assert observer.call('session/start').success
        session.info('running', index, but=former)
        assert observer.call(f'session/{result}').success
        assert session.info('ended', index, but=former)['result'] == result
    assert session.child.wait(20) == 0
    assert [line['result'] for line in session.lines()] == ['discarded', 'success', 'failure']


def counted(told: list) -> str:
    """Return how many episodes there were by what session says on /diagnostics last."""
    statuses = [s for message in told for s in message.status if s.name == 'session']
    values = {value.key: value.value for value in statuses[-1].values} if statuses else {}
    return values.get('counted', '')


def test_a_person_records_an_episode_again_while_it_runs_or_after_it(play, observer):
    told = observer.listen(DiagnosticArray, '/diagnostics')
    session = play(manual=True, episodes=2, source='teleop', participants=['arm'], first_seed=5)
    run_before = ['']

    def now(state: str, index: int) -> dict:
        def found():
            info = json.loads(session.states[-1].data) if session.states else {'state': ''}
            said = (info['state'], info.get('index')) == (state, index)
            return info if said and info['episode'] not in run_before else None

        return observer.until(found, f'{state} {index}')

    def run(index: int, result: str) -> dict:
        session.answer(now('prepare', index), 'ready')
        now('ready', index)
        assert observer.call('session/start').success
        running = now('running', index)
        run_before.append(running['episode'])
        assert observer.call(f'session/{result}').success
        return running

    assert not observer.call('session/rerecord').success  # nothing has been recorded
    run(0, 'rerecord')
    first = run(0, 'success')
    assert (first['seed'], first['instead_of']) == (5, '')
    run_before.append(now('prepare', 1)['episode'])
    assert observer.call('session/rerecord').success
    # What is set aside counts no more.
    observer.until(lambda: counted(told) == '2 discarded', 'the success is counted still')
    again = run(0, 'failure')
    assert (again['seed'], again['instead_of']) == (5, first['episode'])
    assert run(1, 'success')['instead_of'] == ''
    assert session.child.wait(20) == 0
    results = [(line['index'], line['result'], line['reason']) for line in session.lines()]
    assert results == [
        (0, 'discarded', 'rerecord'),
        (0, 'success', 'success'),
        (1, 'discarded', 'rerecord'),
        (0, 'failure', 'failure'),
        (1, 'success', 'success'),
    ]


def test_stop_ends_the_episode_and_the_next_waits_for_a_person(play, observer):
    session = play(episodes=2)
    session.answer(session.info('prepare'), 'ready')
    session.info('running')
    assert observer.call('session/stop').success
    assert session.info('ended')['reason'] == 'stop'
    session.answer(session.info('prepare', 1), 'ready')
    session.info('ready', 1)
    assert observer.call('session/start').success
    session.answer(session.info('running', 1), 'done')
    assert session.child.wait(20) == 0


@pytest.fixture
def node(domain_id):
    """Return `make(**parameters)`: a session in this process, in a prepared episode, unstarted."""

    def make(**parameters) -> SessionNode:
        overrides = [part for k, v in parameters.items() for part in ('-p', f'{k}:={v}')]
        rclpy.init(args=['--ros-args', *overrides], domain_id=domain_id)
        node = SessionNode()
        node.published = []
        node._publish = lambda info: node.published.append(info.state)
        node._session.prepare('e1', **node._fields)
        made.append(node)
        return node

    made: list[SessionNode] = []
    yield make
    for one in made:
        one.destroy_node()
    rclpy.try_shutdown()


@pytest.mark.parametrize('how', ['signal', 'stop', 'discard'])
@pytest.mark.parametrize('moment', ['_all_ready', '_started'])
def test_a_stop_between_two_checks_never_lets_an_episode_run(node, how, moment):
    node, stop = node(manual='true'), threading.Event()
    node._all_ready = node._started = lambda: True

    def end() -> bool:  # comes after the look for an end, before the episode moves on
        stop.set() if how == 'signal' else node._ends.append(how)
        return moment == '_started'

    setattr(node, moment, end)
    threading.Timer(0.1, node._changed.set).start()
    ending = node._walk(stop)
    assert isinstance(ending, Ending) and ending.result == 'discarded'
    assert 'running' not in node.published


def test_a_manual_episode_without_a_number_of_steps_ends_when_stopped(node):
    node, stop = node(manual='true', source='teleop'), threading.Event()
    assert node._session.info.max_steps is None
    node._all_ready = node._started = lambda: True

    def done() -> bool:
        stop.set()
        node._changed.set()
        return False

    node._done = done
    assert node._walk(stop).reason == 'the session was stopped'
    assert node.published == ['ready', 'running']


def test_a_person_who_asks_twice_is_heard_once_and_can_still_stop(play, observer):
    session = play(manual=True, source='teleop', participants=['arm'], episodes=0)
    info = session.info('prepare')
    for _ in range(2):
        assert observer.call('session/start').success
    session.answer(info, 'ready')
    session.info('running')
    assert observer.call('session/stop').success
    assert session.info('ended')['reason'] == 'stop'
    session.answer(session.info('prepare', 1), 'ready')
    session.info('ready', 1)
    assert json.loads(session.states[-1].data)['state'] == 'ready'


def test_a_person_starts_a_policy_that_ends_by_its_steps(play, observer):
    session = play(manual=True, episodes=1, first_seed=-1)
    info = session.info('prepare')
    assert info['max_steps'] == 60 and info['seed'] is None
    session.answer(info, 'ready')
    session.info('ready')
    assert observer.call('session/start').success
    session.answer(session.info('running'), 'done')
    assert session.child.wait(20) == 0


def test_nonsense_on_a_status_topic_is_not_obeyed(play, supervisor, observer):
    session = play()
    info = session.info('prepare')
    session.status['arm'].publish(String(data='{"state": "readyy"}'))
    observer.until(lambda: 'arm/status: ' in supervisor.log('session'))
    session.answer(info, 'ready')
    session.answer(session.info('running'), 'done')
    assert session.child.wait(20) == 0
