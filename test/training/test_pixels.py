"""Runs from pictures, by the files of agents: from a camera to a policy file that is evaluated."""

import json

import numpy as np
import pytest

from robot_rl import registry, resources
from robot_rl.cli import main as command_line
from robot_rl.control.runtime import OnnxPolicy, RandomPolicy
from robot_rl.errors import SpecError
from robot_rl.imitation.bc import BCConfig
from robot_rl.imitation.collect import collect_episodes
from robot_rl.imitation.gail import Judged
from robot_rl.imitation.simulated import record_episodes, simulated_steps
from robot_rl.imitation.trail import TRAILConfig
from robot_rl.storage.store import Store
from robot_rl.training.config import load_run_config
from robot_rl.training.evaluation import evaluate, held_out_seeds
from robot_rl.training.loop import Trainer, export_checkpoint

pytestmark = pytest.mark.usefixtures('offscreen')

LEARNERS = {'bc': BCConfig, 'trail': TRAILConfig}
SMALL = [
    'cameras={overview: [32, 32]}',
    'training.num_envs=2',
    'training.workers=0',
    'training.evaluation_episodes=2',
    'learner.encoder_channels=[8, 8]',
    'learner.batch_size=16',
    'learner.policy_layers=[16]',
    'learner.critic_layers=[16]',
    'learner.replay_size=1000',
    'learner.min_replay_size=40',
    'learner.v_min=0',
]


BALL = '''
import gymnasium
import mujoco
import numpy as np

MODEL = """
<mujoco>
  <visual><headlight ambient="0.8 0.8 0.8"/></visual>
  <worldbody>
    <camera name="above" pos="0 0 4" fovy="40"/>
    <body name="ball">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.25" rgba="1 0.2 0.1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


class Ball(gymnasium.Env):
    """A ball on a line that is paid for being in the middle; a push moves it by 0.25 at most."""

    metadata = {"render_modes": [], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(MODEL)
        self.data = mujoco.MjData(self.model)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._put(self.np_random.uniform(-1, 1)), {}

    def step(self, action):
        seen = self._put(np.clip(self.data.qpos[0] + 0.25 * action[0], -1, 1))
        return seen, 1 - abs(self.data.qpos[0]), False, False, {}

    def _put(self, x):
        self.data.qpos[0] = x
        mujoco.mj_forward(self.model, self.data)
        return self.data.qpos.astype(np.float32)


gymnasium.register("Ball-v0", Ball, max_episode_steps=15)
'''


@pytest.fixture
def ball(tmp_path, monkeypatch):
    pytest.importorskip('gymnasium')
    (tmp_path / 'ball_in_sight.py').write_text(BALL)
    monkeypatch.syspath_prepend(tmp_path)
    return 'gym/ball_in_sight:Ball-v0'


@pytest.mark.parametrize('agent', ['d4pg', 'mpo', 'dmpo'])
def test_pictures_become_a_policy_by_configuration_alone(agent, ball, tmp_path, capsys):
    words = [*SMALL, 'training.evaluate_every=150', 'learner.samples_per_insert=4']
    config = load_run_config(f'{agent}_pixels', ball, words, steps=150, seed=3)
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run() and trainer.state.learner.steps > 20
    assert trainer.state.replay.steps.columns['observation/overview'].dtype == np.uint8
    path = tmp_path / 'run' / 'policy.onnx'
    contract = OnnxPolicy(path).contract
    assert contract.observation_shapes == {'overview': (3, 32, 32, 3)}
    words = ['evaluate', '--policy', str(path), '--episodes', '2', '--json']
    assert command_line.main(words) == 0
    row = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    # The file in its own environment, made by its contract, does what the learner's policy did.
    assert json.loads(capsys.readouterr().out)['mean'] == pytest.approx(
        row['eval_return_mean'], abs=1e-3
    )


class Centring:
    """Pushes a ball that it is told the place of to the middle."""

    def initial_state(self, batch):
        return {}

    def select(self, observation, state):
        return np.clip(-4 * observation['observation'], -1, 1), state


