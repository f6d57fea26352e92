from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from robot_rl.control.runtime import ConstantPolicy, OnnxPolicy, RandomPolicy, load_policy
from robot_rl.errors import ContractMismatch, PolicyFileError, UnknownName
from robot_rl.specs import Contract, ObservationField, PolicyCard, StateField


def observation(contract: Contract, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(batch, *shape)).astype(np.float32)
        for name, shape in contract.observation_shapes.items()
    }


def by_hand(path, contract: Contract, seen: dict[str, np.ndarray]) -> np.ndarray:
    """The fixture's network in NumPy, from the weights in the file."""
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    units = {field.name: 255 if field.dtype == 'uint8' else 1 for field in contract.observation}
    flat = [seen[name].reshape(len(seen[name]), -1) / unit for name, unit in units.items()]
    hidden = np.tanh(np.concatenate(flat, axis=1) @ weights['w1'])
    return np.tanh(hidden @ weights['w2']) * weights['scale'] + weights['middle']


@pytest.mark.parametrize('batch', [1, 7])
def test_a_policy_file_gives_the_numbers_of_its_network(policy_file, contract, batch):
    path = policy_file(contract, seed=3)
    policy, seen = OnnxPolicy(path), observation(contract, batch)
    action, state = policy.select(seen, policy.initial_state(batch))
    assert action.dtype == np.float32
    assert state == {}
    np.testing.assert_allclose(action, by_hand(path, contract, seen), atol=1e-6)
    assert policy.contract == contract
    assert policy.card.id == 'random-3'


def test_recurrent_state_starts_from_the_card_and_moves_on(policy_file, contract):
    path = policy_file(contract, memory=4)
    policy, seen = OnnxPolicy(path), observation(contract, batch=2)
    state = policy.initial_state(2)
    np.testing.assert_array_equal(state['memory'], np.full((2, 4), 0.5, np.float32))
    first, state = policy.select(seen, state)
    (w3,) = [numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer if w.name == 'w3']
    expected = np.tanh(0.5 + seen['joint_position'] @ w3)
    np.testing.assert_allclose(state['memory'], expected, atol=1e-6)
    second, _ = policy.select(seen, state)
    assert not np.array_equal(first, second)


def test_a_policy_file_runs_on_the_calling_thread_alone(policy_file, contract):
    before = threading.active_count()
    policy = OnnxPolicy(policy_file(contract))
    options = policy._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry('session.intra_op.allow_spinning') == '0'
    assert policy._session.get_providers() == ['CPUExecutionProvider']
    assert threading.active_count() == before


def damaged(tmp_path, policy_file, contract, kind):
    path = policy_file(contract)
    whole = path.read_bytes()
    if kind == 'missing':
        path.unlink()
    elif kind == 'folder':
        return tmp_path
    elif kind == 'text':
        path.write_text('policy: reach\nweights: none\n')
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'noise':
        path.write_bytes(np.random.default_rng(0).bytes(2000))
    else:
        path.write_bytes(whole[: int(len(whole) * float(kind))])
    return path


@pytest.mark.parametrize(
    ('kind', 'told'),
    [
        ('missing', 'cannot be read (No such file or directory)'),
        ('folder', 'cannot be read (Is a directory)'),
        ('text', 'not a whole ONNX file'),
        ('empty', 'not a whole ONNX file'),
        ('noise', 'not a whole ONNX file'),
        ('0.1', 'not a whole ONNX file'),
        ('0.5', 'not a whole ONNX file'),
        ('0.99', 'not a whole ONNX file'),
    ],
)
def test_a_damaged_file_gives_one_line_with_its_path(
    tmp_path, policy_file, contract, kind, told, capfd
):
    path = damaged(tmp_path, policy_file, contract, kind)
    with pytest.raises(PolicyFileError) as error:
        OnnxPolicy(path)
    assert str(path) in str(error.value)
    assert told in str(error.value)
    assert '\n' not in str(error.value)
    out = capfd.readouterr()
    assert (out.out, out.err) == ('', '')  # onnxruntime would print its own


def test_no_cut_of_a_policy_file_is_taken_for_a_policy(tmp_path, policy_file, contract):
    path = policy_file(contract)
    whole = path.read_bytes()
    for size in range(0, len(whole), 23):
        path.write_bytes(whole[:size])
        with pytest.raises(PolicyFileError):
            OnnxPolicy(path)


