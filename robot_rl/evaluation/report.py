"""The page of an evaluation: what was reached, and each trial with pictures and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.evaluation import html

Data = Mapping[str, Any]

HEADER = (
    'perturbed by', 'success', '95 %', 'done after', 'length', 'interventions an hour'
)  # fmt: skip
_NOT_KNOWN = '-'


def rows(columns: Sequence[Data], teleoperators: Data) -> list[list[str]]:
    """Return the table of an evaluation as text: a line a perturbation, and the teleoperators."""
    found = [
        [
            column['perturbation'],
            f'{column["successes"]} of {column["trials"] - len(column["not_judged"])}',
            '{:.0%} to {:.0%}'.format(*column['success_interval']),
            seconds(column['done_after_s']),
            seconds(column['length_s']),
            _number(column['interventions_per_hour']),
        ]
        for column in columns
    ]
    shown = teleoperators['episodes']
    times = [seconds(teleoperators[name]) for name in ('done_after_s', 'length_s')]
    who = f'(teleoperators, {shown} good)' if shown else '(teleoperators: none in the store)'
    return [*found, [who, '', '', *times, '']]


def seconds(spread: Data | None) -> str:
    """Return a median and its quartiles as text."""
    if spread is None:
        return _NOT_KNOWN
    return '{median:.1f} s ({lower_quartile:.1f} to {upper_quartile:.1f})'.format(**spread)


def write_report(
    path: Path,
    data: Data,
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    folders: Mapping[str, str],
) -> None:
    """Write the page of what an evaluation printed as `data`.

    `pictures` are {episode: {caption: RGB uint8 [H, W, 3]}}, `folders` where its files are from
    the page; either may lack an episode.
    """
    about = ('policy', 'policy_sha256', 'task', 'robot', 'world', 'judge', 'run', 'store')
    title = f'{data["policy"]} in {data["task"]}'
    parts = [
        f'<h1>{html.safe(title)}</h1>',
        html.table(HEADER, rows(data['columns'], data['teleoperators'])),
        html.paragraph(
            'Success with its 95 % interval (Wilson). Times are median and quartiles of what '
            'succeeded: until the task was done and stayed so, and of whole episodes.'
        ),
        '<h2>What was evaluated</h2>',
        html.table(('what', 'value'), [[name, str(data[name])] for name in about]),
    ]
    for column in data['columns']:
        parts.append(f'<h2>Perturbed by: {html.safe(column["perturbation"])}</h2>')
        for trial in column['each']:
            parts += _trial(trial, pictures.get(trial['episode'], {}), folders)
    html.write(path, title, parts)


def _trial(trial: Data, pictures: Mapping[str, np.ndarray], folders: Data) -> list[str]:
    success = trial['success']
    words = 'not judged' if success is None else html.verdict(success, ('success', 'failure'))
    seed = '' if trial['seed'] is None else f' · seed {trial["seed"]}'
    id = trial['episode']
    name = html.link(folders[id], id) if id in folders else html.safe(id)
    told = [trial['result'], trial['reason'], _took(trial), _came(trial.get('event'))]
    images = [
        html.image(html.jpeg(picture), caption, wide=_is_wide(picture), kind='jpeg')
        for caption, picture in pictures.items()
    ]
    return [
        f'<h3>{words} · {name}{seed}</h3>',
        html.paragraph('; '.join(word for word in told if word)),
        *images,
    ]


def _came(event: Data | None) -> str:
    """Return what perturbed an episode, in words."""
    if event is None:
        return ''
    moved = [f'{goal} moved by {_vector(way)} m' for goal, way in event['moved'].items()]
    knocked = [f'{thing} knocked by {_vector(v)} m/s' for thing, v in event['knocked'].items()]
    return ', '.join(f'{words} after {event["at_s"]:.2f} s' for words in (*moved, *knocked))


def _vector(values: Sequence[float]) -> str:
    return '({})'.format(', '.join(f'{value:.2f}' for value in values))


def _is_wide(picture: np.ndarray) -> bool:
    height, width = picture.shape[:2]
    return width > 2 * height


def _took(trial: Data) -> str:
    after, distance = trial['done_after_s'], trial['final_distance']
    words = [] if after is None else [f'done after {after:.1f} s']
    words += [] if distance is None else [f'{1000 * distance:.0f} mm from done at the end']
    return ', '.join(words)


def _number(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f'{value:.1f}'
