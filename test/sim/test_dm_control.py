import sys

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import ContractMismatch, RobotRLError, SpecError, UnknownName
from robot_rl.sim import dm_control as adapter
from robot_rl.sim.environment import HELD_OUT, StepType

pytest.importorskip('dm_control')
NAMES = registry.task_names()
LQR = ['suite/lqr-lqr_2_1', 'suite/lqr-lqr_6_2']
# One of each kind of observation: vectors, scalars, matrices, nested names, a height field.
FEW = [
    'suite/cartpole-swingup',
    'suite/fish-swim',
    'suite/stacker-stack_2',
    'suite/quadruped-escape',
    'manipulation/reach_site_features',
]


def random_actions(environment, steps, seed=0):
    contract = environment.contract
    size = (steps, environment.num_envs, contract.action_size)
    rng = np.random.default_rng(seed)
    return rng.uniform(contract.action_lower, contract.action_upper, size).astype(np.float32)


def require_served(environment, step):
    contract = environment.contract
    assert list(step.observation) == [field.name for field in contract.observation]
    for field in contract.observation:
        values = step.observation[field.name]
        assert values.dtype == (np.uint8 if field.is_picture else np.float32)
        assert values.shape == (environment.num_envs, *field.full_shape)
        assert field.name.replace('/', '') == field.name
        assert field.is_picture or field.stream == 'env'
    assert step.step_type.dtype == np.int8
    assert step.reward.dtype == step.discount.dtype == np.float32


@pytest.mark.parametrize('name', FEW)
def test_an_episode_repeats_from_its_seed(name):
    environment = registry.make_environment(name, num_envs=2, seed=1)
    actions = random_actions(environment, 4)
    runs = []
    for seeds in ([5, HELD_OUT], [6, 6], [5, HELD_OUT]):
        steps = [environment.reset(seeds)] + [environment.step(a) for a in actions]
        require_served(environment, steps[-1])
        assert all((step.reward >= 0).all() and (step.reward <= 1).all() for step in steps)
        runs.append(steps)
    for one, other in zip(runs[0], runs[2], strict=True):
        for key, values in one.observation.items():
            np.testing.assert_array_equal(values, other.observation[key])
    different = [
        not np.array_equal(values, runs[1][0].observation[key])
        for key, values in runs[0][0].observation.items()
    ]
    assert any(different)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(NAMES['suite'] + NAMES['manipulation'])))
def test_every_task_is_served_and_repeats(name):
    environment = registry.make_environment(name)
    actions = random_actions(environment, 2)
    first = environment.reset([3])
    for action in actions:
        require_served(environment, environment.step(action))
    environment.reset([4])
    again = environment.reset([3])
    for key, values in first.observation.items():
        np.testing.assert_array_equal(values, again.observation[key])


def test_numbers_are_those_of_the_task_itself():
    environment = registry.make_environment('suite/walker-walk')
    own = adapter._package('suite').load('walker', 'walk', task_kwargs={'random': 9})
    step, expected = environment.reset([9]), own.reset()
    for action in random_actions(environment, 30):
        for key, values in expected.observation.items():
            found = step.observation[key][0]
            np.testing.assert_array_equal(found, np.atleast_1d(values).astype(np.float32))
        step, expected = environment.step(action), own.step(action[0])
        assert step.reward[0] == np.float32(expected.reward)
        assert step.discount[0] == expected.discount
    assert environment.contract.rate_hz == pytest.approx(40)
    field = environment.contract.observation[1]
    assert (field.name, field.source, field.shape) == ('height', 'env.height', (1,))


def test_the_time_limit_truncates_and_the_next_step_starts_anew():
    environment = registry.make_environment('suite/pendulum-swingup', num_envs=2)
    environment.reset()
    for _ in range(environment.max_steps - 1):
        assert (environment.step(np.zeros((2, 1))).step_type == StepType.MID).all()
    last = environment.step(np.zeros((2, 1)))
    assert (last.step_type == StepType.LAST).all() and (last.discount == 1).all()
    first = environment.step(np.full((2, 1), np.nan))
    assert (first.step_type == StepType.FIRST).all()
    assert (first.reward == 0).all() and (first.discount == 1).all()


def test_discount_0_is_termination():
    environment = registry.make_environment('suite/cartpole-balance')
    environment.reset()
    own = environment._envs[0]
    own.task.get_termination = lambda physics: 0.0
    step = environment.step(np.zeros((1, 1)))
    assert step.step_type[0] == StepType.LAST and step.discount[0] == 0


def test_names_are_fit_for_onnx_and_sources_keep_the_tasks_keys():
    contract = registry.make_environment('manipulation/reach_site_features').contract
    sources = {field.name: field.source for field in contract.observation}
    assert sources['jaco_arm_jaco_hand_joints_pos'] == 'env.jaco_arm/jaco_hand/joints_pos'
    assert contract.observation_shapes['jaco_arm_joints_pos'] == (1, 6, 2)
    assert contract.action_names[0] == 'jaco_arm/joint_1'
    assert contract.action[0].kind == 'generic'


