"""The training loop: act, remember, learn, evaluate, save."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl import registry
from robot_rl.errors import RobotRLError, SpecError, StorageError
from robot_rl.policies.agent import return_bounds
from robot_rl.policies.export import export_onnx
from robot_rl.policies.policy import Policy
from robot_rl.resources import git_revision
from robot_rl.sim.environment import Environment, StepType, TimeStep
from robot_rl.specs import Contract, PolicyCard
from robot_rl.training.checkpoint import load_checkpoint, save_checkpoint
from robot_rl.training.config import RunConfig
from robot_rl.training.evaluation import evaluate, held_out_seeds, task_of
from robot_rl.training.logs import METRICS, MetricsLog, ProgressBar, read_metrics
from robot_rl.training.state import TrainingState, make_learner

CONFIG, CHECKPOINT, POLICY = 'config.yaml', 'checkpoint.pt', 'policy.onnx'
_BAR_EVERY = 500  # environment steps; drawing the bar costs more than a step
_WORTH_A_WORKER = 8  # environments: the hand-over is then a small part of a step
_EDGE_MASS = 0.05  # of probability at an end of the support that is worth a warning


class Trainer:
    """One run in one folder, from its beginning or from the checkpoint that lies there.

    The folder gets config.yaml, metrics.jsonl, tensorboard/, checkpoint.pt, policy.onnx and,
    where asked for, policies/step-<steps>.onnx. Raises SpecError where the folder holds a run of
    another config, and StorageError where it cannot be written.
    """

    def __init__(self, config: RunConfig, folder: Path):
        self.folder, self.finished = folder, False
        self._task = task_of(config.task)
        if config.training.stop_at_success is not None and self._task is None:
            raise SpecError(f'training.stop_at_success: {config.task} defines rewards, no success')
        self._held_out = _environment(config, config.training.evaluation_episodes)
        self.config = config = config.with_support(self._held_out.reward_range)
        self.state = TrainingState(config, config.seen(self._held_out.contract))
        self._clock, self._warned = _Clock(), set()
        self._revisions = [git_revision()]  # of the code, one for each time that the run went on
        if (folder / CHECKPOINT).is_file():
            self._restore()
        # A run that goes on draws episodes that it has not seen yet.
        seeds = np.random.SeedSequence([config.seed, self.state.env_steps])
        seed = int(seeds.generate_state(1)[0])
        self._environment = _environment(config, config.training.num_envs, seed)
        self._returns = _Returns(config.training.num_envs)

    @property
    def complete(self) -> bool:
        """Whether the folder holds a policy of as many steps as are asked for, or of more."""
        enough = self.state.env_steps >= self.config.steps
        return enough and (self.folder / POLICY).is_file()

    def run(self) -> bool:
        """Train until the end or a signal (SIGINT, SIGTERM), save; tell whether the end came.

        A folder that is complete is left as it is.

        Raises RobotRLError where the learning diverges; the last checkpoint is left alone then.
        """
        torch.set_num_threads(self.config.training.threads)
        with contextlib.ExitStack() as stack:
            for environment in (self._environment, self._held_out):
                stack.callback(environment.close)
            if self.complete:
                return True
            self._write_config()
            self._log = MetricsLog(self.folder, self.state.env_steps)
            stack.callback(self._log.close)
            self._bar = stack.enter_context(ProgressBar(self.config.task, self.config.steps))
            stop = stack.enter_context(_stop_on_signals())
            self._loop(stop)
            # In this order: a checkpoint of all steps means that their policy is there.
            self.export(self.folder / POLICY)
            self.save()
        return self.finished

    def save(self) -> None:
        """Write the checkpoint."""
        data = {
            'config': self.config.to_json(),
            'contract': self.state.learner.policy.contract.to_json(),
            'finished': self.finished,
            'revisions': self._revisions,
            'wall_s': self._clock.wall_s,
            'state': self.state.save(),
        }
        save_checkpoint(self.folder / CHECKPOINT, data)

    def export(self, path: Path) -> None:
        """Write the present policy as an ONNX file with its card."""
        policy, steps = self.state.learner.policy, self.state.env_steps
        export_policy(self.config, policy, steps, self._revisions, self.folder, path)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        data = load_checkpoint(path)
        saved = RunConfig.from_json(data['config'], str(path))
        differing = self.config.differences(saved)
        if differing:
            raise SpecError(
                f'{self.folder}: holds a run with another {", ".join(differing)}; choose another '
                'folder, or --resume to go on with the config that lies there'
            )
        self.state.restore(data['state'])
        self._clock = _Clock(data['wall_s'])
        self._revisions = list(dict.fromkeys([*data.get('revisions', []), *self._revisions]))
        self.finished = data['finished'] and saved.steps == self.config.steps

    def _write_config(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / CONFIG).write_text(self.config.to_yaml(), encoding='utf-8')
        except OSError as error:
            raise StorageError(f'{self.folder}: cannot be written ({error.strerror})') from None

    def _loop(self, stop: threading.Event) -> None:
        actor, environment = self.state.actor, self._environment
        if self.state.env_steps == 0:
            self._export_snapshots(before=-1)
        timestep = environment.reset()
        memory = actor.observe_first(timestep)
        self._clock.start(**self._counts())
        while not (self.finished or stop.is_set()):
            before = self.state.env_steps
            action, memory, extras = actor.select(timestep.observation, memory)
            timestep = environment.step(action)
            memory = actor.observe(action, extras, timestep, memory)
            actor.update()
            self._returns.add(timestep)
            self._do_what_is_due(before)

    def _do_what_is_due(self, before: int) -> None:
        """Evaluate, export and save at the steps that the config names, and at the end."""
        training, now = self.config.training, self.state.env_steps

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
            if before < step <= self.state.env_steps:
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
        row |= self._returns.take()
        row |= {name: float(value) for name, value in state.metrics.items()}
        self._require_finite(row)
        self._warn_of_edges(row)
        self._log.write(row)
        self._bar.show(state.env_steps)
        self._bar.note(f'return {row["eval_return_mean"]:.1f}')
        enough = training.stop_at_success
        self.finished |= enough is not None and row.get('eval_success_rate', 0.0) >= enough
        self._clock.start(**counts)

    def _warn_of_edges(self, row: dict[str, Any]) -> None:
        """Say once of either end of the critic's support that probability gathers there.

        No return lies beyond a bound that the task's rewards set: mass there is as it should be.
        """
        settings = self.state.settings
        bounds = return_bounds(self._held_out.reward_range, settings.discount) or (None, None)
        for name, bound in zip(('v_min', 'v_max'), bounds, strict=True):
            mass = row.get(f'mass_at_{name}', 0.0)
            end = getattr(settings, name, None)
            at_bound = bound is not None and end is not None and math.isclose(end, bound)
            if mass > _EDGE_MASS and not at_bound and name not in self._warned:
                self._warned.add(name)
                self._bar.warn(
                    f"learner.{name}: {mass:.0%} of the probability in the critic's targets sits "
                    f'at this end of its support, {end:g}; farther out is right, unless no return '
                    'can be so large'
                )

    def _counts(self) -> dict[str, int]:
        return {'env_steps': self.state.env_steps, 'learner_steps': self.state.learner.steps}

    def _require_finite(self, row: dict[str, Any]) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise RobotRLError(
                f'{self.folder}: not finite after {self.state.env_steps} steps: '
                f'{", ".join(wrong)}; a lower learning rate or smaller rewards would be right'
            )


def export_policy(
    config: RunConfig,
    policy: Policy,
    env_steps: int,
    revisions: Sequence[str],
    folder: Path,
    path: Path,
) -> None:
    """Write `policy` of the run in `folder` as an ONNX file, its card with the last evaluation.

    `revisions` are those of the code that trained it.
    """
    rows, task = read_metrics(folder / METRICS), task_of(config.task)
    name = f'{config.task}-{config.agent}-seed{config.seed}-step{env_steps}'
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
            'env_steps': env_steps,
            'last_evaluation': rows[-1] if rows else {},
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
    steps = data['state']['replay']['inserted']
    revisions = data.get('revisions', [git_revision()])
    export_policy(config, learner.policy, steps, revisions, folder, path)


def _environment(config: RunConfig, num_envs: int, seed: int = 0) -> Environment:
    workers = _workers(config, num_envs)
    options = config.view() | ({'workers': workers} if workers else {})
    return registry.make_environment(config.task, num_envs=num_envs, seed=seed, **options)


def _workers(config: RunConfig, num_envs: int) -> int:
    """Return how many processes step `num_envs` environments; 0: this one does."""
    if config.training.workers is not None:
        return config.training.workers
    # Drawing takes longer than any hand-over.
    worth = 1 if config.cameras or config.pixels_only else _WORTH_A_WORKER
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
