"""Aligned columns: what a policy saw and did, tick by tick, from the raw streams of an episode.

A row holds, of every stream, the newest sample that had come when the action was decided: what
was known then, not what was measured by then and came later. Derived data: cached as steps.npz
in the episode's directory, and rebuilt whenever it does not match what is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.specs import Contract, ObservationField, RobotSpec
from robot_rl.specs.contract import HEARD_WITHIN
from robot_rl.specs.robot import Camera, Gripper
from robot_rl.storage import column_file, samples, sources
from robot_rl.storage.column_file import Columns
from robot_rl.storage.commanded import Kinematics, Told, as_action, has_twist, require_kinds
from robot_rl.storage.episode import STEPS_FILE, STREAMS_FILE, EpisodeHeader, EpisodeReader
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.samples import Series, Take

CACHE_FILE = STEPS_FILE
_CACHE_VERSION = 9

_ACTION, _COMMAND, _APPLIED = 'policy/action', 'command', 'command_guard/applied'
_ASKED_WIDTH, _TOLD_WIDTH = 'command.width', 'gripper_controller.width'
_PERSON = 'teleop/command'  # in a policy's episode
_COMMANDS = _ACTION, _COMMAND, _APPLIED, _PERSON, _ASKED_WIDTH, _TOLD_WIDTH
_SESSION = 'session/state'
_JOINT_STATES = 'joint_states'
_MEASURED = 'tool', 'gripper'  # what the joint states tell
_POSE = 'geometry_msgs/msg/PoseStamped'


def aligned_columns(
    episode: EpisodeReader,
    contract: Contract | None = None,
    kinematics: Kinematics | None = None,
) -> Columns:
    """Return an episode's columns at its T control ticks, float64, in the order of time.

    'time' [T + 1] seconds; '<stream>.<quantity>' [T + 1, ...]: joint_states.position and
    .velocity [n] in the order of the episode's RobotSpec.joints (velocities filled as the
    contract says, NaN where it says nothing), command.position [n], position [3] and orientation
    [4] (wxyz) of every pose stream, position [n] of goals for the joints, gripper.width [1] where
    the joint_states tell it, image of every camera that the contract reads (see Pictures);
    '<stream>.time' the samples' own stamps; NaN before a stream's first sample. action/requested
    and action/applied [T, A] in contract units and order. Row T is the state that the last action
    led to.

    Where the episode was run by a policy at the contract's rate, the rows are that policy's
    ticks: joint_states is the sample that the action was computed from, of other streams the
    newest that the policy had heard by then, and requested what it asked for. At another rate,
    and where a person commanded, they are a period of the contract apart, from the first command
    of the running episode on; joint_states is the newest sample by then, and requested is where
    the commands led to within the period. So it is, too, where the contract commands in another
    way (by joint_position instead of joint_delta).

    command.position of row k is the last target before action k, and of row 0 the measured
    position; a lost message leaves the target before it. Where the guard heard another than the
    policy it is what was applied, which the policy went on from. action/applied is what the guard
    let through: the last applied position that answers action k, less that of action k - 1 (row
    0's command before the first) where the action is a joint_delta. A gripper's width is the last
    one that was asked for, or that the guard told the gripper, in answer to action k; before the
    first the measured one.

    source [T] int8 is who led the arm last in each step, a number of storage.sources: 'policy',
    'person' (teleop), 'hold' or 'estop', as the guard's applied commands say. Where a person
    overruled the policy, requested is where the person's commands led to, and of a gripper what
    it was told; where the guard held, it is what the policy asked for, though nobody did it.

    A joint path is a cartesian_twist by the kinematics of the robot: `kinematics` makes them of
    its RobotSpec. Without, what only they can tell of an action is NaN.

    An episode that has columns only (see episode.py) gives those, in the precision in which they
    came, at its own rate and with its own actions.

    `contract` is the episode's own where none is given. Raises StorageError where a topic or a
    sample is missing or older than the contract allows, and ContractMismatch for an action that
    no command to the robot amounts to.
    """
    contract = contract or episode.header.contract
    if episode.is_steps_only:
        return _recorded_columns(episode, contract)
    if contract is None or episode.header.robot_spec is None:
        raise StorageError(
            f'{episode.path}: no columns without a contract and a robot_spec in the header'
        )
    if not has_twist(contract):
        kinematics = None
    key, path = _cache_key(episode, contract, kinematics), episode.path / CACHE_FILE
    with contextlib.suppress(StorageError):  # a damaged cache is made anew
        cached = column_file.read(path, key)
        if cached is not None:
            return cached
    columns = _align(episode, contract, kinematics)
    with contextlib.suppress(OSError):  # a store that cannot be written serves without
        column_file.write(path, key, columns)
    return columns


def _recorded_columns(episode: EpisodeReader, contract: Contract | None) -> Columns:
    """Return the columns of an episode without streams, as `contract` wants them."""
    columns, own = column_file.read_whole(episode.steps_path), episode.header.contract
    if contract is None or contract == own:
        return columns
    if own is None or not (
        math.isclose(own.rate_hz, contract.rate_hz) and _same_actions(own, contract)
    ):
        raise ContractMismatch(
            f'{episode.path}: has columns only, which serve no other rate and no other actions '
            'than their own'
        )
    _require_columns(episode, contract, columns)
    for field in contract.observation:
        column = columns.get(field.source)
        if isinstance(column, Pictures):
            columns[field.source] = column.sized(field.shape[:2])
    order = [own.action_names.index(name) for name in contract.action_names]
    actions = {name: columns[name][:, order] for name in columns if name.startswith('action/')}
    return columns | actions


def _require_columns(episode: EpisodeReader, contract: Contract, columns: Columns) -> None:
    """Raise StorageError where there is no column for what the contract reads."""
    for field in contract.observation:
        if field.kind and field.recorded not in columns:
            shown = sorted({name.rsplit('.', 1)[0] for name in columns if '.' in name})
            raise StorageError(
                f'{episode.path}: nothing recorded for {field.recorded!r}, which the contract '
                f'reads (recorded: {", ".join(shown)})'
            )


class _Rows(NamedTuple):
    """The T + 1 moments that the columns are of."""

    times_ns: np.ndarray  # on the sensors' clock
    known_ns: np.ndarray  # what had come by then, on the recorder's clock, was known
    heard_ns: np.ndarray  # and by then to the policy, which decides before its command is due
    states: np.ndarray  # the joint_states sample of each
    are_ticks: bool  # whether they are those of the policy that commanded


def _align(episode: EpisodeReader, contract: Contract, kinematics: Kinematics | None) -> Columns:
    """Put the streams, the commands and the actions into rows."""
    header, robot = episode.header, episode.header.robot_spec
    require_kinds(contract, robot, str(episode.path))
    recorded = _read(episode, contract)
    ticks = header.contract is not None and math.isclose(header.contract.rate_hz, contract.rate_hz)
    rows = (_tick_rows if ticks and sources.by_policy(header.source) else _grid_rows)(
        episode, recorded, contract
    )
    shown = {
        stream: rows.states if stream == _JOINT_STATES else series.known(rows.heard_ns)
        for stream, series in recorded.items()
        if stream not in _COMMANDS
    }
    rows, shown = _served(episode, contract, recorded, rows, shown)
    columns: Columns = {'time': rows.times_ns * 1e-9}
    for stream, numbers in shown.items():
        columns |= _stream_columns(stream, recorded[stream], numbers, contract)
    _require_columns(episode, contract, columns)
    if robot.gripper:
        columns['gripper.width'] = columns.pop(f'{_JOINT_STATES}.width')
    answers = _answers(recorded[_APPLIED], rows)
    columns['source'] = _sources(header, recorded[_APPLIED], answers)
    # Where a person overruled the policy.
    led = (columns['source'] == sources.PERSON) & sources.by_policy(header.source)
    commanded, applied = _paths(columns['joint_states.position'][0], recorded, rows, answers)
    commanded[1:][led] = _asked_by_person(applied, recorded, rows)[led]
    columns['command.position'] = _seen(commanded, recorded[_APPLIED], rows)
    asked, told = _widths(columns, recorded, rows)
    asked = np.where(led, told, asked)
    requested = Told(columns['command.position'][:-1], commanded[1:], asked)
    answered = Told(applied[:-1], applied[1:], told)
    chain = kinematics(robot) if kinematics else None
    columns['action/requested'] = as_action(contract, robot, requested, chain)
    columns['action/applied'] = as_action(contract, robot, answered, chain)
    if rows.are_ticks and _same_actions(header.contract, contract):
        order = [header.contract.action_names.index(name) for name in contract.action_names]
        asked = recorded[_ACTION].values['position'][: len(applied) - 1]
        by_person = columns['action/requested']
        columns['action/requested'] = np.where(led[:, None], by_person, asked[:, order])
    return columns


def _same_actions(recorded: Contract, contract: Contract) -> bool:
    """Tell whether the recorded actions are those of `contract`, in whatever order."""
    kinds = {name: field.kind for field in recorded.action for name in field.names}
    return all(kinds.get(n) == field.kind for field in contract.action for n in field.names)


def _tick_rows(episode: EpisodeReader, recorded: dict[str, Series], contract: Contract) -> _Rows:
    """Return the policy's ticks, and the arrival of the last action.

    That is the joint_states sample nearest to one period later. Where the recording ended before
    it, the last tick is the last row, and its action (of unknown effect) is left out.
    """
    actions, states = recorded[_ACTION], recorded[_JOINT_STATES]
    period_ns = contract.period_s * 1e9
    arrival = actions.stamps_ns[-1] + period_ns
    nearest = np.abs(states.stamps_ns - arrival).argmin()
    times, known = actions.stamps_ns, actions.arrivals_ns
    # An action of before this was told had a whole period there, to the nanosecond.
    before = actions.values['heard_ns']
    heard = known - np.where(before <= round(HEARD_WITHIN * period_ns), before, 0)
    if abs(states.stamps_ns[nearest] - arrival) <= period_ns / 2:
        times = np.append(times, states.stamps_ns[nearest])
        known, heard = (np.append(x, states.arrivals_ns[nearest]) for x in (known, heard))
    if len(times) < 2:
        raise StorageError(
            f'{episode.path}: no joint_states after the only action; there are no steps'
        )
    return _Rows(times, known, heard, states.stamped(times), are_ticks=True)


def _grid_rows(episode: EpisodeReader, recorded: dict[str, Series], contract: Contract) -> _Rows:
    """Return moments one period apart, from the first command until the last one had its own.

    At each the newest joint_states are those stamped by then, and what came after them came too
    late: nothing in a row is from after its moment.
    """
    states, period_ns = recorded[_JOINT_STATES], contract.period_s * 1e9
    if sources.by_policy(episode.header.source):
        start, last = recorded[_ACTION].stamps_ns[[0, -1]]
        own = episode.header.contract or contract
        end = last + own.period_s * 1e9
    else:
        ends = np.maximum(states.known(recorded[_COMMAND].arrivals_ns[[0, -1]]), 0)
        start, last = states.stamps_ns[ends]
        end = last + period_ns
    end = min(end, states.stamps_ns.max())
    steps = int((end - start) / period_ns + 0.5)  # half a period early is the end, too
    if steps < 1:
        raise StorageError(
            f'{episode.path}: shorter than a period at {contract.rate_hz:g} Hz; there are no steps'
        )
    times = start + np.round(np.arange(steps + 1) * period_ns).astype(np.int64)
    newest = np.maximum.accumulate(states.stamps_ns)
    shown = np.searchsorted(newest, times, side='right') - 1
    known = states.arrivals_ns[shown]
    return _Rows(times, known, known, shown, are_ticks=False)


def _answers(applied: Series, rows: _Rows) -> np.ndarray:
    """Return the last of what was applied in each step [T]; -1: nothing had been by then.

    Where rows are ticks, what the policy is answered by carries its tick's stamp; the rest (a
    person's commands, a hold) belongs to the step in whose time it came.
    """
    newest = applied.known(rows.known_ns[1:])
    if not rows.are_ticks or not len(applied):
        return newest
    numbers, by_policy = np.arange(len(applied)), applied.values['source'] == sources.POLICY
    last = dict(zip(applied.stamps_ns[by_policy], numbers[by_policy], strict=True))
    own = np.array([last.get(tick, -1) for tick in rows.times_ns[:-1]])
    others = np.append(np.maximum.accumulate(np.where(by_policy, -1, numbers)), -1)[newest]
    # A step of which no answer was recorded has what came in its time.
    return np.where(own < 0, newest, np.maximum(own, others))


def _sources(header: EpisodeHeader, applied: Series, answers: np.ndarray) -> np.ndarray:
    """Return who led last in each step [T]: the episode's own source before the guard has said."""
    found = np.full(len(answers), sources.number(header.source or 'policy'), np.int8)
    if len(applied):
        found = np.where(answers < 0, found, applied.values['source'][answers])
    return found.astype(np.int8)


def _paths(
    start: np.ndarray, recorded: dict[str, Series], rows: _Rows, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the commanded and the applied positions before each row [T + 1, n].

    Where rows are ticks, what answers tick k carries its stamp, and stands in row k + 1.
    """
    commands, applied = recorded[_COMMAND], recorded[_APPLIED]
    if not rows.are_ticks:
        return _before(start, commands, rows.known_ns), _before(start, applied, rows.known_ns)
    ticks = rows.times_ns[:-1].tolist()
    commanded = _after_each_tick(start, _paired(ticks, commands))
    led = [None if n < 0 else applied.values['position'][n] for n in answers]
    return commanded, _after_each_tick(start, led)


def _asked_by_person(applied: np.ndarray, recorded: dict[str, Series], rows: _Rows) -> np.ndarray:
    """Return where a person's newest command led to by the end of each step [T, n].

    That is where the arm was led, `applied` [T + 1, n], where no command of theirs was recorded.
    """
    asked = recorded.get(_PERSON, Series.of([]))
    newest = asked.known(rows.known_ns[1:])
    positions = asked.values.get('position', applied[:1])
    return np.where(newest[:, None] < 0, applied[1:], positions[newest])


def _seen(commanded: np.ndarray, applied: Series, rows: _Rows) -> np.ndarray:
    """Return what a policy took for the last command at each row [T + 1, n].

    Its own, unless what the guard applied last, since the row before, was not the policy's: see
    ControlLoop.rebase. The first row is where the arm was measured, whatever was before.
    """
    if not rows.are_ticks or not len(applied):
        return commanded
    newest = applied.known(rows.heard_ns)
    came = np.diff(newest, prepend=newest[:1]) > 0
    by_others = came & (applied.values['source'][newest] != sources.POLICY)
    return np.where(by_others[:, None], applied.values['position'][newest], commanded)


def _before(start: np.ndarray, series: Series, known_ns: np.ndarray) -> np.ndarray:
    """Return the newest position at each time [..., n]; `start` [n] before there is one."""
    newest = series.known(known_ns)
    positions = series.values.get('position', start[None])
    return np.where(newest[:, None] < 0, start, positions[newest])


def _widths(
    columns: Columns, recorded: dict[str, Series], rows: _Rows
) -> tuple[np.ndarray, np.ndarray]:
    """Return the widths [T] [m] that were asked for, and that the gripper was told; NaN: none.

    Nothing stamps them. Where rows are ticks, what answers one has come half-way to the next.
    """
    measured = columns.get('gripper.width', np.full((1, 1), np.nan))[0]
    known_ns = rows.known_ns[1:]
    if rows.are_ticks:
        known_ns = rows.known_ns[:-1] + np.diff(rows.known_ns) // 2
    none = Series.of([])
    streams = [recorded.get(stream, none) for stream in (_ASKED_WIDTH, _TOLD_WIDTH)]
    asked, told = (_before(measured, series, known_ns)[:, 0] for series in streams)
    return asked, told


def _paired(ticks_ns: Sequence[int], commands: Series) -> list[np.ndarray | None]:
    """Return each tick's target, matched by stamp (by order where ticks share one), or None."""
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for number, stamp in enumerate(commands.stamps_ns.tolist()):
        waiting[stamp].append(number)
    targets = commands.values.get('position', ())
    return [targets[waiting[tick].popleft()] if waiting[tick] else None for tick in ticks_ns]


def _after_each_tick(start: np.ndarray, positions: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return [T + 1, n]: `start`, then the position after each tick; None keeps the last one."""
    rows = [start]
    for position in positions:
        rows.append(rows[-1] if position is None else position)
    return np.array(rows)


def _stream_columns(stream: str, series: Series, shown: np.ndarray, contract: Contract) -> Columns:
    """Return a stream's columns; `shown` [T + 1] are the samples of the rows, -1 where none is."""
    if not len(series):
        return {}
    columns: Columns = {}
    for quantity, values in series.values.items():
        if isinstance(values, list):
            if (shown < 0).any():
                continue
            (size,) = {f.shape[:2] for f in contract.observation if f.stream == stream}
            columns[f'{stream}.{quantity}'] = Pictures.of(values, shown, size)
        else:
            known = shown.reshape(-1, *[1] * (values.ndim - 1)) >= 0
            columns[f'{stream}.{quantity}'] = np.where(known, values[shown], np.nan)
    stamps = np.where(shown < 0, np.nan, series.stamps_ns[shown] * 1e-9)
    return columns | {f'{stream}.time': stamps}


def _served(
    episode: EpisodeReader,
    contract: Contract,
    recorded: dict[str, Series],
    rows: _Rows,
    shown: dict[str, np.ndarray],
) -> tuple[_Rows, dict[str, np.ndarray]]:
    """Leave out the last row, and its action, where only there a stream has gone.

    That is how an episode ends which the policy broke off because it saw nothing any more. Raises
    StorageError where a field has no sample, or too old a one, at another row.
    """
    problems = [
        problem
        for field in contract.observation
        if (stream := _JOINT_STATES if field.stream in _MEASURED else field.stream) in shown
        if (problem := _problem(field, stream, recorded[stream], shown[stream], rows.times_ns))
    ]
    if not problems:
        return rows, shown
    first, told = min(problems)
    if first < len(rows.times_ns) - 1 or first < 2:
        raise StorageError(f'{episode.path}: {told}')
    cut = _Rows(*(part[:-1] for part in rows[:-1]), rows.are_ticks)
    return cut, {stream: numbers[:-1] for stream, numbers in shown.items()}


def _problem(
    field: ObservationField, stream: str, series: Series, shown: np.ndarray, times_ns: np.ndarray
) -> tuple[int, str] | None:
    """Return the first row that does not serve `field`, and why; None: all do.

    Ages are those at the rows' times: less than the policy saw, by what a tick takes, never more.
    """
    why = f' ({series.refusal})' if series.refusal else ''
    absent = shown < 0
    if absent.any():
        return int(absent.argmax()), (
            f'{field.recorded!r} has no value at {absent.sum()} of {len(shown)} ticks: '
            f'none had come{why}'
        )
    ages_s = (times_ns - series.stamps_ns[shown]) * 1e-9
    old = np.abs(ages_s) > field.age_limit_s
    if field.is_set or not old.any():
        return None
    row = int(old.argmax())
    side = 'old' if ages_s[row] > 0 else 'in the future'
    return row, (
        f'observation {field.name}: the newest of {stream} is {abs(ages_s[row]):.3f} s {side} '
        f'at tick {row} of {len(shown)}, at most {field.age_limit_s:g} s{why}'
    )


def _read(episode: EpisodeReader, contract: Contract) -> dict[str, Series]:
    """Read what columns are made of: {stream: samples}, the actions and commands too."""
    recorded = samples.read_series(episode, _topics(episode, contract))
    if session := recorded.pop(_SESSION, None):
        recorded[_COMMAND] = _once_it_runs(recorded[_COMMAND], session)
    required = [_JOINT_STATES, _ACTION if sources.by_policy(episode.header.source) else _COMMAND]
    for stream in required:
        series = recorded[stream]
        if not len(series) or (stream == _ACTION and series.refusal):
            why = series.refusal or f'no message on {stream}; there are no steps'
            raise StorageError(f'{episode.path}: {why}')
    rules = {f.fill for f in contract.observation if f.source == 'joint_states.velocity'}
    if len(rules) > 1:
        raise ContractMismatch(f'joint_states.velocity: different fill rules {sorted(rules)}')
    for rule in rules:
        filled = samples.fill_velocities(recorded[_JOINT_STATES], rule)
        if not len(filled):
            raise StorageError(
                f"{episode.path}: 'joint_states.velocity' has no value: {filled.refusal}"
            )
        recorded[_JOINT_STATES] = filled
    return recorded


def _once_it_runs(commands: Series, session: Series) -> Series:
    """Leave out what a person commanded before the episode ran, where that was recorded.

    A key that was still held when the attempt before was thrown away is no step of this one.
    """
    began_ns = session.stamps_ns[session.values['runs']]
    return commands.where(commands.arrivals_ns >= began_ns[0]) if len(began_ns) else commands


def _runs(message: Any) -> dict[str, bool]:
    """Return whether the episode runs, of a String on session/state."""
    state = json.loads(message.data)
    return {'runs': isinstance(state, dict) and state.get('state') == 'running'}


def _topics(episode: EpisodeReader, contract: Contract) -> dict[str, tuple[str, Take]]:
    """Return {topic: (stream, what makes a sample of a message)}, topics below any namespace.

    Raises StorageError where a topic that no columns can be made without is missing.
    """
    header, types = episode.header, episode.types()
    robot, namespace = header.robot_spec, _namespace(episode, types)
    whole = functools.partial(_positions, names=robot.joints)
    joint_state = functools.partial(samples.joint_state, joints=robot.driver_joints)
    arm_state = functools.partial(_arm_state, robot=robot, reads_width=_reads_width(contract))
    wanted: dict[str, tuple[str, Take]] = {
        _command_topic(header): (_COMMAND, whole),
        _APPLIED: (_APPLIED, functools.partial(_applied, names=robot.joints, own=header.source)),
        robot.joint_states_topic: (_JOINT_STATES, arm_state),
    }
    if sources.by_policy(header.source):
        asked = (header.contract or contract).action_names
        wanted[_ACTION] = _ACTION, functools.partial(_asked, names=asked)
    topics = {_resolved(namespace, name): part for name, part in wanted.items()}
    for topic in [topic for topic in topics if topic not in types]:
        raise StorageError(f'{episode.path}: no topic {topic} among {", ".join(types)}')
    maybe = _later_topics(header, whole)
    topics |= {
        topic: part
        for name, part in maybe.items()
        if (topic := _resolved(namespace, name)) in types
    }
    for topic, kind in types.items():
        if kind == _POSE and topic.startswith(namespace):
            stream = topic.removeprefix(namespace).lstrip('/').replace('/', '_')
            topics[topic] = stream, samples.pose
    for field in contract.observation:
        if field.kind == 'joints' and field.stream != _JOINT_STATES:
            topic, take = _resolved(namespace, field.stream), _joint_goal(joint_state)
        elif field.kind == 'image':
            topic = _picture_topic(header, field, namespace, types)
            take = functools.partial(samples.picture, field=field)
        else:
            continue
        if topic in types:
            topics[topic] = field.stream, take
    return topics


def _later_topics(header: EpisodeHeader, whole: Take) -> dict[str, tuple[str, Take]]:
    """Return, as _topics does, the topics of which an episode may have none."""
    found: dict[str, tuple[str, Take]] = {}
    if sources.by_policy(header.source):
        found[_PERSON] = _PERSON, whole
    else:
        found[_SESSION] = _SESSION, _runs
    if gripper := header.robot_spec.gripper:
        found[f'{header.source or "policy"}/gripper'] = _ASKED_WIDTH, samples.width
        found[gripper.topic] = _TOLD_WIDTH, functools.partial(_told_width, gripper=gripper)
    return found


def _told_width(message: Any, gripper: Gripper) -> dict[str, np.ndarray]:
    (told,) = samples.width(message)['position']
    return {'position': np.array([gripper.commanded_width(told)])}


def _namespace(episode: EpisodeReader, types: Mapping[str, str]) -> str:
    """Return what stands before the topics of the episode's robot, '/arm1/', say."""
    anchor = (
        _ACTION if sources.by_policy(episode.header.source) else _command_topic(episode.header)
    )
    found = [topic for topic in types if f'/{topic}'.endswith(f'/{anchor}')]
    if len(found) != 1:
        raise StorageError(
            f'{episode.path}: needs one topic {anchor}, found {found or "none"} '
            f'among {", ".join(types) or "no topics"}'
        )
    return found[0].removesuffix(anchor)


def _resolved(namespace: str, topic: str) -> str:
    return topic if topic.startswith('/') else namespace + topic


def _command_topic(header: EpisodeHeader) -> str:
    return f'{header.source or "policy"}/command'


def _picture_topic(
    header: EpisodeHeader, field: ObservationField, namespace: str, types: Mapping[str, str]
) -> str:
    """Return the topic with the pictures of a field: as the contract says, or the other one."""
    height, width, _ = field.shape
    camera = header.robot_spec.camera(field.stream)
    camera = camera or Camera(name=field.stream, width=width, height=height)
    names = [header.robot_spec.topic(field), camera.raw_topic, camera.compressed_topic]
    topics = [_resolved(namespace, name) for name in names]
    return next((topic for topic in topics if topic in types), topics[0])


def _positions(message: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {'position': samples.point_positions(message, names)}


def _asked(message: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return an action, and how long before it was sent that was heard of which it is made."""
    told = _positions(message, names)  # of one point
    before = message.points[0].time_from_start
    return told | {'heard_ns': np.array(before.sec * 1_000_000_000 + before.nanosec, np.int64)}


def _applied(message: Any, names: Sequence[str], own: str) -> dict[str, Any]:
    source = np.array(sources.number(message.header.frame_id or own or 'policy'))
    return {'position': samples.point_positions(message, names), 'source': source}


def _arm_state(message: Any, robot: RobotSpec, reads_width: bool) -> dict[str, np.ndarray]:
    """Return position and velocity [n] and, where there is a gripper, its width [1] [m].

    It is NaN where another message tells it. Raises ValueError where the contract reads it then.
    """
    taken = samples.joint_state(message, robot.driver_joints)
    if robot.gripper is None:
        return taken
    jaw = robot.driver_gripper
    if not reads_width and jaw not in message.name:
        return taken | {'width': np.full(1, np.nan)}
    position = samples.joint_state(message, (jaw,))['position']
    return taken | {'width': robot.gripper.width(position)}


def _reads_width(contract: Contract) -> bool:
    return any(field.stream == 'gripper' for field in contract.observation)


def _joint_goal(joint_state: Take) -> Take:
    return lambda message: {'position': joint_state(message)['position']}


def _cache_key(episode: EpisodeReader, contract: Contract, kinematics: Kinematics | None) -> str:
    """Return a hash of all that the columns depend on.

    The manifest's digest stands for the content of the streams: what was committed never changes.
    Where it was damaged since, the columns are still those of what was recorded, and verify tells
    the damage. A recording that is not finished has no manifest; it only grows: its size will do.
    """
    header = episode.header
    try:
        size = episode.streams_path.stat().st_size
    except OSError as error:
        raise StorageError(f'{episode.streams_path}: cannot be read ({error.strerror})') from None
    own = header.contract.to_json() if header.contract else ''
    primary = [file.sha256 for file in header.files if file.file == STREAMS_FILE]
    parts = (
        _CACHE_VERSION,
        size,
        primary,
        header.source,
        own,
        header.robot_spec.to_json(),
        contract.to_json(),
        kinematics is not None,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
