"""The demo's gates, figures and report, from made-up outcomes and a recorded loop."""

import json
import re

import numpy as np
import pytest
from rich.console import Console

from robot_rl.cli import demo
from robot_rl.demo import pipeline, report

RATES = {
    ('trained', 'ROS 2'): 0.95,
    ('constant action', 'simulation'): 0.0,
    ('behaviour mean of the data', 'ROS 2'): 0.5,
    ('retrained', 'simulation'): 0.9,
    ('retrained on shuffled rewards', 'simulation'): 0.4,
}
SUMMARY = {
    'headline': 'it <works>',
    'passed': True,
    'gates': [{'name': 'g', 'value': 0.5, 'needs': 'at least 0.15', 'passed': False}],
    'policies': [
        {
            'name': 'trained',
            'where': 'ROS 2',
            'success_rate': 0.95,
            'final_distance': 0.0123,
            'episodes': 20,
        }
    ],
    'ros': {
        'rate_hz': 20.0,
        'longest_interval_ms': 55.0,
        'latency_ms': {'p50': 6.0, 'p99': 14.0},
        'messages': 10,
        'lost': 0,
    },
    'run': {'cores': 2},
}
CURVE = [
    {'env_steps': 0, 'eval_return_mean': 1.0, 'eval_return_std': 0.5},
    {'env_steps': 10, 'eval_return_mean': 5.0, 'eval_return_std': 0.5},
]


def passed(changes=(), found=None):
    rates = RATES | dict(changes)
    return [gate['passed'] for gate in pipeline._gates(rates, found or pipeline.RECORDED)]


def test_all_gates_pass_on_good_figures():
    assert passed() == [True] * 5


def test_a_missing_episode_fails_the_demo():
    assert passed(found=pipeline.RECORDED | {'random': 9}) == [False] + [True] * 4


@pytest.mark.parametrize(
    ('key', 'value', 'failing'),
    [
        (('trained', 'ROS 2'), 0.85, {1}),
        (('constant action', 'simulation'), 0.1, {2}),
        (('behaviour mean of the data', 'ROS 2'), 0.8, {3}),
        (('retrained on shuffled rewards', 'simulation'), 0.8, {4}),
        (('retrained', 'simulation'), 0.5, {3, 4}),
    ],
)
def test_each_gate_fails_on_its_own_figure(key, value, failing):
    gates = passed([(key, value)])
    assert {number for number, good in enumerate(gates) if not good} == failing


def test_the_report_holds_its_figures_and_pictures(tmp_path):
    path = tmp_path / 'report.html'
    picture = np.zeros((4, 6, 3), np.uint8)
    report.write_report(path, SUMMARY, CURVE, {'start': picture})
    text = path.read_text()
    assert text.count('data:image/png;base64,') == 2  # the picture and the curve
    assert 'it &lt;works&gt;' in text and '95.0 %' in text and '12.3 mm' in text
    assert 'failed' in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing from outside


def test_an_earlier_run_is_set_aside_and_not_lost(tmp_path):
    folder = tmp_path / 'demo'
    folder.mkdir()
    (folder / 'episodes').write_text('precious')
    demo._set_aside(folder)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith('demo-') and (kept / 'episodes').read_text() == 'precious'


def test_tables_print_their_rows():
    console = Console(record=True, width=100)
    pipeline.print_table(console, report.POLICY_HEADER, report.policy_rows(SUMMARY['policies']))
    assert '95.0 %' in console.export_text()


@pytest.mark.slow
def test_the_shipped_policy_reaches_on_the_twin_through_ros(tmp_path, capsys):
    pytest.importorskip('rclpy')
    out = tmp_path / 'demo'
    argv = ['--deploy-only', '--episodes', '3', '--out', str(out), '--json']
    assert demo.main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['episodes'] == told['reached'] == 3
    assert len(list(out.glob('*.png'))) == 3
