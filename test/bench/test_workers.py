import pytest

from robot_rl.bench import workers

KEYS = {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}


def test_a_batch_waits_for_the_slowest_process_in_each_step():
    # Two turns of two processes, one of which has taken a step more in the first.
    assert workers._slowest([[[1.0, 5.0, 9.0], [3.0, 2.0]], [[4.0], [4.0]]]) == 4.0


def test_all_references_are_measured(monkeypatch):
    pytest.importorskip('gymnasium')
    monkeypatch.setattr(workers, 'TASKS', ('gym/Pendulum-v1',))
    monkeypatch.setattr('robot_rl.bench.turns._SLICE_S', 0.05)
    rows = list(workers.run(0.5))
    assert len(rows) == 3 and all(row.keys() == KEYS for row in rows)
    assert rows[0]['value'] == rows[1]['value'] == rows[2]['value'] > 100
    for row in rows:
        assert row['ratio'] == pytest.approx(row['value'] / row['reference'])
