"""HG-DAgger: what a person did is learned from, and what the policy did is not."""

import json

import numpy as np
import pytest

from robot_rl.cli.main import main
from robot_rl.errors import SpecError, StorageError
from robot_rl.imitation.dagger import HumanSteps, told
from robot_rl.imitation.data import find_episodes, write_steps
from robot_rl.imitation.retrain import RetrainConfig, retrain
from robot_rl.registry import make_task
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, write
from robot_rl.storage.sources import ESTOP, HOLD, PERSON, POLICY
from robot_rl.storage.store import Store

STEPS = 40
RIGHT, WRONG = 0.03, -0.03  # what a person asks of each joint, and what the policy does


@pytest.fixture(scope='module')
def task():
    return make_task('ur5e/reach')


@pytest.fixture
def store(tmp_path, task):
    """Two demonstrations, by a person and by the demonstrator, and three episodes of a policy."""
    led = np.full(STEPS, POLICY)
    led[10:20], led[20:23], led[30:35], led[39] = PERSON, HOLD, PERSON, PERSON
    stopped = np.where(np.arange(STEPS) < 30, POLICY, ESTOP)
    for number, (source, policy, led_by) in enumerate(
        [
            ('teleop', '', np.where(np.arange(STEPS) < 5, HOLD, PERSON)),
            ('policy', 'scripted', None),
            ('policy', 'poor', led),
            ('policy', 'poor', stopped),
            ('policy', 'simulated', None),
        ]
    ):
        write(tmp_path, episode(task, f'e{number}', source, policy, led_by))
    return Store(tmp_path)


def episode(task, id, source, policy, led):
    """Return one with random states; actions are right where a person led, and wrong elsewhere."""
    rng, robot = np.random.default_rng(int(id[1:])), task.robot
    human = led == PERSON if led is not None else np.full(STEPS, policy == 'scripted')
    human |= source == 'teleop'
    action = np.where(human[:, None], RIGHT, WRONG) + np.zeros((STEPS, len(robot.joints)))
    position = robot.home_position + rng.normal(0, 0.3, (STEPS + 1, len(robot.joints)))
    columns = {
        'time': np.arange(STEPS + 1) / 20,
        'joint_states.position': position,
        'joint_states.velocity': np.zeros_like(position),
        'command.position': position,
        'target_pose.position': np.tile(rng.normal(size=3), (STEPS + 1, 1)),
        'target_pose.orientation': np.tile([1.0, 0, 0, 0], (STEPS + 1, 1)),
        'action/requested': action,
        'action/applied': action,
    }
    if led is not None:
        columns['source'] = led.astype(np.int8)
    header = EpisodeHeader(
        id=id,
        task=task.name,
        source=source,
        policy=policy,
        robot=robot.name,
        robot_spec=robot,
        contract=task.contract(),
    )
    return ForeignEpisode(header, columns)


USED = {
    'demonstrations': 2,
    'demonstrated_steps': 2 * STEPS,
    'failed_demonstrations': 0,
    'interventions': 3,
    'intervened_steps': 16,
    'policy_steps': (40 - 16 - 3) + 30 + 40,
    'held_steps': 3 + 10,
}


def test_only_a_person_s_steps_are_written_each_run_as_an_episode(store, task, tmp_path):
    contract, human = task.contract(), HumanSteps()
    episodes = find_episodes(store, task, contract, '')
    whole = write_steps(tmp_path / 'all', task, contract, episodes)
    found = write_steps(tmp_path / 'human', task, contract, episodes, choose=human)
    assert human.counts == USED
    assert told(human.counts) == (
        '80 steps of 2 demonstrations and 16 of 3 interventions were used; 91 of the policy and '
        '13 in which nobody led were not'
    )
    at = 2 * (STEPS + 1)  # where the intervened episode begins in the whole
    runs = [(0, 40), (41, 81), (at + 10, at + 20), (at + 30, at + 35), (at + 39, at + 40)]
    rows = np.concatenate([np.arange(begin, end + 1) for begin, end in runs])
    for name, column in found.flat.items():
        if name not in ('step_type', 'action'):
            np.testing.assert_array_equal(column, whole.flat[name][rows])
    lengths = np.diff(found.spans, axis=1)[:, 0]
    assert lengths.tolist() == [41, 41, 11, 6, 2]
    types = found.flat['step_type']
    assert (types[found.spans[:, 0]] == 0).all() and (types[found.spans[:, 1] - 1] == 2).all()
    assert (types == 1).sum() == len(types) - 2 * len(lengths)
    np.testing.assert_allclose(found.flat['action'][types != 2], RIGHT)
    assert (whole.flat['action'][whole.flat['step_type'] != 2] < 0).any()


