"""The demo's table for the terminal and its report as one HTML file without outside parts."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.evaluation import html

_CURVE = 'noiseless evaluation: mean return and standard deviation; training stops at 99 % success'

Row = Mapping[str, Any]


def policy_rows(policies: Iterable[Row]) -> list[list[str]]:
    """Return the table of policies as text: name, where it ran, success, distance, episodes."""
    return [
        [
            row['name'],
            row['where'],
            f'{100 * row["success_rate"]:.1f} %',
            f'{1000 * row["final_distance"]:.1f} mm',
            str(row['episodes']),
        ]
        for row in policies
    ]


POLICY_HEADER = ('policy', 'where', 'success', 'final distance', 'episodes')


def ros_rows(ros: Row) -> list[list[str]]:
    """Return the figures of the control loop through ROS 2 as (what, value) text."""
    latency = ros['latency_ms']
    return [
        ['control-loop rate', f'{ros["rate_hz"]:.2f} Hz'],
        ['longest interval between two actions (50 ms wanted)', _ms(ros['longest_interval_ms'])],
        ['sensor stamp to first command, p50', _ms(latency['p50'])],
        ['sensor stamp to first command, p99', _ms(latency['p99'])],
        ['messages recorded', str(ros['messages'])],
        ['messages lost', str(ros['lost'])],
    ]


def _ms(value: float) -> str:
    return f'{value:.1f} ms'


def write_report(
    path: Path, summary: Row, curve: Sequence[Row], pictures: Mapping[str, np.ndarray]
) -> None:
    """Write the report: gates, policies, learning curve, ROS figures, pictures of the arm.

    `curve` holds rows of metrics.jsonl that have env_steps and eval_return_mean; `pictures` maps
    captions to RGB images uint8 [H, W, 3], and may be empty.
    """
    gates = [
        [gate['name'], f'{gate["value"]:.2f}', gate['needs'], html.verdict(gate['passed'])]
        for gate in summary['gates']
    ]
    parts = [
        '<h1>robot_rl: the whole loop</h1>',
        html.paragraph(summary['headline']),
        _figures(pictures),
        '<h2>Required</h2>',
        html.table(('what', 'measured', 'needed', ''), gates),
        '<h2>Policies</h2>',
        '<p>Success is judged from recorded columns by the task: the tool within 20 mm of the '
        'target over the last quarter second. Targets were held out from training. The behaviour '
        'mean is what all recorded episodes together reached; behaviour cloning imitates all of '
        'them; on shuffled rewards the same algorithm learns from rewards without a meaning; the '
        'constant action stands still.</p>',
        html.table(POLICY_HEADER, policy_rows(summary['policies'])),
        '<h2>Learning curve</h2>',
        html.image(_curve_png(curve), _CURVE, wide=True),
        '<h2>Through ROS 2</h2>',
        html.table(('what', 'value'), ros_rows(summary['ros'])),
        '<h2>How it was made</h2>',
        html.table(('what', 'value'), [[k, str(v)] for k, v in summary['run'].items()]),
    ]
    html.write(path, 'robot_rl demo', parts)


def _figures(pictures: Mapping[str, np.ndarray]) -> str:
    if not pictures:
        return '<p>No pictures: there is no OpenGL for rendering on this machine.</p>'
    return ''.join(html.image(html.png(image), caption) for caption, image in pictures.items())


def _curve_png(curve: Sequence[Row]) -> bytes:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    steps = np.array([row['env_steps'] for row in curve])
    mean = np.array([row['eval_return_mean'] for row in curve])
    std = np.array([row['eval_return_std'] for row in curve])
    figure, axes = plt.subplots(figsize=(8, 3), dpi=120)
    axes.plot(steps, mean, color='#1f5fa8')
    axes.fill_between(steps, mean - std, mean + std, color='#1f5fa8', alpha=0.15, linewidth=0)
    axes.set(xlabel='environment steps', ylabel='return')
    axes.spines[['top', 'right']].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches='tight')
    plt.close(figure)
    return buffer.getvalue()
