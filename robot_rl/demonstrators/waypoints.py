"""A demonstrator that goes from one waypoint to the next, and begins anew where it has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from robot_rl.demonstrators.demonstrator import Arrays, Demonstrator, Move, View

# A turn that is near enough [rad].
_ALIGNED = 0.05


# How far from where it is commanded to be the tool may be where it is to come down; and the
# farthest that it aims at where it does so slowly [m].
_SWINGING, _STRIDE_DOWN = 0.006, 0.025


class Waypoint(NamedTuple):
    """A place, given by the way there from what is seen, and how near is there."""

    move: Callable[[View], Move]
    within: float = 0.01  # [m]
    ticks: int = 1  # for at least so many decisions
    # The tool comes down only where it is no farther aside than this [m], and not swinging.
    aside: float = np.inf
    slowly: bool = False  # so it comes down
    # Whether something is moved on the way there, which may fail.
    holding: bool = False


class WaypointDemonstrator(Demonstrator):
    """Walks through `waypoints`; the last one stays. Whoever has failed goes back some."""

    waypoints: tuple[Waypoint, ...]

    def initial_state(self, batch: int) -> Arrays:
        """Return what is remembered of an episode that begins."""
        counts = {name: np.zeros(batch, int) for name in ('stage', 'ticks')}
        return super().initial_state(batch) | counts

    def _move(self, view: View, state: Arrays) -> tuple[Move, Arrays]:
        holding = np.array([point.holding for point in self.waypoints])[state['stage']]
        failed, back = self._failed(view)
        again = holding & failed
        stage = np.where(again, back, state['stage'])
        ticks = np.where(again, 0, state['ticks']) + 1
        moves = [self._full(point.move(view), len(stage)) for point in self.waypoints]
        lanes = np.arange(len(stage))
        move = Move(*(np.stack(parts)[stage, lanes] for parts in zip(*moves, strict=True)))
        within, wanted, aside, slowly, _ = np.array([point[1:] for point in self.waypoints])[
            stage
        ].T
        there = (np.linalg.norm(move.way, axis=1) <= within) & (view.lag <= within)
        there &= (np.abs(move.turn) <= _ALIGNED) & (ticks >= wanted)
        there &= stage < len(self.waypoints) - 1
        following = {'stage': stage + there, 'ticks': np.where(there, 0, ticks)}
        way = _lowered(view, move.way, aside, slowly > 0)
        return move._replace(way=way), {**state, **following}

    def _failed(self, view: View) -> tuple[np.ndarray, np.ndarray | int]:
        """Tell who does not hold any more what it should [B], and with which waypoint to go on."""
        raise NotImplementedError

    @staticmethod
    def _full(move: Move, batch: int) -> Move:
        return Move(move.way, *(np.broadcast_to(part, batch) for part in move[1:]))


def _lowered(view: View, way: np.ndarray, aside: np.ndarray, slowly: np.ndarray) -> np.ndarray:
    """Return ways [B, 3] that come down only over the place, and some slowly; see Waypoint."""
    off = np.linalg.norm(way[:, :2], axis=1) > aside
    swings = np.linalg.norm((view.tool - view.measured)[:, :2], axis=1) > _SWINGING
    waits = off | (swings & np.isfinite(aside))
    lowest = np.where(waits, 0.0, np.where(slowly, -_STRIDE_DOWN, -np.inf))
    return np.column_stack([way[:, :2], np.maximum(way[:, 2], lowest)])
