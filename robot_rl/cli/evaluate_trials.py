"""Trials of a policy through ROS, on the twin or on the arm, and the report of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from robot_rl import registry, resources
from robot_rl.cli import common, up
from robot_rl.cli.episode_pictures import contact_sheet
from robot_rl.cli.person import Person
from robot_rl.control.runtime import BUILT_IN, identify, load_policy
from robot_rl.errors import RobotRLError, UnknownName
from robot_rl.evaluation.pictures import EpisodePictures
from robot_rl.evaluation.report import HEADER, rows, write_report
from robot_rl.evaluation.trials import TAG, Trial, read_trial, summary, teleoperators
from robot_rl.sim.environment import HELD_OUT
from robot_rl.sim.perturbation import Kind, drawn, perturbed
from robot_rl.sim.task import ArmTask, Columns
from robot_rl.specs import Contract
from robot_rl.storage.files import new_id
from robot_rl.storage.store import Store

if TYPE_CHECKING:
    from robot_rl.cli.evaluate import Options

_NONE = 'none'
_PICTURE = 240, 180  # [pixels]
# What session says where it waits for a person, and where somebody did not get ready.
_WAITS, _AGAIN = 'call ~/start', 'to try again'


def run(options: Options) -> int:
    """Run the trials, judge them, write the report and print what was reached."""
    from robot_rl.cli.evaluate import task_of

    task = registry.make_task(task_of(options))
    contract = _contract(options)
    if contract and not options.real:
        task.require_shown(contract)
    sees = _sees(options, contract or task.contract())
    kinds = _kinds(options, task, sees)
    given, id = _arguments(options, task, sees), f'{TAG}-{new_id()}'
    file, digest = identify(options.policy)
    out = options.out or Path('runs/evaluations') / id.removeprefix(f'{TAG}-')
    common.require_folder('--out', out)
    store, columns, pictures = Store(options.store), [], {}
    for kind in kinds:
        tags = ','.join([TAG, id, f'perturbed-{kind}', *options.tag])
        arguments = given | {'perturbation': kind, 'tags': tags}
        found, code = _trials(options, arguments, store, out / 'logs' / kind)
        column = [read_trial(store, task, episode, options.judge) for episode in found]
        columns.append(_column(kind, task, [trial for trial, _ in column]))
        pictures |= _pictures(store, task, column)
        whole = not code and len(found) == options.episodes
        if not whole:
            break
    if not columns[0]['trials']:
        raise RobotRLError(f'evaluate: no trial was recorded; see the logs in {out / "logs"}')
    header = store.open(columns[0]['each'][0]['episode']).header
    data = {
        'policy': header.policy,
        'policy_file': file,
        'policy_sha256': digest,
        'task': task.name,
        'robot': options.robot,
        'world': header.world,
        'judge': options.judge,
        'run': id,
        'store': str(options.store),
        'git_revision': resources.git_revision(),
        'columns': columns,
        'teleoperators': teleoperators(store, task),
        'report': str(out / 'report.html'),
    }
    _write(out, data, store, pictures)
    common.emit(data, options.as_json, _text(data))
    return 0 if whole else 1


def _kinds(options: Options, task: ArmTask, sees: bool) -> list[Kind]:
    """Return the perturbations to evaluate with, none first. Raises RobotRLError."""
    known = [kind for kind in get_args(Kind) if kind != _NONE]
    asked = [kind for word in options.perturb for kind in word.split(',') if kind]
    for kind in asked:
        if kind not in known:
            raise UnknownName('perturbation', kind, known)
        if options.real:
            raise RobotRLError(f'--perturb {kind} is of the twin: a real arm has its own')
        if kind == 'camera' and not sees:
            raise RobotRLError(
                f'--perturb camera: {options.policy} sees no pictures: it would not notice'
            )
        perturbed(task, kind)
    return [_NONE, *dict.fromkeys(asked)]


def _contract(options: Options) -> Contract | None:
    """Return what the policy's file says; None: it has none.

    Raises what control.runtime.load_policy does.
    """
    if options.policy in (registry.SCRIPTED, *BUILT_IN):
        return None
    return load_policy(options.policy).contract


def _sees(options: Options, contract: Contract) -> bool:
    """Tell whether the policy, which has this contract, sees pictures; 'scripted' never does."""
    pictures = any(field.encoding for field in contract.observation)
    return pictures and options.policy != registry.SCRIPTED


def _arguments(options: Options, task: ArmTask, sees: bool) -> dict[str, str]:
    """Return the arguments of the graph that runs the trials. Raises RobotRLError."""
    if options.set:
        raise RobotRLError(
            "--set is for simulation in this process; the twin's nodes read a file: --task F.yaml"
        )
    if options.real and options.reset == 'seeds':
        raise RobotRLError(
            '--reset seeds: no seed puts the things beside a real arm back; ask does'
        )
    common.require_robot_of(task, options.robot)
    asks = options.real or options.reset == 'ask'
    return {
        'sim': 'false' if options.real else 'true',
        'robot': options.robot,
        'task': options.task or task.name,
        'policy': options.policy,
        'seed': str(options.seed),
        'episodes': str(options.episodes),
        'first_seed': '-1' if options.real else str(HELD_OUT),
        'manual': 'true' if asks else 'false',
        'operator': options.operator,
        'storage': str(options.store),
        'cameras': 'true' if task.cameras or sees else 'false',
        'params_file': options.params_file,
    }


def _trials(
    options: Options, arguments: dict[str, str], store: Store, logs: Path
) -> tuple[list[str], int]:
    """Run the graph; return the episodes that were recorded, and the graph's exit code."""
    person = Person(store, options.judge == 'human', arguments['manual'] == 'true')
    episodes: list[str] = []

    def show(node: str, line: str) -> None:
        print(f'[{node}] {line}', file=sys.stderr, flush=True)
        if told := up.ended(node, line):
            if told['result'] != 'discarded' and 'path' in told:
                episodes.append(told['episode'])
                person.has_ended(told['episode'], told['result'])
        elif node == 'session' and _WAITS in line:
            person.may_start(len(episodes) + 1, options.episodes, _AGAIN in line)

    try:
        code = up.run('deploy', arguments, logs, show, person.listen)
        if code or len(episodes) == options.episodes:  # else they were broken off
            person.finish()
    finally:
        person.close()
    return episodes, code


