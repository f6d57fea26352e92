"""List, show, judge, check, mend and carry what was recorded.

ls [key=value ...]             episodes that match, e.g. task=ur5e/reach success=true tag=a,b
show ID --out FOLDER           one episode: header, topics, damage, who led; its pictures and plots
open ID                        see it in Foxglove or rerun
replay ID                      give its commands again, through the guard, to the twin or the arm
stats [key=value ...]          counts, hours and success by task and source
judge [key=value ...]          judge success by the task, where nobody has judged yet
label ID --success true        say whether it succeeded: true, false or unknown
tag ID +curated -spoilt        add and remove tags
verify [ID, key=value ...]     compare with the checksums; exit code 1 where one is wrong
recover [NAME ...]             mend recordings that were cut, up to the last flush
export TARGET [key=value ...]  write whole episodes to a tar file; or their steps, for others
import PATH                    take in what was exported, or a data set of another format
merge OTHER                    copy the episodes of another store
gc [key=value ...]             list what may be deleted, ask, delete; nothing else ever deletes
reindex                        rebuild the index from the directories
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
import yaml

from robot_rl.cli import common, episode_care, episode_play
from robot_rl.cli.episode_care import EpisodeOptions, QueryOptions
from robot_rl.errors import ContractMismatch, RobotRLError, StorageError
from robot_rl.storage import sources, statistics
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader
from robot_rl.storage.store import Store

EXAMPLE = 'robot-rl episodes ls --json task=ur5e/reach source=policy success=true'
# What is shown of a reward sequence.
_OF_REWARDS = 'id', 'task', 'kind', 'author', 'model_sha256', 'created_ns'
# What is shown of the world that an episode was simulated in.
_OF_WORLD = 'randomisation', 'domain'
TRUTH = {'true': True, 'false': False, 'unknown': None}


class ShowOptions(EpisodeOptions):
    """Show one episode: header, topics, damage, reward sequences."""

    out: Path | None = pydantic.Field(
        None, description='a folder for a contact sheet of its pictures and plots, as PNG'
    )


class ListOptions(QueryOptions):
    """List the episodes that match."""


class StatsOptions(QueryOptions):
    """Count episodes, hours and successes by task and source."""


class JudgeOptions(QueryOptions):
    """Judge, by the task's predicate on recorded columns, what nobody has judged yet."""


class LabelOptions(EpisodeOptions):
    """Say whether an episode succeeded."""

    success: Literal['true', 'false', 'unknown'] = pydantic.Field(
        description='whether the episode succeeded'
    )


class TagOptions(EpisodeOptions):
    """Add tags to an episode and remove tags from it."""

    changes: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        description='+tag adds, -tag removes'
    )


class ReindexOptions(common.StoreOptions):
    """Rebuild the index from the directories."""


def main(argv: list[str]) -> int:
    """Run one action on the store."""
    actions = {
        'ls': (_list, ListOptions, 'task=ur5e/reach source=policy success=true --json'),
        'show': (_show, ShowOptions, 'ID --out shown'),
        'judge': (_judge, JudgeOptions, 'task=ur5e/reach'),
        'stats': (_stats, StatsOptions, 'after=2026-01-01'),
        'label': (_label, LabelOptions, 'ID --success true'),
        'tag': (_tag, TagOptions, 'ID +curated -spoilt'),
        **episode_play.ACTIONS,
        **episode_care.ACTIONS,
        'reindex': (_reindex, ReindexOptions, '--store /data/episodes'),
    }
    return common.run_action(argv, 'episodes', __doc__, EXAMPLE, actions, _positional_last)


def _list(options: ListOptions) -> None:
    store = options.open()
    headers = list(episode_care.find(store, options.query))
    unfinished = [path.name for path in store.unfinished()]
    data = {
        'count': len(headers),
        'episodes': [_summary(store, header) for header in headers],
        'unfinished': unfinished,
        'damaged': store.damaged,
    }
    for problem in store.damaged.values():
        print(f'robot-rl: skipped: {problem}', file=sys.stderr)
    lines = common.table([_row(header) for header in headers])
    lines.append(f'{len(headers)} episodes in {store.root}')
    if unfinished:
        lines.append(f'unfinished: {", ".join(unfinished)}')
    common.emit(data, options.as_json, '\n'.join(lines))


def _show(options: ShowOptions) -> None:
    store = options.open()
    reader = store.open(options.id)
    broken: dict[str, str] = {}
    found = {
        'path': str(reader.path),
        'damage': reader.damage(),
        'rewards': [
            {name: getattr(info, name) for name in _OF_REWARDS} for info in reader.rewards(broken)
        ],
        'damaged_rewards': broken,
    } | _led(reader)
    if options.out:
        from robot_rl.cli import episode_pictures

        notes: list[str] = []
        drawn = episode_pictures.draw(reader, options.out, notes.append)
        found |= {'drawn': [str(path) for path in drawn], 'not_drawn': list(dict.fromkeys(notes))}
    told = _summary(store, reader.header)
    header = reader.header.to_dict()
    world = {name: header['extra'][name] for name in _OF_WORLD if name in header['extra']}
    shown = told | world | found
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=99).rstrip()
    common.emit(header | told | found, options.as_json, text)


