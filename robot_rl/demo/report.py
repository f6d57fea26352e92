"""The demo's table for the terminal and its report as one HTML file without outside parts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2733; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; text-align: left;
       border-bottom: 1px solid #d7dee6; } td { font-variant-numeric: tabular-nums; }
figure { margin: 0 .5% 0 0; display: inline-block; width: 32%; } figure.wide { width: 100%; }
.scroll { overflow-x: auto; }
img { width: 100%; border-radius: 4px; } figcaption { color: #5a6b7b; font-size: .9rem; }
.pass { color: #0a7a3d; } .fail { color: #b3261e; font-weight: 600; }
"""

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
        [gate['name'], f'{gate["value"]:.2f}', gate['needs'], _verdict(gate['passed'])]
        for gate in summary['gates']
    ]
    parts = [
        '<h1>robot_rl: the whole loop</h1>',
        f'<p>{html.escape(summary["headline"])}</p>',
        _figures(pictures),
        '<h2>Required</h2>',
        _table(('what', 'measured', 'needed', ''), gates, raw_last=True),
        '<h2>Policies</h2>',
        '<p>Success is judged from recorded columns by the task: the tool within 20 mm of the '
        'target over the last quarter second. Targets were held out from training. The behaviour '
        'mean is what all recorded episodes together reached; behaviour cloning imitates all of '
        'them; on shuffled rewards the same algorithm learns from rewards without a meaning; the '
        'constant action stands still.</p>',
        _table(POLICY_HEADER, policy_rows(summary['policies'])),
        '<h2>Learning curve</h2>',
        _image(_curve_png(curve), _CURVE, wide=True),
        '<h2>Through ROS 2</h2>',
        _table(('what', 'value'), ros_rows(summary['ros'])),
        '<h2>How it was made</h2>',
        _table(('what', 'value'), [[k, str(v)] for k, v in summary['run'].items()]),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>robot_rl demo</title>'
        f'<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )
    path.write_text(page, encoding='utf-8')


def _verdict(passed: bool) -> str:
    return '<span class="pass">passed</span>' if passed else '<span class="fail">failed</span>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], raw_last: bool = False) -> str:
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
    body = []
    for row in rows:
        cells = [html.escape(cell) for cell in row]
        if raw_last:
            cells[-1] = row[-1]
        body.append('<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>')
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _figures(pictures: Mapping[str, np.ndarray]) -> str:
    if not pictures:
        return '<p>No pictures: there is no OpenGL for rendering on this machine.</p>'
    return ''.join(_image(_png(image), caption) for caption, image in pictures.items())


def _image(png: bytes, caption: str, wide: bool = False) -> str:
    data = base64.b64encode(png).decode()
    kind = ' class="wide"' if wide else ''
    caption = html.escape(caption)
    return (
        f'<figure{kind}><img alt="{caption}" src="data:image/png;base64,{data}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def _png(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


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