def test_a_foreign_onnx_file_is_named_as_one(policy_file, contract, capfd):
    path = policy_file(contract)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match='an ONNX file without a policy card'):
        OnnxPolicy(path)
    helper.set_model_props(model, {'robot_rl.policy_card': '{"id": "x"}'})
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match='its policy card cannot be read: contract: this'):
        OnnxPolicy(path)
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('location', ['beside', 'absolute', 'above', 'link'])
def test_external_data_is_not_followed(policy_file, contract, monkeypatch, location):
    path = policy_file(contract)
    folder, outside = path.parent / 'inside', path.parent / 'weights.bin'
    folder.mkdir()
    model = onnx.load(path)
    path = folder / path.name
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location='weights.bin')
    assert (folder / 'weights.bin').exists()
    if location != 'beside':
        (folder / 'weights.bin').rename(outside)
    if location == 'link':
        (folder / 'weights.bin').symlink_to(outside)
    told = {'absolute': str(outside), 'above': '../weights.bin'}.get(location, 'weights.bin')
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == 'location':
                entry.value = told
    path.write_bytes(model.SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(PolicyFileError, match='its weights lie in another file'):
        OnnxPolicy(path)


def test_a_graph_that_onnxruntime_does_not_know_is_told_with_the_reason(policy_file, contract):
    path = policy_file(contract)
    model = onnx.load(path)
    model.graph.node[-1].op_type = 'Frobnicate'
    onnx.save(model, path)
    with pytest.raises(
        PolicyFileError, match=r'cannot load it: .* No Op registered for Frobnicate'
    ):
        OnnxPolicy(path)


def test_a_graph_that_fails_when_run_is_told_when_loaded(policy_file, contract, capfd):
    path = policy_file(contract)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = 'unshaped'
    model.graph.node.extend(
        [
            helper.make_node('ReduceSum', ['joint_position'], ['sum'], keepdims=0),
            helper.make_node('Cast', ['sum'], ['size'], to=onnx.TensorProto.INT64),
            helper.make_node('Add', ['size', 'sevens'], ['shape']),
            helper.make_node('Reshape', ['unshaped', 'shape'], ['action']),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7]), 'sevens'))
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match=r'cannot be run: .*cannot be reshaped') as error:
        OnnxPolicy(path)
    assert '\n' not in str(error.value)
    assert capfd.readouterr().err == ''


def fields(contract: Contract, **changes) -> Contract:
    first = contract.observation[0].replace(**changes)
    return contract.model_copy(update={'observation': (first, *contract.observation[1:])})


@pytest.mark.parametrize(
    ('card', 'told'),
    [
        (
            lambda c: PolicyCard(id='x', contract=fields(c, name='angle')),
            "input 'angle' is missing; input 'joint_position' is not in the card",
        ),
        (
            lambda c: PolicyCard(id='x', contract=fields(c, names=(), shape=(4,))),
            r"input 'joint_position' is tensor\(float\) \['B', 3\], right is tensor\(float\) "
            r'\[B, 4\]',
        ),
        (
            lambda c: PolicyCard(id='x', contract=fields(c, dtype='uint8')),
            r'right is tensor\(uint8\) \[B, 3\]',
        ),
        (
            lambda c: PolicyCard(
                id='x',
                contract=c,
                recurrent_state=(StateField(name='h', shape=(1,), initial=(0,)),),
            ),
            "input 'state/h' is missing",
        ),
        (
            lambda c: PolicyCard(
                id='x',
                contract=c.model_copy(
                    update={
                        'action': (c.action[0].replace(names=('elbow',), lower=(-1,), upper=(1,)),)
                    }
                ),
            ),
            r"output 'action' is tensor\(float\) \['B', 3\], right is tensor\(float\) \[B, 1\]",
        ),
    ],
)
def test_a_graph_that_is_not_what_its_card_says_is_refused(policy_file, contract, card, told):
    path = policy_file(contract, card=card(contract))
    with pytest.raises(PolicyFileError, match=f'the graph is not what its card says: .*{told}'):
        OnnxPolicy(path)


def test_a_fixed_batch_axis_is_refused(policy_file, contract):
    path = policy_file(contract)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match=r"'joint_position' is tensor\(float\) \[1, 3\]"):
        OnnxPolicy(path)


@pytest.mark.parametrize('policy', ['onnx', 'random', 'constant'])
def test_observations_of_another_shape_are_refused(policy_file, contract, policy):
    policy = load_policy(policy_file(contract) if policy == 'onnx' else policy, contract)
    seen = observation(contract, batch=2)
    for change, told in (
        ({'tool': seen['tool'][:, :2]}, r'tool: found shape \[2, 2\], right is \[B, 3\]'),
        ({'tool': seen['tool'][0]}, r'tool: found shape \[3\], right is \[B, 3\]'),
        ({'tool': seen['tool'][:1]}, r'different batch sizes \[1, 2\]'),
    ):
        with pytest.raises(ContractMismatch, match=told):
            policy.select(seen | change, {})
    with pytest.raises(ContractMismatch, match='joint_position: missing; found tool'):
        policy.select({'tool': seen['tool']}, {})


