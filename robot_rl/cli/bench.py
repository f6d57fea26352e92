"""Measure speed against a floor measured in the same run, as JSON lines."""

from __future__ import annotations

import importlib
import json
from typing import Annotated, Any, Literal

import pydantic
import tyro

from robot_rl.bench import results
from robot_rl.cli import common
from robot_rl.errors import RobotRLError
from robot_rl.specs import Spec

EXAMPLE = 'robot-rl bench learner --seconds 20 --agents d4pg dmpo'
# Options of one benchmark alone.
_OPTIONS = {'learner': ('agents', 'peers', 'device'), 'storage': ('lerobot',)}


class Options(Spec):
    """Which benchmark to run and for how long."""

    name: Annotated[
        Literal['learner', 'sim', 'workers', 'deploy', 'index', 'storage', 'record'],
        tyro.conf.Positional,
    ] = pydantic.Field(
        description='learner: updates/s; sim: physics steps/s of arm tasks; workers: steps/s of '
        'other tasks in several processes; deploy: latency through ROS; index: queries of '
        '100,000 episodes; storage: windows/s; record: what the recorder takes and loses'
    )
    seconds: pydantic.PositiveFloat | None = pydantic.Field(
        None,
        description='how long to measure [s], about; learner: each agent; deploy: each rate; '
        'storage: each comparison; without it 20, workers 60 and record 600',
    )
    agents: tuple[Literal['d4pg', 'mpo', 'dmpo'], ...] = pydantic.Field(
        ('d4pg', 'mpo', 'dmpo'), description='learner: whose updates'
    )
    peers: bool = pydantic.Field(
        False, description="learner: stable-baselines3's SAC and TD3 besides, if it is installed"
    )
    device: Literal['cpu', 'cuda'] = pydantic.Field('cpu', description='learner: where')
    lerobot: str = pydantic.Field(
        '', description='storage: a Python that has the lerobot package, if this one has not'
    )
    keep: bool = pydantic.Field(
        False, description="keep the rows in results/bench.jsonl, in place of this benchmark's"
    )


def main(argv: list[str]) -> int:
    """Print one JSON object {bench, metric, value, unit, reference, ratio} a line."""
    options = common.parse(Options, argv, 'bench', __doc__, EXAMPLE)
    more = _more(options)
    if options.seconds is not None:
        more['seconds'] = options.seconds
    if options.keep:
        rows = results.keep_bench(options.name, **more)
    else:
        module = importlib.import_module(f'robot_rl.bench.{options.name}')
        rows = module.run(**more)
    for row in rows:
        print(json.dumps(row, allow_nan=False), flush=True)
    return 0


def _more(options: Options) -> dict[str, Any]:
    """Return the options of this benchmark alone. Raises RobotRLError at those of another."""
    for name, keys in _OPTIONS.items():
        for key in keys if name != options.name else ():
            if getattr(options, key) != Options.model_fields[key].default:
                raise RobotRLError(
                    f'bench {options.name}: --{key} is an option of bench {name} only'
                )
    return {key: getattr(options, key) for key in _OPTIONS.get(options.name, ())}
