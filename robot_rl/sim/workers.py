"""Environments of one task in several processes, which step their shares of the batch at once.

The parent is one of them. Each other worker is a fresh interpreter: nothing is forked, and the
user's own script is not run again. Actions, seeds, observations and rewards lie in one file in
memory that all map; a socket for each worker says when a step is asked for and when it is done.
Both sides look for that for a tenth of a millisecond, as long as it takes to be woken up, and
sleep in a read from then on. A process that ends, in whatever way, closes its end: the other one
sees that at once, and nothing stays behind.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn

import numpy as np

from robot_rl import registry
from robot_rl.errors import RobotRLError
from robot_rl.sim.cameras import Scene
from robot_rl.sim.environment import Environment, TimeStep
from robot_rl.sim.serial import SeededEnvironment

# A worker is one of as many as there are cores: no library in it is to start threads of its own.
_ONE_THREAD = {
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
    'LP_NUM_THREADS': '0',  # Mesa's drawing in software
}
_STEP, _DONE, _FAILED = b'>', b'.', b'!'  # what is said on a socket while steps are taken
_ALIGNMENT = 64  # bytes, a line of a cache: where an array may begin
_AWAKE_S = 1e-4  # before who waits falls asleep: two wake-ups are a tenth of a light task's step
_PATIENCE_S = 5.0  # with a worker that is to end and is in the middle of something


class WorkerEnvironment(SeededEnvironment):
    """`num_envs` environments of a task, shared among `workers`.

    This process is one of the workers: it takes its share while the others take theirs, and so
    no core waits for a wake-up of a process that only collects.
    The steps are bit by bit those of make_environment(task, num_envs, seed) in one process.
    `options` are further ones of make_environment. Raises what that raises, and RobotRLError
    where another process ends.
    """

    def __init__(self, task: str, num_envs: int, seed: int, workers: int, **options: Any):
        workers = min(workers, num_envs)
        bounds = np.linspace(0, num_envs, workers + 1).round().astype(int).tolist()
        mine, *others = itertools.pairwise(bounds)
        file = os.memfd_create('robot_rl-environments', os.MFD_CLOEXEC)
        try:
            self._team = _Team([_start(file) for _ in others])
            with self._team.all_or_none():
                self._own = registry.make_environment(task, mine[1], **options)
                super().__init__(num_envs, self._own.contract, seed)
                os.ftruncate(file, _layout(self._own, num_envs)[1])
                self._shared = Shared(file, self._own, num_envs)
                self._team.tell([_Job(task, num_envs, share, options) for share in others])
                self._team.wait()
        finally:
            os.close(file)
        self._share = slice(*mine)
        self.max_steps, self.reward_range = self._own.max_steps, self._own.reward_range

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The present state as float64 columns '<stream>.<quantity>' -> [N, ...]."""
        return {name: values.copy() for name, values in self._shared.columns.items()}

    def take(self, action: np.ndarray, seeds: np.ndarray) -> TimeStep:
        """Take actions [N, A] within the bounds; where `seeds` [N] is not GO_ON, begin anew."""
        shared, mine = self._shared, self._share
        shared.action[:], shared.seed[:] = action, seeds
        with self._team.all_or_none():
            self._team.step()
            shared.put(mine, self._own.take(action[mine], seeds[mine]), self._own.columns)
            self._team.wait()
        return TimeStep(
            shared.step_type.copy(),
            shared.reward.copy(),
            shared.discount.copy(),
            {name: values.copy() for name, values in shared.observation.items()},
        )

    def scene(self, index: int = 0) -> Scene:
        """Return what is to be drawn of environment `index`; see Environment.scene.

        Raises RobotRLError for one that lives in another process.
        """
        if index >= self._share.stop:
            raise RobotRLError(
                f'environment {index} is in another process and cannot be drawn from here; '
                'workers=0 keeps all of them in this one'
            )
        return self._own.scene(index)

    def close(self) -> None:
        """End the other processes."""
        self._team.close()
        self._own.close()


class Shared:
    """The arrays that parent and workers share, all with a leading axis of N environments."""

    def __init__(self, file: int, environment: Environment, num_envs: int):
        places, size = _layout(environment, num_envs)
        memory = mmap.mmap(file, size)  # the arrays keep it
        arrays = {
            name: np.ndarray(shape, dtype, memory, offset)
            for name, (offset, shape, dtype) in places.items()
        }
        self.action, self.seed = arrays['action'], arrays['seed']
        self.step_type = arrays['step_type']
        self.reward, self.discount = arrays['reward'], arrays['discount']
        fields = environment.contract.observation
        self.observation = {field.name: arrays[f'observation/{field.name}'] for field in fields}
        self.columns = {name: arrays[f'column/{name}'] for name in environment.columns}

    def put(self, share: slice, step: TimeStep, columns: Mapping[str, np.ndarray]) -> None:
        """Write what the environments of a share returned, and their columns."""
        self.step_type[share] = step.step_type
        self.reward[share], self.discount[share] = step.reward, step.discount
        for name, values in step.observation.items():
            self.observation[name][share] = values
        for name, values in columns.items():
            self.columns[name][share] = values


