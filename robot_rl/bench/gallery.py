"""docs/tasks.md and its pictures: every task, as its own file, contract and docstrings say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from robot_rl import registry
from robot_rl.bench import demonstrators
from robot_rl.bench.demonstrators import Success
from robot_rl.bench.results_docs import table
from robot_rl.errors import RobotRLError
from robot_rl.sim.environment import HELD_OUT, Environment
from robot_rl.sim.reach import Motion
from robot_rl.sim.rendering import Renderer
from robot_rl.sim.task import Area, ArmTask, Standing, Start, TaskConfig
from robot_rl.specs import ActionField, Box, Contract, ObservationField

_SIZE = 256, 192  # of an arm's picture [pixels]
_THUMB = 96, 72  # of each on a sheet
_ON_A_LINE = 6
# A grey that is one of 32 is hardly told from one of 256, and takes half of a PNG.
_GREY_STEP = 8
_TAKEN_STEPS = 20

_HEAD = """# Tasks

Written by `robot-rl tasks --write docs/tasks.md`, from the tasks' files in `config/tasks`, their
contracts and their code. What an arm task is made of, and how to change it: [tasks for
arms](train_in_simulation.md#tasks-for-arms); how cameras are used: [learn from
pictures](train_in_simulation.md#learn-from-pictures).
"""

_DEMONSTRATED = """## Demonstrators

Success of the [scripted demonstrators](collect_demonstrations.md) from the first held-out starts
of `robot-rl evaluate`, and with disturbed actions: `robot-rl results demonstrators`.
"""

# {family: (title, what its tasks pay)}.
_FAMILIES = {
    'suite': (
        'dm_control suite',
        "The reward of a step is dm_control's own, from 0 to 1 (`lqr`: a cost), and no task says "
        'when it is done: a return near the number of steps is what can be had.',
    ),
    'manipulation': (
        'dm_control manipulation',
        "The reward of a step is dm_control's own, from 0 to 1: 1 is where the task is done, with "
        'what is to be reached, lifted, placed or stacked where it is to be.',
    ),
    'gym': (
        'Gymnasium',
        "The reward of a step is Gymnasium's own, without bounds; no task says when it is done.",
    ),
}
# What manipulation tasks are called that show to cameras the scene of others, and those.
_SAME_SCENE = '_vision', '_features'


def write(page: Path) -> list[Path]:
    """Write the page, and its pictures into a folder beside it of the same name.

    Returns what was written. Raises RobotRLError where a family's package is missing, or where
    nothing can be drawn.
    """
    missing = _FAMILIES.keys() - registry.task_names().keys()
    if missing:
        raise RobotRLError(
            f'the page shows all tasks, and those of {", ".join(sorted(missing))} are not '
            "installed: pip install 'robot_rl[train]'"
        )
    folder = page.with_suffix('')
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(text(), encoding='utf-8')
    arms = [_arm_picture(name, folder / _file(name)) for name in registry.arm_task_names()]
    sheets = [_sheet(family, folder / f'{family}.png') for family in _FAMILIES]
    return [page, *arms, *sheets]


def text() -> str:
    """Return the page."""
    parts = [_HEAD, '## Arms\n', *map(arm_section, registry.arm_task_names())]
    measured = [_measured(*item) for item in demonstrators.read().items()]
    parts += [_DEMONSTRATED, table(measured)]
    return '\n'.join([*parts, *map(_family_section, _FAMILIES)])


def arm_section(name: str) -> str:
    """Return what is said of one task for an arm."""
    task, shown = registry.make_task(name), demonstrators.read()[name]
    config, contract = task.config, task.contract()
    facts = {
        'robot': f'`{config.robot}`',
        'time': f'{config.rate_hz:g} decisions a second, {config.duration_s:g} s: '
        f'{task.max_steps} steps',
        'distance': _words(task.distance, 'Return '),
        'done': f'{_words(task.done, "Tell whether ")} (within {_mm(config.success_distance)})',
        'success': f'done in each of the last {config.success_rows} rows',
        'reward, dense': f'{_words(task._dense, "Pay ")}; {_closeness(config)}',
        'reward, sparse': f'of `{name}{registry.SPARSE}`: 1 where it is done, else 0',
        'starts': '; '.join(_starts(config)),
        'demonstrator': f'succeeds from {_percent(shown.without_noise)} of {shown.starts} starts',
        'from cameras': _from_cameras(name, task),
    }
    return '\n'.join(
        [
            f'### `{name}`',
            '',
            f'![{name}](tasks/{_file(name)})',
            '',
            table([{'': key, ' ': value} for key, value in facts.items()]),
            table([_seen(field) for field in contract.observation]),
            table([_commanded(field) for field in contract.action]),
        ]
    )


def _measured(name: str, success: Success) -> dict[str, str]:
    """Return a demonstrator's line of the table."""
    rates = {f'`--noise {noise}`': _percent(rate) for noise, rate in success.rates.items()}
    facts = {'starts': str(success.starts), 'revision': success.git_revision}
    return {'task': f'`{name}`'} | rates | facts


def _percent(rate: float) -> str:
    return f'{100 * rate:.0f} %'


def _words(function: Callable, lead: str) -> str:
    """Return the first sentence of a docstring without its lead, shapes and units."""
    sentence = (function.__doc__ or '').split('\n')[0].removeprefix(lead).rstrip('.')
    return re.sub(r' (-> bool )?\[(\.\.\.|m)\](, row by row)?', '', sentence)


def _closeness(config: TaskConfig) -> str:
    shape, share = config.reward, config.reward.near_share
    return (
        f'a distance d is worth {1 - share:g} (1 - tanh(d / {_mm(shape.far)})) + '
        f'{share:g} exp(-(d / {_mm(shape.near)})²); the file has `{shape.kind}`'
    )


def _starts(config: TaskConfig) -> list[str]:
    """Say of everything that is drawn at the start of an episode from which range it is."""
    told = []
    if config.start is None:
        told.append(f'joints at home, each displaced by up to {config.joint_noise:g} rad')
    for name in type(config).model_fields:
        drawn = getattr(config, name)
        if isinstance(drawn, Start):
            told.append(_start(drawn))
        elif isinstance(drawn, Standing):
            size = ' x '.join(f'{1e3 * edge:g}' for edge in drawn.size)
            where = f'{_ranges(drawn.place)}{_turned(drawn.yaw)}'
            told.append(f'{name} ({size} mm) {where}')
        elif isinstance(drawn, Box | Area):
            told.append(f'{name} {_ranges(drawn)}')
        elif isinstance(drawn, Motion):
            amplitude = max(drawn.amplitude)
            low, high = drawn.period_s
            told.append(
                f'the target sways along each axis by up to {_mm(amplitude)} with a period of '
                f'{low:g} to {high:g} s'
            )
    if hasattr(config, 'apart'):
        told.append(f'the two at least {_mm(config.apart)} apart')
    return told


def _start(start: Start) -> str:
    text = f'tool {_ranges(start.tool)}{_turned(start.yaw)}'
    if start.width is None:
        return text
    low, high = start.width
    width = _mm(low) if low == high else f'{1e3 * low:g} to {_mm(high)}'
    return f'{text}, gripper {width} open'


def _ranges(box: Box | Area) -> str:
    ranges = zip('xyz', box.lower, box.upper, strict=False)
    return ', '.join(f'{axis} {low:g} to {high:g}' for axis, low, high in ranges) + ' m'


def _turned(yaw: tuple[float, float]) -> str:
    low, high = np.degrees(yaw)
    return f', turned about z by {low:.0f} to {high:.0f} deg' if low < high else ''


def _from_cameras(name: str, task: ArmTask) -> str:
    seen = task.seeing('pictures').contract()
    shown = ', '.join(f'`{f.name}` {_shape(f.shape)}' for f in seen.pictures)
    kept, known = seen.observation_shapes, task.contract().observation_shapes
    left = ', '.join(f'`{field}`' for field in known if field not in kept)
    return f'`{name}{registry.VISION}` sees {shown} instead of {left}'


def _seen(field: ObservationField) -> dict[str, str]:
    notes = [
        f'{field.history} last steps' if field.history > 1 else '',
        'a goal' if field.goal else '',
        f'at most {field.max_age_s:g} s old' if field.max_age_s else '',
    ]
    return {
        'it sees': f'`{field.name}`',
        'source': f'`{field.source}`',
        'shape': _shape(field.shape),
        'unit': field.unit,
        'and': ', '.join(filter(None, notes)),
    }


def _commanded(field: ActionField) -> dict[str, str]:
    bounds = list(zip(field.lower, field.upper, strict=True))
    if len(set(bounds)) == 1:
        bounds = bounds[:1]
    return {
        'it commands': f'`{field.name}`',
        'kind': f'`{field.kind}`',
        'of': ', '.join(f'`{name}`' for name in field.names),
        'from, to': '; '.join(f'{low:g}, {high:g}' for low, high in bounds),
        'unit': field.unit,
    }


def _family_section(family: str) -> str:
    title, paid = _FAMILIES[family]
    numbers: dict[str, int] = {}
    rows = []
    for name in registry.task_names()[family]:
        environment = registry.make_environment(name)
        if _has_picture(name, environment):
            numbers[name] = len(numbers) + 1
        shown = numbers.get(name.replace(*_SAME_SCENE), '')
        rows.append(_row(name, str(shown), environment))
        environment.close()
    picture = f'![{title}](tasks/{family}.png)'
    return '\n'.join([f'## {title}', '', paid, '', picture, '', table(rows)])


def _has_picture(name: str, environment: Environment) -> bool:
    """Tell whether a task is drawn: it is built on MuJoCo, and no other shows the same scene."""
    try:
        environment.scene()
    except RobotRLError:
        return False
    return not name.endswith(_SAME_SCENE[0])


def _row(name: str, number: str, environment: Environment) -> dict[str, str]:
    contract, steps = environment.contract, environment.max_steps
    return {
        'task': f'`{name}`',
        'picture': number,
        'sees': _summary(contract),
        'actions': str(contract.action_size),
        'rate [Hz]': f'{contract.rate_hz:g}',
        'steps': 'no limit' if steps is None else str(steps),
    }


def _summary(contract: Contract) -> str:
    """Return what a policy sees: fields with their shapes."""
    return ', '.join(f'`{field.name}` {_shape(field.shape)}' for field in contract.observation)


def _shape(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))


