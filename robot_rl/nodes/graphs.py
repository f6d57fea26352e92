"""Which nodes make up a graph, and with what parameters: for `ros2 launch` and for `robot-rl up`.

It imports neither launch nor rclpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from robot_rl.errors import SpecError, did_you_mean
from robot_rl.registry import SCRIPTED
from robot_rl.specs.ros_names import require_namespace

SWITCH = ('true', 'false')
MAYBE = ('', *SWITCH)
# The devices of the node teleop; 'none': the node is not started.
TELEOP = ('none', 'keyboard', 'joy', 'twist', 'leader', 'page')
FROM_FILE = '(empty: as in params_file)'
REAL = '(empty: {} where sim is false, else as in params_file)'
# The exit code of a node that was given something that a person can mend.
WRONG_INPUT_CODE = 2
# Until a node that ended by itself is started anew [s].
RESPAWN_AFTER_S = 0.5


class Argument(NamedTuple):
    """An argument of a graph; `choices`: what else than these it may not be."""

    default: str
    description: str
    choices: tuple[str, ...] | None = None


# Those of every graph come last.
ARGUMENTS = {
    'sim': Argument('true', "simulate the arm; 'false': its driver runs already", SWITCH),
    'robot': Argument(
        '', f'robot in config/robots or a YAML file; @<tf_prefix> may follow {FROM_FILE}'
    ),
    'task': Argument('', f'task in config/tasks, or a YAML file {FROM_FILE}'),
    'policy': Argument(
        '',
        "file, promoted name, one in pretrained/, 'random', 'constant', or 'scripted': the task's "
        f'demonstrator, in the place of a person {FROM_FILE}',
    ),
    'seed': Argument(
        '', f"seed of the initial condition; of deploy: of noise and of 'random' {FROM_FILE}"
    ),
    'first_seed': Argument('', f'seed of the first episode, -1: no seeds {REAL.format("-1")}'),
    'manual': Argument(
        '', f'a person starts each episode by /session/start {REAL.format("true")}', MAYBE
    ),
    'episodes': Argument('', f'how many episodes to run, 0: until stopped {FROM_FILE}'),
    'noise': Argument('', "makes 'scripted' worse: a share of its actions' bounds (empty: 0)"),
    'tags': Argument('', 'tags of the episodes, separated by commas'),
    'operator': Argument('', 'the person beside the arm, for the record'),
    'perturbation': Argument(
        '', f'what perturbs each episode on the twin: target, knock, camera or none {FROM_FILE}'
    ),
    'record': Argument('true', 'record the episodes', SWITCH),
    'episode': Argument('', "the recorded episode's directory"),
    'storage': Argument('', f'folder of the episodes {FROM_FILE}'),
    'cameras': Argument(
        'false', 'hand pictures to the policy; with sim, draw those of the twin', SWITCH
    ),
    'teleop': Argument('none', 'with what a person commands the arm', TELEOP),
    'screen': Argument(
        '',
        'show on the terminal how the recording goes, instead of what nodes say (empty: where a '
        'device is started and standard output is a terminal)',
        MAYBE,
    ),
    'terminal': Argument('/dev/tty', 'where that is shown, and where a keyboard is read'),
    'namespace': Argument('', 'namespace of all nodes and topics, one per arm'),
    'params_file': Argument('', 'YAML file of node parameters (empty: {default_file})'),
    'log_level': Argument(
        'info', 'log level of the nodes', ('debug', 'info', 'warn', 'error', 'fatal')
    ),
    'use_sim_time': Argument('false', 'take the time from /clock', SWITCH),
}
COMMON = ('namespace', 'params_file', 'log_level', 'use_sim_time')


class Process(NamedTuple):
    """A node of a graph. Its end is the graph's, unless it is to `respawn`."""

    executable: str
    parameters: dict[str, Any]
    respawn: bool = False


