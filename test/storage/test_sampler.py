import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps


def make_columns(step_types, rng, discounts=(0.0, 1.0)):
    shape = step_types.shape
    return {
        'observation/id': np.arange(step_types.size, dtype=np.float32).reshape(*shape, 1),
        'observation/picture': rng.integers(0, 255, (*shape, 2, 2), dtype=np.uint8),
        'action': rng.normal(size=(*shape, 2)).astype(np.float32),
        'reward': rng.normal(size=shape).astype(np.float32),
        'discount': rng.choice(discounts, size=shape).astype(np.float32),
        'step_type': step_types,
    }


def brute_force(columns, size, head, n_step, gamma):
    """Walk every lane step by step; return {start id: (return, discount, end id)}."""
    step_types = columns['step_type']
    length = step_types.shape[1]
    expected = {}
    for lane in range(step_types.shape[0]):
        order = [(head - size + age) % length for age in range(size)]
        kind = [step_types[lane, row] for row in order]
        ends = [kind[i] == LAST or (i + 1 < size and kind[i + 1] == FIRST) for i in range(size)]
        for start in range(size):
            if ends[start]:
                continue
            total, factor, now = 0.0, 1.0, start
            while True:
                total += factor * float(columns['reward'][lane, order[now]])
                factor *= gamma * float(columns['discount'][lane, order[now]])
                now += 1
                if now >= size or ends[now] or now - start == n_step:
                    break
            if now < size:
                identity = columns['observation/id'][lane, :, 0]
                expected[identity[order[start]]] = (total, factor, identity[order[now]])
    return expected


@st.composite
def rings(draw):
    lanes, length = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    kinds = st.lists(
        st.sampled_from([FIRST, MID, MID, MID, LAST]), min_size=length, max_size=length
    )
    step_types = np.array([draw(kinds) for _ in range(lanes)], dtype=np.int8)
    size = draw(st.integers(0, length))
    head = draw(st.integers(0, length - 1))
    n_step = draw(st.integers(1, 7))
    return step_types, size, head, n_step, draw(st.integers(0, 2**31))


@given(rings())
@settings(max_examples=300, deadline=None)
def test_every_window_equals_a_walk_over_the_lane(ring):
    step_types, size, head, n_step, seed = ring
    columns = make_columns(step_types, np.random.default_rng(seed), discounts=(0.0, 0.5, 1.0))
    expected = brute_force(columns, size, head, n_step, gamma=0.9)
    sampler = WindowSampler(Steps(columns, size, head), n_step, 0.9, seed)
    batch = sampler.gather(sampler.available())
    starts, ends = batch.observation['id'][:, 0], batch.next_observation['id'][:, 0]
    assert sorted(starts) == sorted(expected)
    for i, start in enumerate(starts):
        total, factor, end = expected[start]
        assert end == ends[i]
        np.testing.assert_allclose(batch.reward[i], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.discount[i], factor, rtol=1e-5, atol=1e-7)
    if expected:
        sampled = sampler.transitions(64)
        assert set(sampled.observation['id'][:, 0]) <= set(expected)
    else:
        with pytest.raises(StorageError, match='no window'):
            sampler.transitions(4)


