"""`robot-rl episodes`: the actions that check, mend, carry and clear away whole episodes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from robot_rl.cli import common
from robot_rl.errors import RobotRLError, StorageError, UnknownName
from robot_rl.storage import checksums, doors, garbage, recovery, transfer
from robot_rl.storage.claims import in_use
from robot_rl.storage.episode import DISCARDED, HEADER_FILE, PARTIAL
from robot_rl.storage.query import KEYS
from robot_rl.storage.store import Episodes, Store

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


class QueryOptions(common.StoreOptions):
    """Options of the actions on the episodes that match; a docstring is the help of its action."""

    query: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description=f'key=value; all must hold. Keys: {", ".join(KEYS)}'
    )


class EpisodeOptions(common.StoreOptions):
    """Options of the actions on one episode."""

    id: Annotated[str, tyro.conf.Positional] = pydantic.Field(description="the episode's id")


class VerifyOptions(common.StoreOptions):
    """Compare recorded data with its checksums: one line for each damaged file, exit code 1."""

    query: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description=f'ids, or key=value; all must hold. Keys: {", ".join(KEYS)}'
    )


class RecoverOptions(common.StoreOptions):
    """Mend recordings that were cut, up to the last flush; their bytes are kept."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description='ids, with or without .partial; all that nobody is recording, if none'
    )


class ExportOptions(common.StoreOptions):
    """Write whole episodes to a tar file, or their steps as a data set of another format."""

    target: Annotated[Path, tyro.conf.Positional] = pydantic.Field(
        description='the file or folder to make'
    )
    format: Literal[tuple(doors.FORMATS)] = pydantic.Field(
        'tar', description='a tar file of whole episodes, or what it is to be for others'
    )
    query: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description=f'key=value; all must hold. Keys: {", ".join(KEYS)}'
    )


class ImportOptions(common.StoreOptions):
    """Take in the episodes of an archive, or of a data set of another format."""

    path: Annotated[Path, tyro.conf.Positional] = pydantic.Field(
        description='an archive of export, a LeRobotDataset, or the reward-sketching data set'
    )


class MergeOptions(common.StoreOptions):
    """Copy the episodes of another store."""

    other: Annotated[Path, tyro.conf.Positional] = pydantic.Field(
        description='the folder of the other store'
    )


class GcOptions(common.StoreOptions):
    """List what may be deleted, ask, and delete it."""

    query: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description='with --episodes: ids, or key=value; all must hold'
    )
    episodes: Flag = pydantic.Field(False, description='delete whole episodes, and nothing else')
    yes: Flag = pydantic.Field(False, description='do not ask')


def find(store: Store, query: tuple[str, ...]) -> Episodes:
    """Return the episodes that match; names that no episode has are told on stderr."""
    store.look_again(query)
    tell(store.hints(query))
    return store.episodes(query)


def verify(options: VerifyOptions) -> int:
    """Check the episodes that match; without a query, whatever is not being recorded."""
    store = options.open()
    paths, strays = _to_verify(store, options.query)
    checks = [checksums.check(path) for path in paths]
    damaged = [damage for check in checks for damage in check.damaged]
    unverifiable = [str(file) for check in checks for file in check.unverifiable]
    size = sum(check.bytes for check in checks)
    data = {
        'checked': len(paths),
        'bytes': size,
        'damaged': [{'file': str(item.file), 'problem': item.problem} for item in damaged],
        'unverifiable': unverifiable,
        'strays': list(map(str, strays)),
    }
    lines = [str(item) for item in damaged]
    lines += [f'{file}: cannot be verified: stored without a checksum' for file in unverifiable]
    lines += [f'{path}: no episode, and nothing of one; left out' for path in strays]
    lines.append(
        f'{_episodes(len(paths))} checked ({size / 1e6:.1f} MB): '
        f'{len(damaged)} damaged files, {len(unverifiable)} without a checksum'
    )
    common.emit(data, options.as_json, '\n'.join(lines))
    return 1 if damaged else 0


