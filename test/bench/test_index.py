import pytest

from robot_rl.bench import index


def test_bench_index_yields_complete_rows(monkeypatch):
    """The bench compares every answer with its walk, and raises where they differ."""
    monkeypatch.setattr(index, 'EPISODES', 300)
    rows = list(index.run(seconds=0.1))
    for row in rows:
        assert row.keys() == {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}
        assert row['bench'] == 'index' and row['value'] > 0
        if row['reference'] is not None:
            assert row['ratio'] == pytest.approx(row['value'] / row['reference'])
    assert any("'reward=sketch:anna' finds" in row['metric'] for row in rows)
