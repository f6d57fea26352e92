"""bench deploy: its rows, not its figures; and what is made of the notes that nodes take."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from robot_rl.bench import deploy, record


@pytest.mark.slow
def test_every_figure_stands_beside_that_of_the_empty_chain():
    rows = {row['metric']: row for row in deploy.run(8.0, rates_hz=(50, 250))}
    nodes = ('sim_robot', 'policy', 'command_guard', 'episode_recorder')
    for rate in (50, 250):
        latencies = [rows[f'latency_{rate}hz_{statistic}'] for statistic in ('p50', 'p99')]
        for row in (*latencies, *(rows[f'cpu_{node}_{rate}hz'] for node in nodes)):
            assert row['bench'] == 'deploy' and row['value'] > 0 and row['reference'] > 0
            assert row['ratio'] == pytest.approx(row['value'] / row['reference'], rel=0.1)
        assert latencies[0]['value'] <= latencies[1]['value'] < 1000
        for statistic in ('p50', 'p99'):
            whole = rows[f'with_waits_{rate}hz_{statistic}']
            assert whole['value'] > rows[f'latency_{rate}hz_{statistic}']['value']
            assert whole['reference'] == pytest.approx(1e3 / rate + 1e3 / max(rate, 100))
        for who, period_ms in (('policy', 1e3 / rate), ('guard', 1e3 / max(rate, 100))):
            wait, late = rows[f'{who}_timer_wait_{rate}hz_p50'], rows[f'{who}_late_{rate}hz']
            assert 0 <= wait['value'] < 2 * period_ms == 2 * wait['reference']
            assert 0 <= late['value'] <= 100 and 0 <= late['reference'] <= 100
    assert len(rows) == 2 * (2 + 2 + 2 + 2 + 4)


def test_the_waits_for_a_tick_are_apart_from_the_latency():
    """Two samples: stamp, arrival at the policy, its tick, the guard, its tick, the arm."""
    ms = 1_000_000
    start = 10_000 * ms
    times = [
        (start, start + 1 * ms, start + 4 * ms, start + 5 * ms, start + 11 * ms, start + 13 * ms),
        *[tuple(start + x * ms for x in (20, 22, 24, 25, 31, 34))],
    ]
    chain = {
        'policy': [[s, came, began] for s, came, began, *_ in times],
        'command_guard': [[s, came, began] for s, _, _, came, began, _ in times],
    }
    first = start - round(deploy.WARM_UP_S * 1e9)
    ticks = {
        'policy': [first, start, start + 20 * ms, start + 40 * ms, start + 80 * ms],
        'command_guard': [start + 10 * ms * i for i in range(8)],
        'timer_50hz': [start, start + 20 * ms, start + 51 * ms, start + 71 * ms],
        'timer_100hz': [start, start + 10 * ms, start + 26 * ms],
    }
    traces = {name: {'ticks_ns': ticks[name], 'taken': chain.get(name, [])} for name in ticks}

    def applied(stamp, publish):
        header = SimpleNamespace(stamp=SimpleNamespace(sec=stamp // 10**9, nanosec=stamp % 10**9))
        return SimpleNamespace(
            topic=deploy.APPLIED,
            publish_time_ns=publish,
            message=SimpleNamespace(header=header),
        )

    messages, commands = [], []
    for stamp, *_, guard_began, arrived in times:
        commands.append((guard_began + 10, arrived))
        messages.append(applied(stamp, guard_began + 20))
        # Only the first one that reflects the sample counts.
        commands.append((guard_began + 9 * ms, arrived + 9 * ms))
        messages.append(applied(stamp, guard_began + 9 * ms + 10))
    traces['sim_robot'] = {'commands': commands}
    episode = SimpleNamespace(messages=lambda topics: iter(messages))
    real = deploy._read(traces, episode, 50, {})
    np.testing.assert_allclose(real.latency, [1e-3 + 1e-3 + 2e-3, 2e-3 + 1e-3 + 3e-3])
    np.testing.assert_allclose(real.policy_wait, [3e-3, 2e-3])
    np.testing.assert_allclose(real.guard_wait, [6e-3, 6e-3])
    late = {'policy': 1 / 3, 'command_guard': 0.0, 'timer_50hz': 1 / 3, 'timer_100hz': 0.5}
    assert real.late == late


@pytest.mark.slow
def test_what_was_sent_is_what_was_recorded_or_lost():
    rows = {row['metric']: row for row in record.run(2.0)}
    sent, received = rows['messages_sent']['value'], rows['messages_received']['value']
    assert sent == 2 * (3 * 500 + 2 * 30)
    assert sent - received == rows['messages_lost']['value'] == 0
    # Two pictures of 90 kB at 30 Hz, which cannot be compressed, and small messages.
    assert 3 < rows['written']['value'] < 8
    assert rows['cpu_episode_recorder']['value'] > 0 and rows['cpu_generators']['value'] > 0
    assert all(row['bench'] == 'record' for row in rows.values())
