"""Keep the deployed policies: promote a file to a name, go back, and see what a name stands for.

ls                             names, what they stand for, and since when
promote FILE --name NAME       from now on NAME stands for a copy of FILE
rollback NAME                  NAME stands for what it stood for before
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
import tyro

from robot_rl.cli import common
from robot_rl.control.shelf import ROOT_VARIABLE, PolicyShelf, Promotion
from robot_rl.errors import RobotRLError

EXAMPLE = 'robot-rl policies promote runs/reach/policy.onnx --name reach'


class Options(common.Options):
    """Where the policies are."""

    root: Path | None = pydantic.Field(
        None, description=f'folder of the policies; without it {ROOT_VARIABLE} or ~/.robot_rl'
    )

    def shelf(self) -> PolicyShelf:
        """Return the shelf in that folder."""
        return PolicyShelf(self.root)


class ListOptions(Options):
    """List the names, what they stand for, and since when."""


class PromoteOptions(Options):
    """Let a name stand for a copy of a policy file, after looking at the file."""

    file: Annotated[Path, tyro.conf.Positional] = pydantic.Field(description='an .onnx file')
    name: str = pydantic.Field(description='what nodes call it')


class RollbackOptions(Options):
    """Let a name stand for what it stood for before."""

    name: Annotated[str, tyro.conf.Positional] = pydantic.Field(description='a promoted name')


def main(argv: list[str]) -> int:
    """Run one action on the shelf."""
    actions = {
        'ls': (_list, ListOptions, ''),
        'promote': (_promote, PromoteOptions, 'runs/reach/policy.onnx --name reach'),
        'rollback': (_rollback, RollbackOptions, 'reach'),
    }
    return common.run_action(argv, 'policies', __doc__, EXAMPLE, actions)


def _list(options: ListOptions) -> None:
    shelf = options.shelf()
    histories = {name: shelf.history(name) for name in shelf.names()}
    rows = [
        {'name': name, 'policy': e[-1].policy, 'since': e[-1].at, 'from': e[-1].source}
        for name, e in histories.items()
    ]
    data = {
        'policies': {name: [entry.to_dict() for entry in e] for name, e in histories.items()},
        'root': str(shelf.root),
    }
    text = '\n'.join(common.table(rows)) or f'nothing was promoted yet in {shelf.root}'
    common.emit(data, options.as_json, text)


def _promote(options: PromoteOptions) -> None:
    from robot_rl.control.runtime import OnnxPolicy

    if not options.file.is_file():
        raise RobotRLError(f'promote: {options.file}: no such file')
    policy = OnnxPolicy(options.file)  # damaged, foreign or unfit ones are refused here
    entry = options.shelf().promote(options.file.resolve(), options.name, policy.card.id)
    _say(options, options.name, entry)


def _rollback(options: RollbackOptions) -> None:
    _say(options, options.name, options.shelf().rollback(options.name))


def _say(options: Options, name: str, entry: Promotion) -> None:
    text = f'{name} stands for {entry.policy}; nodes take it with the next episode'
    common.emit({'name': name, **entry.to_dict()}, options.as_json, text)
