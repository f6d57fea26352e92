"""robot-rl evaluate --robot: trials by the nodes beside an arm, on its twin."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import numpy as np
import pytest
from std_msgs.msg import String

from robot_rl import registry
from robot_rl.control.runtime import identify
from robot_rl.nodes.camera import State
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim.environment import HELD_OUT
from robot_rl.sim.recorded import with_tool
from robot_rl.sim.twin import Twin, perturbed_world
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.samples import stamp_ns
from robot_rl.storage.store import Store
from test.nodes.conftest import READER


@pytest.fixture
def command(tmp_path, domain_id):
    """Return the words and the surroundings of `robot-rl evaluate --robot ur5e` in a folder."""
    words = [sys.executable, '-m', 'robot_rl.cli.main', 'evaluate', '--robot', 'ur5e']
    words += ['--task', 'ur5e/reach', '--store', 'store', '--out', 'out']
    return words, {'cwd': tmp_path, 'env': os.environ | {'ROS_DOMAIN_ID': str(domain_id)}}


@pytest.fixture
def evaluate(command):
    """Return `run(*words)`, which evaluates and returns what was told."""

    def run(*words: str) -> dict:
        begin, around = command
        done = subprocess.run(
            [*begin, '--json', *words], capture_output=True, text=True, timeout=150, **around
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def require_poses_first(episode):
    """Assert that a pose is there before the joint states of its time, which are acted on."""
    came = {'/target_pose': {}, '/joint_states': {}}
    for item in episode.messages(set(came)):
        came[item.topic][stamp_ns(item)] = item.log_time_ns
    poses, states = came.values()
    both = poses.keys() & states.keys()
    assert both and all(poses[stamp] <= states[stamp] for stamp in both)


@pytest.mark.slow
def test_a_demonstrator_succeeds_with_the_target_moved_as_well(evaluate, tmp_path):
    told = evaluate('--policy', 'scripted', '--episodes', '2', '--perturb', 'target')
    assert [column['perturbation'] for column in told['columns']] == ['none', 'target']
    store, task = Store(tmp_path / 'store'), registry.make_task('ur5e/reach')
    for column in told['columns']:
        kind, tagged = column['perturbation'], f'tag={told["run"]},perturbed-'
        assert (column['trials'], column['interventions']) == (2, 0)
        found = store.episodes(f'{tagged}{kind}')
        assert found.ids == [trial['episode'] for trial in column['each']]
        good = [header.success for header in found]
        assert column['success_rate'] == np.mean(good)
        assert column['failures'] == [h.id for h in found if not h.success]
        # The second target moves away late and far: where the machine is late, so is the arm.
        assert good == [True, True] or (kind == 'target' and good == [True, False])
        for seed, header in enumerate(found, HELD_OUT):
            assert (header.seed, header.source) == (seed, 'teleop')
            assert 'evaluation' in header.tags
            require_poses_first(store.open(header.id))
            columns = aligned_columns(store.open(header.id), kinematics=KinematicChain.from_spec)
            places = columns['target_pose.position']
            apart = np.linalg.norm(with_tool(task, columns)['tool.position'] - places, axis=1)
            assert header.success == (apart[-5:] <= 0.02).all()
            np.testing.assert_allclose(places[0], task.initial(seed).target, atol=1e-6)
            way = places[-1] - places[0]
            if kind == 'none':
                np.testing.assert_allclose(way, 0.0, atol=1e-9)
            else:
                (event,) = (t['event'] for t in column['each'] if t['seed'] == seed)
                np.testing.assert_allclose(way, event['moved']['target_pose'], atol=1e-6)
                assert np.linalg.norm(way) > 0.01
    # A demonstrator on trial shows nobody the task.
    assert told['teleoperators']['episodes'] == 0
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all(trial['episode'] in page for c in told['columns'] for trial in c['each'])
    assert json.loads((tmp_path / 'out' / 'report.json').read_text()) == told


def test_what_draws_has_its_cameras_where_the_twin_of_that_seed_has():
    task = registry.make_task('ur5e/lift')
    twin, state = Twin(task, 'camera'), State(perturbed_world(task, 'camera'))
    twin.reset(HELD_OUT + 5)
    state.take(twin.state)
    np.testing.assert_array_equal(state.model.cam_pos, twin.model.cam_pos)
    np.testing.assert_array_equal(state.model.cam_quat, twin.model.cam_quat)
    assert np.abs(state.model.cam_pos - task.model().cam_pos).max() > 0.01


@pytest.mark.slow
def test_random_actions_fail_and_a_file_is_named_with_its_hash(evaluate, tmp_path):
    told = evaluate('--policy', 'random', '--episodes', '2')
    (column,) = told['columns']
    assert (column['trials'], column['successes'], column['success_rate']) == (2, 0, 0.0)
    assert column['failures'] == [trial['episode'] for trial in column['each']]
    assert column['success_interval'][0] == 0 and 0.6 < column['success_interval'][1] < 0.7
    told = evaluate('--policy', 'ur5e_reach', '--episodes', '1')
    assert told['columns'][0]['success_rate'] == 1.0
    (header,) = Store(tmp_path / 'store').episodes(tag=told['run'])
    _, digest = identify('ur5e_reach')
    assert (header.policy, header.policy_sha256) == (told['policy'], digest)
    assert told['policy_sha256'] == digest and header.source == 'policy'


class Terminal:
    """A person at the terminal of a command."""

    def __init__(self, words: list[str], around: dict):
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, **around
        )
        os.close(theirs)
        self.text, self._heard = '', 0

    def hears(self, pattern: str, within_s: float = 60.0) -> None:
        """Wait for words that have not been heard yet."""
        ends = time.monotonic() + within_s
        while not (found := re.search(pattern, self.text[self._heard :])):
            assert time.monotonic() < ends, f'{pattern!r} not in {self.text}'
            if select.select([self._own], [], [], 0.1)[0]:
                self.text += os.read(self._own, 65536).decode(errors='replace')
        self._heard += found.end()

    def says(self, line: str) -> None:
        os.write(self._own, f'{line}\n'.encode())

    def hangs_up(self) -> None:
        os.close(self._own)

    def ends(self) -> int:
        """Read on until the command ends; return its exit code."""
        ends = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < ends, self.text
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._own, 65536).decode(errors='replace')
                except OSError:  # the other side has gone
                    break
        return self.process.wait(60)


@pytest.fixture
def terminal(command):
    begin, around = command
    opened = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal([*begin, *words], around))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(30)


def state(states: list[String]) -> str:
    return json.loads(states[-1].data)['state']


@pytest.mark.slow
def test_a_signal_ends_trials_that_nobody_has_judged(terminal, tmp_path):
    """It ended the nodes, and the command waited for the judgement."""
    at = terminal('--policy', 'ur5e_reach', '--episodes', '2', '--judge', 'human')
    at.hears('did it succeed')
    at.process.terminate()
    assert at.ends() == 1, at.text
    first, *_ = Store(tmp_path / 'store').episodes(success=None)  # the second may have begun
    assert f'not judged, perturbed by none: {first.id}' in at.text


@pytest.mark.slow
def test_a_terminal_that_has_gone_ends_trials_that_wait_for_a_start(terminal, tmp_path):
    """It waited, for as long as nobody found it."""
    at = terminal('--policy', 'ur5e_reach', '--episodes', '2', '--reset', 'ask')
    at.hears('trial 1 of 2')
    at.says('')
    at.hears('trial 2 of 2')
    at.hangs_up()
    assert at.process.wait(60) == 1
    (column,) = json.loads((tmp_path / 'out/report.json').read_text())['columns']
    assert (column['trials'], column['successes']) == (1, 1)


def test_a_person_starts_and_judges_the_trials(terminal, observer, tmp_path):
    states = observer.listen(String, 'session/state', READER)
    at = terminal('--policy', 'ur5e_reach', '--episodes', '3', '--judge', 'human',
                  '--reset', 'ask')  # fmt: skip
    at.hears('trial 1 of 3: put everything in its place, then Enter')
    at.says('')
    at.hears('did it succeed')  # after its 60 ticks it has ended by itself
    at.says('perhaps')
    at.hears('did it succeed')
    at.says('n')
    at.hears('trial 2 of 3')
    at.says('')
    observer.until(lambda: state(states) == 'running', 'it does not run')
    at.says('y')  # in the middle of it
    at.hears('trial 3 of 3')
    at.says('')
    at.hears('did it succeed')
    at.says('y')
    assert at.ends() == 0, at.text
    found = list(Store(tmp_path / 'store').episodes(tag='evaluation'))
    assert [header.success for header in found] == [False, True, True]
    assert [header.result for header in found] == ['truncated', 'success', 'truncated']
    assert '2 of 3' in at.text and f'failures, perturbed by none: {found[0].id}' in at.text


@pytest.fixture
def driver(supervisor):
    """The twin in the place of an arm's driver, which nobody starts or ends but the test."""
    supervisor.start('sim_robot', {'task': 'ur5e/reach', 'seed': HELD_OUT})
    supervisor.wait_ready()
    return supervisor.children['sim_robot']