class Values:
    """The values of a graph's arguments, as text, and what is made of them."""

    def __init__(self, values: Mapping[str, str]):
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def is_true(self, name: str) -> bool:
        """Tell whether a switch is on."""
        return self[name] == 'true'

    def number(self, name: str) -> int | None:
        """Return an argument as a whole number; None where it is empty. Raises SpecError."""
        try:
            return int(self[name]) if self[name] else None
        except ValueError:
            raise SpecError(f'{name}: a whole number is needed, found {self[name]!r}') from None

    def real(self, name: str) -> float | None:
        """Return an argument as a number; None where it is empty. Raises SpecError."""
        try:
            return float(self[name]) if self[name] else None
        except ValueError:
            raise SpecError(f'{name}: a number is needed, found {self[name]!r}') from None

    def words(self, name: str) -> list[str] | str:
        """Return the words that an argument lists with commas; '' where it is empty."""
        return self[name] and self[name].split(',')

    @property
    def first_seed(self) -> int | None:
        """The seed of the first episode, None: as in params_file. No seed places a real arm."""
        if self['sim'] == 'false' and not self['first_seed']:
            return -1
        return self.number('first_seed')

    @property
    def manual(self) -> bool | None:
        """Whether a person starts each episode, None: as in params_file. A real arm waits."""
        if not self['manual']:
            return True if self['sim'] == 'false' else None
        return self.is_true('manual')

    @property
    def has_screen(self) -> bool:
        """Whether a terminal shows how the recording goes."""
        if 'screen' not in self._values or self['screen'] == 'false':
            return False
        return self['screen'] == 'true' or (self['teleop'] != 'none' and sys.stdout.isatty())

    @property
    def read_terminal(self) -> str:
        """The terminal whose keys command the arm, '' where none does."""
        if 'teleop' not in self._values or self['teleop'] != 'keyboard':
            return ''
        return self['terminal']

    def node(self, executable: str, respawn: bool = False, **parameters: Any) -> Process:
        """Return a node; parameters that are empty are left to params_file."""
        given = {name: value for name, value in parameters.items() if value not in ('', None)}
        given['use_sim_time'] = self.is_true('use_sim_time')
        return Process(executable, given, respawn)


class Graph(NamedTuple):
    """A graph: what it is, its own arguments, its file in config/nodes, and its nodes."""

    summary: str
    own_arguments: tuple[str, ...]
    default_file: str
    nodes: Callable[[Values], list[Process]]

    @property
    def arguments(self) -> dict[str, Argument]:
        """All arguments by name."""
        file = f'config/nodes/{self.default_file}.yaml'
        names = (*self.own_arguments, *COMMON)
        return {
            name: ARGUMENTS[name]._replace(
                description=ARGUMENTS[name].description.format(default_file=file)
            )
            for name in names
        }

    def values(self, given: Mapping[str, str]) -> Values:
        """Return the values of all arguments. Raises SpecError for a wrong one in `given`."""
        arguments = self.arguments
        for name, value in given.items():
            if name not in arguments:
                raise SpecError(f'{name}: no such argument{did_you_mean(name, arguments)}')
            choices = arguments[name].choices
            if choices and value not in choices:
                raise SpecError(f'{name}: one of {", ".join(map(repr, choices))}, found {value!r}')
        try:
            require_namespace(given.get('namespace', ''))
        except ValueError as error:
            raise SpecError(f'namespace: {error}') from None
        return Values({name: given.get(name, a.default) for name, a in arguments.items()})


def _sim_robot(values: Values) -> list[Process]:
    return _twin(values, values['perturbation'], seed=values.number('seed'))


