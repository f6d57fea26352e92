import numpy as np
import pytest
import torch

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.policies.normalizer import Normalizer
from robot_rl.policies.policy import ActionScale, ObservationVector, Policy


def observation(batch=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {'position': (3,), 'height': (2,)}
    return {name: rng.normal(size=(batch, *shape)) for name, shape in shapes.items()}


def test_fields_are_joined_in_the_order_of_the_contract(contract):
    fields = observation()
    tensors = {name: torch.from_numpy(fields[name]) for name in reversed(fields)}
    expected = np.concatenate([fields['position'], fields['height']], axis=1)
    np.testing.assert_array_equal(ObservationVector(contract)(tensors), expected)


def test_pixels_are_refused_by_name(contract):
    field = contract.observation[0].replace(dtype='uint8', name='camera')
    with pytest.raises(SpecError, match='camera'):
        ObservationVector(contract.replace(observation=[field.to_dict()]))


def test_normalizer_takes_the_statistics_and_centres_what_never_varies():
    rng = np.random.default_rng(0)
    data = rng.normal([1, -2, 3], [0.5, 4, 0], size=(500, 3))
    normalizer = Normalizer(3)
    normalizer.fit(torch.from_numpy(data))
    found = normalizer(torch.from_numpy(data).float())
    std = np.array([data[:, 0].std(), data[:, 1].std(), 1])
    np.testing.assert_allclose(found, (data - data.mean(0)) / std, atol=1e-5)
    assert normalizer(torch.full((1, 3), 1e9)).max() == 10


def test_what_hardly_varied_is_not_blown_up():
    """A cube that lay still while the statistics were taken is lifted later."""
    still = np.random.default_rng(0).normal(0.02, 1e-5, size=(500, 1))
    normalizer = Normalizer(1)
    normalizer.fit(torch.from_numpy(still))
    heights = torch.tensor([[0.02], [0.03], [0.07]])
    np.testing.assert_allclose(normalizer(heights), [[0], [1], [5]], atol=0.01)


def test_scale_goes_to_the_bounds_and_back(contract):
    scale = ActionScale(contract)
    ends = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    expected = [contract.action_lower, contract.action_upper, [0.0, 4.0]]
    np.testing.assert_allclose(scale.to_contract(ends), expected)
    np.testing.assert_allclose(scale.to_unit(scale.to_contract(ends)), ends, atol=1e-7)


def test_actions_stay_inside_the_bounds_whatever_the_network_says(contract):
    network = torch.nn.Linear(5, 2)
    torch.nn.init.normal_(network.weight, std=100)
    policy = Policy(contract, ObservationVector(contract), network)
    action, state = policy.select(observation(batch=64))
    assert action.shape == (64, 2)
    assert action.dtype == np.float32
    assert state == {}
    assert (action >= contract.action_lower).all()
    assert (action <= contract.action_upper).all()


@pytest.mark.parametrize('wrong', [{}, {'height': np.zeros((4, 3))}, {'height': np.zeros(2)}])
def test_an_observation_of_another_shape_is_refused_by_name(contract, wrong):
    policy = Policy(contract, ObservationVector(contract), torch.nn.Linear(5, 2))
    fields = observation()
    del fields['height']
    with pytest.raises(ContractMismatch, match='height'):
        policy.select(fields | wrong)
