"""The lines of the house plan: which room may import which, and who may import what from outside.

Imports are read from the source, also those inside functions; then the rooms that run beside an
arm are imported in a fresh interpreter, which shows what they pull in.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import robot_rl

ROOT = Path(robot_rl.__file__).parent

# What a room imports directly; it may also import what those may.
ARROWS = {
    'specs': set(),
    'robots': {'specs'},
    'control': {'robots', 'specs'},
    'storage': {'specs'},
    'sim': {'control', 'robots', 'specs'},
    'demonstrators': {'sim'},
    'nodes': {'control', 'demonstrators', 'storage', 'sim'},
    'policies': {'specs'},
    'training': {'imitation', 'policies', 'sim', 'storage'},
    'imitation': {'policies', 'sim', 'storage'},
    'evaluation': {'imitation'},
}
# Imported by every room.
SHARED = {'errors', 'images', 'resources', 'registry'}
# Commands and what stands behind them may import everything.
FREE = {'cli', 'bench', 'demo'}

BESIDE_THE_ARM = {
    'specs', 'robots', 'control', 'storage', 'sim', 'demonstrators', 'nodes', *SHARED
}  # fmt: skip
LEARNING = {'torch', 'onnx', 'onnxscript', 'tensorboard'}
ROS = {
    'builtin_interfaces',
    'diagnostic_msgs',
    'geometry_msgs',
    'lifecycle_msgs',
    'rcl_interfaces',
    'rclpy',
    'rosgraph_msgs',
    'rosidl_runtime_py',
    'sensor_msgs',
    'std_msgs',
    'std_srvs',
    'trajectory_msgs',
}


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute name of everything that a file imports, wherever in the file."""
    package = ['robot_rl', *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, node.module] if node.module else base)
            yield from (f'{module}.{alias.name}' for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix('.py')


SOURCES = {
    str(path.relative_to(ROOT)): sorted(set(imports(path))) for path in sorted(ROOT.rglob('*.py'))
}


def reach(start: str) -> set[str]:
    """Return every room that the arrows lead to from `start`."""
    found = {start}
    while more := {to for at in found for to in ARROWS[at]} - found:
        found |= more
    return found


def importers(names: set[str]) -> set[str]:
    """Return the files that import one of the outside packages `names`."""
    return {file for file, found in SOURCES.items() if {i.split('.')[0] for i in found} & names}


@pytest.mark.parametrize('start', ARROWS)
def test_rooms_import_along_the_arrows_only(start):
    wrong = [
        f'{file}: {name}'
        for file, names in SOURCES.items()
        if room(ROOT / file) == start
        for name in names
        if name.startswith('robot_rl.')
        and name.split('.')[1] not in reach(start) | SHARED | {'__version__'}
    ]
    assert wrong == []


def test_every_room_stands_in_the_table():
    rooms = {room(ROOT / file) for file in SOURCES} - {'__init__'}
    assert rooms <= ARROWS.keys() | SHARED | FREE
    assert not any(start in reach(to) for start, tos in ARROWS.items() for to in tos)


def test_nothing_beside_the_arm_imports_what_only_learning_needs():
    wrong = {file for file in importers(LEARNING) if room(ROOT / file) in BESIDE_THE_ARM}
    assert wrong == set()


def test_only_nodes_imports_ros():
    assert {room(ROOT / file) for file in importers(ROS)} <= {'nodes', *FREE}


def test_specs_and_storage_know_no_physics():
    assert not {room(ROOT / file) for file in importers({'mujoco'})} & {'specs', 'storage'}


def test_only_its_adapter_imports_dm_control():
    wrong = {file for file in importers({'dm_control', 'dm_env'}) if room(ROOT / file) not in FREE}
    assert wrong <= {'sim/dm_control.py'}


def test_only_its_adapter_imports_gymnasium():
    found = {file for file in importers({'gymnasium'}) if room(ROOT / file) not in FREE}
    assert found == {'sim/gymnasium.py'}


def loaded_by(*rooms: str) -> set[str]:
    """Import every module of `rooms` in a fresh interpreter; return the packages then loaded."""
    names = [
        'robot_rl.' + file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')
        for file in SOURCES
        if room(ROOT / file) in rooms and Path(file).name not in ('dm_control.py', '__main__.py')
    ]
    script = (
        'import importlib, sys\n'
        f'for name in {names!r}:\n    importlib.import_module(name)\n'
        'print(*{name.split(".")[0] for name in sys.modules})'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_specs_and_storage_load_neither_torch_nor_mujoco():
    loaded = loaded_by('specs', 'storage', *SHARED)
    assert not loaded & {'torch', 'mujoco', 'onnxruntime', 'dm_control', 'rclpy'}


def test_what_runs_beside_the_arm_loads_no_learning_framework():
    loaded = loaded_by('specs', 'storage', 'robots', 'control', 'sim', 'demonstrators', *SHARED)
    assert not loaded & {*LEARNING, 'dm_control', 'gymnasium', 'rclpy'}


def test_nodes_load_no_learning_framework():
    pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`, or a ROS installation)')
    assert not loaded_by('nodes') & {*LEARNING, 'dm_control', 'gymnasium'}
