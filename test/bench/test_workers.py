import pytest

from robot_rl.bench import workers

KEYS = {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}


def test_both_references_are_measured(monkeypatch):
    pytest.importorskip('gymnasium')
    monkeypatch.setattr(workers, 'TASKS', ('gym/Pendulum-v1',))
    monkeypatch.setattr('robot_rl.bench.turns._SLICE_S', 0.05)
    rows = list(workers.run(0.5))
    assert len(rows) == 2 and all(row.keys() == KEYS for row in rows)
    assert rows[0]['value'] == rows[1]['value'] > 100
    for row in rows:
        assert row['ratio'] == pytest.approx(row['value'] / row['reference'])