def test_non_finite_numbers_never_pass_in_or_out(policy_file, contract):
    path = policy_file(contract)
    policy, seen = OnnxPolicy(path), observation(contract)
    seen['target'][0, 1] = np.nan
    with pytest.raises(ContractMismatch, match='observation target: holds NaN or infinite'):
        policy.select(seen, {})
    model = onnx.load(path)
    poisoned = np.full(contract.action_size, np.nan, np.float32)
    for weight in model.graph.initializer:
        if weight.name == 'middle':
            weight.CopyFrom(numpy_helper.from_array(poisoned, 'middle'))
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match='action holds NaN or infinite'):
        OnnxPolicy(path).select(observation(contract), {})


def test_missing_or_misshapen_recurrent_state_is_refused(policy_file, contract):
    policy = OnnxPolicy(policy_file(contract, memory=4))
    for state in ({}, {'memory': np.zeros((1, 3), np.float32)}):
        with pytest.raises(PolicyFileError, match='cannot be run'):
            policy.select(observation(contract), state)


def test_images_go_in_as_bytes(policy_file, contract):
    camera = ObservationField(
        name='camera', source='wrist.image', shape=(4, 5, 3), dtype='uint8', encoding='rgb8'
    )
    contract = contract.model_copy(update={'observation': (*contract.observation, camera)})
    path = policy_file(contract)
    seen = observation(contract)
    seen['camera'] = np.arange(60, dtype=np.uint8).reshape(1, 4, 5, 3)
    action, _ = OnnxPolicy(path).select(seen, {})
    np.testing.assert_allclose(action, by_hand(path, contract, seen), atol=1e-6)


def test_random_actions_fill_the_bounds_and_follow_the_seed(contract):
    seen = observation(contract, batch=2000)
    action, _ = RandomPolicy(contract, seed=4).select(seen, {})
    again, _ = RandomPolicy(contract, seed=4).select(seen, {})
    assert np.array_equal(action, again)
    lower, upper = contract.action_lower.astype('f4'), contract.action_upper.astype('f4')
    assert ((action >= lower) & (action <= upper)).all()
    np.testing.assert_allclose(action.mean(axis=0), 0, atol=3e-3)
    np.testing.assert_allclose(action.std(axis=0), (upper - lower) / 12**0.5, rtol=0.05)


def test_the_constant_action_is_the_middle_of_the_bounds(contract):
    field = contract.action[0].replace(lower=(-1, 0, 2), upper=(1, 4, 3))
    contract = contract.model_copy(update={'action': (field,)})
    action, _ = ConstantPolicy(contract).select(observation(contract, batch=2), {})
    assert action.tolist() == [[0, 2, 2.5]] * 2


def test_load_policy_finds_names_and_files(policy_file, contract):
    assert load_policy('random', contract, seed=1).card.id == 'random'
    assert load_policy('constant', contract).contract == contract
    assert load_policy(policy_file(contract)).contract == contract
    with pytest.raises(ContractMismatch, match='needs the contract of a task'):
        load_policy('random')
    with pytest.raises(UnknownName, match="unknown policy 'randm'; did you mean 'random'"):
        load_policy('randm', contract)
    with pytest.raises(UnknownName, match="'nope'; known: constant, random, ur5e_reach"):
        load_policy('nope', contract)
    assert load_policy('ur5e_reach').card.task == 'ur5e/reach'
    with pytest.raises(PolicyFileError, match=r'gone\.onnx: cannot be read'):
        load_policy('gone.onnx', contract)


def test_a_policy_for_another_task_does_not_load_there(policy_file, contract):
    path = policy_file(contract)
    more = contract.model_copy(
        update={
            'observation': (
                *contract.observation,
                ObservationField(name='extra', source='tool.orientation', shape=(4,)),
            )
        }
    )
    assert load_policy(path, more).contract == contract  # reads less than there is: fine
    other = {
        'observation joint_position is not there': fields(contract, name='angle'),
        r'observation joint_position is \[2\], not \[3\]': fields(contract, names=(), shape=(2,)),
        'observation joint_position comes from another source': fields(
            contract, source='command.position'
        ),
        'the rate is 10.0 Hz, not 20.0 Hz': contract.replace(rate_hz=10),
        'the actions have another kind or other bounds': contract.model_copy(
            update={'action': (contract.action[0].replace(upper=(1, 1, 1)),)}
        ),
        'the actions are': contract.model_copy(
            update={'action': (contract.action[0].replace(names=('a', 'b', 'c')),)}
        ),
    }
    for told, offered in other.items():
        with pytest.raises(ContractMismatch, match=f"task 'unknown' does not fit here: {told}"):
            load_policy(path, offered)