def _deploy(values: Values) -> list[Process]:
    robot, task, policy = values['robot'], values['task'], values['policy']
    # A demonstrator is in the place of a person.
    shown = {'source': 'teleop'} if policy == SCRIPTED else {}
    noise = {'noise': values.real('noise'), 'seed': values.number('seed')}
    started = [
        values.node('policy', robot=robot, task=task, policy=policy, **shown, **noise),
        values.node('command_guard', respawn=True, robot=robot),
        *_around(values, values.is_true('record'), values['perturbation']),
    ]
    if values.is_true('cameras'):
        started.append(values.node('image_feed', respawn=True, robot=robot))
    about = {'policy': policy, 'manual': values.manual, 'tags': values.words('tags')} | shown
    if shown:
        about['policy_label'] = policy
    return [*started, _session(values, started, **about), *_person(values)]


def _record(values: Values) -> list[Process]:
    started = [
        values.node('command_guard', respawn=True, robot=values['robot']),
        *_around(values, record=True),
    ]
    return [*started, _session(values, started, tags=values.words('tags')), *_person(values)]


def _replay(values: Values) -> list[Process]:
    robot = values['robot']
    twin = _twin(values, seed=values.number('seed')) if values.is_true('sim') else []
    return [
        *twin,
        values.node('command_guard', respawn=True, robot=robot),
        values.node('replay', robot=robot, episode=values['episode']),
    ]


def _person(values: Values) -> list[Process]:
    """Return what a person leads the arm with, and what shows how it goes."""
    device, terminal, started = values['teleop'], values['terminal'], []
    if device != 'none':
        robot = values['robot']
        started.append(values.node('teleop', robot=robot, device=device, terminal=terminal))
    if values.has_screen:
        started.append(values.node('screen', terminal=terminal, device=device))
    return started


def _around(values: Values, record: bool, perturbation: str = '') -> list[Process]:
    """Return what stands for the arm's driver, and the recorder."""
    sim, started = values.is_true('sim'), []
    if sim:
        started += _twin(values, perturbation)
    elif perturbation not in ('', 'none'):
        raise SpecError(f"perturbation: {perturbation!r} is of the twin; 'sim' is false")
    if record:
        world, root = 'sim' if sim else 'real', values['storage']
        recorder = values.node('episode_recorder', robot=values['robot'], root=root, world=world)
        started.append(recorder)
    return started


def _twin(values: Values, perturbation: str = '', **more: Any) -> list[Process]:
    """Return what stands for the arm's driver, and for those of its cameras."""
    scene = {'robot': values['robot'], 'task': values['task'], 'perturbation': perturbation}
    if not values.is_true('cameras'):
        return [values.node('sim_robot', **scene, **more)]
    return [
        values.node('sim_robot', **scene, **more, publish_state=True),
        values.node('camera', **scene),
    ]


def _session(values: Values, started: list[Process], **more: Any) -> Process:
    return values.node(
        'session',
        task=values['task'],
        episodes=values.number('episodes'),
        first_seed=values.first_seed,
        operator=values['operator'],
        participants=[p.executable for p in started if p.executable != 'camera'],
        **more,
    )


GRAPHS = {
    'sim_robot': Graph(
        "the MuJoCo twin behind the topics of an arm's driver",
        ('robot', 'task', 'seed', 'cameras', 'perturbation'), 'deploy', _sim_robot,
    ),
    'deploy': Graph(
        'a policy on an arm, simulated or real: policy, command guard, recorder and session',
        ('sim', 'robot', 'task', 'policy', 'noise', 'seed', 'episodes', 'first_seed', 'manual',
         'operator', 'tags', 'record', 'storage', 'cameras', 'perturbation', 'teleop', 'screen',
         'terminal'),
        'deploy', _deploy,
    ),
    'record': Graph(
        'demonstrations: a person commands the arm through the guard',
        ('sim', 'robot', 'task', 'teleop', 'episodes', 'first_seed', 'operator', 'tags', 'storage',
         'cameras', 'screen', 'terminal'),
        'record', _record,
    ),
    'replay': Graph(
        'the commands of a recorded episode again, through the guard',
        ('sim', 'robot', 'task', 'episode', 'seed', 'cameras'), 'replay', _replay,
    ),
}  # fmt: skip
