"""Policies leave as one ONNX file that knows its contract, and are checked against the module."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from robot_rl.errors import PolicyFileError
from robot_rl.policies.policy import Policy
from robot_rl.specs import Contract, PolicyCard

# The operator set that torch's exporter writes without conversion.
OPSET = 18
# Largest difference between module and file, relative to the range of each action.
TOLERANCE = 1e-5
# How large the inputs of the comparison are, from nothing to nonsense.
_SIZES = (0.0, 0.1, 1.0, 10.0, 1e3, 1e6)


class _Flat(nn.Module):
    """The policy with positional tensors in place of dictionaries, as ONNX has them."""

    def __init__(self, policy: Policy, card: PolicyCard):
        super().__init__()
        self.policy = policy
        self.fields = [field.name for field in card.contract.observation]
        self.states = [field.name for field in card.recurrent_state]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        observation = dict(zip(self.fields, tensors, strict=False))
        state = dict(zip(self.states, tensors[len(self.fields) :], strict=True))
        action, following = self.policy(observation, state)
        return action, *(following[name] for name in self.states)


def export_onnx(policy: Policy, card: PolicyCard, path: str | Path) -> Path:
    """Write `policy` with its card as one ONNX file at `path`, checked against the module.

    Inputs are the observation fields by name, [B, *shape], and state/<name>; outputs are action
    [B, A] and next_state/<name>; B is free. The file appears whole or not at all. Raises
    PolicyFileError where ONNX Runtime does not give the module's numbers.
    """
    path = Path(path)
    card = card.replace(opset=OPSET)
    # A copy: the learner's own goes on learning, wherever it is.
    policy = copy.deepcopy(policy).cpu().eval()
    model = _graph(policy, card)
    for key, value in card.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    partial = path.with_name(path.name + '.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(model.SerializeToString())
        check_parity(partial, policy, card)
        os.replace(partial, path)
    except OSError as error:
        raise PolicyFileError(f'{path}: cannot be written ({error.strerror})') from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def check_parity(path: str | Path, policy: Policy, card: PolicyCard) -> float:
    """Compare ONNX Runtime with the module on random and extreme inputs, in batches of 1 and 7.

    Returns the largest difference, for actions relative to their range, for states to their size
    where that is above 1. Raises PolicyFileError where it exceeds TOLERANCE or is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        Path(path).read_bytes(), options, providers=['CPUExecutionProvider']
    )
    flat, rng, worst = _Flat(policy, card), np.random.default_rng(0), 0.0
    span = _resolved_span(card.contract)
    for batch, size in itertools.product((1, 7), _SIZES):
        inputs = {i.name: i.random(rng, batch, size) for i in _inputs(card)}
        with torch.no_grad():
            right = [output.numpy() for output in flat(*map(torch.from_numpy, inputs.values()))]
        found = session.run(None, inputs)
        scales = [span, *(np.abs(state).clip(min=1.0) for state in right[1:])]
        error = max(
            float(np.abs((f - r) / scale).max())
            for f, r, scale in zip(found, right, scales, strict=True)
        )
        if not error <= TOLERANCE:  # written so that NaN fails as well
            raise PolicyFileError(
                f'{path}: ONNX Runtime and torch differ by {error:.1e} of the action range on '
                f'inputs of size {size:g}; at most {TOLERANCE:g} is right'
            )
        worst = max(worst, error)
    return worst


def _resolved_span(contract: Contract) -> np.ndarray:
    """Return the range of each action [A], widened where float32 does not resolve TOLERANCE of it.

    Between 4.99 and 5, say, there are some 20,000 floats, and two roundings differ by one of them.
    """
    lower, upper = contract.action_lower, contract.action_upper
    step = np.spacing(np.maximum(np.abs(lower), np.abs(upper)).astype(np.float32))
    return (upper - lower + 2 * step / TOLERANCE).astype(np.float32)


class _Input(NamedTuple):
    """An input of the graph: an observation field, or a recurrent state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_state: bool

    def random(self, rng: np.random.Generator, batch: int, size: float) -> np.ndarray:
        """Return [batch, *shape] of numbers of about `size`, or of any pixels."""
        shape = (batch, *self.shape)
        if self.dtype == 'uint8':
            return rng.integers(256, size=shape, dtype=np.uint8)
        # A state is what the policy itself gave out: it does not come in nonsense sizes.
        return np.float32(rng.standard_normal(shape) * (min(size, 1) if self.is_state else size))


def _inputs(card: PolicyCard) -> list[_Input]:
    """Return the graph's inputs in their order."""
    fields = [_Input(f.name, f.full_shape, f.dtype, False) for f in card.contract.observation]
    states = card.recurrent_state
    return fields + [_Input(f'state/{f.name}', f.shape, 'float32', True) for f in states]


def _graph(policy: Policy, card: PolicyCard) -> onnx.ModelProto:
    """Trace the policy."""
    inputs = _inputs(card)
    batch = torch.export.Dim('batch')
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Flat(policy, card),
            tuple(torch.zeros(2, *i.shape, dtype=getattr(torch, i.dtype)) for i in inputs),
            dynamo=True,  # by name: the default exporter has changed between versions of torch
            opset_version=OPSET,
            input_names=[i.name for i in inputs],
            output_names=['action', *(f'next_state/{f.name}' for f in card.recurrent_state)],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            verbose=False,
        )
    model = program.model_proto
    # The exporter notes its callers beside every node: paths that are nobody else's business.
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField('metadata_props')
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the exporter's remarks on packages that nobody asked for."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
