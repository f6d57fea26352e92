"""robot-rl policies: what a name stands for, and what it stood for before."""

import json

import pytest

from robot_rl import resources
from robot_rl.cli.main import main
from robot_rl.control.runtime import OnnxPolicy

SHIPPED = resources.share() / 'pretrained' / 'ur5e_reach.onnx'


@pytest.fixture
def policies(tmp_path, capsys):
    """Return `run(*words)`: the exit code, and what stands on stdout and stderr."""

    def run(*words):
        code = main(['policies', *map(str, words), '--root', str(tmp_path / 'shelf')])
        return code, *capsys.readouterr()

    return run


def test_a_file_is_promoted_listed_and_rolled_back(policies, policy_file):
    other = policy_file(OnnxPolicy(SHIPPED).contract, seed=2)
    ids = [OnnxPolicy(file).card.id for file in (SHIPPED, other)]
    assert policies('ls')[1].startswith('nothing was promoted yet in ')
    for file, id in zip((SHIPPED, other), ids, strict=True):
        code, said, _ = policies('promote', file, '--name', 'reach')
        assert code == 0 and said.startswith(f'reach stands for {id}; ')
    _, said, _ = policies('ls', '--json')
    listed = json.loads(said)['policies']['reach']
    assert [entry['policy'] for entry in listed] == ids
    assert listed[0]['source'] == str(SHIPPED.resolve())
    assert policies('rollback', 'reach')[1].startswith(f'reach stands for {ids[0]}; ')
    assert ids[0] in policies('ls')[1]


def test_what_is_no_policy_is_not_promoted(policies, tmp_path):
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(SHIPPED.read_bytes()[:1000])
    for file, told in ((broken, str(broken)), (tmp_path / 'none.onnx', 'no such file')):
        code, said, wrong = policies('promote', file, '--name', 'reach')
        assert (code, said) == (2, '')
        assert told in wrong and len(wrong.splitlines()) == 1
    assert 'nothing was promoted yet' in policies('ls')[1]
    code, _, wrong = policies('rollback', 'reach')
    assert code == 2 and len(wrong.splitlines()) == 1
