"""What the documents say can be done is done: the examples of the pages that have some."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from robot_rl import registry, resources
from robot_rl.bench import demonstrators, gallery
from robot_rl.cli.main import main
from robot_rl.control.runtime import OnnxPolicy
from robot_rl.sim.randomisation import Randomisation
from robot_rl.specs import RobotSpec
from robot_rl.training.config import RunConfig
from robot_rl.training.loop import Trainer

DOCS = Path(__file__).parent.parent / 'docs'


@pytest.fixture
def svg0(monkeypatch):
    """Make the page's module and its registry line what they say they are."""
    text = (DOCS / 'adding_an_algorithm.md').read_text(encoding='utf-8')
    source, line = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    name, place = re.fullmatch(r"    '(\w+)': '(.*)',\n", line).groups()
    module = types.ModuleType(place.split(':')[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, 'adding_an_algorithm.md', 'exec'), module.__dict__)
    monkeypatch.setitem(registry.AGENTS, name, place)
    return name


@pytest.mark.parametrize('memory', [0, 8])
def test_the_worked_example_learns_and_leaves_as_a_file(svg0, tmp_path, memory):
    config = RunConfig.parse(
        {
            'task': 'suite/cartpole-balance',
            'agent': svg0,
            'steps': 1500,
            'hide': ['velocity'] if memory else [],
            'training': {'evaluate_every': 1500, 'evaluation_episodes': 1},
            'learner': {
                'memory': memory,
                'batch_size': 32,
                'sequence_length': 4,
                'policy_layers': [32],
                'critic_layers': [32],
                'min_replay_size': 200,
            },
        }
    )
    trainer = Trainer(config, tmp_path)
    assert trainer.run()
    assert trainer.state.learner.steps > 100
    policy = OnnxPolicy(tmp_path / 'policy.onnx')
    assert len(policy.card.recurrent_state) == (2 if memory else 0)
    shapes = policy.contract.observation_shapes
    zeros = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    action, _ = policy.select(zeros, policy.initial_state(1))
    assert np.isfinite(action).all()


