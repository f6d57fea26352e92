"""Demonstrator of the push task: from behind the cube, towards the target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robot_rl.demonstrators.demonstrator import UP, Move, View
from robot_rl.demonstrators.waypoints import Waypoint, WaypointDemonstrator
from robot_rl.sim.task import ArmTask

# How far the arm's tip passes over the cube, and above its middle it pushes [m].
_OVER, _LOW = 0.038, 0.001
# How far behind the cube's side the tip comes down [m].
_BEHIND = 0.025
# How far the tool may be off the line through cube and target, and the cube from the target [m].
_ASTRAY, _THERE = 0.016, 0.012
# How much more the way back onto that line counts than the way ahead.
_STEERS = 3.2
# The farthest that it aims at [m]: it pushes no faster than SHARE of it in a decision. And what
# part of what is left that is at most.
_STRIDE, _BRAKES = 0.036, 0.4

ALONG = 1.0 - UP


class PushDemonstrator(WaypointDemonstrator):
    """Goes up, over to behind the cube, down, and pushes; where the cube slips off, again."""

    def __init__(self, task: ArmTask, noise: float = 0.0, seed: int = 0):
        super().__init__(task, noise, seed)
        size, tip = task.config.cube.size, task.robot.tip
        self._side = size[0] / 2
        self._behind_it = self._side + tip.radius + _BEHIND
        # Heights of the tool above the table.
        self._over = size[2] + _OVER + tip.reach
        self._low = size[2] / 2 + _LOW + tip.reach
        self.waypoints = (
            Waypoint(self._up, within=0.02),
            Waypoint(self._behind(self._over), within=0.02),
            Waypoint(self._behind(self._low), within=0.01),
            Waypoint(self._push, holding=True),
        )

    def _failed(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        heading, left = _heading(view)
        from_cube = -view.from_tool('cube') * ALONG
        aside = np.linalg.norm(from_cube - _part(from_cube, heading), axis=1)
        before = (from_cube * heading).sum(axis=1) > -self._side / 2
        failed = (before | (aside > _ASTRAY)) & (left > 2 * _THERE)
        return failed, np.where(before, 0, 2)  # from behind it need not go up

    def _up(self, view: View) -> Move:
        return Move(np.maximum(self._over - view.tool, 0.0) * UP)

    def _behind(self, height: float) -> Callable[[View], Move]:
        """Return the way to behind the cube, seen from the target, at a height [m]."""

        def move(view: View) -> Move:
            heading, _ = _heading(view)
            place = view.place('cube') * ALONG - self._behind_it * heading + height * UP
            return Move(view.to(place))

        return move

    def _push(self, view: View) -> Move:
        """Push on while the target is ahead, and steer by keeping behind the cube."""
        heading, left = _heading(view)
        ahead = _part(view.carrying('cube', view.place('target')), heading)
        to_cube = (view.place('cube') - view.tool) * ALONG
        way = ahead + _STEERS * (to_cube - _part(to_cube, heading))
        # An arm that stops swings on, and the cube with it: it comes near slowly.
        stride = np.where(left > _THERE, np.minimum(_STRIDE, _BRAKES * left), 0.0)
        way *= np.minimum(1.0, stride / np.linalg.norm(way, axis=1))[:, None]
        return Move(way + (self._low - view.tool) * UP)


def _heading(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return the direction from the cube to the target [B, 3], along the table, and how far."""
    way = (view.place('target') - view.place('cube')) * ALONG
    left = np.linalg.norm(way, axis=1)
    return way / np.maximum(left, 1e-6)[:, None], left


def _part(way: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Return the part of `way` [B, 3] that lies along `heading` [B, 3]."""
    return (way * heading).sum(axis=1, keepdims=True) * heading
