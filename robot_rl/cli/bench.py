"""Measure speed against a floor measured in the same run, as JSON lines."""

from __future__ import annotations

import importlib
import json
from typing import Annotated, Literal

import pydantic
import tyro

from robot_rl.cli import common
from robot_rl.specs import Spec

EXAMPLE = 'robot-rl bench learner --seconds 20'


class Options(Spec):
    """Which benchmark to run and for how long."""

    name: Annotated[Literal['learner', 'sim', 'deploy'], tyro.conf.Positional] = pydantic.Field(
        description='learner: updates/s; sim: physics steps/s; deploy: latency through ROS'
    )
    seconds: pydantic.PositiveFloat = pydantic.Field(
        20.0, description='how long to measure [s], about'
    )


def main(argv: list[str]) -> int:
    """Print one JSON object {bench, metric, value, unit, reference, ratio} a line."""
    options = common.parse(Options, argv, 'bench', __doc__, EXAMPLE)
    module = importlib.import_module(f'robot_rl.bench.{options.name}')
    for row in module.run(seconds=options.seconds):
        print(json.dumps(row, allow_nan=False), flush=True)
    return 0
