import subprocess
import sys

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import ContractMismatch, RobotRLError, SpecError, UnknownName
from robot_rl.sim.environment import HELD_OUT, StepType
from robot_rl.training.evaluation import task_of

gymnasium = pytest.importorskip('gymnasium')
spaces = gymnasium.spaces
PENDULUM = 'gym/Pendulum-v1'
UNIT = spaces.Box(-1.0, 1.0, (1,))
HERE = 'Test_RobotRL-v0'


class Counter(gymnasium.Env):
    """Shows how many steps were taken; the action ends the episode where it is positive."""

    def __init__(self, observation=None, action=None, show=None):
        self.observation_space = observation or spaces.Box(0.0, np.inf, (1,))
        self.action_space = action or UNIT
        self._show = show or (lambda count: count)
        self._count, self.taken = np.zeros(1, np.float32), None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count[:] = 0
        return self._show(self._count), {}

    def step(self, action):
        self.taken = action
        self._count += 1  # the same array at every step
        return self._show(self._count), np.ones(1), bool((action > 0).any()), False, {}


@pytest.fixture
def make():
    """Return `make(num_envs=1, ..., **keywords)`: the task of a Counter, registered for a test."""

    def build(num_envs=1, max_episode_steps=None, wrappers=(), metadata=None, **keywords):
        class Own(Counter):
            pass

        gymnasium.registry.pop(HERE, None)
        Own.metadata = {'render_modes': [], **(metadata or {})}
        gymnasium.register(
            HERE,
            Own,
            max_episode_steps=max_episode_steps,
            additional_wrappers=wrappers,
            disable_env_checker=True,  # it warns of what these tests do on purpose
            kwargs=keywords,
        )
        return registry.make_environment(f'gym/{HERE}', num_envs)

    yield build
    gymnasium.registry.pop(HERE, None)


def random_actions(environment, steps, seed=0):
    contract = environment.contract
    size = (steps, environment.num_envs, contract.action_size)
    rng = np.random.default_rng(seed)
    return rng.uniform(contract.action_lower, contract.action_upper, size).astype(np.float32)


@pytest.mark.parametrize('seed', [3, HELD_OUT + 1])
@pytest.mark.parametrize('name', ['Pendulum-v1', 'InvertedPendulum-v5', 'Ant-v5'])
def test_numbers_are_those_of_gymnasium_itself(name, seed):
    environment, own = registry.make_environment(f'gym/{name}'), gymnasium.make(name)
    step, (expected, _) = environment.reset([seed]), own.reset(seed=seed)
    assert step.step_type[0] == StepType.FIRST and step.discount[0] == 1 and step.reward[0] == 0
    for action in random_actions(environment, 100):
        found = np.concatenate([part[0] for part in step.observation.values()])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        step, (expected, reward, terminated, *_) = environment.step(action), own.step(action[0])
        assert step.reward[0] == np.float32(reward) and step.reward.dtype == np.float32
        assert step.discount[0] == 1 - terminated
        if terminated:
            break
    environment.close()


def test_an_episode_repeats_from_its_seed_whatever_came_before():
    environment = registry.make_environment(PENDULUM, num_envs=2, seed=1)
    actions = random_actions(environment, 5)
    runs = []
    for seeds in ([5, HELD_OUT], [6, 6], [5, HELD_OUT]):
        steps = [environment.reset(seeds)] + [environment.step(a) for a in actions]
        runs.append(np.array([step.observation['observation'] for step in steps]))
    np.testing.assert_array_equal(runs[0], runs[2])
    np.testing.assert_array_equal(runs[1][0][0], runs[1][0][1])
    assert not np.array_equal(runs[0][0], runs[1][0])


