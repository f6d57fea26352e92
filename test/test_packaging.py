"""Config, launch files, models and policies are found from a checkout, a wheel and colcon."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from robot_rl import resources

ROOT = Path(__file__).parents[1]
PROBE = """
import json
from importlib.resources import files
from robot_rl import resources
from robot_rl.registry import make_task
print(json.dumps({
    'share': str(resources.share()),
    'robots': resources.names('config/robots'),
    'launch': resources.names('launch', '.launch.py'),
    'policies': resources.names('pretrained', '.onnx'),
    'model': make_task('ur5e/reach').model().nq,
    'page': sorted(path.name for path in (files('robot_rl') / 'nodes' / 'page').iterdir()),
}))
"""


def run(*command, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'ROBOT_RL_STORE')}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def assert_complete(found):
    assert 'ur5e' in found['robots']
    assert set(found['launch']) == {'train', 'sim_robot', 'deploy', 'evaluate', 'record', 'replay'}
    assert 'ur5e_reach' in found['policies']
    assert found['model'] == 6
    assert found['page'] == ['icon.svg', 'index.html', 'page.css', 'page.js']


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that are part of the project, without what was built from them."""
    copy = tmp_path / 'checkout'
    ignored = shutil.ignore_patterns(
        '.git', '.venv', '__pycache__', '*.egg-info', 'build', 'runs', '.pytest_cache'
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def test_a_checkout_finds_its_own_files():
    assert resources.share() == ROOT
    assert_complete(json.loads(run(sys.executable, '-c', PROBE, cwd=ROOT)))


def test_a_wheel_works_in_an_empty_folder(checkout, tmp_path):
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    options = ['--no-deps', '--no-build-isolation', '--quiet']
    run(*pip, 'wheel', *options, '--wheel-dir', tmp_path, checkout, cwd=tmp_path)
    (wheel,) = tmp_path.glob('robot_rl-*.whl')
    venv = tmp_path / 'venv'
    run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=tmp_path)
    python = venv / 'bin' / 'python'
    run(*pip, '--python', python, 'install', '--no-deps', '--no-index', wheel, cwd=tmp_path)
    # The dependencies, which are not what is tested, come from this environment.
    site = run(
        python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path
    )
    Path(site.strip(), 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    empty = tmp_path / 'empty'
    empty.mkdir()
    found = json.loads(run(python, '-c', PROBE, cwd=empty))
    assert_complete(found)
    assert found['share'] == str(venv / 'share' / 'robot_rl')
    assert 'ur5e/reach' in run(venv / 'bin' / 'robot-rl', 'tasks', cwd=empty)
