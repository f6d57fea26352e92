import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import PolicyFileError
from robot_rl.policies.d4pg import D4PGLearner
from robot_rl.policies.export import OPSET, check_parity, export_onnx
from robot_rl.policies.networks import DeterministicPolicy
from robot_rl.policies.policy import ObservationVector, Policy
from robot_rl.specs import ActionField, Contract, ObservationField, PolicyCard, StateField


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


@settings(max_examples=4, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shapes_give_the_same_actions_in_onnxruntime(
    tmp_path_factory, fields, actions, normalize, seed
):
    rng = np.random.default_rng(seed)
    lower = rng.uniform(-5, 5, actions)
    contract = Contract(
        rate_hz=10,
        observation=[
            ObservationField(name=f'f{i}', source='env.x', shape=shape, history=history)
            for i, (shape, history) in enumerate(fields)
        ],
        action=[
            ActionField(
                name='a',
                kind='generic',
                names=[f'a{i}' for i in range(actions)],
                lower=lower.tolist(),
                upper=(lower + rng.uniform(0.01, 9, actions)).tolist(),
            )
        ],
    )
    policy = random_policy(contract, normalize, seed)
    path = export_onnx(policy, card_of(contract), tmp_path_factory.mktemp('x') / 'p.onnx')
    session = onnxruntime.InferenceSession(path)
    for batch, size in ((1, 1.0), (5, 1e6), (3, 0.0)):
        observation = {
            name: (size * rng.normal(size=(batch, *shape))).astype(np.float32)
            for name, shape in contract.observation_shapes.items()
        }
        (found,) = session.run(['action'], observation)
        expected, _ = policy.select(observation)
        span = contract.action_upper - contract.action_lower
        assert (np.abs(found - expected) / span).max() <= 1e-5
        assert (found >= contract.action_lower - 1e-6 * span).all()
        assert (found <= contract.action_upper + 1e-6 * span).all()


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
