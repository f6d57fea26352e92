"""The package as colcon installs it, in an environment like that of a sourced workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import robot_rl

ROOT = Path(robot_rl.__file__).parents[1]
PARTS = ('package.xml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE')
FOLDERS = ('resource', 'robot_rl', 'launch', 'config', 'pretrained')


class Workspace:
    """A colcon workspace with a copy of this checkout, built."""

    def __init__(self, root: Path):
        self.root, self.prefix = root, root / 'install' / 'robot_rl'
        source = root / 'src' / 'robot_rl'
        source.mkdir(parents=True)
        for name in PARTS:
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, source)
        for name in FOLDERS:
            if (ROOT / name).exists():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, source / name, ignore=ignored)
        self.build = subprocess.run(
            [sys.executable, '-m', 'colcon', 'build'], cwd=root, capture_output=True, text=True
        )
        assert self.build.returncode == 0, self.build.stderr[-2000:]
        sourced = subprocess.run(
            ['bash', '-c', '. install/setup.bash && env -0'], cwd=root, capture_output=True
        )
        pairs = (pair.split('=', 1) for pair in sourced.stdout.decode().split('\0') if '=' in pair)
        self.environment = dict(pairs)

    def run(self, *command: str | Path, folder: Path) -> subprocess.CompletedProcess:
        """Run a command there, in an empty folder."""
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=100
        )


@pytest.fixture(scope='session')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    pytest.importorskip('colcon_core', reason='colcon is not installed (extra `dev`)')
    if not (ROOT / 'package.xml').exists():
        pytest.skip('not a source checkout: nothing to build')
    if os.name != 'posix' or not shutil.which('bash'):
        pytest.skip('no bash to source the workspace with')
    return Workspace(tmp_path_factory.mktemp('workspace'))
