import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from robot_rl.control.runtime import OnnxPolicy
from robot_rl.errors import PolicyFileError
from robot_rl.imitation.bc import BC
from robot_rl.policies.crr import CRR
from robot_rl.policies.d4pg import D4PG, D4PGLearner
from robot_rl.policies.export import OPSET, check_parity, export_onnx
from robot_rl.policies.mpo import DMPO, MPO
from robot_rl.policies.networks import DeterministicPolicy
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import ActionField, Contract, ObservationField, PolicyCard, StateField

KINDS = ActionField.model_fields['kind'].annotation.__args__
AGENTS = {
    'd4pg': (D4PG, {}),
    'ddpg': (D4PG, {'critic': 'scalar'}),
    'mpo': (MPO, {}),
    'dmpo': (DMPO, {}),
    'crr': (CRR, {}),
    'bc': (BC, {}),
    'bc_gaussian': (BC, {'head': 'gaussian'}),
    'bc_mixture': (BC, {'head': 'mixture', 'modes': 3}),
}


def card_of(contract, **fields):
    return PolicyCard(id='p', contract=contract, task='t', agent='d4pg', **fields)


def random_policy(contract, normalize, seed=0):
    """A policy whose last layer is large: saturated, as trained ones are."""
    vector = ObservationVector(contract, normalize)
    generator = torch.Generator().manual_seed(seed)
    network = DeterministicPolicy(vector.size, contract.action_size, (32, 32), generator)
    with torch.no_grad():
        network[1].weight.normal_(std=1.0, generator=generator)
    rng = np.random.default_rng(seed)
    vector.fit(
        {name: rng.normal(3, 2, (50, *s)) for name, s in contract.observation_shapes.items()}
    )
    return Policy(contract, vector, network)


def test_the_file_has_the_contract_in_its_inputs_and_its_metadata(contract, config, tmp_path):
    learner = D4PGLearner(contract, config)
    path = export_onnx(learner.policy, card_of(contract), tmp_path / 'deep' / 'policy.onnx')
    session = onnxruntime.InferenceSession(path)
    inputs = {node.name: node.shape for node in session.get_inputs()}
    assert inputs == {'position': ['batch', 3], 'height': ['batch', 2]}
    assert [(n.name, n.shape[1]) for n in session.get_outputs()] == [('action', 2)]
    card = PolicyCard.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert (card.contract, card.opset) == (contract, OPSET)
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET]
    assert list(path.parent.iterdir()) == [path]


class Leaky(Policy):
    """A recurrent policy: a moving average of the first field drives the action."""

    def forward(self, observation, state):
        memory = 0.9 * state['memory'] + 0.1 * observation['position']
        vector = torch.cat([memory, observation['height']], dim=1)
        return self.scale.to_contract(self.network(vector)), {'memory': memory}


def test_recurrent_state_is_an_explicit_input_and_output(contract, tmp_path):
    vector = ObservationVector(contract)
    network = DeterministicPolicy(vector.size, 2, (8,), torch.Generator().manual_seed(0))
    memory = StateField(name='memory', shape=(3,), initial=(0.0, 1.0, 2.0))
    card = card_of(contract, recurrent_state=(memory,))
    path = export_onnx(Leaky(contract, vector, network), card, tmp_path / 'p.onnx')
    session = onnxruntime.InferenceSession(path)
    feed = {
        'position': np.ones((4, 3), np.float32),
        'height': np.zeros((4, 2), np.float32),
        'state/memory': np.full((4, 3), 2.0, np.float32),
    }
    action, following = session.run(['action', 'next_state/memory'], feed)
    assert action.shape == (4, 2)
    np.testing.assert_allclose(following, 1.9, atol=1e-6)


def test_parity_check_tells_another_policy_and_nan(contract, tmp_path):
    first, second = (random_policy(contract, normalize=False, seed=s) for s in (0, 1))
    path = export_onnx(first, card_of(contract), tmp_path / 'p.onnx')
    assert check_parity(path, first, card_of(contract)) <= 1e-5
    with pytest.raises(PolicyFileError, match='differ'):
        check_parity(path, second, card_of(contract))
    with torch.no_grad():
        first.network[1].bias.fill_(float('nan'))
    with pytest.raises(PolicyFileError, match='nan'):
        export_onnx(first, card_of(contract), tmp_path / 'q.onnx')
    assert not (tmp_path / 'q.onnx').exists()