def _led(episode: EpisodeReader) -> dict[str, Any]:
    """Return how many steps each source led, and a person's share of a policy's episode."""
    try:
        column = aligned_columns(episode, kinematics=common.chain_of).get('source')
    except (StorageError, ContractMismatch):
        return {}  # no columns; what is damaged is told already
    if column is None:
        return {}
    steps = sources.count_steps(column)
    if not sources.by_policy(episode.header.source):
        return {'steps': steps}
    share = round(steps.get('person', 0) / len(column), 3)
    return {'steps': steps, 'intervened_share': share}


def _stats(options: StatsOptions) -> None:
    store = options.open()
    episode_care.find(store, options.query)
    episode_care.tell(store.damaged.values())
    groups = store.counts(options.query)
    total = statistics.total(groups.values())
    rows = [_counted({'task': key[0], 'source': key[1]}, groups[key]) for key in groups]
    lines = common.table(
        [
            {name: _short(value) for name, value in row.items()}
            for row in [*rows, _counted({'task': 'all', 'source': ''}, total)]
        ]
    )
    common.emit(_counted({}, total) | {'groups': rows}, options.as_json, '\n'.join(lines))


def _counted(group: dict[str, Any], count: statistics.Count) -> dict[str, Any]:
    return group | count._asdict() | {'success_rate': count.success_rate}


def _short(value: Any) -> str:
    if value is None:
        return 'unknown'
    return f'{value:.3f}' if isinstance(value, float) else str(value)


def _judge(options: JudgeOptions) -> int:
    # Here, and not above: MuJoCo takes a second, and the other actions do without.
    from robot_rl.imitation.data import judge
    from robot_rl.registry import make_task

    store = options.open()
    waiting = store.episodes([*options.query, 'success=unknown'])
    ids = {header.id for header in waiting}
    refused: list[str] = []
    for task in sorted({header.task for header in waiting}):
        try:
            query = [*options.query, f'task={task}', 'success=unknown']
            judge(store, make_task(task), query, refused.append)
        except RobotRLError as error:  # the episodes of other tasks are judged all the same
            refused.append(str(error))
    judged = [header for header in store.episodes(options.query) if header.id in ids]
    done = [header for header in judged if header.success is not None]
    for problem in dict.fromkeys(refused):
        print(f'robot-rl: not judged: {problem}', file=sys.stderr)
    data = {
        'judged': len(done),
        'success': sum(bool(h.success) for h in done),
        'refused': list(dict.fromkeys(refused)),
    }
    text = '\n'.join(common.table([_row(header) for header in done]))
    nothing = 'nothing could be judged' if refused else 'nothing waits to be judged'
    common.emit(data, options.as_json, text or nothing)
    return 1 if refused else 0


def _label(options: LabelOptions) -> None:
    store = options.open()
    header = store.label(options.id, TRUTH[options.success])
    _emit_changed(store, header, options.as_json)


def _tag(options: TagOptions) -> None:
    signs = {'+': [], '-': []}
    for change in options.changes:
        if change[:1] not in signs or len(change) < 2:
            raise RobotRLError(f'tag: {change!r} is neither +tag (add) nor -tag (remove)')
        signs[change[0]].append(change[1:])
    if not options.changes:
        raise RobotRLError('tag: what is to change? +tag adds, -tag removes')
    store = options.open()
    header = store.tag(options.id, add=signs['+'], remove=signs['-'])
    _emit_changed(store, header, options.as_json)


def _reindex(options: ReindexOptions) -> None:
    store = options.open()
    count = store.reindex()
    text = '\n'.join([*store.damaged.values(), f'{count} episodes indexed in {store.root}'])
    common.emit({'count': count, 'damaged': store.damaged}, options.as_json, text)


def _emit_changed(store: Store, header: EpisodeHeader, as_json: bool) -> None:
    (line,) = common.table([_row(header)])[1:]
    common.emit(_summary(store, header), as_json, line)


def _summary(store: Store, header: EpisodeHeader) -> dict[str, Any]:
    """Return a header as plain data, without the long descriptions, with its path."""
    long = {'contract', 'robot_spec', 'extra'}
    data = {key: value for key, value in header.to_dict().items() if key not in long}
    told = {'duration_s': header.duration_s, 'flags': header.flags, 'skew_s': header.skew_s}
    return data | told | {'path': str(store.root / header.id)}


def _row(header: EpisodeHeader) -> dict[str, str]:
    words = {truth: word for word, truth in TRUTH.items()}
    return {
        'id': header.id,
        'task': header.task,
        'source': header.source,
        'policy': header.policy,
        'result': header.result,
        'success': words[header.success],
        'seconds': '' if header.duration_s is None else f'{header.duration_s:.1f}',
        'flag': 'short' if header.flags else '',
        'tags': ' '.join(header.tags),
    }


def _positional_last(argv: list[str]) -> list[str]:
    """Move flags, with their values, before the rest: the parser wants positionals together.

    A word like -tag is no flag, and nothing is after '--'.
    """
    flags, rest, words = [], [], iter(argv)
    for word in words:
        if word == '--':
            rest += words
        elif not re.match('--|-h$', word):
            rest.append(word)
        else:
            flags.append(word)
            if '=' not in word and word not in (
                '--json',
                '--help',
                '-h',
                '--yes',
                '--episodes',
                '--real',
            ):
                flags += itertools.islice(words, 1)
    return [*flags, '--', *rest] if rest else flags
