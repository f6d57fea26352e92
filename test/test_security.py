"""Nothing that is read may run code: no pickle in any guise, and YAML as plain data only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import robot_rl

ROOT = Path(robot_rl.__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ('robot_rl', 'launch')
    for path in (ROOT / folder).rglob('*.py')
    if path.is_file()
)
# Modules whose reading runs what the file says.
UNPICKLING = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
# Calls that unpickle or run text, unless told not to; {name: (argument, the only right value)}.
GUARDED = {'torch.load': ('weights_only', True)}
UNSAFE = {
    'yaml.load', 'yaml.load_all', 'yaml.full_load', 'yaml.full_load_all', 'yaml.unsafe_load',
    'yaml.unsafe_load_all', 'pandas.read_pickle', 'eval', 'exec', 'os.system', 'os.popen',
}  # fmt: skip


def findings(source: str) -> Iterator[str]:
    """Yield what in `source` may run code that was read from somewhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else names
            unpickling = UNPICKLING - ({'pickle'} if isinstance(node, ast.Import) else set())
            yield from (f'import {name}' for name in names if name.split('.')[0] in unpickling)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'pickle':
            if node.attr != 'UnpicklingError':  # torch's word for no checkpoint
                yield f'pickle.{node.attr}'
        elif isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            if name in UNSAFE:
                yield name
            if name in GUARDED:
                argument, right = GUARDED[name]
                given = keywords.get(argument)
                if not (isinstance(given, ast.Constant) and given.value is right):
                    yield f'{name} without {argument}={right}'
            pickles = keywords.get('allow_pickle')
            if pickles is not None and not (
                isinstance(pickles, ast.Constant) and pickles.value is False
            ):
                yield f'{name} with allow_pickle'
            shell = keywords.get('shell')
            if shell is not None and not (isinstance(shell, ast.Constant) and not shell.value):
                yield f'{name} with shell'


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_may_run_code(path):
    assert list(findings(path.read_text(encoding='utf-8'))) == []


@pytest.mark.parametrize(
    'source',
    [
        'import pickle\npickle.load(file)',
        'from pickle import loads',
        'def f():\n    from cloudpickle import loads',
        'torch.load(path)',
        'torch.load(path, weights_only=False)',
        'np.load(path, allow_pickle=True)',
        'np.load(path, allow_pickle=trusted)',
        'yaml.load(text, Loader=yaml.Loader)',
        'subprocess.run(line, shell=True)',
        'eval(text)',
    ],
)
def test_what_may_run_code_is_found(source):
    assert len(list(findings(source))) == 1


def test_what_may_not_is_not():
    source = 'torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nyaml.safe_load(t)'
    assert list(findings(source)) == []
