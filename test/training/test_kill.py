"""kill -9 of a real training process, and what the next process makes of the folder."""

import subprocess
import sys
import time

import pytest

from robot_rl.training.checkpoint import load_checkpoint
from robot_rl.training.config import RunConfig
from robot_rl.training.logs import read_metrics
from robot_rl.training.loop import CHECKPOINT, Trainer

# Trains; `digest` says what the update after the checkpoint does to all that is learned.
PROGRAM = """
import hashlib, sys, time, torch
from pathlib import Path
from robot_rl.training.config import RunConfig
from robot_rl.training.loop import Trainer
torch.set_num_threads(1)

def digest(state):
    state.metrics = state.learner.update(state.sampler.transitions(16))
    hashed = hashlib.sha256(repr(sorted(state.metrics.items())).encode())
    def add(data):
        if isinstance(data, dict):
            [add(value) for value in data.values()]
        elif isinstance(data, torch.Tensor):
            hashed.update(data.numpy().tobytes())
    add(state.learner.save())
    return f'{state.env_steps} {state.learner.steps} {hashed.hexdigest()}'

config, folder, role = RunConfig.from_yaml(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
trainer = Trainer(config, folder)
if role == 'resume':
    print(digest(trainer.state), flush=True)
if role == 'die':
    save = Trainer.save
    def save_and_say(self):
        save(self)
        if self.state.env_steps >= 400:
            print(digest(self.state), flush=True)
            time.sleep(1000)
    Trainer.save = save_and_say
if role in ('die', 'run'):
    trainer.run()
"""


@pytest.fixture
def config(run_config, tmp_path):
    config = run_config(
        task='ur5e/reach', steps=10**9, training={'num_envs': 2, 'checkpoint_every': 200}
    )
    (tmp_path / 'run.yaml').write_text(config.to_yaml())
    return config


def start(tmp_path, role):
    command = [sys.executable, '-c', PROGRAM, tmp_path / 'run.yaml', tmp_path / 'run', role]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_after_kill_9_the_next_update_is_bitwise_that_of_the_killed_process(config, tmp_path):
    first = start(tmp_path, 'die')
    expected = first.stdout.readline()
    first.kill()
    assert first.wait() == -9
    second = start(tmp_path, 'resume')
    assert second.communicate()[0] == expected != ''
    assert second.returncode == 0


@pytest.mark.slow
def test_whenever_the_process_is_killed_a_whole_checkpoint_is_left(config, tmp_path):
    """Saves all the time, so that the kill falls into a write more often than not."""
    config = config.replace(training=config.training.to_dict() | {'checkpoint_every': 2})
    (tmp_path / 'run.yaml').write_text(config.to_yaml())
    path = tmp_path / 'run' / CHECKPOINT
    before = 0
    for round_ in range(3):
        process = start(tmp_path, 'run')
        while process.poll() is None and not path.exists():
            time.sleep(0.02)
        written = path.stat().st_mtime_ns
        while process.poll() is None and path.stat().st_mtime_ns == written:
            time.sleep(0.02)
        time.sleep(0.37 + 0.113 * round_)
        process.kill()
        assert process.wait() == -9
        saved = RunConfig.from_json(load_checkpoint(path)['config'])
        assert saved == config
        trainer = Trainer(config, tmp_path / 'run')
        assert trainer.state.env_steps > before
        before = trainer.state.env_steps
    assert all(row['env_steps'] % 100 < 2 for row in read_metrics(tmp_path / 'run/metrics.jsonl'))