@pytest.fixture
def shown(ball, tmp_path):
    """A store with six episodes of an expert, that show what a camera saw besides."""
    view = {'cameras': {'overview': (32, 32)}, 'history': {'overview': 3}}
    environment = registry.make_environment(ball, 1, **view)
    record_episodes(Store(tmp_path / 'store'), environment, Centring(), range(6), {'task': ball})
    environment.close()
    return tmp_path / 'store'


def test_pictures_of_recorded_episodes_come_back_as_bytes(ball, shown, tmp_path):
    view = {'cameras': {'overview': (32, 32)}, 'history': {'overview': 3}}
    environment = registry.make_environment(ball, 1, **view)
    first = environment.reset([0]).observation
    (header, *_) = Store(shown).episodes('')
    columns = simulated_steps(Store(shown).open(header.id), environment.contract)
    environment.close()
    assert columns['observation/overview'].dtype == np.uint8
    np.testing.assert_array_equal(columns['observation/overview'][0], first['overview'][0])
    assert columns['observation/overview'].shape == (16, 3, 32, 32, 3)
    assert len(np.unique(columns['observation/overview'])) > 5


@pytest.mark.parametrize('agent', ['bc', 'trail'])
def test_pictures_are_imitated_by_configuration_alone(agent, ball, shown, tmp_path):
    keys = set(LEARNERS[agent].model_fields)
    words = [w for w in SMALL if not w.startswith('learner.') or w.split('=')[0][8:] in keys]
    words += ['training.evaluate_every=20']
    if agent == 'trail':
        words += ['learner.reward=airl', 'learner.v_min=-30', 'learner.v_max=30']
        words += ['learner.discount=0.9', 'learner.patience=0', 'learner.samples_per_insert=4']
    demos = {'query': 'source=policy', 'store': str(shown)}
    config = load_run_config(f'{agent}_pixels', ball, words, demos, steps=100, seed=3)
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run() and trainer.state.learner.steps > 10
    contract = OnnxPolicy(tmp_path / 'run' / 'policy.onnx').contract
    assert contract.observation_shapes == {'overview': (3, 32, 32, 3)}
    again = Trainer(config.replace(steps=120), tmp_path / 'run')
    assert again.run()


@pytest.fixture
def watched(ball, shown):
    """Return `config(*words, agent=...)`: of a run whose discriminator alone looks at pictures."""

    def config(*words, agent='gail'):
        words = [*SMALL, 'history={overview: 3}', 'learner.pictures_for=discriminator', *words]
        words += ['learner.reward=-log(1-D)', 'learner.discount=0.9', 'learner.judges=transition']
        words += ['training.evaluate_every=100', 'learner.samples_per_insert=4']
        words.remove('learner.v_min=0')
        demos = {'query': 'source=policy', 'store': str(shown)}
        return load_run_config(agent, ball, words, demos, steps=100, seed=3)

    return config


