"""Perturbations: what is done to the twin's scene to see how robust a policy is.

What comes in an episode is drawn from its seed by itself: the same seed is perturbed in the same
way, and its initial condition is what it is without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from robot_rl.errors import SpecError
from robot_rl.sim.randomisation import generator
from robot_rl.sim.task import ArmTask

# 'target': goals are moved to where another episode has them; 'knock': an object is given a push
# sideways; 'camera': each camera stands elsewhere, from the episode's start on.
Kind = Literal['none', 'target', 'knock', 'camera']

# When it comes, in shares of the episode.
_WHEN = 0.2, 0.5
# In which a goal is led to its new place, as a hand would [s].
_MOVE_S = 0.5
# By which an object becomes faster [m/s].
_KNOCK = 0.3, 0.8
# Of each camera [m], [rad].
_SHIFT, _TURN = (0.02, 0.05), (0.02, 0.06)
# Of the episodes that have the places where goals are moved to: those of training.
_SEEDS = 2**31


class Event(NamedTuple):
    """What happens in one episode."""

    # Seconds after its start.
    at_s: float = 0.0
    # By how much goals are moved, {stream: [3]} [m], in _MOVE_S.
    moved: Mapping[str, np.ndarray] = {}
    # How much faster objects become at once, {stream: [3]} [m/s].
    knocked: Mapping[str, np.ndarray] = {}

    def displacement(self, stream: str, elapsed_s: float) -> np.ndarray:
        """Return how far [3] [m] a goal has been moved so long after the start."""
        share = np.clip((elapsed_s - self.at_s) / _MOVE_S, 0.0, 1.0)
        return share * self.moved.get(stream, np.zeros(3))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        ways = {'moved': self.moved, 'knocked': self.knocked}
        lists = {name: {k: way.tolist() for k, way in of.items()} for name, of in ways.items()}
        return {'at_s': self.at_s} | lists


def perturbed(task: ArmTask, kind: Kind) -> ArmTask:
    """Return the task whose worlds are those of a perturbation, as far as its model tells.

    Raises SpecError where the scene has nothing that could be perturbed so.
    """
    if kind == 'none':
        return task
    lacks = {
        'target': None if task.goals else 'goal',
        'knock': None if task.objects else 'object',
        'camera': None if task.model().ncam else 'camera',
    }
    if lacks[kind]:
        fitting = ', '.join(name for name, lacking in lacks.items() if not lacking)
        raise SpecError(
            f'perturbation {kind}: task {task.name} has no {lacks[kind]}; it can be perturbed by '
            f'{fitting}'
        )
    if kind != 'camera':
        return task
    config = task.config
    shifted = config.randomisation.replace(camera_shift=_SHIFT, camera_turn=_TURN)
    return type(task)(config.replace(randomisation=shifted))


def drawn(task: ArmTask, kind: Kind, seed: int) -> Event:
    """Return what happens in the episode of this seed; with 'none' and 'camera' nothing does."""
    if kind not in ('target', 'knock'):
        return Event()
    rng = generator(seed, f'perturbation/{kind}')
    at_s = task.config.duration_s * rng.uniform(*_WHEN)
    if kind == 'target':
        here, there = task.initial(seed).poses, task.initial(int(rng.integers(_SEEDS))).poses
        return Event(at_s, {g: there[g].position - here[g].position for g in task.goals})
    stream, angle = task.objects[rng.integers(len(task.objects))], rng.uniform(0.0, 2 * np.pi)
    sideways = np.array([np.cos(angle), np.sin(angle), 0.0])
    return Event(at_s, knocked={stream: rng.uniform(*_KNOCK) * sideways})