def _column(kind: Kind, task: ArmTask, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return plain data of the trials of one perturbation."""
    each = []
    for trial in trials:
        data = trial._asdict()
        if trial.interventions is not None:
            data['interventions'] = trial.interventions._asdict()
        if trial.seed is not None:
            data['event'] = drawn(task, kind, trial.seed).to_dict()
        each.append(data)
    return {'perturbation': kind} | summary(trials) | {'each': each}


def _pictures(
    store: Store, task: ArmTask, trials: Sequence[tuple[Trial, Columns | None]]
) -> dict[str, dict[str, np.ndarray]]:
    """Return {episode: {caption: picture}}: drawn of what was recorded, and by the cameras."""
    draw, pictures = EpisodePictures(task, _PICTURE), {}
    for trial, columns in trials:
        if columns is not None:
            pictures[trial.episode] = draw.of(columns)
            shown = contact_sheet(store.open(trial.episode), columns)
            if shown is not None:
                pictures[trial.episode]['as cameras showed it'] = shown[..., ::-1]
    return pictures


def _write(out: Path, data: Mapping[str, Any], store: Store, pictures: Mapping[str, Any]) -> None:
    """Write report.html and report.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, allow_nan=False)
    (out / 'report.json').write_text(text + '\n', encoding='utf-8')
    episodes = [trial['episode'] for column in data['columns'] for trial in column['each']]
    folders = {id: os.path.relpath(store.path(id), out) for id in episodes}
    write_report(out / 'report.html', data, pictures, folders)


def _text(data: Mapping[str, Any]) -> str:
    where = 'its twin' if data['world'] == 'sim' else 'the arm'
    lines = [f'{data["task"]}: {data["policy"]} on {data["robot"]}, {where}; {data["run"]}']
    found = rows(data['columns'], data['teleoperators'])
    lines += common.table([dict(zip(HEADER, row, strict=True)) for row in found])
    for column in data['columns']:
        for name in ('failures', 'not_judged'):
            if column[name]:
                words = f'{name.replace("_", " ")}, perturbed by {column["perturbation"]}'
                lines.append(f'{words}: {" ".join(column[name])}')
    return '\n'.join([*lines, f'report: {data["report"]}'])
