import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import ContractMismatch, RobotRLError, UnknownName
from robot_rl.sim.environment import StepType

pytest.importorskip('dm_control')


@pytest.fixture
def team():
    """Make environments in worker processes, and close them."""
    made = []

    def make(task, num_envs=3, seed=0, workers=3, **options):
        made.append(registry.make_environment(task, num_envs, seed, workers=workers, **options))
        return made[-1]

    yield make
    for environment in made:
        environment.close()


def processes(environment):
    """Those beside this one, which is the first worker."""
    return [worker.process for worker in environment._team._workers]


def require_equal(one, other):
    for mine, its in zip(one[:3], other[:3], strict=True):
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    assert list(one.observation) == list(other.observation)
    for name, values in one.observation.items():
        assert values.dtype == other.observation[name].dtype
        np.testing.assert_array_equal(values, other.observation[name])


@pytest.mark.parametrize(
    ('task', 'steps'),
    [
        ('gym/Pendulum-v1', 450),  # of 200 steps each: through two ends
        ('suite/fish-swim', 20),
        ('manipulation/reach_site_features', 5),
    ],
)
def test_workers_do_bit_by_bit_what_one_process_does(team, task, steps):
    """Three environments are shared among two workers: one has two of them."""
    alone, shared = registry.make_environment(task, 3, seed=7), team(task, 3, seed=7, workers=2)
    assert shared.contract == alone.contract and shared.num_envs == 3
    assert (shared.max_steps, shared.reward_range) == (alone.max_steps, alone.reward_range)
    require_equal(alone.reset([3, 1, 2]), shared.reset([3, 1, 2]))
    require_equal(alone.reset(), shared.reset())
    contract, rng = alone.contract, np.random.default_rng(0)
    ends = 0
    for _ in range(steps):
        # Beyond the bounds as well: what is cut is cut alike.
        action = rng.uniform(
            1.2 * contract.action_lower, 1.2 * contract.action_upper, (3, contract.action_size)
        )
        expected = alone.step(action)
        require_equal(expected, shared.step(action))
        ends += (expected.step_type == StepType.LAST).sum()
    assert ends == (6 if task.startswith('gym') else 0)
    alone.close()


def test_what_was_returned_is_not_overwritten(team):
    environment = team('gym/Pendulum-v1')
    first = environment.reset()
    kept = {name: values.copy() for name, values in first.observation.items()}
    environment.step(np.ones((3, 1)))
    for name, values in kept.items():
        np.testing.assert_array_equal(first.observation[name], values)


def test_there_are_no_more_workers_than_environments(team):
    assert len(processes(team('gym/Pendulum-v1', 2, workers=5))) == 1
    assert len(processes(team('gym/Pendulum-v1', 2, workers=1))) == 0


def test_wrong_input_is_the_same_clear_line(team):
    with pytest.raises(UnknownName, match=r"'suite/walker-wlak'.*'suite/walker-walk'"):
        team('suite/walker-wlak')
    environment = team('suite/cartpole-balance')
    with pytest.raises(RobotRLError, match='call reset'):
        environment.step(np.zeros((3, 1)))
    environment.reset()
    with pytest.raises(ContractMismatch, match='not finite'):
        environment.step(np.full((3, 1), np.nan))
    environment.step(np.zeros((3, 1)))  # and it goes on
    assert environment.scene(0)[0].ncam == 2
    with pytest.raises(RobotRLError, match=r'environment 1 is in another process .* workers=0'):
        environment.scene(1)


def test_an_error_of_a_name_travels():
    error = UnknownName('task', 'suite/wlak', ['suite/walk'], 'robot-rl tasks')
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and (copy.kind, copy.known) == (error.kind, error.known)


BROKEN = """
import gymnasium, os
from gymnasium.envs.classic_control import PendulumEnv
class Broken(PendulumEnv):
    def step(self, action):
        if os.getpid() != int(os.environ['PARENT']):
            raise ZeroDivisionError('the cable is loose')
        return super().step(action)
gymnasium.register('Broken-v0', Broken, max_episode_steps=10)
"""


