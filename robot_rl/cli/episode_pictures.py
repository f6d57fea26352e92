"""`robot-rl episodes show --out`: an episode's pictures on one sheet, and its numbers as plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robot_rl.cli import common
from robot_rl.errors import RobotRLError, StorageError
from robot_rl.storage import streams
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.rewards import SIMULATED
from robot_rl.storage.samples import joint_state, point_positions, stamp_ns

_STATE = 'sensor_msgs/msg/JointState'
_COMMAND = 'trajectory_msgs/msg/JointTrajectory'
_RAW, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'

# The sheet has a row of so many pictures for each camera, none wider than this [pixels].
PICTURES, WIDTH = 8, 240


class Curves(NamedTuple):
    """Some quantities over time."""

    # Seconds since the start of the episode [T]; steps, where there are no times.
    x: np.ndarray
    values: np.ndarray  # [T, n]
    names: Sequence[str]
    label: str
    style: str = '-'


def draw(
    episode: EpisodeReader, folder: Path, told: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write signals.png, commands.png, rewards.png and pictures.png of an episode into `folder`.

    Returns the files; there is none for what was not recorded. `told` hears in one line what
    could not be read. Raises StorageError where `folder` cannot be written.
    """
    columns = _attempt(lambda: aligned_columns(episode, kinematics=common.chain_of), told, {})
    signals, commands = _from_columns(episode, columns) if columns else ([], [])
    if not columns:
        signals, commands = _from_streams(episode, told)
    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, panels in (
            ('signals', [[curves] for curves in signals]),
            ('commands', _by_name(commands)),
            ('rewards', [[curves] for curves in _rewards(episode, columns, told)]),
        ):
            if panels:
                drawn.append(_plot(folder / f'{name}.png', panels))
        sheet = _attempt(lambda: contact_sheet(episode, columns, told), told, None)
        if sheet is not None:
            drawn.append(_write_picture(folder / 'pictures.png', sheet))
    except OSError as error:
        raise StorageError(f'{folder}: cannot be written ({error.strerror or error})') from None
    return drawn


def _attempt(make: Callable, told: Callable[[str], None], otherwise):
    """Return what `make` does, or `otherwise` where the recording does not give it."""
    try:
        return make()
    except RobotRLError as error:
        told(str(error))
        return otherwise


def _from_columns(
    episode: EpisodeReader, columns: Mapping[str, np.ndarray]
) -> tuple[list[Curves], list[Curves]]:
    """Return signals and commands at the ticks of the policy."""
    header = episode.header
    seconds = columns['time'] - header.start_time_ns * 1e-9
    joints = header.robot_spec.joints if header.robot_spec else None
    axes = {3: ('x', 'y', 'z'), 4: ('w', 'x', 'y', 'z')}
    signals = []
    for name, values in columns.items():
        if '.' in name and name != 'command.position' and values.ndim == 2:
            n = values.shape[1]
            names = axes.get(n, range(n))
            if joints and name.startswith('joint_states.'):
                names = joints
            signals.append(Curves(seconds, values, [str(part) for part in names], name))
    if header.contract is None:
        return signals, []
    commands = [
        Curves(seconds[:-1], columns[f'action/{kind}'], header.contract.action_names, kind, style)
        for kind, style in (('requested', '-'), ('applied', '--'))
    ]
    return signals, commands


def _from_streams(
    episode: EpisodeReader, told: Callable[[str], None]
) -> tuple[list[Curves], list[Curves]]:
    """Return joint states and commanded positions as they came, where there are no columns."""
    signals, commands = [], []
    for (topic, quantity), found in _samples(episode, told).items():
        names = list(found[0].names)
        fitting = [sample for sample in found if list(sample.names) == names]
        curves = Curves(
            np.array([sample.seconds for sample in fitting]),
            np.array([sample.values for sample in fitting]),
            names,
            f'{topic} {quantity}'.strip(),
            '--' if 'applied' in topic else '-',
        )
        (signals if quantity else commands).append(curves)
    return signals, sorted(commands, key=lambda curves: curves.style)  # requested, then applied


