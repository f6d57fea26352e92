"""Policies beside the arm: an ONNX file, or random or constant actions, behind one protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

from robot_rl import resources
from robot_rl.control.shelf import RESERVED, PolicyShelf
from robot_rl.errors import ContractMismatch, PolicyFileError, UnknownName
from robot_rl.specs import Contract, PolicyCard

Arrays = dict[str, np.ndarray]
Selection = tuple[np.ndarray, Arrays]  # action [B, A], next recurrent state

BUILT_IN = 'random', 'constant'
_WARM_UP_CALLS = 3  # the first calls cost some twenty times the later ones
_ONNX_TYPES = {'float32': 'tensor(float)', 'uint8': 'tensor(uint8)'}
_FATAL = 4  # onnxruntime's log level: what goes wrong is raised, and not printed as well


class Policy(Protocol):
    """(observation, state) -> (action, state), over a batch of B."""

    card: PolicyCard
    # Whether select() depends on nothing but what it is given, and so may be called in vain.
    is_pure: bool

    @property
    def contract(self) -> Contract:
        """What the policy sees and commands."""
        ...

    def initial_state(self, batch: int) -> Arrays:
        """Return the recurrent state {name: [B, *shape]} at the start of an episode."""
        ...

    def select(self, observation: Mapping[str, np.ndarray], state: Arrays) -> Selection:
        """Map {field: [B, *full_shape]} and the state to (action [B, A] float32, next state).

        The action is in contract units. Raises a RobotRLError for an observation that is not of
        the contract's shapes and for non-finite numbers, going in or coming out.
        """
        ...


class _Stateless:
    """What the policies without a file have in common."""

    def __init__(self, name: str, contract: Contract):
        self.card = PolicyCard(id=name, contract=contract, agent=name)

    @property
    def contract(self) -> Contract:
        return self.card.contract

    def initial_state(self, batch: int) -> Arrays:
        return {}


class RandomPolicy(_Stateless):
    """Actions drawn uniformly from between the contract's bounds."""

    is_pure = False

    def __init__(self, contract: Contract, seed: int = 0):
        super().__init__('random', contract)
        self._rng = np.random.default_rng(seed)

    def select(self, observation: Mapping[str, np.ndarray], state: Arrays) -> Selection:
        """Return a random action [B, A] and the state as it was."""
        size = (
            _batch_size(self.contract.observation_shapes, observation),
            self.contract.action_size,
        )
        lower, upper = self.contract.action_lower, self.contract.action_upper
        return self._rng.uniform(lower, upper, size).astype(np.float32), state


class ConstantPolicy(_Stateless):
    """Always the middle between the contract's bounds: with symmetric joint_delta, no motion."""

    is_pure = True

    def __init__(self, contract: Contract):
        super().__init__('constant', contract)
        middle = (contract.action_lower + contract.action_upper) / 2
        self._action = middle.astype(np.float32)

    def select(self, observation: Mapping[str, np.ndarray], state: Arrays) -> Selection:
        """Return the constant action [B, A] and the state as it was."""
        return np.tile(
            self._action, (_batch_size(self.contract.observation_shapes, observation), 1)
        ), state