def _layout(environment: Environment, num_envs: int) -> tuple[dict[str, tuple], int]:
    """Return {array: (offset, shape, dtype)} and the bytes of all."""
    contract = environment.contract
    arrays = {
        'action': ((contract.action_size,), 'float64'),
        'seed': ((), 'int64'),
        'step_type': ((), 'int8'),
        'reward': ((), 'float32'),
        'discount': ((), 'float32'),
    }
    arrays |= {f'observation/{f.name}': (f.full_shape, f.dtype) for f in contract.observation}
    columns = environment.columns
    arrays |= {f'column/{name}': (v.shape[1:], 'float64') for name, v in columns.items()}
    places, offset = {}, 0
    for name, (shape, dtype) in arrays.items():
        shape = (num_envs, *shape)
        places[name] = offset, shape, dtype
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, offset


class _Job(NamedTuple):
    task: str
    num_envs: int
    share: tuple[int, int]  # of the N environments: first, and the one behind the last
    options: Mapping[str, Any]


class _Worker(NamedTuple):
    process: subprocess.Popen
    connection: Connection


class _Team:
    """The other processes, as one that is told and waited for; what goes wrong ends all."""

    def __init__(self, workers: Sequence[_Worker]):
        self._workers = list(workers)
        self._ended = weakref.finalize(self, _end, self._workers)

    def tell(self, jobs: Sequence[_Job]) -> None:
        """Give each worker its job."""
        for worker, job in zip(self._workers, jobs, strict=True):
            worker.connection.send(job)

    def step(self) -> None:
        """Let all workers take a step. By a byte: pickles would take as long as all the rest."""
        for worker in self._workers:
            os.write(worker.connection.fileno(), _STEP)

    def wait(self) -> None:
        """Wait until all are done. Raises what one failed with, and EOFError at its end."""
        for worker in self._workers:
            said = _heard(worker.connection.fileno())
            if not said:
                raise EOFError
            if said == _FAILED:
                raise worker.connection.recv()

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """End all workers where something fails, or where Ctrl-C leaves answers under way."""
        if not self._ended.alive:
            raise RobotRLError('the environments are closed')
        try:
            yield
        except (EOFError, ConnectionError):
            message = self._obituary()
            self.close()
            raise RobotRLError(message) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers, those that hang too."""
        self._ended()

    def _obituary(self) -> str:
        """Say which worker has ended, and how."""
        for number, (process, _) in enumerate(self._workers):
            try:
                code = process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
            how = f'with code {code}' if code >= 0 else f'by {signal.Signals(-code).name}'
            return (
                f'environment process {number + 1} of {len(self._workers)} ended {how}; '
                'was it killed, or is there too little memory?'
            )
        return 'an environment process closed its connection'


def _start(file: int) -> _Worker:
    """Start a worker in a session of its own: Ctrl-C is the parent's to answer."""
    mine, its = socket.socketpair()
    with its:
        # Not -m: what is sent would be of the module __main__, which is another one here.
        script = f'from {__name__} import main; main({its.fileno()}, {file})'
        # -P: a folder that happens to be the present one is not searched for modules first.
        process = subprocess.Popen(
            [sys.executable, '-P', '-c', script],
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is for the answer of the command
            env=os.environ | _ONE_THREAD | {'PYTHONPATH': _search_path()},
            pass_fds=(its.fileno(), file),
            start_new_session=True,
        )
    return _Worker(process, Connection(mine.detach()))


def _heard(descriptor: int) -> bytes:
    """Return the next byte from a socket, b'' at its end."""
    ready, until = select.poll(), time.perf_counter() + _AWAKE_S
    ready.register(descriptor, select.POLLIN)
    while not ready.poll(0) and time.perf_counter() < until:
        pass
    return os.read(descriptor, 1)


def _search_path() -> str:
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _end(workers: Sequence[_Worker]) -> None:
    """Close the connections, which is what workers end at; kill those that do not."""
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        try:
            worker.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _work(connection: Connection, file: int) -> None:
    """Be a worker until the other end closes."""
    job, descriptor = connection.recv(), connection.fileno()
    first, last = job.share
    environment = registry.make_environment(job.task, last - first, **job.options)
    shared, mine = Shared(file, environment, job.num_envs), slice(first, last)
    os.write(descriptor, _DONE)
    while _heard(descriptor):
        step = environment.take(shared.action[mine].copy(), shared.seed[mine].copy())
        shared.put(mine, step, environment.columns)
        os.write(descriptor, _DONE)


def main(descriptor: int, file: int) -> NoReturn:
    """Be a worker: a process's whole life. What goes wrong is told to the other end."""
    connection = Connection(descriptor)
    try:
        _work(connection, file)
    except (EOFError, ConnectionError):
        pass  # closed, or the parent is gone
    except RobotRLError as error:
        _tell(connection, error)
    except Exception as error:  # an environment may fail in any way
        traceback.print_exc()
        what = f'in an environment process: {type(error).__name__}: {error}'
        _tell(connection, RobotRLError(what))
    sys.exit(0)


def _tell(connection: Connection, error: RobotRLError) -> None:
    with contextlib.suppress(ConnectionError):  # another worker was first
        os.write(connection.fileno(), _FAILED)
        connection.send(error)
