"""The training loop: act, remember, learn, evaluate, save."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl import registry
from robot_rl.errors import RobotRLError, SpecError, StorageError
from robot_rl.imitation.data import write_demonstrations
from robot_rl.imitation.early_stopping import StoppingEnvironment
from robot_rl.imitation.gail import DiscriminatorConfig, Judged, acted_by
from robot_rl.imitation.trail import Constrained
from robot_rl.policies.agent import OffPolicyConfig, return_bounds
from robot_rl.policies.export import export_onnx
from robot_rl.policies.policy import Policy
from robot_rl.resources import git_revision
from robot_rl.sim.environment import Environment, StepType, TimeStep
from robot_rl.sim.task import ArmTask
from robot_rl.specs import Contract, PolicyCard
from robot_rl.storage.shards import PARTIAL, ShardedSteps
from robot_rl.storage.store import Store
from robot_rl.training.checkpoint import load_checkpoint, save_checkpoint
from robot_rl.training.config import RunConfig
from robot_rl.training.evaluation import evaluate, held_out_seeds, task_of
from robot_rl.training.logs import METRICS, MetricsLog, ProgressBar, read_metrics
from robot_rl.training.state import make_learner, make_state

CONFIG, CHECKPOINT, POLICY = 'config.yaml', 'checkpoint.pt', 'policy.onnx'
DEMOS = '.demos'
_BAR_EVERY = 500  # environment steps; drawing the bar costs more than a step
_WORTH_A_WORKER = 8  # environments: the hand-over is then a small part of a step
_EDGE_MASS = 0.05  # of probability at an end of the support that is worth a warning


class Trainer:
    """One run in one folder, from its beginning or from the checkpoint that lies there.

    The folder gets config.yaml, metrics.jsonl, tensorboard/, checkpoint.pt, policy.onnx and,
    where asked for, policies/step-<steps>.onnx and .demos/, the demonstrations as they were when
    the run began; `refused(reason)` is called for each of those that cannot be used. Raises
    SpecError where the folder holds a run of another config, and StorageError where it cannot be
    written.
    """

    def __init__(
        self, config: RunConfig, folder: Path, refused: Callable[[str], None] = lambda reason: None
    ):
        self.folder, self.finished = folder, False
        self._task = task_of(config.task)
        if config.training.stop_at_success is not None and self._task is None:
            raise SpecError(f'training.stop_at_success: {config.task} defines rewards, no success')
        self._held_out = _environment(config, config.training.evaluation_episodes)
        self.config = config = config.with_support(self._held_out.reward_range)
        self._contract = contract = config.seen(self._held_out.contract)
        _require_fields_to_act_by(config, contract, self._task)
        saved = self._load()
        demonstrations = self._demonstrations(contract, refused, begun=bool(saved))
        self.state = make_state(config, contract, demonstrations)
        if config.init and not saved:
            self.state.learner.start_from(load_policy_state(Path(config.init)))
        self._clock, self._warned = _Clock(), set()
        self._best: dict[str, Any] = {}
        self._revisions = [git_revision()]  # of the code, one for each time that the run went on
        if saved:
            self._restore(saved)
        # A run that goes on draws episodes that it has not seen yet.
        seeds = np.random.SeedSequence([config.seed, self.state.env_steps])
        self._environment = self._make_environment(int(seeds.generate_state(1)[0]))
        self._returns = _Returns(config.training.num_envs)

    @property
    def complete(self) -> bool:
        """Whether the folder holds a policy of as many steps as are asked for, or of more."""
        enough = self.state.steps >= self.config.steps
        return enough and (self.folder / POLICY).is_file()

    def run(self) -> bool:
        """Train until the end or a signal (SIGINT, SIGTERM), save; tell whether the end came.

        A folder that is complete is left as it is.

        Raises RobotRLError where the learning diverges; the last checkpoint is left alone then.
        """
        torch.set_num_threads(self.config.training.threads)
        with contextlib.ExitStack() as stack:
            for environment in {self._environment, self._held_out}:
                stack.callback(environment.close)
            if self.complete:
                return True
            self._write_config()
            self._log = MetricsLog(self.folder, self.state.steps, self.state.counted)
            stack.callback(self._log.close)
            self._bar = stack.enter_context(ProgressBar(self.config.task, self.config.steps))
            stop = stack.enter_context(_stop_on_signals())
            self._loop(stop)
            # In this order: a checkpoint of all steps means that their policy is there.
            self._export_chosen()
            self.save()
        return self.finished

    def save(self) -> None:
        """Write the checkpoint."""
        data = {
            'config': self.config.to_json(),
            'contract': self._contract.to_json(),  # what is learned from; a policy may see less
            'finished': self.finished,
            'steps': self.state.steps,
            'best': self._best,
            'revisions': self._revisions,
            'wall_s': self._clock.wall_s,
            'state': self.state.save(),
        }
        save_checkpoint(self.folder / CHECKPOINT, data)

    def export(self, path: Path) -> None:
        """Write the present policy as an ONNX file with its card."""
        policy, steps = self.state.learner.policy, self.state.steps
        export_policy(self.config, policy, steps, self._revisions, self.folder, path)

    def _export_chosen(self) -> None:
        """Write the run's policy: the present one, or the best of those that were evaluated."""
        if self.config.training.keep == 'last' or not self._best:
            self.export(self.folder / POLICY)
            return
        policy = _with_parameters(self.state.learner.policy, self._best['policy'])
        steps = self._best['steps']
        export_policy(
            self.config, policy, steps, self._revisions, self.folder, self.folder / POLICY
        )

    def _load(self) -> dict[str, Any]:
        """Return the checkpoint in the folder, {} without one; refuse that of another run."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return {}
        data = load_checkpoint(path)
        differing = self.config.differences(RunConfig.from_json(data['config'], str(path)))
        if differing:
            raise SpecError(
                f'{self.folder}: holds a run with another {", ".join(differing)}; choose another '
                'folder, or --resume to go on with the config that lies there'
            )
        return data

    def _restore(self, data: dict[str, Any]) -> None:
        self.state.restore(data['state'])
        self._clock, self._best = _Clock(data['wall_s']), data.get('best', {})
        self._revisions = list(dict.fromkeys([*data.get('revisions', []), *self._revisions]))
        asked = RunConfig.from_json(data['config']).steps
        self.finished = data['finished'] and asked == self.config.steps

    def _demonstrations(
        self, contract: Contract, refused: Callable[[str], None], begun: bool
    ) -> ShardedSteps | None:
        """Return the demonstrations that the config asks for, as they were when the run began."""
        demos, folder = self.config.demos, self.folder / DEMOS
        if demos.query is None:
            return None
        if not (begun and folder.is_dir()):
            partial = folder.with_name(DEMOS + PARTIAL)
            for old in (folder, partial):
                shutil.rmtree(old, ignore_errors=True)
            try:
                write_demonstrations(
                    partial,
                    Store(demos.store, create=False),
                    demos.query,
                    self._task,
                    contract,
                    demos.action,
                    demos.episodes,
                    refused,
                )
                partial.rename(folder)
            except StorageError:  # which is an OSError too, and says more
                raise
            except OSError as error:
                raise StorageError(f'{folder}: cannot be written ({error.strerror})') from None
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return ShardedSteps(folder)

    def _make_environment(self, seed: int) -> Environment:
        """Return what the agent acts in, if it does; TRAIL's episodes may end early."""
        config, learner = self.config, self.state.learner
        if self.state.actor is None:
            return self._held_out
        patience = isinstance(learner, Constrained) and learner.config.patience
        if not patience:
            return _environment(config, config.training.num_envs, seed)

        def score(judged: Judged) -> np.ndarray | None:
            return learner.score(judged).cpu().numpy() if learner.steps else None

        return StoppingEnvironment(
            lambda seed: _environment(config, 1, seed),
            config.training.num_envs,
            seed,
            score,
            patience,
        )

    def _write_config(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / CONFIG).write_text(self.config.to_yaml(), encoding='utf-8')
        except OSError as error:
            raise StorageError(f'{self.folder}: cannot be written ({error.strerror})') from None

    def _loop(self, stop: threading.Event) -> None:
        if self.state.steps == 0:
            self._export_snapshots(before=-1)
        advance = self.state.learn if self.state.actor is None else self._acting()
        self._clock.start(**self._counts())
        while not (self.finished or stop.is_set()):
            before = self.state.steps
            advance()
            self._do_what_is_due(before)

    def _acting(self) -> Callable[[], None]:
        """Begin episodes; return what takes one step of them and learns."""
        actor, environment = self.state.actor, self._environment
        timestep = environment.reset()
        memory = actor.observe_first(timestep)

        def advance() -> None:
            nonlocal timestep, memory
            action, memory, extras = actor.select(timestep.observation, memory)
            timestep = environment.step(action)
            memory = actor.observe(action, extras, timestep, memory)
            actor.update()
            self._returns.add(timestep)

        return advance

    def _do_what_is_due(self, before: int) -> None:
        """Evaluate, export and save at the steps that the config names, and at the end."""
        training, now = self.config.training, self.state.steps

        def crossed(every: int) -> bool:
            return now // every > before // every

        self.finished = now >= self.config.steps
        if crossed(training.evaluate_every) or self.finished:
            self._evaluate()
        self._export_snapshots(before)
        if crossed(training.checkpoint_every) and not self.finished:
            self.save()
        if crossed(_BAR_EVERY):
            self._bar.show(now)

    def _export_snapshots(self, before: int) -> None:
        """Write the policies asked for since `before`, named by the step that was asked for."""
        for step in self.config.training.snapshots:
            if before < step <= self.state.steps:
                self.export(self.folder / 'policies' / f'step-{step:08d}.onnx')

    def _evaluate(self) -> None:
        """Run the held-out episodes, write a row of metrics, and end the run if that is enough."""
        training, state = self.config.training, self.state
        counts = self._counts()
        rates = self._clock.rates(**counts)
        seeds = held_out_seeds(training.evaluation_episodes)
        result = evaluate(state.learner.policy, self._held_out, seeds, self._task)
        row = counts | {
            'wall_s': round(self._clock.wall_s, 3),
            'eval_return_mean': float(result.returns.mean()),
            'eval_return_std': float(result.returns.std()),
            'updates_per_s': rates['learner_steps'],
            'env_steps_per_s': rates['env_steps'],
            'load_average': round(os.getloadavg()[0], 2),
        }
        row |= {f'eval_{name}': value for name, value in result.judged().items()}
        row |= self._returns.take() | self._drawn()
        row |= {name: float(value) for name, value in state.metrics.items()}
        self._require_finite(row)
        self._warn_of_edges(row)
        self._warn(state.learner.remarks(row))
        self._remember_if_best(row)
        self._log.write(row)
        self._bar.show(state.steps)
        self._bar.note(f'return {row["eval_return_mean"]:.1f}')
        enough = training.stop_at_success
        self.finished |= enough is not None and row.get('eval_success_rate', 0.0) >= enough
        self._clock.start(**counts)

    def _warn_of_edges(self, row: dict[str, Any]) -> None:
        """Say once of either end of the critic's support that probability gathers there.

        No return lies beyond a bound that the task's rewards set: mass there is as it should be.
        """
        settings = self.state.settings
        rewards = self.config.reward_range(self._held_out.reward_range)
        bounds = return_bounds(rewards, settings.discount) or (None, None)
        for name, bound in zip(('v_min', 'v_max'), bounds, strict=True):
            mass = row.get(f'mass_at_{name}', 0.0)
            end = getattr(settings, name, None)
            at_bound = bound is not None and end is not None and math.isclose(end, bound)
            if mass > _EDGE_MASS and not at_bound:
                told = (
                    f"learner.{name}: {mass:.0%} of the probability in the critic's targets sits "
                    f'at this end of its support, {end:g}; farther out is right, unless no return '
                    'can be so large'
                )
                self._warn({name: told})

    def _warn(self, remarks: dict[str, str]) -> None:
        """Say each of `remarks` {subject: line} once."""
        for subject, line in remarks.items():
            if subject not in self._warned:
                self._warned.add(subject)
                self._bar.warn(line)

    def _drawn(self) -> dict[str, float]:
        """Return what part of the batches was demonstrations, and how many episodes ended early.

        The latter since it was last asked for.
        """
        drawn = {} if self.state.actor is None else self.state.fractions()
        if isinstance(self._environment, StoppingEnvironment):
            drawn['stopped_early'] = self._environment.stopped
            self._environment.stopped = 0
        return drawn

    def _remember_if_best(self, row: dict[str, Any]) -> None:
        """Keep the present policy if it did better than all before: successes, then return."""
        if self.config.training.keep == 'last':
            return
        score = [row.get('eval_success_rate', 0.0), row['eval_return_mean']]
        if not self._best or score > self._best['score']:
            parameters = copy.deepcopy(self.state.learner.policy.state_dict())
            self._best = {'score': score, 'steps': self.state.steps, 'policy': parameters}

    def _counts(self) -> dict[str, int]:
        return {'env_steps': self.state.env_steps, 'learner_steps': self.state.learner.steps}

    def _require_finite(self, row: dict[str, Any]) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise RobotRLError(
                f'{self.folder}: not finite after {self.state.steps} steps: '
                f'{", ".join(wrong)}; a lower learning rate or smaller rewards would be right'
            )


