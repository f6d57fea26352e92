import pytest
import yaml

from robot_rl import registry, resources
from robot_rl.errors import SpecError, UnknownName
from robot_rl.policies.d4pg import D4PGConfig
from robot_rl.specs import Contract
from robot_rl.training.config import DemosConfig, RunConfig, TrainConfig, load_run_config


def test_the_agents_defaults_are_written_out():
    config = RunConfig.parse({'task': 'suite/walker-walk', 'learner': {'sigma': 0.4}})
    assert config.learner == D4PGConfig(sigma=0.4).to_dict()
    assert config.learner_config() == D4PGConfig(sigma=0.4)
    assert RunConfig.parse({'task': 'suite/walker-walk'}).learner == D4PGConfig().to_dict()


@pytest.mark.parametrize('name', resources.names('config/agents'))
def test_the_files_of_agents_are_whole(name):
    open_fields = ['learner.reward=airl'] if name.startswith(('gail', 'trail')) else []
    config = load_run_config(name, 'suite/walker-walk', open_fields)
    assert (
        config.task == 'suite/walker-walk' and config.learner_config().to_dict() == config.learner
    )


def test_the_file_of_d4pg_is_the_default():
    defaults = RunConfig(task='suite/walker-walk')
    assert load_run_config('d4pg', 'suite/walker-walk') == defaults


@pytest.mark.parametrize('name', [*registry.AGENTS, *registry.OFFLINE_AGENTS])
def test_every_option_says_what_it_is(name):
    kind = 'agent' if name in registry.AGENTS else 'offline agent'
    for model in (registry.resolve(kind, name).config, TrainConfig, DemosConfig):
        assert [key for key, field in model.model_fields.items() if not field.description] == []


def test_a_support_is_worked_out_from_the_rewards_and_written_down():
    config = RunConfig.parse(
        {'task': 'gym/Pendulum-v1', 'learner': {'v_min': None, 'v_max': None, 'discount': 0.9}}
    )
    learner = config.with_support((-16.0, 0.0)).learner_config()
    assert (learner.v_min, learner.v_max) == (pytest.approx(-160), 0)
    with pytest.raises(SpecError, match=r'learner.v_min: null leaves it to the rewards'):
        config.with_support(None)


def test_a_support_that_cannot_hold_the_returns_is_refused_by_name():
    config = RunConfig.parse({'task': 't', 'learner': {'v_max': 99.0}})
    with pytest.raises(SpecError, match=r'learner.v_max: 99 cannot hold .* 100, or null'):
        config.with_support((0.0, 1.0))
    scalar = RunConfig.parse({'task': 't', 'learner': {'v_max': 99.0, 'critic': 'scalar'}})
    assert scalar.with_support((0.0, 1.0)) == scalar