def test_an_environment_that_fails_is_told_and_ends_all(team, tmp_path, monkeypatch, capfd):
    (tmp_path / 'broken_cable.py').write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'broken_cable', raising=False)
    monkeypatch.setenv('PARENT', str(os.getpid()))
    environment = team('gym/broken_cable:Broken-v0')
    environment.reset()
    told = 'in an environment process: ZeroDivisionError: the cable is loose'
    with pytest.raises(RobotRLError, match=told):
        environment.step(np.zeros((3, 1)))
    assert 'broken_cable.py' in capfd.readouterr().err  # where, for whoever wrote it
    assert all(process.poll() is not None for process in processes(environment))
    with pytest.raises(RobotRLError, match='closed'):
        environment.step(np.zeros((3, 1)))


def test_a_share_of_the_parents_that_fails_ends_the_others(team, tmp_path, monkeypatch):
    (tmp_path / 'broken_cable.py').write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'broken_cable', raising=False)
    monkeypatch.setenv('PARENT', '0')
    environment = team('gym/broken_cable:Broken-v0')
    environment.reset()
    with pytest.raises(ZeroDivisionError, match='the cable is loose'):
        environment.step(np.zeros((3, 1)))
    assert all(process.poll() is not None for process in processes(environment))


def test_a_killed_worker_is_one_clear_line_and_ends_all(team):
    environment = team('gym/Pendulum-v1')
    environment.reset()
    processes(environment)[1].send_signal(signal.SIGKILL)
    with pytest.raises(RobotRLError, match='process 2 of 2 ended by SIGKILL') as caught:
        for _ in range(100):
            environment.step(np.zeros((3, 1)))
    assert '\n' not in str(caught.value)
    assert all(process.poll() is not None for process in processes(environment))


def test_close_ends_the_workers_soon_and_may_be_repeated(team):
    environment = team('gym/Pendulum-v1')
    environment.reset()
    start = time.monotonic()
    environment.close()
    environment.close()
    assert [process.returncode for process in processes(environment)] == [0, 0]
    assert time.monotonic() - start < 4


def test_a_worker_that_hangs_is_killed(team, monkeypatch):
    monkeypatch.setattr('robot_rl.sim.workers._PATIENCE_S', 0.2)
    environment = team('gym/Pendulum-v1')
    processes(environment)[0].send_signal(signal.SIGSTOP)
    environment.close()
    assert processes(environment)[0].returncode == -signal.SIGKILL


SCRIPT = """
import signal
import numpy as np
from robot_rl import registry
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
environment = registry.make_environment('gym/Pendulum-v1', 3, workers=3)
environment.reset()
print(*[worker.process.pid for worker in environment._team._workers], flush=True)
while True:
    environment.step(np.zeros((3, 1)))
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_however_it_ends(number):
    """As the terminal does it: the signal goes to the whole group. No guard in the script."""
    parent = subprocess.Popen(
        [sys.executable, '-c', SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    try:
        os.killpg(parent.pid, number)
        _, errors = parent.communicate(timeout=20)
    finally:
        parent.kill()
    until = time.monotonic() + 10
    while any(Path(f'/proc/{pid}').exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)
    assert errors.count('Traceback') == (1 if number == signal.SIGINT else 0)  # the parent's own


def cpu_s(pid):
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def test_whoever_waits_takes_no_cpu(team):
    """The workers for a step, and the parent for a worker that takes long."""
    environment = team('gym/Pendulum-v1')
    environment.reset()
    pids = [process.pid for process in processes(environment)]
    before = [cpu_s(pid) for pid in pids]
    time.sleep(0.5)
    assert sum(cpu_s(pid) for pid in pids) - sum(before) <= 0.02
    processes(environment)[0].send_signal(signal.SIGSTOP)
    waker = subprocess.Popen(['sh', '-c', f'sleep 0.5; kill -CONT {pids[0]}'])
    start, cpu = time.monotonic(), time.process_time()
    environment.step(np.zeros((3, 1)))
    assert time.monotonic() - start > 0.3 and time.process_time() - cpu < 0.1
    waker.wait()


def test_workers_have_one_thread(team):
    environment = team('suite/cartpole-balance')
    environment.reset()
    environment.step(np.zeros((3, 1)))
    for process in processes(environment):
        assert len(os.listdir(f'/proc/{process.pid}/task')) == 1
