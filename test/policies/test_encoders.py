"""Learning from pictures: the encoders, the random shift, and who the encoder learns from."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from robot_rl.control.runtime import OnnxPolicy
from robot_rl.errors import SpecError
from robot_rl.policies import encoders
from robot_rl.policies.agent import as_tensors
from robot_rl.policies.export import export_onnx
from robot_rl.policies.mpo import DMPO
from robot_rl.policies.policy import ObservationVector
from robot_rl.specs import Contract, PolicyCard

NAMES = ['d4pg', 'ddpg', 'mpo', 'dmpo']
EVERY = pytest.mark.parametrize(
    ('name', 'memory'), [*((name, 0) for name in NAMES), ('d4pg', 5), ('dmpo', 5)]
)
SMALL = {'encoder_channels': [4, 4], 'encoder_features': 6}


def contract_of(*pictures, numbers=True):
    """Return a contract with a picture for each (height, width, history)."""
    fields = [
        {'name': f'eye_{i}', 'source': f'eye_{i}.image', 'shape': (height, width, 3)}
        | {'dtype': 'uint8', 'encoding': 'rgb8', 'history': history}
        for i, (height, width, history) in enumerate(pictures)
    ]
    if numbers:
        fields.insert(1, {'name': 'speed', 'source': 'env.speed', 'shape': (2,), 'history': 2})
    action = {'name': 'a', 'kind': 'generic', 'names': ['x', 'y'], 'lower': [-0.5, 2.0]}
    return Contract.parse(
        {'rate_hz': 20, 'observation': fields, 'action': [action | {'upper': [0.5, 6.0]}]}
    )


@pytest.fixture
def contract() -> Contract:
    """Two cameras of different sizes, one with a history, and numbers in between."""
    return contract_of((9, 11, 2), (8, 8, 1))


def observe(contract, rng, *lead):
    return {
        field.name: rng.integers(256, size=(*lead, *field.full_shape), dtype=np.uint8)
        if field.is_picture
        else rng.normal(size=(*lead, *field.full_shape)).astype(np.float32)
        for field in contract.observation
    }


@pytest.fixture
def draw(contract, batches, sequences):
    """Return `draw(learner, seed)`: what the learner learns from."""

    def draw(learner, seed):
        rng = np.random.default_rng(seed)
        if learner.config.memory:
            batch = sequences(seed, learner.config.memory)
            lead = next(iter(batch.observation.values())).shape[:2]
            return batch._replace(observation=observe(contract, rng, *lead))
        batch = batches(seed)
        return batch._replace(
            observation=observe(contract, rng, 8), next_observation=observe(contract, rng, 8)
        )

    return draw


def weights(module):
    return [value.clone() for value in module.state_dict().values()]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def moved_by_hand(picture, down, right):
    """Crop the padded picture [H, W, C]."""
    most = 5
    padded = np.pad(picture, ((most, most), (most, most), (0, 0)), mode='edge')
    top, left = most - down, most - right
    return padded[top : top + picture.shape[0], left : left + picture.shape[1]]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    history=st.integers(0, 3),
    lanes=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_a_shift_is_a_crop_of_the_padded_picture(height, width, history, lanes, seed):
    rng = np.random.default_rng(seed)
    steps = (history,) if history else ()
    pictures = rng.integers(256, size=(lanes, *steps, height, width, 3), dtype=np.uint8)
    down, right = rng.integers(-5, 6, (2, lanes))
    found = encoders.shifted(*map(torch.from_numpy, (pictures, down, right)))
    assert found.dtype == torch.uint8
    for lane in range(lanes):
        stack = pictures[lane] if history else pictures[lane][None]
        expected = [moved_by_hand(picture, down[lane], right[lane]) for picture in stack]
        np.testing.assert_array_equal(found[lane].numpy(), expected if history else expected[0])


def test_the_largest_shift_is_4_of_84_pixels():
    sizes = [(84, 84), (64, 64), (32, 32), (32, 100), (8, 8)]
    assert [encoders.largest_shift(*size) for size in sizes] == [4, 3, 2, 2, 1]


@pytest.mark.parametrize('name', ['d4pg', 'dmpo'])
def test_what_is_learned_from_is_moved_in_all_ways_and_each_by_itself(make, draw, name):
    learner = make(name, **SMALL)
    batch = draw(learner, 0)
    tensors = {key: torch.from_numpy(value) for key, value in batch.observation.items()}
    ways = set()
    for _ in range(40):
        moved = learner._moved(tensors)
        assert torch.equal(moved['speed'], tensors['speed'])
        for lane in range(8):
            found = [
                (down, right)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
                if all(
                    np.array_equal(moved_by_hand(before, down, right), after.numpy())
                    for before, after in zip(
                        batch.observation['eye_0'][lane], moved['eye_0'][lane], strict=True
                    )
                )
            ]
            assert len(found) == 1  # by at most 1 pixel, and both steps of the history alike
            ways.add(found[0])
    assert len(ways) == 9


def test_the_pictures_of_a_sequence_move_as_one(make, draw):
    learner = make('d4pg', 5, **SMALL)
    observation = draw(learner, 0).observation
    still = np.repeat(observation['eye_1'][:1], len(observation['eye_1']), axis=0)
    moved = learner._moved(
        {key: torch.from_numpy(v) for key, v in observation.items()}
        | {'eye_1': torch.from_numpy(still)}
    )
    assert moved['eye_1'].shape == still.shape
    assert all(torch.equal(step, moved['eye_1'][0]) for step in moved['eye_1'])
    assert not torch.equal(moved['eye_1'], torch.from_numpy(still))


def test_without_random_shift_nothing_is_drawn_and_nothing_moves(make, draw):
    learner = make('d4pg', random_shift=False, **SMALL)
    before, batch = learner._generator.get_state(), draw(learner, 0)
    assert learner._augmented(batch) is batch
    learner.update(batch)
    assert torch.equal(learner._generator.get_state(), before)


def test_planes_are_centred_and_the_steps_are_further_colours():
    pictures = torch.arange(2 * 3 * 2 * 2 * 3, dtype=torch.uint8).view(2, 3, 2, 2, 3)
    planes = encoders.as_planes(pictures)
    assert planes.shape == (2, 9, 2, 2)
    for step in range(3):
        for colour in range(3):
            expected = pictures[:, step, ..., colour].float() / 255 - 0.5
            assert torch.equal(planes[:, 3 * step + colour], expected)
    assert torch.equal(encoders.as_planes(pictures[:, 0]), planes[:, :3])


@pytest.mark.parametrize(
    ('kind', 'pixels', 'flat'),
    # (84 - 3) // 2 + 1 = 41, then 39, 37, 35; halved three times, rounded up: 42, 21, 11.
    [('conv', 84, 32 * 35 * 35), ('conv', 32, 32 * 9 * 9), ('resnet', 84, 32 * 11 * 11)],
)
def test_the_layers_are_those_of_the_papers(kind, pixels, flat):
    contract = contract_of((pixels, pixels, 3), numbers=False)
    encoder = encoders.PictureEncoder(contract, kind, (), 50, torch.Generator())
    torso, head = encoder.torsos[0], encoder.heads[0]
    convolutions = [m for m in torso.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == (4 if kind == 'conv' else 15)
    assert convolutions[0].in_channels == 9 and head[0].in_features == flat
    assert encoder.size == 50
    features = encoder({'eye_0': torch.zeros(2, 3, pixels, pixels, 3, dtype=torch.uint8)})
    assert features.shape == (2, 50) and features.abs().max() <= 1
    flat_weight = convolutions[0].weight.detach().flatten(1)
    gram = flat_weight @ flat_weight.T
    torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['conv', 'resnet'])
def test_each_picture_has_features_of_its_own(contract, kind):
    encoder = encoders.PictureEncoder(contract, kind, (4, 4), 6, torch.Generator())
    seen = {
        k: torch.from_numpy(v) for k, v in observe(contract, np.random.default_rng(0), 4).items()
    }
    before = encoder(seen)
    after = encoder(seen | {'eye_1': 255 - seen['eye_1']})
    assert torch.equal(before[:, :6], after[:, :6]) and encoder.size == 12
    assert (before[:, 6:] != after[:, 6:]).any(dim=1).all()
    assert torch.equal(encoder(seen | {'speed': seen['speed'] + 1}), before)


def test_pictures_too_small_for_the_layers_are_refused(make, contract):
    with pytest.raises(SpecError, match=r'eye_0: 9 x 11 pixels are too few'):
        make('d4pg')
    with pytest.raises(SpecError, match='eye_0: dtype uint8 cannot be joined'):
        ObservationVector(contract)  # an agent without an encoder


def encoder_after(learner, batch, change=None):
    """Return the online encoder's weights after an update, and the policy's."""
    if change is not None:
        with torch.no_grad():
            for part in ('policy', 'policy_memory'):
                if part in learner._online:
                    for parameter in learner._online[part].parameters():
                        parameter.add_(change)
    learner.update(batch)
    return weights(learner._online['encoder']), weights(learner._online['policy'])


@EVERY
def test_the_encoder_learns_from_the_critics_loss_alone(make, draw, name, memory):
    """Another online policy has another loss and gradient, of which the critic knows nothing."""
    one, other = make(name, memory, **SMALL), make(name, memory, **SMALL)
    before = weights(one._online['encoder'])
    batch = draw(one, 0)
    encoder, policy = encoder_after(one, batch)
    same_encoder, other_policy = encoder_after(other, batch, change=0.3)
    assert same(encoder, same_encoder)
    assert not same(policy, other_policy)
    assert not any(torch.equal(a, b) for a, b in zip(before, encoder, strict=True))


@EVERY
def test_no_gradient_of_the_policys_features_reaches_the_encoder(make, draw, name, memory):
    learner = make(name, memory, **SMALL)
    batch = as_tensors(draw(learner, 0), learner.device)
    view = learner._view(learner._online, batch, learner._vectors(batch))
    reached = torch.autograd.grad(
        sum(part.sum() for part in view.policy if part.requires_grad) + 0 * view.critic.now.sum(),
        list(learner._online['encoder'].parameters()),
        retain_graph=True,
        allow_unused=True,
    )
    assert all(gradient is None or not gradient.any() for gradient in reached)
    (gradient, *_) = torch.autograd.grad(
        view.critic.now.square().sum(), list(learner._online['encoder'].parameters())
    )
    assert gradient.any()


def test_d4pgs_critic_loss_is_that_of_the_features_by_hand(make, draw):
    """Numbers in the contract's order, then each picture's features; targets see o_{t+k}."""
    learner = make('d4pg', random_shift=False, execution='plain', **SMALL)
    batch = draw(learner, 3)
    learner.update(draw(learner, 1)), learner.update(draw(learner, 2))
    online, target = copy.deepcopy(learner._online), copy.deepcopy(learner._target)

    def features(networks, observation):
        tensors = {name: torch.from_numpy(value) for name, value in observation.items()}
        parts = [tensors['speed'].reshape(8, 4)]
        for index, name in enumerate(('eye_0', 'eye_1')):
            pixels = tensors[name].float() / 255 - 0.5
            if name == 'eye_0':
                pixels = torch.cat([pixels[:, 0], pixels[:, 1]], dim=3)
            encoder = networks['encoder']
            planes = encoder.torsos[index](pixels.permute(0, 3, 1, 2))
            parts.append(encoder.heads[index](planes.reshape(8, -1)))
        return torch.cat(parts, dim=1)

    with torch.no_grad():
        following = features(target, batch.next_observation)
        critic = target['critic']
        belief = critic(following, target['policy'](following)).softmax(dim=1)
        reward, discount = torch.from_numpy(batch.reward), torch.from_numpy(batch.discount)
        goal = critic.target(reward, discount, belief)
        action = (torch.from_numpy(batch.action) - torch.tensor([0.0, 4.0])) / torch.tensor(
            [0.5, 2.0]
        )
        logits = online['critic'](features(online, batch.observation), action)
        expected = -(goal * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert learner.update(batch)['critic_loss'].item() == pytest.approx(expected.item(), rel=1e-5)


@EVERY
def test_the_policy_that_acts_sees_by_the_target_encoder(make, draw, contract, name, memory):
    learner = make(name, memory, **SMALL)
    assert learner.policy.encoder is learner._target['encoder']
    seen = observe(contract, np.random.default_rng(0), 4)
    state = learner.policy.initial_state(4)
    before = learner.policy.select(seen, state)[0]
    learner.update(draw(learner, 1)), learner.update(draw(learner, 2))
    np.testing.assert_array_equal(learner.policy.select(seen, state)[0], before)
    learner.update(draw(learner, 3))  # the third one copies to the targets
    assert (learner.policy.select(seen, state)[0] != before).any()
    assert same(weights(learner._target['encoder']), weights(learner._online['encoder']))
    behaviour = learner.behaviour(4)
    noise = np.zeros((4, 2), np.float32)
    action, _ = behaviour.select(seen, behaviour.initial_state(4), noise)
    np.testing.assert_array_equal(action, learner.policy.select(seen, state)[0])


@EVERY
def test_a_restored_learner_moves_pictures_as_the_first_one_would(make, draw, name, memory):
    first, second = (make(name, memory, seed, **SMALL) for seed in (1, 2))
    for seed in range(3):
        first.update(draw(first, seed))
    second.restore(copy.deepcopy(first.save()))
    for seed in range(3, 6):
        found, expected = second.update(draw(second, seed)), first.update(draw(first, seed))
        assert all(torch.equal(found[metric], expected[metric]) for metric in expected)
    assert same(weights(first._online), weights(second._online))


@pytest.mark.parametrize('name', ['d4pg', 'dmpo'])
def test_one_seed_gives_one_learner_from_pictures(make, draw, name):
    learners = []
    for general, seed in ((0, 7), (1, 7), (1, 8)):
        torch.manual_seed(general)
        learners.append(make(name, 0, seed, **SMALL))
        for step in range(3):
            learners[-1].update(draw(learners[-1], step))
    first, second, third = (weights(learner._online) for learner in learners)
    assert same(first, second) and not same(first, third)


@pytest.mark.parametrize('kind', ['conv', 'resnet'])
@pytest.mark.parametrize('name', ['d4pg', 'dmpo'])
def test_the_ways_of_execution_agree(make, draw, name, kind):
    plain, fused = (make(name, execution=e, encoder=kind, **SMALL) for e in ('plain', 'fused'))
    for seed in range(3):
        one, other = plain.update(draw(plain, seed)), fused.update(draw(fused, seed))
    for metric in one:
        torch.testing.assert_close(one[metric], other[metric], rtol=1e-3, atol=1e-5)


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(
    height=st.integers(15, 40),
    width=st.integers(15, 40),
    history=st.integers(1, 3),
    numbers=st.booleans(),
    kind=st.sampled_from(['conv', 'resnet']),
    memory=st.sampled_from([0, 0, 5]),
    seed=st.integers(0, 100),
)
def test_the_onnx_file_takes_bytes_and_gives_the_modules_numbers(
    tmp_path_factory, height, width, history, numbers, kind, memory, seed
):
    contract = contract_of((height, width, history), numbers=numbers)
    options = {'encoder': kind, 'encoder_features': 8, 'policy_layers': [16], 'memory': memory}
    learner = DMPO.learner(contract, DMPO.config.parse(options), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # larger than at first, so that pictures matter
        learner.policy.network.mean.weight.normal_(std=0.05, generator=generator)
    policy = learner.policy
    card = PolicyCard(
        id='p', contract=contract, task='t', agent='dmpo', recurrent_state=policy.recurrent_state
    )
    path = export_onnx(policy, card, tmp_path_factory.mktemp('onnx') / 'policy.onnx')
    inputs = {node.name: node for node in onnxruntime.InferenceSession(path).get_inputs()}
    assert inputs['eye_0'].type == 'tensor(uint8)'
    runtime = OnnxPolicy(path)
    rng = np.random.default_rng(seed)
    for batch in (1, 5):
        seen = observe(contract, rng, batch)
        brightness = rng.uniform(0, 1, (batch, *[1] * (seen['eye_0'].ndim - 1)))
        seen['eye_0'] = (seen['eye_0'] * brightness).astype(np.uint8)
        found, _ = runtime.select(seen, runtime.initial_state(batch))
        expected, _ = policy.select(seen, policy.initial_state(batch))
        assert batch == 1 or expected.std(axis=0).max() > 1e-3
        np.testing.assert_allclose(found, expected, atol=4e-5)