def test_overrides_and_options_win_over_the_file(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('agent: d4pg\nsteps: 5000\ntraining: {num_envs: 4}\nlearner: {sigma: 0.5}\n')
    config = load_run_config(
        str(path),
        'suite/walker-walk',
        ['learner.policy_learning_rate=1e-3', 'training.num_envs=2', 'learner.policy_layers=[8]'],
        seed=3,
        steps=None,
    )
    learner = config.learner_config()
    assert (config.steps, config.seed, config.training.num_envs) == (5000, 3, 2)
    assert (learner.sigma, learner.policy_learning_rate) == (0.5, 1e-3)
    assert learner.policy_layers == (8,)


def test_a_number_like_1e_3_inside_a_mapping_or_list_was_taken_for_text():
    changes = ['randomisation.mass={"*_link": 5e-1}', 'randomisation.friction=[1e-3, 1e-2]']
    config = load_run_config('d4pg', 'ur5e/reach', changes)
    assert config.randomisation['mass'] == {'*_link': [0.5, 0.5]}
    assert config.randomisation['friction'] == [0.001, 0.01]


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (
            ['learner.sigmma=0.3'],
            r'^--set learner.sigmma=0.3: learner: sigmma: unknown key; did you mean .sigma.',
        ),
        (['training.num_env=3'], r'training.num_env: unknown key; did you mean .num_envs.'),
        (['sigma=0.3'], r"--set sigma=0.3: unknown key; did you mean 'learner.sigma'"),
        (['learner.sigma'], r'--set learner.sigma: expected'),
        (['learner.sigma=[1'], r'not a value'),
        (['learner.sigma=much'], r'sigma: .*much'),
        (['learner.v_min=200'], r'^--set learner.v_min=200: .*v_min 200.0 must be below v_max'),
        (
            ['trainin.seed=1'],
            r'^--set trainin.seed=1: trainin: unknown key; did you mean .training',
        ),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(SpecError, match=message):
        load_run_config('d4pg', 'suite/walker-walk', overrides)


def test_a_wrong_value_is_blamed_on_what_gave_it(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('agent: d4pg\nseed: -2\nlearner: {sigma: much}\n')
    with pytest.raises(SpecError) as caught:
        load_run_config(str(path), 'suite/walker-walk', ['training.num_envs=0'], steps=-1)
    assert str(caught.value) == (
        f'{path}: seed: must be greater than or equal to 0, found -2; '
        '--steps: must be greater than 0, found -1; '
        '--set training.num_envs=0: training.num_envs: must be greater than 0, found 0; '
        f"{path}: learner: sigma: a number is needed, found 'much'"
    )


def test_an_unknown_agent_is_named(tmp_path):
    with pytest.raises(UnknownName, match="unknown agent 'd4gp'; did you mean 'd4pg'"):
        load_run_config('d4gp', 'suite/walker-walk')
    with pytest.raises(UnknownName, match="unknown agent 'mpoo'"):
        RunConfig.parse({'task': 'suite/walker-walk', 'agent': 'mpoo'})
    empty = tmp_path / 'x.yaml'
    empty.write_text('- 1\n')
    with pytest.raises(SpecError, match='expected a mapping'):
        load_run_config(str(empty), 'suite/walker-walk')


def test_yaml_round_trip(run_config):
    config = run_config(training={'snapshots': [1, 2]})
    assert RunConfig.parse(yaml.safe_load(config.to_yaml())) == config


def test_differences_name_the_fields_and_leave_steps_out(run_config):
    one = run_config()
    other = run_config(steps=999, learner={'sigma': 0.9}, training={'num_envs': 2})
    assert one.differences(other) == ['learner.sigma', 'training.num_envs']
    assert one.differences(run_config(steps=999)) == []


def test_a_policy_sees_what_is_not_hidden_or_pictures_only():
    fields = [
        {'name': 'speed', 'source': 'env.speed', 'shape': (2,)},
        {'name': 'eye', 'source': 'eye.image', 'shape': (8, 9, 3)}
        | {'dtype': 'uint8', 'encoding': 'rgb8'},
    ]
    action = {'name': 'a', 'kind': 'generic', 'names': ['x'], 'lower': [-1], 'upper': [1]}
    contract = Contract.parse({'rate_hz': 10, 'observation': fields, 'action': [action]})

    def seen(contract=contract, **options):
        config = RunConfig.parse({'task': 'suite/walker-walk'} | options)
        return list(config.seen(contract).observation_shapes)

    assert seen() == ['speed', 'eye'] and seen(hide=['eye']) == ['speed']
    assert seen(pixels_only=True) == ['eye']
    with pytest.raises(SpecError, match='leave nothing to see'):
        seen(pixels_only=True, hide=['eye'])
    with pytest.raises(SpecError, match=r'walker-walk shows no pictures .*cameras=\{overview'):
        seen(contract.without(['eye']), pixels_only=True)


def test_cameras_and_histories_are_options_of_a_run():
    words = ['cameras={overview: [32, 40]}', 'history={overview: 3}']
    config = load_run_config('d4pg', 'suite/walker-walk', words)
    assert config.view() == {'cameras': {'overview': (32, 40)}, 'history': {'overview': 3}}
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig(task='suite/walker-walk').view() == {}
    with pytest.raises(SpecError, match='cameras'):
        load_run_config('d4pg', 'suite/walker-walk', ['cameras={overview: [32, 0]}'])
    with pytest.raises(SpecError, match='contract of an arm task says itself'):
        load_run_config('d4pg', 'ur5e/reach', ['constants={cue: 1}'])
    config = load_run_config('d4pg', 'suite/walker-walk', [words[0], 'marker=[255, 0, 0]'])
    assert config.view()['marker'] == (255, 0, 0)
    with pytest.raises(SpecError, match='marker: the contract of an arm task says itself'):
        load_run_config('d4pg', 'ur5e/reach', ['marker=[0, 0, 0]'])
    with pytest.raises(SpecError, match='marker'):
        load_run_config('d4pg', 'suite/walker-walk', ['marker=[256, 0, 0]'])


def test_the_rate_of_decisions_is_an_option_of_tasks_without_an_arm():
    config = load_run_config('d4pg', 'suite/walker-walk', ['rate_hz=20'])
    assert config.view() == {'rate_hz': 20.0}
    with pytest.raises(SpecError, match="the file of an arm's task says it"):
        load_run_config('d4pg', 'ur5e/reach', ['rate_hz=10'])
    with pytest.raises(SpecError, match='rate_hz'):
        load_run_config('d4pg', 'suite/walker-walk', ['rate_hz=0'])


def test_worlds_to_learn_in_are_part_of_a_run():
    words = ['randomisation.gain=[0.5, 1]', 'randomisation.mass={forearm_link: 2}']
    config = load_run_config('d4pg', 'ur5e/reach', words)
    assert config.randomisation == {'gain': [0.5, 1.0], 'mass': {'forearm_link': [2.0, 2.0]}}
    assert RunConfig.from_json(config.to_json()) == config
    task = registry.make_task('ur5e/reach', config.view()['changes'])
    assert task.randomisation.gain == (0.5, 1.0)
    assert task.randomisation.mass == {'forearm_link': (2.0, 2.0)}
    assert load_run_config('d4pg', 'ur5e/reach').view() == {}
    with pytest.raises(SpecError, match=r'--set randomisation.gain=\[2, 1\]: .* lower 2 must not'):
        load_run_config('d4pg', 'ur5e/reach', ['randomisation.gain=[2, 1]'])
    with pytest.raises(SpecError, match=r"gian: unknown key; did you mean 'gain'"):
        load_run_config('d4pg', 'ur5e/reach', ['randomisation.gian=1'])
