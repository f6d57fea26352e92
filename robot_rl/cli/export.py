"""Write the policy of a training run's checkpoint as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import pydantic

from robot_rl.cli import common

EXAMPLE = 'robot-rl export --checkpoint runs/swingup --out swingup.onnx'


class Options(common.Options):
    """Which run, and where to."""

    checkpoint: Path = pydantic.Field(description="a training run's folder")
    out: Path = pydantic.Field(description='the file to write, *.onnx')


def main(argv: list[str]) -> int:
    """Export, and check that ONNX Runtime and torch give the same actions."""
    options = common.parse(Options, argv, 'export', __doc__, EXAMPLE)
    from robot_rl.training.loop import export_checkpoint

    export_checkpoint(options.checkpoint, options.out)
    common.emit({'policy': str(options.out)}, options.as_json, f'wrote {options.out}')
    return 0
