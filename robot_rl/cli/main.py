"""The command line: `robot-rl <command>`; a command's module is imported when it is called."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from robot_rl import __version__
from robot_rl.errors import RobotRLError, UnknownName

# The order is that of the work: simulate, learn, export, run, log, retrain.
COMMANDS = (
    'tasks',
    'agents',
    'train',
    'evaluate',
    'export',
    'policies',
    'play',
    'record',
    'collect',
    'episodes',
    'calibrate',
    'retrain',
    'up',
    'doctor',
    'demo',
    'bench',
    'results',
)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; an error of the user is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(overview())
        return 0
    if argv[0] == '--version':
        print(f'robot-rl {__version__}')
        return 0
    try:
        return _run(argv[0], argv[1:])
    except RobotRLError as error:
        print(f'robot-rl: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('robot-rl: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except RuntimeError as error:
        if 'MUJOCO_GL' not in str(error):  # which MuJoCo reads as soon as it is imported
            raise
        print(f'robot-rl: {error}; right are egl, osmesa and glfw', file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder in the way, a missing permission
        print(f'robot-rl: {error.filename or argv[0]}: {error.strerror}', file=sys.stderr)
        return 2


def _run(command: str, argv: list[str]) -> int:
    if command not in COMMANDS:
        raise UnknownName('command', command, COMMANDS)
    try:
        module = importlib.import_module(f'robot_rl.cli.{command}')
        return module.main(argv)
    except ModuleNotFoundError as error:
        extra = _extra_of(error.name or '')
        if extra is None:
            raise
        raise RobotRLError(
            f"{command} needs the package {error.name!r}: pip install 'robot_rl[{extra}]'"
        ) from None


def _extra_of(module: str) -> str | None:
    """Return the optional dependency group that brings a top-level module, if any does."""
    groups = {
        'train': (
            'torch',
            'dm_control',
            'gymnasium',
            'onnx',
            'onnxscript',
            'tensorboard',
            'matplotlib',
        ),
        'ros': ('rclpy', 'sensor_msgs', 'std_msgs', 'std_srvs', 'trajectory_msgs'),
    }
    top = module.split('.')[0]
    return next((extra for extra, modules in groups.items() if top in modules), None)


def overview() -> str:
    """Return the list of commands, each with the first line of its module's docstring."""
    rows = [f'  {name:<10} {_summary(name)}' for name in COMMANDS]
    return '\n'.join(
        [
            'usage: robot-rl <command> [options]',
            '',
            'Give a robot arm a skill and keep making it better.',
            '',
            *rows,
            '',
            'robot-rl <command> --help shows its options and an example.',
        ]
    )


def _summary(command: str) -> str:
    """Read a command's first docstring line from its source, without importing it."""
    source = Path(__file__).with_name(f'{command}.py').read_text(encoding='utf-8')
    docstring = ast.get_docstring(ast.parse(source)) or ''
    return docstring.split('\n')[0]


if __name__ == '__main__':
    sys.exit(main())