@pytest.mark.parametrize('name', LQR)
def test_a_task_without_bounds_and_end_gets_some(name):
    environment = registry.make_environment(name)
    contract = environment.contract
    assert (contract.action_lower == -1).all() and (contract.action_upper == 1).all()
    assert environment.reward_range is None
    assert environment.max_steps == round(20.0 * contract.rate_hz)
    environment.reset([1])
    for action in random_actions(environment, environment.max_steps):
        step = environment.step(action)
    assert step.step_type[0] == StepType.LAST and step.discount[0] == 1  # cut, not terminated


def test_bad_actions_are_one_clear_line():
    environment = registry.make_environment('suite/cartpole-balance', num_envs=2)
    with pytest.raises(RobotRLError, match='call reset'):
        environment.step(np.zeros((2, 1)))
    environment.reset()
    with pytest.raises(ContractMismatch, match=r'shape \[2\], right is \[2, 1\]'):
        environment.step(np.zeros(2))
    with pytest.raises(ContractMismatch, match='not finite'):
        environment.step(np.full((2, 1), np.inf))


def test_unknown_names_get_the_nearest_known_ones():
    with pytest.raises(UnknownName, match=r"'suite/walker-wlak'.*'suite/walker-walk'"):
        registry.make_environment('suite/walker-wlak')
    with pytest.raises(UnknownName, match="'manipulation/reach_site_features'"):
        registry.make_environment('manipulation/reach_site')
    with pytest.raises(UnknownName, match="'ur5e/reach'"):
        registry.make_environment('ur5/reach')
    with pytest.raises(UnknownName, match=r"unknown agent 'd4gp'.*'d4pg'"):
        registry.resolve('agent', 'd4gp')


def test_without_dm_control_the_arms_remain_and_the_rest_says_what_to_install(monkeypatch):
    adapter._package.cache_clear()
    for module in [name for name in sys.modules if name.split('.')[0] == 'dm_control']:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, 'dm_control', None)
    try:
        assert registry.task_names()['arm'] == registry.arm_task_names()
        assert not registry.task_names().keys() & {'suite', 'manipulation'}
        with pytest.raises(RobotRLError, match=r"pip install 'robot_rl\[train\]'"):
            registry.make_environment('suite/cartpole-swingup')
        with pytest.raises(UnknownName, match="'ur5e/reach'"):
            registry.make_environment('ur5e/rech')
    finally:
        adapter._package.cache_clear()


def test_a_constant_is_a_field_that_stays():
    environment = registry.make_environment('suite/cartpole-swingup', 2, constants={'cue': 0.5})
    plain = registry.make_environment('suite/cartpole-swingup', 2)
    assert environment.contract.observation_shapes['cue'] == (1,)
    seen, without = environment.reset([3, 4]).observation, plain.reset([3, 4]).observation
    action = np.full((2, 1), 0.3)
    for _ in range(3):
        np.testing.assert_array_equal(seen.pop('cue'), np.full((2, 1), 0.5, np.float32))
        assert all((seen[name] == without[name]).all() for name in without)
        seen, without = (e.step(action).observation for e in (environment, plain))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_decision_holds_for_several_steps_of_the_task(workers):
    """Against dm_control's own environment, which is told each action so many times."""
    from dm_control import suite

    name, repeats = 'suite/cartpole-swingup', 8
    view = {'cameras': {'overview': (16, 16)}, 'rate_hz': 12.5, 'workers': workers}
    slow = registry.make_environment(name, num_envs=2, **view)
    assert slow.contract.rate_hz == 12.5
    assert slow.max_steps == 125 and slow.reward_range == (0, 8)
    actions = random_actions(slow, 125)
    steps = [slow.reset([3, 4])] + [slow.step(action) for action in actions]
    slow.close()
    for index, seed in enumerate([3, 4]):
        own = suite.load('cartpole', 'swingup', task_kwargs={'random': seed})
        found = [own.reset()]
        for action in actions[:, index]:
            held = [own.step(action) for _ in range(repeats)]
            found.append(held[-1]._replace(reward=sum(step.reward for step in held)))
        for mine, theirs in zip(steps, found, strict=True):
            assert mine.step_type[index] == int(theirs.step_type)
            assert mine.reward[index] == pytest.approx(theirs.reward or 0.0, abs=1e-6)
            for key, values in theirs.observation.items():
                np.testing.assert_allclose(mine.observation[key][index], values, atol=1e-6)


def test_the_last_decision_of_an_episode_ends_with_it():
    """1000 steps are 142 decisions of 7, and one of 6."""
    environment = registry.make_environment('suite/cartpole-balance', rate_hz=100 / 7)
    assert environment.max_steps == 143
    environment.reset([0])
    steps = [environment.step(np.zeros((1, 1))) for _ in range(143)]
    assert [step.step_type[0] for step in steps] == [StepType.MID] * 142 + [StepType.LAST]
    assert environment.step(np.zeros((1, 1))).step_type[0] == StepType.FIRST


@pytest.mark.parametrize('rate_hz', [200.0, 30.0, 1000.0])
def test_a_rate_that_does_not_divide_the_task_s_is_one_clear_line(rate_hz):
    with pytest.raises(SpecError, match=f'rate_hz: {rate_hz:g}; the task has 100 steps a second'):
        registry.make_environment('suite/cartpole-balance', rate_hz=rate_hz)
    told = registry.make_environment('suite/cartpole-balance', rate_hz=33.3333)
    assert told.contract.rate_hz == pytest.approx(100 / 3, rel=1e-12)