def test_the_arm_of_the_page_about_robots_is_read_and_simulated(tmp_path, monkeypatch, capsys):
    text = (DOCS / 'robots.md').read_text(encoding='utf-8')
    files = dict(re.findall(r'`(planar\S*)`:\n\n```\w+\n(.*?)```', text, re.DOTALL))
    assert list(files) == ['planar.xml', 'planar.yaml', 'planar_reach.yaml']
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_text(content)
    (snippet,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    exec(compile(snippet, 'robots.md', 'exec'), {})
    printed = np.fromstring(capsys.readouterr().out.strip('[]\n'), sep=' ')
    said = np.fromstring(re.search(r'# \[(.*)\]', snippet)[1], sep=' ')
    np.testing.assert_allclose(printed, said, atol=1e-3)
    command = re.search(r'robot-rl (evaluate --policy random .*)', text)[1].split()
    assert main(command) == 0
    assert 'in 5 episodes' in capsys.readouterr().out


def test_the_page_about_robots_has_every_robot_and_every_field():
    text = (DOCS / 'robots.md').read_text(encoding='utf-8')
    for name in resources.names('config/robots'):
        assert text.count(f'`{name}`') >= 2, name  # the arm, and its driver
    for field in RobotSpec.model_fields.keys() - {'schema_version'}:
        assert re.search(rf'^\|.*`{field}\b', text, re.MULTILINE), field


def commands_of(page):
    """Return the words of each command that a page shows, indented."""
    text = (DOCS / page).read_text(encoding='utf-8')
    blocks = re.findall(r'(?:^    .*\n)+', text, re.MULTILINE)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
def test_the_commands_that_collect_run(tmp_path, monkeypatch, capsys):
    """As the page has them, but shorter; what goes through ROS is test/nodes/test_collect.py's."""
    monkeypatch.chdir(tmp_path)
    commands = commands_of('collect_demonstrations.md')
    assert [words[1] for words in commands].count('collect') == 4
    for program, *words in commands:
        assert program == 'robot-rl'
        if 'ros' in words:
            continue
        for option, fewer in (('--episodes', '2'), ('--steps', '20')):
            if option in words:
                words[words.index(option) + 1] = fewer
        assert main(words) == 0, words
    assert Path('runs/lift-cloned/policy.onnx').exists()


def test_the_page_of_tasks_has_every_arm_task_as_it_is(monkeypatch):
    """The rest of the page takes making every task of other packages: the slow test below."""
    monkeypatch.chdir(DOCS.parent)
    text, measured = (DOCS / 'tasks.md').read_text(encoding='utf-8'), demonstrators.read()
    for name in registry.arm_task_names():
        assert gallery.arm_section(name) in text, f'robot-rl tasks --write {DOCS}/tasks.md'
        assert measured[name].without_noise >= 0.95 and measured[name].starts == 100
    for names in registry.task_names().values():
        assert all(f'`{name}`' in text for name in names)
    for picture in re.findall(r'^!\[.*\]\((.*)\)$', text, re.MULTILINE):
        assert (DOCS / picture).stat().st_size <= 200 * 1024


@pytest.mark.slow
def test_the_page_of_tasks_is_current(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    assert (DOCS / 'tasks.md').read_text(encoding='utf-8') == gallery.text()


def run_shortly(commands, steps):
    """Run commands as a page has them, but shorter; its experts are a policy that does nothing."""
    short = [f'training.evaluate_every={steps}', 'training.evaluation_episodes=1']
    for program, *words in commands:
        assert program == 'robot-rl'
        words = ['constant' if word.endswith('policy.onnx') else word for word in words]
        if words[0] == 'collect':
            words[words.index('--episodes') + 1] = '2'
        elif '--steps' in words:
            words[words.index('--steps') + 1] = str(steps)
        else:
            words += ['--steps', str(steps)]
        if words[0] == 'train' and '--set' in words:
            place = words.index('--set') + 1
            words[place:place] = short
        elif words[0] == 'train':
            words += ['--set', *short]
        assert main(words) == 0, words


def about_pictures(command):
    return '--show' in command or 'bc_pixels' in command


@pytest.mark.slow
def test_the_commands_about_demonstrations_run(tmp_path, monkeypatch):
    commands = [c for c in commands_of('imitation.md') if not about_pictures(c)]
    assert [command[:2] for command in commands].count(['robot-rl', 'train']) == 5
    monkeypatch.chdir(tmp_path)
    run_shortly(commands, 1100)
    assert sorted(path.parent.name for path in Path('runs').glob('*/policy.onnx')) == [
        'cloned',
        'from-cloned',
        'gail',
        'trail',
        'with-demos',
    ]


def test_the_page_about_randomising_has_every_quantity_and_its_episode_comes_again(
    tmp_path, monkeypatch, capsys
):
    text = (DOCS / 'randomise_the_simulation.md').read_text(encoding='utf-8')
    for field in Randomisation.model_fields:
        assert re.search(rf'^\| `{field}` \|', text, re.MULTILINE), field
    (section,) = re.findall(r'```yaml\n(.*?)```', text, re.DOTALL)
    Randomisation.parse(yaml.safe_load(section)['randomisation'])
    (snippet,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (collect,) = [
        words for words in commands_of('randomise_the_simulation.md')
        if words[:2] == ['robot-rl', 'collect'] and 'ros' not in words
    ]  # fmt: skip
    collect[collect.index('--episodes') + 1] = '1'
    assert main(collect[1:]) == 0
    exec(compile(snippet, 'randomise_the_simulation.md', 'exec'), {})


@pytest.mark.slow
def test_the_commands_about_pictures_run(tmp_path, monkeypatch):
    commands = [c for c in commands_of('imitation.md') if about_pictures(c)]
    monkeypatch.chdir(tmp_path)
    run_shortly(commands, 20)
    assert Path('runs/cloned-by-sight/policy.onnx').is_file()