def test_observations_and_actions_are_those_of_the_window():
    rng = np.random.default_rng(0)
    step_types = np.array([[FIRST, MID, MID, MID, LAST]], dtype=np.int8)
    columns = make_columns(step_types, rng, discounts=(1.0,))
    sampler = WindowSampler(Steps(columns), n_step=2, gamma=0.9)
    batch = sampler.gather(sampler.available())
    flat = {name: column[0] for name, column in columns.items()}
    np.testing.assert_array_equal(batch.observation['id'][:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(batch.next_observation['id'][:, 0], [2, 3, 4, 4])
    np.testing.assert_array_equal(batch.action, flat['action'][:4])
    np.testing.assert_array_equal(batch.observation['picture'], flat['observation/picture'][:4])
    assert batch.observation['picture'].dtype == np.uint8
    assert batch.reward.dtype == batch.discount.dtype == np.float32


def test_truncation_bootstraps_and_termination_does_not():
    step_types = np.array([[FIRST, MID, LAST, FIRST, MID, LAST]], dtype=np.int8)
    columns = make_columns(step_types, np.random.default_rng(0), discounts=(1.0,))
    columns['discount'][0, 4] = 0.0  # the second episode ends by termination
    sampler = WindowSampler(Steps(columns), n_step=5, gamma=0.5)
    batch = sampler.gather(sampler.available())
    np.testing.assert_allclose(batch.discount, [0.25, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(batch.next_observation['id'][:, 0], [2, 2, 5, 5])


def test_sampling_is_uniform_over_the_starts_and_reproducible():
    rng = np.random.default_rng(3)
    step_types = rng.choice([FIRST, MID, MID, LAST], size=(2, 40)).astype(np.int8)
    columns = make_columns(step_types, rng)
    steps = Steps(columns, size=33, head=7)
    sampler, again = (WindowSampler(steps, 3, 0.9, 11) for _ in range(2))
    starts = sampler.gather(sampler.available()).observation['id'][:, 0]
    drawn = np.concatenate([sampler.transitions(500).observation['id'][:, 0] for _ in range(40)])
    counts = np.array([(drawn == start).sum() for start in starts])
    assert counts.sum() == len(drawn)
    expected = len(drawn) / len(starts)
    # Pearson's chi-squared: mean f, standard deviation sqrt(2 f) for f degrees of freedom.
    freedom = len(starts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)
    np.testing.assert_array_equal(
        again.transitions(500).observation['id'],
        drawn[:500, None],
    )


def test_a_restored_generator_continues_the_same_stream():
    columns = make_columns(np.full((1, 50), MID, np.int8), np.random.default_rng(0))
    sampler = WindowSampler(Steps(columns), 3, 0.9, 5)
    state = sampler.rng.bit_generator.state
    first = sampler.transitions(32)
    sampler.rng.bit_generator.state = state
    np.testing.assert_array_equal(first.action, sampler.transitions(32).action)


def test_sampler_sees_rows_that_are_written_later():
    columns = make_columns(np.full((2, 8), MID, np.int8), np.random.default_rng(0))
    steps = Steps(columns, size=0)
    sampler = WindowSampler(steps, n_step=3)
    for written in range(1, 20):
        steps.head, steps.size = written % 8, min(written, 8)
        assert len(sampler.available().lane) == 2 * max(0, min(written, 8) - 3)


def test_memory_map_is_sampled_without_a_copy(tmp_path):
    columns = make_columns(
        np.array([[FIRST, MID, LAST] * 4], dtype=np.int8), np.random.default_rng(0)
    )
    for name, column in columns.items():
        np.save(tmp_path / f'{name.replace("/", ".")}.npy', column)
    maps = {
        name: np.load(tmp_path / f'{name.replace("/", ".")}.npy', mmap_mode='r')
        for name in columns
    }
    steps = Steps(maps)
    assert all(np.shares_memory(steps.flat[name], maps[name]) for name in maps)
    a = WindowSampler(steps, 2, 0.9, 1).transitions(16)
    b = WindowSampler(Steps(columns), 2, 0.9, 1).transitions(16)
    np.testing.assert_array_equal(a.reward, b.reward)
    np.testing.assert_array_equal(a.next_observation['id'], b.next_observation['id'])


def test_concatenated_episodes_are_never_joined():
    rng = np.random.default_rng(1)
    kinds = np.array([[FIRST, MID, LAST]], dtype=np.int8)
    episodes = [{k: v[0] for k, v in make_columns(kinds, rng).items()} for _ in range(3)]
    for number, episode in enumerate(episodes):
        episode['observation/id'] = episode['observation/id'] + 10 * number
    batch = WindowSampler(Steps.concatenate(episodes), 4, 0.9, 0).transitions(200)
    start, end = batch.observation['id'] // 10, batch.next_observation['id'] // 10
    np.testing.assert_array_equal(start, end)


def test_columns_that_do_not_belong_together_are_refused():
    columns = make_columns(np.full((2, 8), MID, np.int8), np.random.default_rng(0))
    with pytest.raises(StorageError, match='reward'):
        Steps({k: v for k, v in columns.items() if k != 'reward'})
    with pytest.raises(StorageError, match=r"'action' has shape \[2, 7, 2\]"):
        Steps(columns | {'action': columns['action'][:, :7]})
    with pytest.raises(StorageError, match='contiguous'):
        Steps(columns | {'reward': np.ones((8, 2)).T})
    with pytest.raises(StorageError, match='no episode'):
        Steps.concatenate([])
    with pytest.raises(StorageError, match='episode 1 has columns'):
        Steps.concatenate([{'action': np.ones(2)}, {'reward': np.ones(2)}])
    with pytest.raises(StorageError, match='n_step 0'):
        WindowSampler(Steps(columns), n_step=0)