class _Sample(NamedTuple):
    seconds: float
    values: np.ndarray
    names: Sequence[str]


def _samples(
    episode: EpisodeReader, told: Callable[[str], None]
) -> dict[tuple[str, str], list[_Sample]]:
    """Return {(topic, quantity): samples}; a command has one quantity, without a name."""
    kinds = {topic: kind for topic, kind in episode.types().items() if kind in (_STATE, _COMMAND)}
    samples: dict[tuple[str, str], list[_Sample]] = defaultdict(list)
    try:
        for item in episode.messages(kinds):
            seconds = (stamp_ns(item) - episode.header.start_time_ns) * 1e-9
            if item.type == _STATE:
                names = item.message.name
                for quantity, values in joint_state(item.message, names).items():
                    samples[item.topic, quantity].append(_Sample(seconds, values, names))
            elif item.message.points:
                names = item.message.joint_names
                values = point_positions(item.message, names)
                samples[item.topic, ''].append(_Sample(seconds, values, names))
    except (StorageError, ValueError) as error:
        told(f'{episode.path}: {error}' if isinstance(error, ValueError) else str(error))
    return samples


def _by_name(commands: Sequence[Curves]) -> list[list[Curves]]:
    """Return a panel for each command, with all who say something about it."""
    names = dict.fromkeys(name for curves in commands for name in curves.names)
    return [
        [
            Curves(
                curves.x,
                curves.values[:, [list(curves.names).index(name)]],
                [curves.label],
                name,
                curves.style,
            )
            for curves in commands
            if name in curves.names
        ]
        for name in names
    ]


def _rewards(
    episode: EpisodeReader, columns: Mapping[str, np.ndarray], told: Callable[[str], None]
) -> list[Curves]:
    """Return the stored reward sequences, and what the task says of the recorded columns."""
    damaged: dict[str, str] = {}
    start_ns, found = episode.header.start_time_ns, []
    for info in episode.rewards(damaged):
        values = _attempt(lambda id=info.id: episode.reward(id), told, None)
        if values is not None:
            x = np.arange(len(values))
            if info.times_ns is not None:
                x = (np.array(info.times_ns) - start_ns) * 1e-9
            label = f'{info.kind} by {info.author} for {info.task}'
            found.append(Curves(x, values[:, None], [info.id], label))
    for problem in damaged.values():
        told(problem)
    # What an environment paid no task computes.
    paid = any(info.kind == SIMULATED for info in episode.rewards())
    if columns and episode.header.task and not paid:
        computed = _attempt(lambda: _task_reward(episode, columns), told, None)
        if computed is not None:
            found.append(computed)
    return found


def _task_reward(episode: EpisodeReader, columns: Mapping[str, np.ndarray]) -> Curves:
    from robot_rl.registry import make_task  # as in common.chain_of
    from robot_rl.sim.recorded import steps_of, with_tool

    header = episode.header
    task = make_task(header.task)
    rewards = steps_of(task, with_tool(task, columns), header.contract)['reward'][:-1, None]
    seconds = columns['time'][:-1] - header.start_time_ns * 1e-9
    return Curves(seconds, rewards, ['computed'], f'by the task {header.task}')


def _plot(path: Path, panels: Sequence[Sequence[Curves]]) -> Path:
    from matplotlib.figure import Figure  # without pyplot: nothing opens a window

    figure = Figure(figsize=(9, 2.2 * len(panels)), dpi=100, layout='constrained')
    rows = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        for curves in panel:
            lines = axes.plot(curves.x, curves.values, curves.style, linewidth=1)
            for line, name in zip(lines, curves.names, strict=True):
                line.set_label(name)
        axes.set_title(panel[0].label, fontsize='small', loc='left')
        axes.legend(frameon=False, fontsize='x-small', loc='center left', bbox_to_anchor=(1, 0.5))
        whole_steps = np.issubdtype(panel[0].x.dtype, np.integer)
        axes.set_xlabel('step' if whole_steps else 'seconds', fontsize='x-small')
    figure.savefig(path, metadata={'Software': None})
    return path


