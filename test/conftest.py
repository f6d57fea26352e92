"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os

# One thread for each library, set before any is loaded: the tests share the cores with the nodes
# that they start, and results repeat bit by bit.
os.environ.update({'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'})

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from robot_rl.errors import RobotRLError
from robot_rl.specs import Contract, PolicyCard, RobotSpec, StateField


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that numbers repeat bit by bit, whatever a test sets."""
    import torch  # here: most rooms' tests do without, and it takes seconds

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def offscreen() -> None:
    """Skip where no picture can be drawn, and say why."""
    from robot_rl.sim.rendering import Renderer  # here: it loads graphics

    try:
        Renderer(32, 32).close()
    except RobotRLError as error:
        pytest.skip(str(error))


@pytest.fixture
def maker_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return `write(model='arm', **changes)`: the YAML file of an arm as Menagerie has them.

    Its model is that of test/models/maker_arm: 'arm', 'scene' (of arm, floor and a loose cube) or
    'motors' (the arm, moved by torques).
    """
    models = Path(__file__).parent / 'models'
    monkeypatch.setenv('ROBOT_RL_MENAGERIE', str(models))

    def write(model: str = 'arm', **changes) -> str:
        robot = RobotSpec.load(str(models / 'maker_arm.yaml'))
        path = tmp_path / f'maker_arm_{model}.yaml'
        path.write_text(
            robot.replace(mjcf=f'menagerie:maker_arm/{model}.xml', **changes).to_yaml()
        )
        return str(path)

    return write


@pytest.fixture
def policy_file(tmp_path: Path) -> Callable[..., Path]:
    """Return `build(contract, seed=0, hidden=16, memory=0, card=...)`, which writes a policy file.

    A random two-layer tanh network on the flattened, concatenated observation fields, pixels from
    0 to 1, scaled to the action bounds; with `memory` > 0 it has a recurrent state 'memory' of
    that size, which becomes tanh(state + w3 @ first field). Needs no torch.
    """

    def build(contract: Contract, seed: int = 0, name: str = '', **options) -> Path:
        path = tmp_path / (name or f'policy-{seed}.onnx')
        path.write_bytes(random_policy(contract, seed, **options).SerializeToString())
        return path

    return build


def random_policy(
    contract: Contract,
    seed: int = 0,
    hidden: int = 16,
    memory: int = 0,
    card: PolicyCard | None = None,
) -> onnx.ModelProto:
    """Build the ONNX model of the `policy_file` fixture; `card` replaces the true card."""
    rng = np.random.default_rng(seed)
    state = StateField(name='memory', shape=(memory,), initial=(0.5,) * memory) if memory else None
    size = sum(field.size for field in contract.observation) + memory
    lower, upper = contract.action_lower, contract.action_upper
    weights = {
        'w1': rng.normal(0, size**-0.5, (size, hidden)),
        'w2': rng.normal(0, hidden**-0.5, (hidden, contract.action_size)),
        'w3': rng.normal(0, 1, (contract.observation[0].size, memory)),
        'scale': (upper - lower) / 2,
        'middle': (upper + lower) / 2,
    }
    inputs, nodes, parts = [], [], []
    for field in contract.observation:
        is_picture = field.dtype == 'uint8'
        dtype = TensorProto.UINT8 if is_picture else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(field.name, dtype, ['B', *field.full_shape]))
        parts.append(f'flat/{field.name}')
        weights[f'{field.name}/unit'] = np.array(1 / 255 if is_picture else 1.0)
        nodes += _read(field.name)
    outputs = [_tensor('action', contract.action_size)]
    if state:
        inputs.append(_tensor('state/memory', memory))
        outputs.append(_tensor('next_state/memory', memory))
        parts.append('state/memory')
        nodes += [
            helper.make_node('MatMul', [parts[0], 'w3'], ['news']),
            helper.make_node('Add', ['state/memory', 'news'], ['sum']),
            helper.make_node('Tanh', ['sum'], ['next_state/memory']),
        ]
    nodes += [
        helper.make_node('Concat', parts, ['all'], axis=1),
        helper.make_node('MatMul', ['all', 'w1'], ['z1']),
        helper.make_node('Tanh', ['z1'], ['h1']),
        helper.make_node('MatMul', ['h1', 'w2'], ['z2']),
        helper.make_node('Tanh', ['z2'], ['h2']),
        helper.make_node('Mul', ['h2', 'scale'], ['scaled']),
        helper.make_node('Add', ['scaled', 'middle'], ['action']),
    ]
    constants = [
        numpy_helper.from_array(values.astype(np.float32), key)
        for key, values in weights.items()
        if values.size
    ]
    graph = helper.make_graph(nodes, 'policy', inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    card = card or PolicyCard(
        id=f'random-{seed}', contract=contract, recurrent_state=(state,) if state else ()
    )
    helper.set_model_props(model, card.to_metadata())
    return model


def _read(field: str) -> list[onnx.NodeProto]:
    """Make 'flat/<field>' of a field: floats, in units of '<field>/unit', in one row."""
    flat = f'flat/{field}'
    return [
        helper.make_node('Cast', [field], [f'{flat}/cast'], to=TensorProto.FLOAT),
        helper.make_node('Mul', [f'{flat}/cast', f'{field}/unit'], [f'{flat}/unit']),
        helper.make_node('Flatten', [f'{flat}/unit'], [flat], axis=1),
    ]


def _tensor(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ['B', size])
