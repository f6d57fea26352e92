"""episode_recorder: writes every episode of the session, raw messages with their true times."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

import robot_rl
from robot_rl.control.session import SessionInfo
from robot_rl.errors import RobotRLError, StorageError
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.resources import git_revision
from robot_rl.specs import Contract, RobotSpec, Spec
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter, set_aside
from robot_rl.storage.recent import RecentSizes
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.sources import by_policy, count_interventions, number
from robot_rl.storage.streams import Required

DRAIN_PERIOD_S = 0.02
# So many messages of a topic wait while a disk lets nothing be written: ten seconds at 500 Hz.
_DEPTH = 5000
# What was on its way when the episode ended belongs to it.
GRACE_S = 0.05
SETTLE_S = 0.25


class Parameters(Spec):
    """The ROS parameters of episode_recorder."""

    root: str = pydantic.Field('episodes', description='folder of the episodes')
    robot: str = pydantic.Field(
        'ur5e', description='robot in config/robots or a YAML file; @<tf_prefix> may follow'
    )
    world: Literal['sim', 'real'] = pydantic.Field('sim', description="'sim' or 'real'")
    topics: tuple[str, ...] = pydantic.Field(
        (), description='further topics to record, of any type'
    )
    min_free_gb: pydantic.NonNegativeFloat = pydantic.Field(
        1.0, description='free disk space below which nothing is recorded [GB]'
    )
    silent_s: pydantic.PositiveFloat = pydantic.Field(
        0.5, le=60, description='silence of a required topic that is reported at once [s]'
    )


@dataclasses.dataclass
class Topic:
    """One topic as it is being recorded."""

    name: str  # resolved: with its namespace
    type: str  # package/msg/Name
    definition: str
    messages: support.Polled[bytes]
    latched: bool
    heard_at: float = 0.0  # steady time of the last message [s]
    newest: tuple[bytes, dict[str, Any]] | None = None  # of a latched topic: it still holds


class EpisodeRecorder(support.WorkingNode):
    """Opens an episode when it is prepared, commits it when it has ended.

    A required topic must have a publisher before the recorder is ready; any other one (of a
    teleop device, say) is recorded from when it has one. A recorder that is stopped, or whose disk
    gets short, commits what it has as truncated, and discards an episode that has not run; one
    that is killed leaves '<id>.partial'.
    """

    def __init__(self) -> None:
        super().__init__('episode_recorder')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        self._robot = RobotSpec.load(self._given.robot)
        self._root = Path(self._given.root).expanduser()
        self._git_revision = git_revision()
        self._topics: dict[str, Topic] = {}
        self._lock = threading.Lock()
        self._writer: EpisodeWriter | None = None
        self._required: set[str] = set()
        self._wanted: set[str] = set()  # the required topics and those that may come later
        self._waiting = self._has_run = self._is_closed = False
        self._subscribed_at = 0.0
        self._end: tuple[float, str, str] | None = None  # when, with which result, and why
        self._lost: dict[str, int] = {}
        self._sizes = RecentSizes(self._root)
        self._led_by: list[str] = []  # who commanded in turn, since the episode runs
        self._world: dict[str, Any] = {}  # the newest that a twin told
        self.create_subscription(String, support.SOURCE, self._on_source, support.LATCHED_READER)
        self.create_subscription(String, support.WORLD, self._on_world, support.LATCHED_READER)
        self._participant = support.Participant(self, self._on_session)
        self._diagnostics = support.Diagnostics(self, str(self._root))

    def start(self, end: End) -> None:
        """Begin to listen."""
        self._require_disk()
        super().start(end)

    def close(self) -> None:
        """Commit what there is of an episode that has run."""
        super().close()
        with self._lock:
            self._is_closed = True
            if self._writer is None:
                return
            try:
                self._drain(time.monotonic())
                told = self._end and self._end[1:]
                self._finish(*(told or self._cut('the recorder was stopped')))
            except RobotRLError as error:
                self._give_up(error)

    def _work(self, stop: threading.Event) -> None:
        watched = 0.0
        for now in support.every(DRAIN_PERIOD_S, stop):
            with self._lock:
                try:
                    self._drain(now)
                    if self._writer is not None:
                        self._subscribe()
                    if self._waiting:
                        self._answer_when_ready()
                    if self._end is not None and now >= self._end[0]:
                        self._finish(*self._end[1:])
                    if now - watched >= 1.0:
                        watched = now
                        self._watch(now)
                except RobotRLError as error:
                    self._give_up(error)

    def _on_session(self, info: SessionInfo) -> None:
        with self._lock:
            if self._is_closed:  # nobody would commit what is opened now
                return
            try:
                if info.state == 'prepare':
                    self._open(info)
                elif info.state == 'running' and self._writes(info):
                    self._has_run = True
                    self._writer.run_from(time.time_ns(), self._rates(info))
                    del self._led_by[:-1]
                elif info.state == 'ended' and self._writes(info):
                    self._waiting = False
                    self._writer.run_until(time.time_ns())
                    self._end = time.monotonic() + GRACE_S, info.result, info.reason
            except RobotRLError as error:
                self._give_up(error)

    def _on_source(self, message: String) -> None:
        with self._lock:
            self._led_by.append(message.data)

    def _on_world(self, message: String) -> None:
        try:
            told = dict(json.loads(message.data))
        except (TypeError, ValueError) as error:  # of somebody else: no reason to end a recording
            self.get_logger().error(f'{support.WORLD}: no JSON object ({error})')
            return
        with self._lock:
            self._world = told

    def _writes(self, info: SessionInfo) -> bool:
        return self._writer is not None and self._writer.header.id == info.episode

    def _open(self, info: SessionInfo) -> None:
        if self._writes(info):
            return
        if self._writer is not None:
            self._finish(*self._cut('the next episode was prepared'))
        self._require_disk()
        self._drain(time.monotonic())  # what came before does not belong to it
        self._required = self._required_topics(info)
        optional = [
            support.SESSION_STATE, support.TARGET_POSE, support.SOURCE, support.TELEOP_COMMAND
        ]  # fmt: skip
        if self._robot.gripper:
            optional += [self._robot.gripper.topic, support.gripper_topic('teleop')]
        self._wanted = self._required | {
            self.resolve_topic_name(name) for name in (*self._given.topics, *optional)
        }
        self._lost, self._has_run = {}, False
        self._writer = EpisodeWriter(self._root, self._header(info))
        self._set_aside(info.instead_of)  # now that there is another one
        for topic in self._topics.values():  # a goal that was set before is this episode's too
            if topic.name in self._required and topic.newest is not None:
                self._write(topic, *topic.newest)
        self._participant.report(
            'preparing', f'no publisher of {", ".join(sorted(self._required))}'
        )
        self._waiting = True

    def _set_aside(self, id: str) -> None:
        """Discard the episode in the place of which the one in hand is recorded, if any."""
        if not id:
            return
        try:
            set_aside(self._root / id)
        except StorageError as error:  # which is no reason not to record
            self.get_logger().warning(str(error))

    def _header(self, info: SessionInfo) -> EpisodeHeader:
        fields = info.to_dict()
        names = (
            'task', 'source', 'policy', 'policy_sha256', 'operator', 'seed', 'contract', 'tags'
        )  # fmt: skip
        return EpisodeHeader.parse(
            {name: fields[name] for name in names}
            | {
                'id': info.episode,
                'robot': self._robot.name,
                'robot_spec': self._robot.to_dict(),
                'world': self._given.world,
                'code_version': robot_rl.__version__,
                'git_revision': self._git_revision,
            }
        )

    def _required_topics(self, info: SessionInfo) -> set[str]:
        """Return the topics, resolved, without which an episode is not worth recording."""
        names = {self._robot.joint_states_topic, self._robot.controller.topic, support.APPLIED}
        # A policy, in the place of a person too, commands from the first tick on.
        by_program = info.source == 'policy' or (info.source == 'teleop' and info.policy != '')
        if by_program:
            names.add(support.command_topic(info.source))
        if info.source == 'policy':
            names.add(support.POLICY_ACTION)
        if info.contract:
            contract = Contract.parse(info.contract)
            names |= {self._robot.topic(field) for field in contract.observation if field.kind}
            grips = any(field.kind == 'gripper' for field in contract.action)
            if grips and by_program:  # a person may leave the gripper alone
                names |= {support.gripper_topic(info.source), self._robot.gripper.topic}
        return {self.resolve_topic_name(name) for name in names}

    def _rates(self, info: SessionInfo) -> dict[str, Required]:
        """Return the rates that the robot and the contract ask of required topics, by topic."""
        robot = self._robot
        rates = {robot.joint_states_topic: (robot.joint_states_rate_hz, False)}
        rates[support.APPLIED] = rates[robot.controller.topic] = robot.controller.rate_hz, True
        if robot.controller.kind == 'forward_velocity':  # at rest it is told nothing
            del rates[robot.controller.topic]
        if info.contract:
            contract = Contract.parse(info.contract)
            if info.source == 'policy':
                rates[support.POLICY_ACTION] = rates[support.POLICY_COMMAND] = (
                    contract.rate_hz,
                    False,
                )
            for field in contract.observation:
                if field.kind == 'image' and (camera := robot.camera(field.stream)):
                    rates[robot.topic(field)] = camera.rate_hz, False
        topics = {self.resolve_topic_name(name): rate for name, rate in rates.items()}
        return {
            name: Required(self._topics[name].type, *rate)
            for name, rate in topics.items()
            if name in self._topics
        }

    def _answer_when_ready(self) -> None:
        # Until its publishers have seen a new subscription as well, messages pass it by.
        settled = time.monotonic() - self._subscribed_at > SETTLE_S
        if settled and self._required <= self._topics.keys():
            self._waiting = False
            self._participant.report('ready')

    def _subscribe(self) -> None:
        """Subscribe to wanted topics that have got a publisher, as that publisher offers.

        Raises StorageError for a type that is not installed, while the episode is prepared; once
        it runs, such a topic is told and left out.
        """
        for name in self._wanted - self._topics.keys():
            endpoints = self.get_publishers_info_by_topic(name)
            if not endpoints:
                continue
            try:
                self._topics[name] = self._listen(name, endpoints)
            except StorageError as error:
                if self._waiting:
                    raise
                self._wanted.discard(name)
                self.get_logger().warning(str(error))
            self._subscribed_at = time.monotonic()

    def _listen(self, name: str, endpoints: list[Any]) -> Topic:
        type_name = endpoints[0].topic_type
        offers = [endpoint.qos_profile for endpoint in endpoints]
        reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offers)
        latched = all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
        qos = QoSProfile(
            depth=_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        polled = support.Polled(self, _message_class(type_name, name), name, qos, raw=True)
        definition = message_definition(type_name)
        return Topic(name, type_name, definition, polled, latched, time.monotonic())

    def _drain(self, now: float) -> None:
        """Take every message that waits, and write them where an episode is open, as they came."""
        waiting = []
        for topic in self._topics.values():
            for data, about in topic.messages.drain():
                topic.heard_at = now
                topic.newest = (data, about) if topic.latched else None
                waiting.append((about['received_timestamp'], topic, data, about))
        if self._writer is None:
            return
        for _, topic, data, about in sorted(waiting, key=lambda item: item[0]):
            self._write(topic, data, about)

    def _write(self, topic: Topic, data: bytes, about: dict[str, Any]) -> None:
        self._writer.write(
            topic.name,
            topic.type,
            topic.definition,
            data,
            about['received_timestamp'],
            about['source_timestamp'],
            about['publication_sequence_number'] or 0,
            (about.get('publisher_gid') or {}).get('data', b''),  # rclpy of Jazzy does not say
        )

    def _cut(self, reason: str) -> tuple[str, str]:
        """Return how an episode ends that nobody has ended: one that never ran is no episode."""
        return 'truncated' if self._has_run else 'discarded', reason

    def _finish(self, result: str, termination: str) -> None:
        """Commit or discard the episode, and say where it lies and what it lacks."""
        writer, self._writer = self._writer, None
        self._end, self._waiting = None, False
        path = _commit(writer, result, termination, **self._came_to_know(writer.header))
        if result != 'discarded':
            self._sizes.add(writer.header)
        report = writer.report()
        about = {
            'path': str(path),
            'messages': sum(topic.count for topic in report.values()),
            'lost': sum(topic.lost for topic in report.values()),
        }
        self._participant.report('done', json.dumps(about))

    def _give_up(self, error: RobotRLError) -> None:
        """Keep what could be written, and say why there is no more."""
        writer, self._writer = self._writer, None
        self._end, self._waiting = None, False
        if writer is not None:
            with contextlib.suppress(StorageError):  # which is told below
                _commit(writer, *self._cut(str(error)), **self._came_to_know(writer.header))
        self._participant.report('error', f'episode_recorder: {error}')

    def _came_to_know(self, header: EpisodeHeader) -> dict[str, Any]:
        """Return the fields of the header that were not known when the episode began."""
        return {'interventions': self._interventions(header), 'extra': self._drawn(header)}

    def _drawn(self, header: EpisodeHeader) -> dict[str, Any]:
        """Return what a twin told of the world that it drew for the episode in hand.

        Without a seed the episode is in the world of the one before.
        """
        told = dict(self._world)
        seed = told.pop('seed', None)
        return told if header.seed in (None, seed) else {}

    def _interventions(self, header: EpisodeHeader) -> int:
        """Count how often a person took over from the policy of the episode in hand."""
        if not (by_policy(header.source) and self._has_run):
            return 0
        return count_interventions(map(number, self._led_by))

    def _require_disk(self) -> None:
        """Raise StorageError where the disk is short."""
        free_gb = self._free_gb()
        if free_gb < self._given.min_free_gb:
            raise StorageError(
                f'{self._root}: {free_gb:.1f} GB free, '
                f'{self._given.min_free_gb} GB are wanted (parameter min_free_gb)'
            )

    def _free_gb(self) -> float:
        """Return the free disk space where episodes go [GB]."""
        folder = next(p for p in (self._root, *self._root.absolute().parents) if p.exists())
        return shutil.disk_usage(folder).free / 1e9

    def _episodes_left(self) -> int | str:
        """Return how many episodes of the kind in hand still fit on the disk; '': not known yet.

        Of one that has not ended nobody knows how large it gets.
        """
        info = self._participant.info
        size = self._sizes.mean(info.task, info.source) if info.task else None
        room = max(0.0, self._free_gb() - self._given.min_free_gb) * 1e9
        return int(room / size) if size else ''

    def _watch(self, now: float) -> None:
        """Once a second: say which topics are silent or lose messages, and how the disk is."""
        about = {
            'state': self._participant.answer.state,
            'episode': self._participant.info.episode,
            'disk_free_gb': round(self._free_gb(), 1),
            'min_free_gb': self._given.min_free_gb,
            'episodes_left': self._episodes_left(),
        }
        if self._writer is None:
            try:
                self._require_disk()
                self._diagnostics.publish(DiagnosticStatus.OK, 'no episode', about)
            except StorageError as error:
                self._diagnostics.publish(DiagnosticStatus.ERROR, str(error), about)
            return
        self._require_disk()
        report = self._writer.report()
        problems = [
            f'{name}: {topic.lost} messages lost'
            for name, topic in report.items()
            if topic.lost > self._lost.get(name, 0)
        ]
        self._lost = {name: topic.lost for name, topic in report.items()}
        if self._participant.info.state == 'running':
            problems += [
                f'{name}: silent for {now - self._topics[name].heard_at:.1f} s'
                for name in sorted(self._required & self._topics.keys())
                if not self._topics[name].latched
                and now - self._topics[name].heard_at > self._given.silent_s
            ]
        for problem in problems:
            self.get_logger().warning(problem)
        level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
        about['lost'] = sum(self._lost.values())
        for name, topic in report.items():
            if not self._topics[name].latched:  # which come when something changes
                about[f'{name} [Hz]'] = round(topic.rate_hz, 1)
                about[f'{name} gap [s]'] = round(topic.longest_gap_s, 3)
        self._diagnostics.publish(level, '; '.join(problems) or 'recording', about)


def _commit(writer: EpisodeWriter, result: str, termination: str, **fields: Any) -> Path:
    """Commit or discard an episode and return its directory.

    Where that cannot be written, what could be is committed as truncated, and StorageError raised.
    """
    fields |= {'result': result, 'termination': termination}
    fields['success'] = {'success': True, 'failure': False}.get(result)
    try:
        return writer.discard(**fields) if result == 'discarded' else writer.commit(**fields)
    except StorageError as error:
        with contextlib.suppress(StorageError):  # it stays partial: what was flushed can be mended
            writer.cut(str(error))
        with contextlib.suppress(StorageError):
            writer.close()
        raise


def _message_class(type_name: str, topic: str) -> type:
    package, kind = type_name.split('/msg/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind)
    except ImportError:
        raise StorageError(
            f'topic {topic}: its type {type_name} is not installed here; install {package}, '
            'or do not record it'
        ) from None