@pytest.mark.slow
def test_trials_on_an_arm_begin_when_a_person_has_put_things_back(
    terminal, driver, observer, tmp_path
):
    at = terminal('--real', '--policy', 'ur5e_reach', '--episodes', '2', '--operator', 'ada')
    at.hears('trial 1 of 2: put everything in its place, then Enter')
    at.says('')
    at.hears('trial 2 of 2')
    assert observer.call('sim_robot/reset').success  # the arm and the target are put back
    at.says('')
    assert at.ends() == 0, at.text
    assert 'on ur5e, the arm' in at.text and '2 of 2' in at.text
    for header in Store(tmp_path / 'store').episodes('tag=evaluation'):
        assert (header.world, header.seed, header.operator) == ('real', None, 'ada')
        assert (header.result, header.success) == ('truncated', True)
    assert driver.poll() is None


@pytest.mark.slow
def test_a_person_judges_trials_on_an_arm_against_what_was_recorded(terminal, driver, tmp_path):
    """The task's predicate is not asked: this policy reaches its target."""
    at = terminal('--real', '--policy', 'ur5e_reach', '--episodes', '2', '--judge', 'human')
    at.hears('trial 1 of 2')
    at.says('y')  # of what?
    at.hears('trial 1 of 2')
    at.says('')
    at.hears('did it succeed')
    at.says('n')
    at.hears('trial 2 of 2')
    at.says('')
    at.hears('did it succeed')
    at.says('y')
    assert at.ends() == 0, at.text
    found = Store(tmp_path / 'store').episodes('tag=evaluation')
    assert [header.success for header in found] == [False, True]
    assert '1 of 2' in at.text
