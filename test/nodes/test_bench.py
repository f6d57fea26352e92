"""bench deploy: its rows, not its figures."""

from __future__ import annotations

import pytest

from robot_rl.bench import deploy


@pytest.mark.slow
def test_every_figure_stands_beside_that_of_the_empty_chain():
    rows = {row['metric']: row for row in deploy.run(seconds=6.0)}
    topics, statistics = ('command', 'applied', 'to_arm'), ('p50', 'p99', 'max')
    latencies = {f'latency_{topic}_{statistic}' for topic in topics for statistic in statistics}
    assert set(rows) == latencies | {f'cpu_{node}_50hz' for node in deploy.CHAIN}
    for row in rows.values():
        assert set(row) == {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}
        assert row['bench'] == 'deploy' and row['value'] > 0 and row['reference'] > 0
    for topic in topics:
        values = [rows[f'latency_{topic}_{statistic}']['value'] for statistic in statistics]
        assert values == sorted(values) and values[-1] < 1000