@st.composite
def contracts(draw):
    """Any shapes seen, and actions of every kind there is, in any order."""
    shapes = st.lists(st.integers(1, 3), max_size=2)
    fields = draw(st.lists(st.tuples(shapes, st.integers(1, 3)), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    actions = []
    for kind in draw(st.permutations(KINDS)):
        size = draw(st.integers(1, 2))
        lower = rng.uniform(-5, 5, size)
        upper = lower + rng.uniform(0.01, 9, size)
        names = tuple(f'{kind}{i}' for i in range(size))
        bounds = {'lower': tuple(lower), 'upper': tuple(upper)}
        actions.append(ActionField(name=kind, kind=kind, names=names, **bounds))
    observation = [
        ObservationField(name=f'f{i}', source='env.x', shape=tuple(shape), history=history)
        for i, (shape, history) in enumerate(fields)
    ]
    return Contract(rate_hz=10, observation=observation, action=actions)


def trained(name, contract, memory, normalize):
    """A learner's policy with weights as large as learning makes them."""
    agent, options = AGENTS[name]
    options = options | {'policy_layers': (16, 16), 'normalize_observations': normalize}
    if memory:
        options |= {'memory': memory}
    learner, rng = agent.learner(contract, agent.config.parse(options)), np.random.default_rng(0)
    shapes = contract.observation_shapes.items()
    learner.fit_normalizer({key: rng.normal(3, 2, (50, *shape)) for key, shape in shapes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return learner.policy


def test_a_small_range_far_from_zero_is_judged_by_what_float32_resolves(tmp_path):
    """Some exports of it were refused: two roundings differ by more than 1e-5 of the range."""
    field = ObservationField(name='f', source='env.x', shape=(3,))
    bounds = {'lower': (4.99,) * 5, 'upper': (5.0,) * 5}
    action = ActionField(name='a', kind='generic', names=tuple('abcde'), **bounds)
    contract = Contract(rate_hz=10, observation=[field], action=[action])
    path = export_onnx(trained('mpo', contract, 0, False), card_of(contract), tmp_path / 'p.onnx')
    assert OnnxPolicy(path).contract == contract


@pytest.mark.parametrize(
    ('name', 'memory'),
    [(name, memory) for name in AGENTS for memory in (0, 5) if (name, memory) != ('crr', 5)],
)
@settings(max_examples=2, deadline=None, phases=[Phase.generate])  # an export takes a second
@given(contract=contracts(), normalize=st.booleans())
def test_the_file_of_every_agent_acts_as_its_policy_does_step_after_step(
    tmp_path_factory, name, memory, contract, normalize
):
    """As the robot runs it: control.runtime alone, the state fed back, one lane or several."""
    policy = trained(name, contract, memory, normalize)
    card = card_of(contract, recurrent_state=policy.recurrent_state)
    path = export_onnx(policy, card, tmp_path_factory.mktemp('x') / 'p.onnx')
    runtime = OnnxPolicy(path)
    assert runtime.contract == contract
    assert runtime.card.recurrent_state == policy.recurrent_state
    assert {field.name for field in runtime.card.recurrent_state} == (
        {'hidden', 'cell'} if memory else set()
    )
    lower, upper, rng = contract.action_lower, contract.action_upper, np.random.default_rng(1)
    # Of the range, and two steps of float32 where the range is a small one far from zero.
    allowed = 1e-5 * (upper - lower) + 2 * np.spacing(np.float32(np.maximum(-lower, upper)))
    for batch in (1, 6):
        state, right = runtime.initial_state(batch), policy.initial_state(batch)
        np.testing.assert_equal(state, right)
        for size in (1, 1, 0, 30, 1e6):
            observation = {
                key: (size * rng.normal(size=(batch, *shape))).astype(np.float32)
                for key, shape in contract.observation_shapes.items()
            }
            found, state = runtime.select(observation, state)
            expected, right = policy.select(observation, right)
            assert (np.abs(found - expected) <= allowed).all()
            assert (found >= contract.action_lower.astype(np.float32)).all()
            assert (found <= contract.action_upper.astype(np.float32)).all()
            assert state.keys() == right.keys()
            for key, values in right.items():
                np.testing.assert_allclose(state[key], values, atol=1e-5)
                assert values.any()