def test_a_demonstration_that_failed_is_left_out_but_not_an_intervention(store, task, tmp_path):
    for id in ('e0', 'e2'):
        store.label(id, False)
    human = HumanSteps()
    episodes = find_episodes(store, task, task.contract(), '')
    found = write_steps(tmp_path / 'human', task, task.contract(), episodes, choose=human)
    failed = {'demonstrations': 1, 'demonstrated_steps': STEPS, 'failed_demonstrations': 1}
    assert human.counts == USED | failed
    assert told(human.counts).endswith('; 1 demonstrations that failed were left out')
    assert np.diff(found.spans, axis=1)[:, 0].tolist() == [41, 11, 6, 2]


def test_a_run_is_seen_with_the_history_before_it(store, task, tmp_path):
    own = task.contract()
    fields = [f.replace(history=3) if f.name == 'joint_position' else f for f in own.observation]
    contract = own.replace(observation=fields)
    episodes = find_episodes(store, task, contract, 'id=e2')
    found = write_steps(tmp_path / 'human', task, contract, episodes, choose=HumanSteps())
    expected = episodes[0].columns['joint_states.position'][8:11]
    np.testing.assert_allclose(found.flat['observation/joint_position'][0], expected, atol=1e-6)


def test_where_nobody_took_over_there_is_nothing_to_learn_from(store, task, tmp_path):
    contract = task.contract()
    episodes = find_episodes(store, task, contract, 'id=e3,e4')
    with pytest.raises(StorageError, match='none of the steps of 2 episodes'):
        write_steps(tmp_path / 'human', task, contract, episodes, choose=HumanSteps())


@pytest.mark.parametrize(('steps', 'expected'), [('human', RIGHT), ('all', None)])
def test_what_is_learned_follows_the_person(store, task, tmp_path, steps, expected, one_thread):
    """The steps of the policy are wrong, and three times as many."""
    config = RetrainConfig(
        task=task.name,
        agent='bc',
        action='applied',
        steps=steps,
        query='policy=poor',
        updates=300,
        learner={'policy_layers': [16], 'batch_size': 32, 'learning_rate': 3e-3},
    )
    card = retrain(config, store, tmp_path / 'out')
    from robot_rl.control.runtime import OnnxPolicy

    policy = OnnxPolicy(tmp_path / 'out' / 'policy.onnx')
    (seen,) = find_episodes(store, task, task.contract(), 'id=e2')
    episodes = [seen]
    steps = write_steps(tmp_path / 's', task, task.contract(), episodes)
    observation = {
        n: steps.flat[f'observation/{n}'][:-1] for n in policy.contract.observation_shapes
    }
    action, _ = policy.select(observation, policy.initial_state(STEPS))
    if expected is None:
        assert action.mean() < 0 and 'intervened_steps' not in card.training
    else:
        np.testing.assert_allclose(action, expected, atol=0.015)
        assert card.training['intervened_steps'] == 16 and '-dagger-' in card.id


def test_a_policy_sees_less_and_commands_in_another_way_than_the_task_says(store, task, tmp_path):
    """A twist is no action of episodes that have columns only, of joints."""
    words = {'task': task.name, 'agent': 'bc', 'query': 'id=e0', 'updates': 1}
    hide = 'command', 'joint_velocity'
    card = retrain(RetrainConfig.parse(words | {'hide': hide}), store, tmp_path / 'a')
    assert card.contract == task.contract().without(hide)
    with pytest.raises(SpecError, match="hide: no observation field 'comand'; did you mean"):
        retrain(RetrainConfig.parse(words | {'hide': ['comand']}), store, tmp_path / 'b')
    twist = words | {'action_kind': 'cartesian_twist'}
    with pytest.raises(StorageError, match='which serve no other rate and no other actions'):
        retrain(RetrainConfig.parse(twist), store, tmp_path / 'c')


def test_the_command_says_how_many_steps_of_which_kind_it_used(store, task, tmp_path, capsys):
    words = ['retrain', '--task', task.name, '--store', str(store.root), '--dagger']
    words += ['--updates', '1', '--out']
    assert main([*words, str(tmp_path / 'a')]) == 0
    assert '80 steps of 2 demonstrations and 16 of 3 interventions' in capsys.readouterr().out
    assert main([*words, str(tmp_path / 'b'), '--json']) == 0
    training = json.loads(capsys.readouterr().out)['training']
    assert {name: training[name] for name in USED} == USED
    assert 'agent: bc\n' in (tmp_path / 'b' / 'config.yaml').read_text()
    assert 'steps: human\n' in (tmp_path / 'b' / 'config.yaml').read_text()


def test_shares_of_whole_episodes_and_parts_of_them_do_not_go_together():
    with pytest.raises(SpecError, match='mix takes whole episodes'):
        RetrainConfig.parse(
            {'task': 'ur5e/reach', 'agent': 'bc', 'steps': 'human', 'mix': {'tag=a': 0.5}}
        )