@pytest.mark.parametrize('agent', ['gail', 'gail_dmpo', 'trail'])
def test_who_is_paid_by_what_a_camera_shows_acts_without_one(agent, watched, tmp_path, capsys):
    config, path = watched(agent=agent), tmp_path / 'run' / 'policy.onnx'
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run() and trainer.state.learner.steps > 10
    learner, batch = trainer.state.learner, trainer.state.sampler.transitions(8)
    dark = {name: 0 * values for name, values in batch.next_observation.items()}
    dark['observation'] = batch.next_observation['observation']
    judged = Judged(batch.observation, batch.action, batch.next_observation, batch.discount)
    paid, in_the_dark = (
        learner.reward(x) for x in (judged, judged._replace(next_observation=dark))
    )
    assert (paid != in_the_dark).all()
    policy = OnnxPolicy(path)
    assert policy.contract.observation_shapes == {'observation': (1,)}
    seen = {'observation': batch.observation['observation']}
    action, _ = policy.select(seen, policy.initial_state(8))
    np.testing.assert_allclose(action, learner.policy.select(batch.observation)[0], atol=1e-5)
    # From the checkpoint as well, and the run goes on.
    export_checkpoint(tmp_path / 'run', tmp_path / 'again.onnx')
    np.testing.assert_array_equal(OnnxPolicy(tmp_path / 'again.onnx').select(seen, {})[0], action)
    assert Trainer(config.replace(steps=120), tmp_path / 'run').run()
    words = ['evaluate', '--policy', str(tmp_path / 'again.onnx'), '--episodes', '2', '--json']
    assert command_line.main(words) == 0
    row = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[0])
    assert json.loads(capsys.readouterr().out)['mean'] == pytest.approx(
        row['eval_return_mean'], abs=1e-3
    )


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['cameras={}', 'history={}'], 'but no picture is seen; right are fields'),
        (['pixels_only=true'], 'but pictures alone are seen; right are fields for the policy'),
    ],
)
def test_pictures_for_the_discriminator_alone_need_something_else_to_act_by(
    words, told, watched, tmp_path
):
    with pytest.raises(SpecError, match='learner.pictures_for: discriminator, ' + told):
        Trainer(watched(*words), tmp_path / 'run')


def test_an_arm_that_acts_without_pictures_is_to_see_poses(tmp_path):
    """Its policy saw joints alone, and nothing said so."""

    def trainer(task, *words):
        words += ('learner.pictures_for=discriminator', 'learner.reward=-log(1-D)')
        words += ('demos.ratio=0', 'training.workers=0', 'training.evaluation_episodes=1')
        demos = {'query': 'source=teleop', 'store': str(tmp_path / 'store')}
        return Trainer(load_run_config('gail', task, words, demos, steps=10), tmp_path / 'run')

    for task, words in {
        'ur5e/reach': ['cameras={overview: [32, 32]}'],
        'ur5e/reach_vision': [],
    }.items():
        with pytest.raises(SpecError, match=f'{task} shows pictures in the place of target_from'):
            trainer(task, *words)
        assert not (tmp_path / 'run').exists()  # demonstrations were not even looked for
    file = tmp_path / 'reach.yaml'
    plain = resources.find('config/tasks', 'ur5e_reach').read_text()
    file.write_text(plain + '\nsees: both\ncameras: {overview: [32, 32]}\n')
    environment = registry.make_environment(str(file))
    policy = registry.make_policy('scripted', str(file), environment.contract)
    collect_episodes(Store(tmp_path / 'store'), environment, policy, [1], {'source': 'teleop'})
    environment.close()
    learner = trainer(str(file)).state.learner
    assert 'target_from_tool' in learner.contract.observation_shapes
    assert not learner.contract.pictures and learner._watched.pictures


@pytest.mark.slow
def test_a_ball_is_brought_to_the_middle_as_was_shown(ball, tmp_path):
    """As below, but cloned from twenty episodes."""
    view = {'cameras': {'overview': (32, 32)}, 'history': {'overview': 3}}
    environment = registry.make_environment(ball, 1, **view)
    store = Store(tmp_path / 'store')
    record_episodes(store, environment, Centring(), range(20), {'task': ball})
    environment.close()
    words = ['cameras={overview: [32, 32]}', 'learner.encoder_channels=[16, 16, 16]']
    words += ['learner.batch_size=64', 'learner.policy_layers=[64, 64]']
    words += ['training.evaluate_every=400', 'training.evaluation_episodes=20']
    demos = {'query': 'source=policy', 'store': str(store.root)}
    config = load_run_config('bc_pixels', ball, words, demos, steps=400)
    assert Trainer(config, tmp_path / 'run').run()
    row = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    print(row['eval_return_mean'])
    assert row['eval_return_mean'] > 12