class OnnxPolicy:
    """A policy file: one ONNX graph that carries its PolicyCard.

    Inputs are the contract's observation fields and 'state/<name>', outputs are 'action' and
    'next_state/<name>', each with a free batch axis in front. Runs on one CPU thread that never
    spins. Raises PolicyFileError for a file that is missing, damaged, foreign, or whose graph is
    not what its card says.
    """

    is_pure = True

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._session = _open(self.path)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.card = PolicyCard.from_metadata(metadata, str(self.path))
        self._require_graph()
        self._shapes = self.contract.observation_shapes  # looked up once: select is called often
        self._warm_up()

    @property
    def contract(self) -> Contract:
        """What the policy sees and commands."""
        return self.card.contract

    def initial_state(self, batch: int) -> Arrays:
        """Return the card's initial state for every one of `batch` lanes."""
        state = {}
        for field in self.card.recurrent_state:
            one = np.asarray(field.initial, np.float32).reshape(field.shape)
            state[field.name] = np.repeat(one[None], batch, axis=0)
        return state

    def select(self, observation: Mapping[str, np.ndarray], state: Arrays) -> Selection:
        """Return the action [B, A] in contract units, and the next state."""
        batch = _batch_size(self._shapes, observation)
        for field in self.contract.observation:
            if not np.isfinite(observation[field.name]).all():
                raise ContractMismatch(f'observation {field.name}: holds NaN or infinite values')
        outputs = self._run(observation, state)
        action, size = outputs.pop('action'), (batch, self.contract.action_size)
        if action.shape != size:
            raise PolicyFileError(f'{self.path}: action of shape {action.shape}, right is {size}')
        for name, values in (('action', action), *outputs.items()):
            if not np.isfinite(values).all():
                raise PolicyFileError(f'{self.path}: {name} holds NaN or infinite values')
        return action, {name.removeprefix('next_state/'): v for name, v in outputs.items()}

    def _run(self, observation: Mapping[str, np.ndarray], state: Arrays) -> Arrays:
        feed = {
            field.name: np.ascontiguousarray(observation[field.name], field.dtype)
            for field in self.contract.observation
        }
        feed |= {f'state/{name}': values for name, values in state.items()}
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:  # onnxruntime's errors share no narrower base
            raise PolicyFileError(f'{self.path}: cannot be run: {_one_line(error)}') from None
        return dict(zip(self._outputs, outputs, strict=True))

    def _require_graph(self) -> None:
        """Compare the graph's inputs and outputs with the card, names, shapes and types."""
        contract, state = self.contract, self.card.recurrent_state
        inputs = {f.name: (f.full_shape, _ONNX_TYPES[f.dtype]) for f in contract.observation}
        inputs |= {f'state/{f.name}': (f.shape, 'tensor(float)') for f in state}
        outputs = {'action': ((contract.action_size,), 'tensor(float)')}
        outputs |= {f'next_state/{f.name}': (f.shape, 'tensor(float)') for f in state}
        for kind, expected, found in (
            ('input', inputs, self._session.get_inputs()),
            ('output', outputs, self._session.get_outputs()),
        ):
            problems = _graph_problems(kind, expected, {node.name: node for node in found})
            if problems:
                raise PolicyFileError(
                    f'{self.path}: the graph is not what its card says: ' + '; '.join(problems)
                )
        self._outputs = list(outputs)

    def _warm_up(self) -> None:
        zeros = {
            field.name: np.zeros((1, *field.full_shape), field.dtype)
            for field in self.contract.observation
        }
        for _ in range(_WARM_UP_CALLS):
            self._run(zeros, self.initial_state(1))


def load_policy(
    name_or_path: str | Path, contract: Contract | None = None, seed: int = 0
) -> Policy:
    """Return 'random' or 'constant' for `contract`, or the policy that policy_file() finds.

    Where `contract` is given, a file must read nothing else and command the same. Raises
    UnknownName, PolicyFileError and ContractMismatch.
    """
    if str(name_or_path) in BUILT_IN:
        if contract is None:
            raise ContractMismatch(f'policy {name_or_path!r} needs the contract of a task')
        if name_or_path == 'random':
            return RandomPolicy(contract, seed)
        return ConstantPolicy(contract)
    policy = OnnxPolicy(policy_file(name_or_path))
    if contract is not None:
        _require_same_view(policy, contract)
    return policy


