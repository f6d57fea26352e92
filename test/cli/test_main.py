"""The command line's frame: overview, errors in one line, options from flags and YAML."""

import json
import subprocess
import sys

import pydantic
import pytest

from robot_rl.cli import common, main
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.specs import Spec


class Inner(Spec):
    rate: float = 1.0
    wide: bool = True


class Options(common.Options):
    task: str = pydantic.Field(description='which task')
    steps: pydantic.PositiveInt = 10
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()


def parse(*argv):
    return common.parse(Options, list(argv), 'test', 'Test.', 'robot-rl test')


def run(*argv):
    return subprocess.run(
        [sys.executable, '-m', 'robot_rl.cli.main', *argv], capture_output=True, text=True
    )


def test_overview_names_every_command_with_its_first_line(capsys):
    assert main.main([]) == 0
    out = capsys.readouterr().out
    for command in main.COMMANDS:
        line = next(line for line in out.splitlines() if line.split()[:1] == [command])
        assert len(line.split()) > 2


def test_overview_imports_nothing_heavy():
    code = (
        'import sys; from robot_rl.cli import main; main.main([]); '
        'heavy = {"torch", "mujoco", "numpy", "pydantic", "tyro", "rclpy"} & set(sys.modules); '
        'sys.exit(",".join(heavy) or None)'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


@pytest.mark.parametrize('command', main.COMMANDS)
def test_every_command_shows_help_with_an_example(command):
    result = run(command, '--help')
    assert result.returncode == 0, result.stderr
    assert f'robot-rl {command}' in result.stdout
    assert 'example' in result.stdout.lower()


def test_unknown_command_is_one_line_with_the_nearest_name():
    result = run('trian')
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "robot-rl: unknown command 'trian'; did you mean 'train' or 'retrain'?"
    ]


def test_flags_and_nested_flags():
    options = parse('--task', 'a', '--inner.rate', '2.5', '--inner.no-wide', '--json')
    assert (options.task, options.inner, options.as_json) == (
        'a',
        Inner(rate=2.5, wide=False),
        True,
    )


def test_a_flag_of_several_values_may_be_given_again():
    """Of two, the first was dropped without a word."""
    options = parse('--task', 'a', '--sizes', '4', '5', '--steps', '3', '--sizes=6')
    assert options == Options(task='a', steps=3, sizes=(4, 5, 6))


@pytest.mark.parametrize(
    ('argv', 'told'),
    [
        (['--steps', '3', '--task', 'a', '--steps=4'], 'test: --steps is given twice'),
        (['--stesp', '3'], "test: unknown option --stesp; did you mean '--steps'"),
        (['--inner.no-wdie'], "did you mean '--inner.no-wide'"),
        (['--task', 'a', '--steps', '1e5'], "--steps: a whole number is needed, found '1e5'"),
        (['--task', 'a', '--limit', '1e5'], "--limit: a whole number is needed, found '1e5'"),
        (['--task', 'a', '--inner.rate', 'x'], "--inner.rate: a number is needed, found 'x'"),
        (['--task', 'a', '--steps', '-1'], '--steps: must be greater than 0, found -1'),
        ([], 'test: --task is missing; see --help'),
        (['--task'], 'test: --task: a value is needed'),
        (['--config'], '--config: a YAML file must follow'),
        (['--config', 'no-such.yaml'], 'no-such.yaml: cannot be read'),
    ],
)
def test_a_wrong_flag_is_one_line(argv, told):
    with pytest.raises(RobotRLError) as error:
        parse(*argv)
    assert told in str(error.value)
    assert '\n' not in str(error.value)


def test_config_file_gives_options_that_flags_override(tmp_path):
    path = tmp_path / 'options.yaml'
    path.write_text('task: a\nsteps: 3\nsizes: [4, 5]\ninner: {rate: 7, wide: false}\n')
    assert parse('--config', str(path), '--steps', '9') == Options(
        task='a', steps=9, sizes=(4, 5), inner=Inner(rate=7, wide=False)
    )


def test_a_misspelt_key_of_a_config_file_names_file_and_nearest_key(tmp_path):
    path = tmp_path / 'options.yaml'
    path.write_text('task: a\ninner: {raet: 7}\n')
    with pytest.raises(SpecError) as error:
        parse('--config', str(path))
    assert str(error.value) == f"{path}: inner.raet: unknown key; did you mean 'rate'?"


def test_json_output_is_one_object(capsys):
    common.emit({'a': 1}, as_json=True, text='a is 1')
    assert json.loads(capsys.readouterr().out) == {'a': 1}