def test_a_run_from_pictures_goes_on_as_if_it_had_not_stopped(ball, tmp_path):
    words = [*SMALL, 'training.evaluate_every=1000']
    config = load_run_config('dmpo_pixels', ball, words, steps=120)
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run()
    again = Trainer(config.replace(steps=140), tmp_path / 'run')
    assert again.state.env_steps == 120
    batches = [t.state.sampler.transitions(8) for t in (trainer, again)]
    for name, values in batches[0].observation.items():
        np.testing.assert_array_equal(values, batches[1].observation[name])
    metrics = [t.state.learner.update(batches[0]) for t in (trainer, again)]
    assert all((metrics[0][key] == metrics[1][key]).all() for key in metrics[0])
    assert again.run()


@pytest.mark.slow
@pytest.mark.parametrize('agent', ['d4pg', 'dmpo'])
def test_a_ball_is_brought_to_the_middle_by_sight(agent, ball, tmp_path):
    """Return 15 at most; random comes to some 7. Under a minute on one core."""
    words = [
        *SMALL,
        'training.evaluate_every=2000',
        'training.evaluation_episodes=20',
        'learner.encoder_channels=[16, 16, 16]',
        'learner.batch_size=64',
        'learner.samples_per_insert=64',
        'learner.min_replay_size=300',
        'learner.replay_size=3000',
        'learner.policy_layers=[64, 64]',
        'learner.critic_layers=[64, 64]',
        'learner.discount=0.8',
        'learner.v_max=5',
        'learner.policy_learning_rate=1e-3',
        'learner.critic_learning_rate=1e-3',
    ]
    config = load_run_config(f'{agent}_pixels', ball, words, steps=2000)
    assert Trainer(config, tmp_path / 'run').run()
    view = {'cameras': {'overview': (32, 32)}, 'history': {'overview': 3}}
    environment = registry.make_environment(ball, 20, **view)
    seeds = held_out_seeds(20)
    learned = evaluate(OnnxPolicy(tmp_path / 'run' / 'policy.onnx'), environment, seeds)
    chance = evaluate(RandomPolicy(environment.contract), environment, seeds)
    environment.close()
    print(agent, learned.returns.mean(), chance.returns.mean())
    assert chance.returns.mean() < 9 and learned.returns.mean() > 12


@pytest.mark.slow
def test_a_manipulation_task_with_vision_is_trained_from_its_picture(tmp_path):
    pytest.importorskip('dm_control')
    words = [*SMALL, 'cameras={}', 'history={front_close: 2}', 'training.evaluate_every=100000']
    words += ['training.evaluation_episodes=1', 'training.num_envs=1']
    config = load_run_config('d4pg_pixels', 'manipulation/reach_site_vision', words, steps=80)
    trainer = Trainer(config, tmp_path)
    assert trainer.run()
    shapes = OnnxPolicy(tmp_path / 'policy.onnx').contract.observation_shapes
    assert shapes == {'front_close': (2, 84, 84, 3)}


def test_an_arm_is_learned_from_cameras_by_configuration_alone(tmp_path, capsys):
    """The file says what it sees: evaluate makes that environment, and judges by the state."""
    words = [*SMALL, 'training.workers=2', 'training.evaluate_every=130']
    config = load_run_config('d4pg_pixels', 'ur5e/reach', words, steps=130, seed=3)
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run() and trainer.state.learner.steps > 20
    path = tmp_path / 'run' / 'policy.onnx'
    policy = OnnxPolicy(path)
    assert policy.contract.observation_shapes == {'overview': (3, 32, 32, 3)}
    assert policy.card.task == 'ur5e/reach'
    words = ['evaluate', '--policy', str(path), '--episodes', '2', '--json']
    assert command_line.main(words) == 0
    row = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    found = json.loads(capsys.readouterr().out)
    assert found['mean'] == pytest.approx(row['eval_return_mean'], abs=1e-3)
    assert found['success_rate'] == row['eval_success_rate']
    words = ['collect', '--task', 'ur5e/reach', '--policy', str(path), '--episodes', '1']
    assert command_line.main([*words, '--store', str(tmp_path / 'store')]) == 0
    (header,) = Store(tmp_path / 'store').episodes('')
    assert header.contract == policy.contract