def _mm(metres: float) -> str:
    return f'{1e3 * metres:g} mm'


def _file(name: str) -> str:
    return f'{name.replace("/", "-")}.png'


def _arm_picture(name: str, path: Path) -> Path:
    """Draw a task by its own camera, on half of its demonstrator's way to where it is done."""
    environment = registry.make_environment(name)
    steps = _run_until(environment, name, lambda step, done: done)
    _run_until(environment, name, lambda step, done: step == steps // 2)
    renderer = Renderer(*_SIZE)
    camera = next(iter(environment.task.config.cameras))
    _save(path, renderer.frame(*environment.scene(), camera))
    renderer.close()
    environment.close()
    return path


def _run_until(environment: Environment, name: str, ends: Callable[[int, bool], bool]) -> int:
    """Let a demonstrator act until `ends(step, whether it is done)`; return how many steps."""
    task, policy = registry.make_task(name), registry.make_demonstrator(name)
    timestep, state = environment.reset([HELD_OUT + 1]), policy.initial_state(1)
    for step in range(task.max_steps):
        if ends(step, bool(task.done(environment.columns)[0])):
            return step
        action, state = policy.select(timestep.observation, state)
        timestep = environment.step(action)
    return task.max_steps


def _sheet(family: str, path: Path) -> Path:
    """Draw the tasks of a family in rows, each after a few steps, with its number."""
    pictures = []
    for name in registry.task_names()[family]:
        environment = registry.make_environment(name)
        if _has_picture(name, environment):
            picture = np.ascontiguousarray(_after_some_steps(environment))
            pictures.append(_numbered(picture, len(pictures) + 1))
        environment.close()
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % _ON_A_LINE)
    rows = [
        np.concatenate(pictures[start : start + _ON_A_LINE], axis=1)
        for start in range(0, len(pictures), _ON_A_LINE)
    ]
    _save(path, np.concatenate(rows))
    return path


def _numbered(picture: np.ndarray, number: int) -> np.ndarray:
    """Write a number into a corner, black around white."""
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, str(number), (3, 12), font, 0.4, colour, width, cv2.LINE_AA)
    return picture


def _after_some_steps(environment: Environment) -> np.ndarray:
    environment.reset([1])
    middle = (environment.contract.action_lower + environment.contract.action_upper) / 2
    for _ in range(_TAKEN_STEPS):
        environment.step(middle[None])
    renderer = Renderer(*_THUMB)
    picture = renderer.frame(*environment.scene())
    renderer.close()
    return picture


def _save(path: Path, picture: np.ndarray) -> None:
    coarse = picture // _GREY_STEP * _GREY_STEP + _GREY_STEP // 2
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9]
    cv2.imwrite(str(path), np.ascontiguousarray(coarse[..., ::-1]), options)