def policy_file(name_or_path: str | Path) -> Path:
    """Return the path of an .onnx file, or of one by its name: promoted, or in pretrained/.

    Raises UnknownName, and PolicyFileError where a promoted file is gone.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.suffix == '.onnx' or path.is_file():
        return path
    shelf, pretrained = PolicyShelf(), resources.names('pretrained', '.onnx')
    if name in shelf.names():
        return shelf.current(name)
    if name in pretrained:
        return resources.find('pretrained', name, '.onnx')
    raise UnknownName('policy', name, [*BUILT_IN, *shelf.names(), *pretrained])


def identify(name_or_path: str | Path) -> tuple[str, str]:
    """Return what a policy's name stands for now: its file and the SHA-256 of that, in hex.

    For 'random', 'constant' and 'scripted' the name itself and ''. Raises UnknownName and
    PolicyFileError.
    """
    if str(name_or_path) in RESERVED:
        return str(name_or_path), ''
    path = policy_file(name_or_path).resolve()
    try:
        return str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PolicyFileError(f'{path}: cannot be read ({error.strerror})') from None


def _batch_size(
    shapes: Mapping[str, tuple[int, ...]], observation: Mapping[str, np.ndarray]
) -> int:
    """Return B. Raises ContractMismatch where `observation` is not {field: [B, *shape]}."""
    sizes = set()
    for name, shape in shapes.items():
        if name not in observation:
            raise ContractMismatch(
                f'observation {name}: missing; found {", ".join(observation) or "none"}'
            )
        found = np.shape(observation[name])
        if len(found) != len(shape) + 1 or found[1:] != shape:
            raise ContractMismatch(
                f'observation {name}: found shape {list(found)}, '
                f'right is [B, {", ".join(map(str, shape))}]'
            )
        sizes.add(found[0])
    if len(sizes) > 1:
        raise ContractMismatch(f'observation: fields of different batch sizes {sorted(sizes)}')
    return sizes.pop()


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A spinning pool burns whole cores between two 20 Hz calls (ORT issue 11841).
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = _FATAL
    try:
        # As bytes: the file is closed again at once and can name no data outside itself.
        graph = path.read_bytes()
    except OSError as error:
        raise PolicyFileError(f'{path}: cannot be read ({error.strerror})') from None
    reason = 'not a whole ONNX file: cut short, or of another kind'
    if not graph:  # for which onnxruntime has other words
        raise PolicyFileError(f'{path}: {reason}')
    try:
        return onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
    except InvalidProtobuf:
        pass
    except Exception as error:  # onnxruntime's errors share no narrower base
        reason = f'onnxruntime {onnxruntime.__version__} cannot load it: {_one_line(error)}'
        if 'model_path must not be empty' in str(error) or 'external' in str(error):
            reason = 'its weights lie in another file; export it as one file'
    raise PolicyFileError(f'{path}: {reason}')


def _one_line(error: Exception) -> str:
    """Return the end of onnxruntime's words; they begin with its own source files."""
    text = ' '.join(str(error).split())
    return text if len(text) <= 200 else f'...{text[-197:]}'


def _graph_problems(kind: str, expected: dict[str, tuple], found: dict) -> list[str]:
    """List what of the graph's inputs or outputs is missing, too much or of another shape."""
    problems = [f'{kind} {name!r} is missing' for name in expected if name not in found]
    problems += [f'{kind} {name!r} is not in the card' for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        (shape, dtype), node = expected[name], found[name]
        dims = list(node.shape)
        free = dims and not isinstance(dims[0], int)
        fits = len(dims) == len(shape) + 1 and all(
            not isinstance(dim, int) or dim == size
            for dim, size in zip(dims[1:], shape, strict=True)
        )
        if not (free and fits and node.type == dtype):
            problems.append(
                f'{kind} {name!r} is {node.type} {dims}, right is {dtype} '
                f'[B, {", ".join(map(str, shape))}]'
            )
    return problems


def _require_same_view(policy: OnnxPolicy, contract: Contract) -> None:
    """Raise ContractMismatch where the policy reads or commands other than `contract` offers."""
    wanted, offered = policy.contract, {field.name: field for field in contract.observation}
    problems = []
    for field in wanted.observation:
        if field.name not in offered:
            problems.append(f'observation {field.name} is not there')
        elif field.full_shape != offered[field.name].full_shape:
            shape = list(offered[field.name].full_shape)
            problems.append(f'observation {field.name} is {shape}, not {list(field.full_shape)}')
        elif (field.source, field.names) != (
            offered[field.name].source,
            offered[field.name].names,
        ):
            problems.append(f'observation {field.name} comes from another source')
    if wanted.action != contract.action:
        problems.append(
            f'the actions are {list(contract.action_names)}, not {list(wanted.action_names)}'
            if wanted.action_names != contract.action_names
            else 'the actions have another kind or other bounds'
        )
    if wanted.rate_hz != contract.rate_hz:
        problems.append(f'the rate is {contract.rate_hz} Hz, not {wanted.rate_hz} Hz')
    if problems:
        task = policy.card.task or 'unknown'
        raise ContractMismatch(
            f'{policy.path}: a policy for task {task!r} does not fit here: ' + '; '.join(problems)
        )