def contact_sheet(
    episode: EpisodeReader,
    columns: Mapping[str, np.ndarray],
    told: Callable[[str], None] = lambda line: None,
) -> np.ndarray | None:
    """Return a row of pictures for each camera, uint8 [H, W, 3] BGR; None without cameras."""
    if episode.is_steps_only:
        if not columns:  # what is wrong with them has been told
            return None
        cameras = {name: c for name, c in sorted(columns.items()) if isinstance(c, Pictures)}
        seconds = columns['time'] - episode.header.start_time_ns * 1e-9
        rows = [_column_row(name, column, seconds) for name, column in cameras.items()]
    else:
        kinds = episode.types()
        cameras = sorted(t for t, kind in kinds.items() if kind in (_RAW, _COMPRESSED))
        rows = [row for topic in cameras if (row := _row(episode, topic, told)) is not None]
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    )


def _row(episode: EpisodeReader, topic: str, told: Callable[[str], None]) -> np.ndarray | None:
    """Return pictures at even intervals from the first to the last one, each with its time."""
    count = 0
    for channel, _, _ in _until_damage(streams.raw_messages(episode.streams_path), told):
        count += channel.topic == topic
    wanted = set(_evenly(count))
    start_ns, tiles = episode.header.start_time_ns, []
    for number, item in enumerate(_until_damage(episode.messages([topic]), lambda line: None)):
        if number in wanted:
            text = f'{(item.log_time_ns - start_ns) * 1e-9:.2f} s {item.topic}'
            tile = _attempt(lambda item=item, text=text: _tile(_decoded(item), text), told, None)
            if tile is not None:
                tiles.append(tile)
    same = [tile for tile in tiles if tile.shape[0] == tiles[0].shape[0]]
    return np.concatenate(same, axis=1) if same else None


def _column_row(name: str, pictures: Pictures, seconds: np.ndarray) -> np.ndarray:
    """Return pictures at even intervals of a column, as _row does of a topic."""
    rows = _evenly(len(pictures))
    labels = [f'{seconds[row]:.2f} s {name}' for row in rows]
    tiles = [
        _tile(np.ascontiguousarray(pictures[row][..., ::-1]), label)
        for row, label in zip(rows, labels, strict=True)
    ]
    return np.concatenate(tiles, axis=1)


def _evenly(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(PICTURES, count)).round().astype(int)).tolist()


def _until_damage(messages, told: Callable[[str], None]):
    try:
        yield from messages
    except StorageError as error:
        told(str(error))


def _tile(picture: np.ndarray, text: str) -> np.ndarray:
    """Return one picture, small, below a line of text that tells camera and time, BGR."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    band = np.zeros((16, size[0], 3), np.uint8)
    cv2.putText(band, text, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([band, picture])


def _decoded(item: streams.StreamMessage) -> np.ndarray:
    """Return a picture in its own size, BGR. Raises StorageError where it is none."""
    import cv2

    from robot_rl.images import unpacked

    message = item.message
    if item.type == _RAW:
        size = message.height, message.width
        picture = unpacked(message.data, message.encoding, size, message.step, (*size, 3))
        return np.ascontiguousarray(picture[..., ::-1])
    data = np.frombuffer(bytes(message.data), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise StorageError(f'{item.topic}: {data.size} bytes are no whole JPEG or PNG')
    return picture


def _write_picture(path: Path, picture: np.ndarray) -> Path:
    import cv2

    path.write_bytes(cv2.imencode('.png', picture)[1].tobytes())
    return path
