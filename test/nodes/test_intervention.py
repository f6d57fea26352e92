"""DAgger with real processes: a policy, a person who takes over, and what is learned from."""

from __future__ import annotations

import json
import threading
import time

import pytest
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.cli.main import main
from robot_rl.control.loop import ControlLoop
from robot_rl.nodes import support
from robot_rl.nodes.streams import Streams
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.sources import PERSON, POLICY, count_interventions
from robot_rl.storage.store import Store

TASK = 'ur5e/reach'
EPISODES = 12
MAX_STEPS = 100  # 5 s
LEADS_FROM_S, LEADS_UNTIL_S = 0.6, 3.0


class Expert:
    """A person who does the task for a part of every episode: the demonstrator, in a thread."""

    def __init__(self, observer):
        task, self._observer = registry.make_task(TASK), observer
        policy = registry.make_demonstrator(TASK)
        self._loop = ControlLoop(policy.contract, task.robot, task.chain, policy)
        self._streams = Streams(observer.node, self._loop.observations)
        self._states = observer.listen(String, 'session/state', support.LATCHED_READER)
        self._applied = observer.listen(JointTrajectory, support.APPLIED)
        self._commands = observer.publisher(JointTrajectory, support.TELEOP_COMMAND)
        self._message = support.trajectory(task.robot.joints, policy.contract.period_s)
        self._began: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        leads = False
        while not self._stop.wait(self._loop.contract.period_s):
            led, leads = leads, self._is_to_lead()
            self._streams.poll()
            if not leads:
                continue
            if not led:
                self._loop.begin(self._loop.observations.latest('joint_states')['position'])
                self._loop.rebase(self._applied[-1].points[0].positions)
            command = self._loop.tick(support.seconds(self._observer.stamp()))
            self._message.points[0].positions = support.doubles(command.target)
            self._commands.publish(self._message)

    def _is_to_lead(self) -> bool:
        info = json.loads(self._states[-1].data) if self._states else {'state': ''}
        if info['state'] != 'running':
            return False
        since = time.monotonic() - self._began.setdefault(info['episode'], time.monotonic())
        return LEADS_FROM_S <= since < LEADS_UNTIL_S


@pytest.mark.slow
def test_a_person_takes_over_from_a_policy_and_the_next_one_learns_from_it(
    supervisor, observer, tmp_path, capsys
):
    root, poor = tmp_path / 'episodes', tmp_path / 'poor'
    given = ['--task', TASK, '--store', str(root)]
    collect = ['--policy', 'scripted', '--episodes', '3', '--tag', 'shown']
    assert main(['collect', *given, *collect]) == 0
    assert main(['retrain', *given, '--agent', 'bc', '--out', str(poor)]) == 0

    policy = {'policy': str(poor / 'policy.onnx')}
    supervisor.start('sim_robot')
    supervisor.start('policy', policy)
    supervisor.start('command_guard')
    supervisor.start('episode_recorder', {'root': str(root)})
    supervisor.wait_ready()
    expert = Expert(observer)
    try:
        run = {'episodes': EPISODES, 'first_seed': 100, 'max_steps': MAX_STEPS}
        supervisor.start('session', policy | run)
        lines = list(supervisor.follow('session', 60))
    finally:
        expert.close()
    assert [line['result'] for line in lines] == ['truncated'] * EPISODES
    assert all(line['reason'].startswith(f'policy is done ({MAX_STEPS} ticks') for line in lines)

    store = Store(root)
    found = store.episodes('intervened=true')
    assert len(found) == EPISODES and len(store.episodes('intervened=unknown')) == 3
    person = interventions = 0
    for header in found:
        led = aligned_columns(store.open(header.id))['source']
        assert header.source == 'policy'
        # One, or more where the thread of the expert was late.
        assert header.interventions == count_interventions(led.tolist()) >= 1
        interventions += header.interventions
        assert led[0] == led[-1] == POLICY
        person += int((led == PERSON).sum())
        share = (LEADS_UNTIL_S - LEADS_FROM_S) / (MAX_STEPS * 0.05)
        assert (led == PERSON).mean() == pytest.approx(share, abs=0.1)

    better = tmp_path / 'better'
    capsys.readouterr()
    assert main(['retrain', *given, '--dagger', '--out', str(better)]) == 0
    said = f'180 steps of 3 demonstrations and {person} of {interventions} interventions'
    assert said in capsys.readouterr().out
    # How well it does is not asked: fifteen episodes are too few to succeed at all.
    assert (better / 'policy.onnx').is_file()
