"""The supervisor with small scripts in place of nodes: no ROS needed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robot_rl.errors import StorageError
from robot_rl.nodes.supervisor import NodeFailure, Supervisor, loopback, reserved_domain_id

READY = 'from robot_rl.nodes import supervisor as s\ns.begin()\ns.report_ready()\n'
SLEEP = 'import time\ntime.sleep(60)\n'


@pytest.fixture
def supervisor(tmp_path):
    with Supervisor(tmp_path / 'logs') as supervisor:
        yield supervisor


def start(supervisor: Supervisor, script: str, name: str = 'child') -> subprocess.Popen:
    return supervisor.start_command(name, [sys.executable, '-c', script])


def gone(pid: int, deadline_s: float = 20.0) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            with open(f'/proc/{pid}/stat') as file:
                if file.read().rsplit(')', 1)[1].split()[0] == 'Z':
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_children_get_a_domain_and_stay_on_this_machine(supervisor, monkeypatch):
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    start(supervisor, f'import os\nprint(os.environ)\n{READY}{SLEEP}')
    supervisor.wait_ready(20)
    text = (supervisor.log_dir / 'child.out').read_text()
    assert f"'ROS_DOMAIN_ID': '{supervisor.domain_id}'" in text
    assert "'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SYSTEM_DEFAULT'" in text
    assert 'config/dds/loopback.xml' in text
    assert 1 <= supervisor.domain_id <= 100


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp'),
        ('FASTDDS_DEFAULT_PROFILES_FILE', '/etc/a_profile_of_the_users.xml'),
    ],
)
def test_where_our_profile_does_not_count_ros_keeps_the_traffic_here(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert loopback() == {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def test_no_socket_of_a_node_is_reachable_from_another_machine(supervisor):
    """With LOCALHOST alone Fast DDS listens everywhere, and leaves shared memory behind."""
    child = supervisor.start('command_guard')
    supervisor.wait_ready()
    process = Path(f'/proc/{child.pid}')
    mine = {os.readlink(file) for file in (process / 'fd').iterdir()}
    rows = [row.split() for row in (process / 'net/udp').read_text().splitlines()[1:]]
    addresses = [row[1].split(':')[0] for row in rows if f'socket:[{row[9]}]' in mine]
    assert len(addresses) >= 3
    assert set(addresses) == {'0100007F'}  # 127.0.0.1, in the kernel's order of bytes
    names = [(task / 'comm').read_text() for task in (process / 'task').iterdir()]
    assert any('dds.udp' in name for name in names)
    assert not any('dds.shm' in name for name in names)


def test_a_child_that_does_not_get_ready_is_named(supervisor):
    start(supervisor, f'{READY}{SLEEP}', 'good')
    start(supervisor, f'import sys\nprint("loading", file=sys.stderr, flush=True)\n{SLEEP}', 'bad')
    with pytest.raises(NodeFailure, match=r'not ready within 3 s: bad: loading \(log: .*bad\.log'):
        supervisor.wait_ready(3)
    supervisor.stop(timeout_s=0.5)  # whoever is not ready does not hear it yet


def test_a_dead_child_is_reported_with_its_last_words(supervisor):
    child = start(supervisor, 'import sys\nsys.exit("no such arm")')
    child.wait(20)
    with pytest.raises(NodeFailure, match='ended with code 1: child: no such arm'):
        supervisor.check()
    with pytest.raises(NodeFailure, match='no such arm'):
        supervisor.wait_ready(20)


def test_follow_yields_lines_until_the_end_and_half_lines_wait(supervisor):
    script = (
        'import time\nprint(\'{"a": 1}\', flush=True)\nprint(\'{"a"\', end="", flush=True)\n'
        'time.sleep(0.3)\nprint(": 2}", flush=True)'
    )
    start(supervisor, script)
    assert list(supervisor.follow('child', 20)) == [{'a': 1}, {'a': 2}]


def test_follow_ends_where_another_child_dies_or_nothing_comes(supervisor):
    start(supervisor, SLEEP)
    with pytest.raises(NodeFailure, match='nothing within 1 s from child: it wrote nothing'):
        list(supervisor.follow('child', 1))
    start(supervisor, 'import sys\nsys.exit("out of memory")', 'other')
    with pytest.raises(NodeFailure, match='other: out of memory'):
        list(supervisor.follow('child', 20))
    supervisor.stop(timeout_s=0.5)  # whoever is not ready does not hear it yet


def test_stop_insists(supervisor):
    ignore = 'import signal\nfor n in (2, 15):\n    signal.signal(n, signal.SIG_IGN)\n'
    stubborn = start(supervisor, f'{ignore}{READY}{SLEEP}', 'stubborn')
    polite = start(supervisor, f'{READY}{SLEEP}', 'polite')
    supervisor.wait_ready(20)
    codes = supervisor.stop(timeout_s=0.5)
    assert codes['stubborn'] == -signal.SIGKILL
    assert codes['polite'] != -signal.SIGKILL
    assert gone(stubborn.pid) and gone(polite.pid)
    assert supervisor.stop() == {}


def test_a_signal_that_comes_before_a_child_listens_waits_for_it(supervisor):
    """Python ends with a traceback where SIGINT comes while it starts."""
    listens = 'import signal, sys\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(0))\n'
    child = start(supervisor, f'{listens}{READY}{SLEEP}')
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 0 and supervisor.log('child') == ''
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not blocked & {signal.SIGINT, signal.SIGTERM}  # here nothing waits


def test_one_name_is_started_once(supervisor):
    start(supervisor, READY + SLEEP)
    with pytest.raises(NodeFailure, match='child has been started already'):
        start(supervisor, READY + SLEEP)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_a_killed_supervisor(tmp_path, number):
    script = (
        'import sys, time\nfrom robot_rl.nodes.supervisor import Supervisor\n'
        f'supervisor = Supervisor({str(tmp_path)!r})\n'
        f'child = supervisor.start_command("child", [sys.executable, "-c", {READY + SLEEP!r}])\n'
        'supervisor.wait_ready(20)\nprint(child.pid, flush=True)\ntime.sleep(60)\n'
    )
    parent = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        os.kill(parent.pid, number)
        assert parent.wait(20) == -number
        assert gone(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_two_supervisors_never_share_a_domain(tmp_path):
    """Once a demo's episodes were taken over by the nodes of a test in the same domain."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(reserved_domain_id()) for _ in range(5)]
        with Supervisor(tmp_path / 'a') as one, Supervisor(tmp_path / 'b') as other:
            assert len({*held, one.domain_id, other.domain_id}) == 7


def test_a_domain_is_given_back_when_its_holder_fails():
    with pytest.raises(StorageError, match='disk'), reserved_domain_id() as domain:
        raise StorageError('disk')
    with reserved_domain_id() as again:
        assert again == domain
