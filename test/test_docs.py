"""What the documents say can be done is done: the example of docs/adding_an_algorithm.md."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.control.runtime import OnnxPolicy
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
