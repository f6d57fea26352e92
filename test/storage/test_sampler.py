import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.priorities import Priorities
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
        'state/memory': rng.normal(size=(*shape, 3)).astype(np.float32),
        'state/count': rng.normal(size=shape).astype(np.float32),
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


def chi_squared(drawn, starts, shares):
    """Return Pearson's statistic less its mean, in its standard deviations."""
    counts = np.array([(drawn == start).sum() for start in starts])
    assert counts.sum() == len(drawn)
    expected = len(drawn) * shares / shares.sum()
    freedom = len(starts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


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
    assert chi_squared(drawn, starts, np.ones(len(starts))) < 5
    np.testing.assert_array_equal(
        again.transitions(500).observation['id'],
        drawn[:500, None],
    )


def prioritised(seed, skew=1.0):
    """Return columns, steps, priorities of all rows and their tree: a ring of two lanes."""
    rng = np.random.default_rng(seed)
    step_types = rng.choice([FIRST, MID, MID, LAST], size=(2, 40)).astype(np.int8)
    columns = make_columns(step_types, rng)
    priorities = np.exp(skew * rng.normal(size=80))
    tree = Priorities(80, alpha=0.6, beta=0.4)
    tree.set(np.arange(80), priorities)
    return columns, Steps(columns, size=33, head=7), priorities, tree


@pytest.mark.parametrize('kind', ['transitions', 'sequences'])
def test_starts_are_drawn_by_priority_among_those_that_can_be_served(kind):
    columns, steps, priorities, tree = prioritised(seed=3)
    sampler = WindowSampler(steps, 3, 0.9, 11, tree)
    draw = {
        'transitions': lambda: sampler.transitions(500),
        'sequences': lambda: sampler.sequences(500, length=2, burn_in=1),
    }[kind]
    starts = np.array(sorted(brute_force(columns, 33, 7, 3, 0.9)), dtype=int)
    drawn = np.concatenate([draw().place for _ in range(40)])
    assert drawn.dtype == np.int64
    assert chi_squared(drawn, starts, priorities[starts] ** 0.6) < 5


def test_sequences_start_uniformly_without_priorities():
    columns, steps, _, _ = prioritised(seed=5)
    sampler = WindowSampler(steps, 2, 0.9, 1)
    starts = np.array(sorted(brute_force(columns, 33, 7, 2, 0.9)), dtype=int)
    drawn = np.concatenate([sampler.sequences(500, 4, 3).place for _ in range(40)])
    assert chi_squared(drawn, starts, np.ones(len(starts))) < 5


def test_starts_that_are_listed_are_drawn_by_priority_too():
    """Nearly all of the priority lies in rows that cannot be served: few draws are not refused."""
    columns, steps, priorities, tree = prioritised(seed=3)
    starts = np.array(sorted(brute_force(columns, 33, 7, 3, 0.9)), dtype=int)
    others = np.setdiff1d(np.arange(80), starts)
    tree.set(others, 1e12)
    sampler = WindowSampler(steps, 3, 0.9, 11, tree)
    drawn = np.concatenate([sampler.transitions(500).place for _ in range(40)])
    assert chi_squared(drawn, starts, priorities[starts] ** 0.6) < 5
    tree.set(starts, 0.0)
    with pytest.raises(StorageError, match=f'none of {len(starts)} windows has a priority above'):
        sampler.transitions(4)


def test_weights_and_places_belong_to_the_starts():
    _, steps, priorities, tree = prioritised(seed=6)
    batch = WindowSampler(steps, 3, 0.9, 2, tree).transitions(64)
    np.testing.assert_array_equal(batch.place, batch.observation['id'][:, 0])
    probability = priorities**0.6 / (priorities**0.6).sum()
    weights = (80 * probability[batch.place]) ** -0.4
    np.testing.assert_allclose(batch.weight, weights / weights.max(), rtol=1e-6)
    plain = WindowSampler(steps, 3, 0.9, 2)
    for batch in (plain.transitions(64), plain.sequences(64, 2)):
        np.testing.assert_array_equal(batch.weight, np.ones(64))
        assert batch.weight.dtype == np.float32 and batch.place.dtype == np.int64
    plain.update_priorities(batch.place, np.ones(64))  # there are none: nothing happens


def test_updated_priorities_decide_what_is_drawn_next():
    _, steps, _, tree = prioritised(seed=7)
    sampler = WindowSampler(steps, 3, 0.9, 2, tree)
    seen = sampler.gather(sampler.available()).place
    sampler.update_priorities(seen[1:], np.zeros(len(seen) - 1))
    assert set(sampler.transitions(100).place) == {seen[0]}
    with pytest.raises(StorageError, match='priority nan'):
        sampler.update_priorities(seen[:1], np.array([np.nan], np.float32))


def test_sampling_by_priority_is_reproducible():
    _, steps, _, tree = prioritised(seed=8)
    one, two = (WindowSampler(steps, 3, 0.9, 4, tree) for _ in range(2))
    np.testing.assert_array_equal(one.transitions(50).place, two.transitions(50).place)
    state = one.rng.bit_generator.state
    first = one.sequences(50, 3, 2)
    one.rng.bit_generator.state = state
    np.testing.assert_array_equal(first.place, one.sequences(50, 3, 2).place)


def walk(columns, size, head, row, burn_in, length, n_step):
    """Return the row of every index of the sequence that learns from `row` first, and `real`."""
    lane, row = divmod(row, columns['step_type'].shape[1])
    order = [(head - size + age) % columns['step_type'].shape[1] for age in range(size)]
    kind = [columns['step_type'][lane, r] for r in order]
    start = order.index(row)
    before, after = [], []
    while len(before) < burn_in:
        now = start - len(before)
        if now == 0 or kind[now] == FIRST or kind[now - 1] == LAST:
            break
        before.insert(0, order[now - 1])
    while len(after) < length + n_step - 1:
        now = start + len(after)
        if now + 1 == size or kind[now] == LAST or kind[now + 1] == FIRST:
            break
        after.append(order[now + 1])
    real = [False] * (burn_in - len(before)) + [True] * len(before)
    rows = [*before, row, *after]
    rows = [rows[0]] * (burn_in - len(before)) + rows
    rows += [rows[-1]] * (burn_in + length + n_step - len(rows))
    return lane, rows, real, len(after)


@given(rings(), st.integers(1, 8), st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_every_sequence_equals_a_walk_over_the_lane(ring, length, burn_in):
    step_types, size, head, n_step, seed = ring
    columns = make_columns(step_types, np.random.default_rng(seed), discounts=(0.0, 0.5, 1.0))
    expected = brute_force(columns, size, head, n_step, gamma=0.9)
    sampler = WindowSampler(Steps(columns, size, head), n_step, 0.9, seed)
    if not expected:
        with pytest.raises(StorageError, match='no window'):
            sampler.sequences(4, length, burn_in)
        return
    batch = sampler.sequences(32, length, burn_in)
    ids = batch.observation['id'][..., 0]
    assert ids.shape == (burn_in + length + n_step, 32) and batch.real.shape == (burn_in, 32)
    for b, place in enumerate(batch.place):
        assert place in expected
        lane, rows, real, after = walk(columns, size, head, place, burn_in, length, n_step)
        np.testing.assert_array_equal(ids[:, b], columns['observation/id'][lane, rows, 0])
        np.testing.assert_array_equal(batch.real[:, b], real)
        for name in ('memory', 'count'):
            np.testing.assert_array_equal(
                batch.state[name][b], columns[f'state/{name}'][lane, rows[0]]
            )
        for t in range(length):
            row = rows[burn_in + t]
            got = batch.reward[t, b], batch.discount[t, b], batch.following[t, b]
            window = expected.get(columns['observation/id'][lane, row, 0]) if t <= after else None
            assert batch.valid[t, b] == (window is not None)
            if window is None:
                assert got == (0, 0, 0)
                continue
            np.testing.assert_allclose(got[:2], window[:2], rtol=1e-5, atol=1e-6)
            assert ids[burn_in + t + got[2], b] == window[2]
            np.testing.assert_array_equal(batch.action[t, b], columns['action'][lane, row])


def test_a_sequence_written_out():
    """An episode of rows 3 to 7 that terminates; rows 0 to 2 are the end of the one before."""
    kinds = np.array([[MID, MID, LAST, FIRST, MID, MID, MID, LAST]], dtype=np.int8)
    columns = make_columns(kinds, np.random.default_rng(0), discounts=(1.0,))
    columns['reward'][0] = [9, 9, 9, 1, 2, 4, 8, 9]
    columns['discount'][0, 6] = 0
    sampler = WindowSampler(Steps(columns), n_step=2, gamma=0.5, rng=0)
    batch = sampler.sequences(60, length=4, burn_in=2)
    b = batch.place.tolist().index(4)
    assert batch.observation['id'][:, b, 0].tolist() == [3, 3, 4, 5, 6, 7, 7, 7]
    assert batch.real[:, b].tolist() == [False, True]
    np.testing.assert_array_equal(batch.state['memory'][b], columns['state/memory'][0, 3])
    assert batch.valid[:, b].tolist() == [True, True, True, False]
    assert batch.following[:, b].tolist() == [2, 2, 1, 0]
    assert batch.reward[:, b].tolist() == [2 + 4 / 2, 4 + 8 / 2, 8, 0]
    assert batch.discount[:, b].tolist() == [0.25, 0, 0, 0]
    np.testing.assert_array_equal(batch.action[:3, b], columns['action'][0, 4:7])
    assert batch.observation['picture'].dtype == np.uint8
    assert batch.reward.dtype == batch.discount.dtype == batch.action.dtype == np.float32
    assert batch.following.dtype == np.int64


def test_sequences_need_no_state_and_no_burn_in():
    columns = make_columns(np.full((2, 30), MID, np.int8), np.random.default_rng(0))
    columns = {name: c for name, c in columns.items() if not name.startswith('state/')}
    batch = WindowSampler(Steps(columns), 3, 0.9).sequences(16, length=5)
    assert batch.state == {} and batch.real.shape == (0, 16)
    assert batch.observation['id'].shape == (8, 16, 1) and batch.action.shape == (5, 16, 2)


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
    with pytest.raises(StorageError, match='priorities of 15 rows do not belong to 16 rows'):
        WindowSampler(Steps(columns), priorities=Priorities(15))
    with pytest.raises(StorageError, match='length 0 and burn_in 0'):
        WindowSampler(Steps(columns)).sequences(4, length=0)
    with pytest.raises(StorageError, match='length 2 and burn_in -1'):
        WindowSampler(Steps(columns)).sequences(4, length=2, burn_in=-1)