def export_policy(
    config: RunConfig,
    policy: Policy,
    steps: int,
    revisions: Sequence[str],
    folder: Path,
    path: Path,
) -> None:
    """Write `policy` of the run in `folder` as an ONNX file, its card with the last evaluation.

    `steps` of the run made it; `revisions` are those of the code that trained it.
    """
    alone = not isinstance(config.learner_config(), OffPolicyConfig)
    counted = 'learner_steps' if alone else 'env_steps'
    rows, task = read_metrics(folder / METRICS), task_of(config.task)
    name = f'{config.task}-{config.agent}-seed{config.seed}-step{steps}'
    card = PolicyCard(
        id=name.replace('/', '-'),
        contract=policy.contract,
        recurrent_state=policy.recurrent_state,
        task=config.task,
        robot=task.robot.name if task else '',
        agent=config.agent,
        git_revision=', '.join(revisions),
        training={
            'seed': config.seed,
            counted: steps,
            'last_evaluation': _last_until(rows, counted, steps),
        },
    )
    export_onnx(policy, card, path)


def export_checkpoint(folder: Path, path: Path) -> None:
    """Write the policy of the checkpoint in `folder` as an ONNX file. Raises StorageError."""
    source = folder / CHECKPOINT
    data = load_checkpoint(source)
    config = RunConfig.from_json(data['config'], str(source))
    here = config.replace(training=config.training.to_dict() | {'device': 'cpu'})
    learner = make_learner(here, Contract.from_json(data['contract'], str(source)))
    learner.restore_policy(data['state']['learner'])
    best = data.get('best') if config.training.keep == 'best' else None
    steps, policy = data.get('steps'), learner.policy
    if steps is None:  # of before there were agents that do not act
        steps = data['state']['replay']['inserted']
    if best:
        steps, policy = best['steps'], _with_parameters(policy, best['policy'])
    revisions = data.get('revisions', [git_revision()])
    export_policy(config, policy, steps, revisions, folder, path)