def test_a_seed_of_the_environment_fixes_the_episodes_that_it_draws():
    starts = [
        registry.make_environment(PENDULUM, 2, seed).reset().observation['observation']
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_truncation_has_discount_1_and_the_next_step_starts_anew():
    environment = registry.make_environment(PENDULUM, num_envs=2)
    assert environment.max_steps == 200 and environment.reward_range is None
    environment.reset()
    for _ in range(199):
        assert (environment.step(np.zeros((2, 1))).step_type == StepType.MID).all()
    last = environment.step(np.zeros((2, 1)))
    assert (last.step_type == StepType.LAST).all() and (last.discount == 1).all()
    first = environment.step(np.full((2, 1), np.nan))
    assert (first.step_type == StepType.FIRST).all()
    assert (first.reward == 0).all() and (first.discount == 1).all()
    assert not np.array_equal(*first.observation['observation'])


def test_termination_has_discount_0_and_leaves_the_others_alone(make):
    environment = make(num_envs=2)
    environment.reset()
    environment.step(np.full((2, 1), -1.0))
    step = environment.step(np.array([[1.0], [-1.0]]))
    assert step.step_type.tolist() == [StepType.LAST, StepType.MID]
    assert step.discount.tolist() == [0, 1] and step.reward.tolist() == [1, 1]
    following = environment.step(np.array([[np.nan], [-1.0]]))
    assert following.step_type.tolist() == [StepType.FIRST, StepType.MID]
    assert following.observation['observation'].tolist() == [[0], [3]]
    # The environment fills one array, and yet what was returned stays as it was.
    assert step.observation['observation'].tolist() == [[2], [2]]


def test_termination_at_the_time_limit_has_discount_0(make):
    environment = make(num_envs=2, max_episode_steps=2)
    assert environment.max_steps == 2
    environment.reset()
    environment.step(np.full((2, 1), -1.0))
    step = environment.step(np.array([[1.0], [-1.0]]))
    assert (step.step_type == StepType.LAST).all() and step.discount.tolist() == [0, 1]


def test_an_environment_without_a_time_limit_does_not_run_for_ever(make, monkeypatch):
    """Evaluation once waited for the end of an episode that had none."""
    monkeypatch.setattr('robot_rl.sim.gymnasium._ASSUMED_STEPS', 3)
    environment = make(max_episode_steps=None)
    assert environment.max_steps == 3
    environment.reset()
    steps = [environment.step(np.full((1, 1), -1.0)) for _ in range(3)]
    assert [int(step.step_type[0]) for step in steps] == [1, 1, 2]
    assert steps[-1].discount.tolist() == [1]


def test_an_autoreset_wrapper_changes_nothing(make):
    wrapper = gymnasium.envs.registration.WrapperSpec(
        'Autoreset', 'gymnasium.wrappers:Autoreset', {}
    )
    environment = make(max_episode_steps=3, wrappers=(wrapper,))
    assert 'Autoreset' in str(environment._envs[0])
    step = environment.reset()
    kinds, shown = [], []
    for _ in range(8):
        kinds.append(int(step.step_type[0]))
        shown.append(float(step.observation['observation'][0, 0]))
        step = environment.step(np.full((1, 1), -1.0))
    assert kinds == [0, 1, 1, 2] * 2
    assert shown == [0, 1, 2, 3] * 2


def test_a_dict_is_a_field_each_and_scalars_have_an_axis(make):
    inner = spaces.Dict({'angle': spaces.Box(-1, 1, ()), '2 d': spaces.Box(-1, 1, (2, 2), float)})
    observation = spaces.Dict({'arm': inner, 'camera': spaces.Box(0, 255, (2, 2, 3), np.uint8)})

    def show(count):
        arm = {'angle': count[0], '2 d': np.full((2, 2), count[0], float)}
        return {'arm': arm, 'camera': np.full((2, 2, 3), count[0], np.uint8)}

    environment = make(num_envs=2, observation=observation, show=show)
    fields = {f.name: (f.source, f.shape, f.dtype) for f in environment.contract.observation}
    assert fields == {
        'arm_angle': ('env.arm_angle', (1,), 'float32'),
        'arm_2_d': ('env.arm_2_d', (2, 2), 'float32'),
        'camera': ('env.camera', (2, 2, 3), 'uint8'),
    }
    environment.reset()
    step = environment.step(np.full((2, 1), -1.0))
    for name, (_, shape, dtype) in fields.items():
        assert step.observation[name].dtype == dtype
        np.testing.assert_array_equal(step.observation[name], np.ones((2, *shape)))


def test_an_action_of_more_dimensions_is_flattened_and_clipped(make):
    action = spaces.Box(np.array([[-1, -2], [-3, -4]]), np.array([[1, 2], [3, 4]]), dtype=float)
    environment = make(action=action)
    contract = environment.contract
    assert contract.action_names == ('action_0', 'action_1', 'action_2', 'action_3')
    assert contract.action[0].kind == 'generic'
    assert contract.action_lower.tolist() == [-1, -2, -3, -4]
    environment.reset()
    environment.step(np.array([[0.5, -9.0, 9.0, 1.0]]))
    taken = environment._envs[0].unwrapped.taken
    assert taken.tolist() == [[0.5, -2], [3, 1]] and taken.dtype == float


@pytest.mark.parametrize(('metadata', 'rate_hz'), [({'render_fps': 30}, 30), ({}, 20)])
def test_the_rate_of_an_environment_without_dt(make, metadata, rate_hz):
    assert make(metadata=metadata).contract.rate_hz == rate_hz


def test_contract_and_scene_of_a_mujoco_environment():
    environment = registry.make_environment('gym/HalfCheetah-v5')
    contract = environment.contract
    assert contract.rate_hz == pytest.approx(20)
    assert contract.observation_shapes == {'qpos': (8,), 'qvel': (9,)}
    assert contract.action_size == 6 and (contract.action_upper == 1).all()
    assert environment.max_steps == 1000 and environment.columns == {}
    environment.reset([1])
    for action in random_actions(environment, 3):
        step = environment.step(action)
    model, data = environment.scene()
    assert model.nq == 9  # of which the first, the way run, is not shown
    np.testing.assert_array_equal(step.observation['qpos'][0], data.qpos[1:].astype(np.float32))
    np.testing.assert_array_equal(step.observation['qvel'][0], data.qvel.astype(np.float32))
    environment.close()


@pytest.mark.parametrize('name', registry.task_names().get('gym', []))
def test_every_listed_task_is_served_and_repeats(name):
    environment = registry.make_environment(name)
    first = environment.reset([3])
    for action in random_actions(environment, 2):
        environment.step(action)
    again = environment.reset([3])
    for field in environment.contract.observation:
        np.testing.assert_array_equal(first.observation[field.name], again.observation[field.name])
    assert environment.max_steps and task_of(name) is None
    environment.close()


def test_an_environment_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / 'own_tasks.py').write_text(
        'import gymnasium\n'
        'from gymnasium.envs.classic_control import PendulumEnv\n'
        "gymnasium.register('Own-v0', PendulumEnv, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert registry.make_environment('gym/own_tasks:Own-v0').max_steps == 7
        with pytest.raises(UnknownName, match=r"'gym/own_tasks:Ow-v0'.*'gym/own_tasks:Own-v0'"):
            registry.make_environment('gym/own_tasks:Ow-v0')
    finally:
        gymnasium.registry.pop('Own-v0', None)
        sys.modules.pop('own_tasks', None)


def refused(name, kind=RobotRLError):
    """Return the one line with which a task is refused."""
    with pytest.raises(kind) as caught:
        registry.make_environment(f'gym/{name}')
    line = str(caught.value)
    assert '\n' not in line and f'gym/{name}' in line
    return line


def test_discrete_spaces_are_one_clear_line(make):
    assert 'Discrete space' in (line := refused('CartPole-v1', SpecError))
    assert 'continuous actions, a Box of floats' in line
    with pytest.raises(SpecError, match='Box space of int64; continuous'):
        make(action=spaces.Box(0, 3, (1,), np.int64))
    with pytest.raises(SpecError, match='observation is a Discrete space; a Box'):
        make(observation=spaces.Discrete(3))
    observation = spaces.Dict({'a': UNIT, 'b': spaces.Dict({'c': spaces.Tuple([UNIT])})})
    with pytest.raises(SpecError, match='b_c is a Tuple space; a Box'):
        make(observation=observation)


@pytest.mark.parametrize('upper', [np.inf, np.finfo(np.float32).max])
def test_an_action_without_bounds_is_named(make, upper):
    action = spaces.Box(np.float32([-1, -1]), np.float32([1, upper]))
    with pytest.raises(SpecError, match=r'action_1 lies in \[-1, .*TransformAction'):
        make(action=action)


def test_the_wrapper_that_the_line_names_bounds_an_action():
    def bounded():
        env = Counter(action=spaces.Box(-np.inf, np.inf, (2,)))
        narrow = spaces.Box(-3.0, 3.0, (2,))
        return gymnasium.wrappers.TransformAction(env, lambda action: action, narrow)

    gymnasium.register(HERE, bounded)
    try:
        contract = registry.make_environment(f'gym/{HERE}').contract
    finally:
        gymnasium.registry.pop(HERE)
    assert contract.action_upper.tolist() == [3, 3]


def test_what_no_contract_can_say_is_one_clear_line(make):
    with pytest.raises(SpecError, match=r"Test_RobotRL-v0': action.0: lower .* below upper"):
        make(action=spaces.Box(np.float32([0, 1]), np.float32([1, 1])))
    twice = spaces.Dict({'a_b': UNIT, 'a': spaces.Dict({'b': UNIT})})
    with pytest.raises(SpecError, match=r"names \['a_b'\] stand more than once"):
        make(observation=twice)


def test_unknown_names_get_the_nearest_known_ones():
    assert "'gym/Pendulum-v1'" in refused('Pednulum-v1', UnknownName)
    assert "'gym/Pendulum-v1'" in refused('Pendulum-v7', UnknownName)
    assert "'gym/HalfCheetah-v5'" in refused('HalfCheetah-v1', UnknownName)
    assert 'robot-rl tasks lists' in refused('nothing_like_it/Xyzzy-v0', UnknownName)
    for malformed in ('', 'a b', ':Own-v0', 'a:b:c', 'a/b:Own-v0', 'json:'):
        assert 'gym/<module>:<id>' in refused(malformed, SpecError)


def test_what_is_not_installed_is_named(monkeypatch):
    assert "'no_such_module'" in (line := refused('no_such_module:Own-v0'))
    assert 'PYTHONPATH' in line
    monkeypatch.setitem(sys.modules, 'Box2D', None)
    for module in [name for name in sys.modules if name.startswith('gymnasium.envs.box2d')]:
        monkeypatch.delitem(sys.modules, module)
    assert 'gymnasium[box2d]' in refused('LunarLanderContinuous-v3')
    assert 'ujoco' in refused('HalfCheetah-v3')  # the words differ between Gymnasium's versions


def test_bad_actions_and_seeds_are_one_clear_line(make):
    environment = make(num_envs=2)
    with pytest.raises(RobotRLError, match='call reset'):
        environment.step(np.zeros((2, 1)))
    environment.reset()
    with pytest.raises(ContractMismatch, match=r'shape \[2\], right is \[2, 1\]'):
        environment.step(np.zeros(2))
    with pytest.raises(ContractMismatch, match='not finite'):
        environment.step(np.array([[-1.0], [np.inf]]))
    # Refused as a whole: the first environment has not moved either.
    assert environment.step(np.full((2, 1), -1.0)).observation['observation'].tolist() == [[1]] * 2
    with pytest.raises(ValueError, match='1 seeds for 2 environments'):
        environment.reset([0])


def test_an_observation_unlike_its_space_is_one_clear_line(make):
    environment = make(show=lambda count: np.zeros(3))
    with pytest.raises(ContractMismatch, match=r'observation: shape \[3\], its space says \[1\]'):
        environment.reset()


def test_what_has_no_mujoco_model_cannot_be_drawn(tmp_path):
    with pytest.raises(RobotRLError, match=r"'gym/Pendulum-v1'.*cannot be drawn"):
        registry.make_environment(PENDULUM).scene()
    film = tmp_path / 'film.mp4'
    command = ['play', '--policy', 'random', '--task', PENDULUM, '--out', str(film)]
    done = subprocess.run(
        [sys.executable, '-m', 'robot_rl.cli.main', *command], capture_output=True, text=True
    )
    assert done.returncode == 2 and 'cannot be drawn' in done.stderr.splitlines()[-1]
    assert not film.exists()


def test_no_arm_stands_behind_such_a_task():
    with pytest.raises(SpecError, match='has no arm and no streams'):
        registry.make_task(PENDULUM)


def test_without_gymnasium_the_other_tasks_remain(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gymnasium', None)
    assert registry.task_names()['arm'] == registry.arm_task_names()
    assert 'gym' not in registry.task_names()
    with pytest.raises(RobotRLError, match=r"'gymnasium': pip install 'robot_rl\[train\]'"):
        registry.make_environment(PENDULUM)