def _to_verify(store: Store, words: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the directories to check, and those that are no episode's."""
    named, query = _ids_and_query(words)
    paths = [store.path(id) for id in named]
    if named and not query:
        return paths, []
    ids = find(store, tuple(query)).ids
    asked = {id for word in query if word.startswith('id=') for id in word[3:].split(',')}
    # What cannot be read might be what is asked for.
    broken = {name.split('/')[0] for name in store.damaged}
    paths += [store.root / id for id in ids]
    paths += [store.root / id for id in sorted(broken - set(ids)) if not asked or id in asked]
    if not words:
        paths += [path for path in store.unfinished() if _is_to_verify(path)]
    strays = [path for path in paths if not checksums.is_episode(path)]
    return [path for path in paths if path not in strays], strays


def _is_to_verify(path: Path) -> bool:
    """Tell whether an unfinished episode is to be whole.

    One that was cut is mended by recover; unless nothing tells any more what it was.
    """
    if path.name.endswith(DISCARDED):
        return True
    return not in_use(path) and not (path / HEADER_FILE).exists()


def _ids_and_query(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the ids among the words of a command, and the rest: key=value."""
    return [w for w in words if '=' not in w], [w for w in words if '=' in w]


def recover(options: RecoverOptions) -> int:
    """Recover the partial episodes that are named, or all of them."""
    store = options.open()
    if options.names:
        paths = [_cut(store, name.removesuffix(PARTIAL)) for name in options.names]
    else:
        cut = (path for path in store.unfinished() if path.name.endswith(PARTIAL))
        paths = [path for path in cut if not in_use(path)]
    recovered, refused = [], []
    for path in paths:
        try:
            recovered.append(recovery.recover(path))
        except StorageError as error:
            refused.append(str(error))
    data = {'recovered': [path.name for path in recovered], 'refused': refused}
    tell(refused)
    lines = [*map(str, recovered), f'{_episodes(len(recovered))} recovered']
    common.emit(data, options.as_json, '\n'.join(lines))
    return 1 if refused else 0


def _cut(store: Store, id: str) -> Path:
    """Return the directory of a partial episode. Raises UnknownName where there is none."""
    if id in store.episodes(id=id).ids:
        raise RobotRLError(f'{store.root / id}: was finished; there is nothing to recover')
    partial = [path for path in store.unfinished() if path.name.endswith(PARTIAL)]
    cut = {path.name.removesuffix(PARTIAL): path for path in partial}
    if id not in cut:
        raise UnknownName('unfinished episode', id, cut)
    return cut[id]


def export(options: ExportOptions) -> int:
    """Write the episodes that match."""
    store = options.open()
    paths = [store.root / id for id in store.episodes(options.query).ids]
    if str(options.target) in store.episodes().ids:
        raise RobotRLError(
            f'export: {options.target} is an episode; name the file first: '
            f'robot-rl episodes export FILE id={options.target}'
        )
    tell(store.damaged.values())
    if not paths:
        why = ''.join(f'; {hint}' for hint in store.hints(options.query))
        raise RobotRLError(f'{store.root}: no episode matches; nothing to export{why}')
    refused: list[str] = []
    ids = doors.export_to(paths, options.target, options.format, refused.append, common.chain_of)
    tell(refused)
    files = [options.target, *options.target.rglob('*')]
    size = sum(file.stat().st_size for file in files if file.is_file())
    data = {'target': str(options.target), 'bytes': size, 'episodes': ids, 'refused': refused}
    text = f'{_episodes(len(ids))} ({size / 1e6:.1f} MB) in {options.target}'
    common.emit(data, options.as_json, text)
    return 1 if refused or (store.damaged and not options.query) else 0


def import_(options: ImportOptions) -> int:
    """Take in episodes from elsewhere; a store that is not there is made."""
    with _store_to_fill(options.store) as store:
        return _taken(options, doors.import_from(store, options.path))


def merge(options: MergeOptions) -> int:
    """Copy another store's episodes; a store that is not there is made."""
    source = Store(options.other, create=False)
    with _store_to_fill(options.store) as store:
        return _taken(options, transfer.merge(store, source.root))


@contextlib.contextmanager
def _store_to_fill(root: Path) -> Iterator[Store]:
    """Lend a store, made where it is missing; one that was, and stayed empty, goes again."""
    is_new = not root.exists()
    store = Store(root)
    try:
        yield store
    finally:
        if is_new:
            garbage.remove_empty(store)


def gc(options: GcOptions) -> int:
    """List what would go; delete it with --yes, or when somebody at a terminal says so."""
    store = options.open()
    listed = _listed(store, options)
    size = sum(item.bytes for item in listed)
    # Machines read one object from stdout, people the list and the question.
    for item in [] if options.as_json else listed:
        what = item.path if item.kind != 'columns' else f'{item.path}: {", ".join(item.files)}'
        print(f'{what}  ({item.bytes / 1e6:.1f} MB; {garbage.REASONS[item.kind]})')
    summary = f'{len(listed)} to delete, {size / 1e6:.1f} MB'
    agreed = bool(listed) and (options.yes or (not options.as_json and _asked(summary)))
    left = garbage.delete(store, listed) if agreed else []
    tell(left)
    data = {
        'listed': [
            {'path': str(item.path), 'kind': item.kind, 'files': list(item.files)}
            for item in listed
        ],
        'bytes': size,
        'deleted': agreed,
        'left': left,
    }
    done = 'deleted' if agreed else 'nothing was deleted'
    common.emit(data, options.as_json, f'{summary}: {done}' if listed else 'nothing to delete')
    return 1 if left else 0


def _listed(store: Store, options: GcOptions) -> list[garbage.Garbage]:
    if not options.episodes:
        if options.query:
            raise RobotRLError('gc: episodes are deleted with --episodes only; it is missing')
        return garbage.garbage(store)
    if not options.query:
        raise RobotRLError('gc: --episodes needs ids, or a query like tag=spoilt')
    ids, query = _ids_and_query(options.query)
    found = store.episodes(query).ids if query else []
    return garbage.episodes(store, dict.fromkeys([*ids, *found]))


def _asked(summary: str) -> bool:
    if not sys.stdin.isatty():
        print('--yes deletes what is listed')
        return False
    try:
        return input(f'{summary}. Delete? [y/N] ').strip().lower() in ('y', 'yes')
    except EOFError:  # Ctrl-D is no yes
        print()
        return False


def _taken(options: common.StoreOptions, done: transfer.Transfer) -> int:
    """Tell what an import or a merge did."""
    tell(done.refused)
    lines = [
        f'{old} is another episode here; it became {new}' for old, new in done.renamed.items()
    ]
    lines.append(
        f'{_episodes(len(done.added) + len(done.renamed))} taken into {options.store}, '
        f'{len(done.same)} there already, {len(done.refused)} left'
    )
    data: dict[str, Any] = {'store': str(options.store), **done._asdict()}
    common.emit(data, options.as_json, '\n'.join(lines))
    return 1 if done.refused else 0


def tell(problems: Iterable[str]) -> None:
    """Say on stderr what is wrong, a line each."""
    for problem in problems:
        print(f'robot-rl: {problem}', file=sys.stderr)


def _episodes(count: int) -> str:
    return f'{count} episode' if count == 1 else f'{count} episodes'


ACTIONS = {
    'verify': (verify, VerifyOptions, 'task=ur5e/reach'),
    'recover': (recover, RecoverOptions, ''),
    'export': (export, ExportOptions, 'curated.tar tag=curated'),
    'import': (import_, ImportOptions, 'curated.tar --store episodes'),
    'merge': (merge, MergeOptions, '/mnt/other/episodes'),
    'gc': (gc, GcOptions, '--episodes tag=spoilt'),
}