def load_policy_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters of the policy of a run: its folder, or its checkpoint.

    Of a run that keeps the best one it is that. Raises StorageError.
    """
    if path.suffix == '.onnx':
        raise StorageError(
            f'{path}: a policy file acts and does not go on learning; the folder of the run that '
            'made it, or its checkpoint.pt, is right'
        )
    source = path / CHECKPOINT if path.is_dir() else path
    data = load_checkpoint(source)
    if data.get('best'):
        return data['best']['policy']
    config = RunConfig.from_json(data['config'], str(source))
    here = config.replace(training=config.training.to_dict() | {'device': 'cpu'})
    learner = make_learner(here, Contract.from_json(data['contract'], str(source)))
    learner.restore_policy(data['state']['learner'])
    return learner.policy.state_dict()


def _with_parameters(policy: Policy, parameters: dict[str, torch.Tensor]) -> Policy:
    """Return a copy of `policy` with other parameters."""
    copied = copy.deepcopy(policy)
    copied.load_state_dict(parameters)
    return copied


def _last_until(rows: list[dict[str, Any]], counted: str, steps: int) -> dict[str, Any]:
    """Return the last row of metrics up to `steps`."""
    known = [row for row in rows if row[counted] <= steps]
    return known[-1] if known else {}


def _require_fields_to_act_by(config: RunConfig, seen: Contract, task: ArmTask | None) -> None:
    """Raise SpecError where pictures for the discriminator leave too little to act by.

    An arm's task shows pictures in the place of poses, if its file does not say otherwise.
    """
    learner = config.learner_config()
    if not isinstance(learner, DiscriminatorConfig) or learner.pictures_for == 'all':
        return
    left = acted_by(seen, learner).observation_shapes
    poses = task.seeing('poses').contract().observation_shapes if task else {}
    if missing := [name for name in poses if name not in (*left, *config.hide)]:
        raise SpecError(
            f'learner.pictures_for: discriminator, but {config.task} shows pictures in the place '
            f'of {", ".join(missing)}, and the policy would act without; a file of this task with '
            "'sees: both' is right (docs/train_in_simulation.md)"
        )


def _environment(config: RunConfig, num_envs: int, seed: int = 0) -> Environment:
    workers = _workers(config, num_envs)
    options = config.view() | ({'workers': workers} if workers else {})
    return registry.make_environment(config.task, num_envs=num_envs, seed=seed, **options)


def _workers(config: RunConfig, num_envs: int) -> int:
    """Return how many processes step `num_envs` environments; 0: this one does."""
    if config.training.workers is not None:
        return config.training.workers
    # Drawing takes longer than any hand-over.
    drawn = config.cameras or config.pixels_only or config.task.endswith(registry.VISION)
    worth = 1 if drawn else _WORTH_A_WORKER
    enough = min(len(os.sched_getaffinity(0)), num_envs // worth)
    return enough if enough > 1 else 0


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; the second acts as ever."""
    stop, previous = threading.Event(), {}

    def on_signal(number: int, frame: object) -> None:
        # Saving may wait for an evaluation. Not print: it may be what the signal interrupted.
        os.write(2, b'\nrobot-rl: stopping and saving\n')
        stop.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Returns:
    """Returns of the training episodes that ended since the last row of metrics."""

    def __init__(self, num_envs: int):
        self._running, self._ended = np.zeros(num_envs), []

    def add(self, timestep: TimeStep) -> None:
        self._running = np.where(timestep.step_type == StepType.FIRST, 0, self._running)
        self._running += timestep.reward
        self._ended += self._running[timestep.step_type == StepType.LAST].tolist()

    def take(self) -> dict[str, float]:
        """Return their mean, if there are any, and forget them."""
        ended, self._ended = self._ended, []
        return {'train_return_mean': float(np.mean(ended))} if ended else {}


class _Clock:
    """Seconds of the whole run, resumptions included, and rates of counters."""

    def __init__(self, before_s: float = 0.0):
        self._origin = time.monotonic() - before_s

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._origin

    def start(self, **counts: int) -> None:
        self._since, self._counts = time.monotonic(), counts

    def rates(self, **counts: int) -> dict[str, float]:
        """Return each counter's growth a second since `start`."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        return {
            name: round((count - self._counts[name]) / seconds, 2)
            for name, count in counts.items()
        }
