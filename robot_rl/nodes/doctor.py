"""What robot-rl doctor looks at in a running graph; it publishes nothing and changes nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from robot_rl.control.session import SessionInfo
from robot_rl.errors import SpecError
from robot_rl.nodes import support, wiring
from robot_rl.nodes.checks import (
    LIMITS,
    Finding,
    Limits,
    compare_accelerations,
    compare_gripper,
    compare_limits,
    urdf_limits,
)
from robot_rl.nodes.streams import message_of, wrong_frame
from robot_rl.specs import Contract, Controller, Gripper, ObservationField, RobotSpec

# What discovery takes on a busy machine [s].
DISCOVER_S = 3.0
ANSWER_WITHIN_S = 3.0
# Stamps: between the computers of one arm; the policy's max_age_s is 0.25.
AHEAD_S, OLD_S, TOO_OLD_S = 0.02, 0.1, 0.25
# Nothing is that old but a stamp that nobody has set.
NEVER_STAMPED_S = 1e9
RATE_OFF = 0.2
# Where MoveIt has its joint_limits.yaml.
_PLANNED = 'robot_description_planning.joint_limits'


def graph(
    robot: RobotSpec,
    namespace: str = '',
    seconds: float = 3.0,
    contract: Contract | None = None,
) -> list[Finding]:
    """Listen to the graph of an arm for so long; return what was found.

    Also at what a contract reads besides joint states, which are poses, goals and pictures: at
    `contract` or, without it, at that of the episode that the session has in hand, if it runs.
    """
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node(
        'robot_rl_doctor',
        namespace=namespace,
        context=context,
        enable_rosout=False,
        start_parameter_services=False,
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        return list(Doctor(node, executor, robot, contract).look(seconds))
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


class Doctor:
    """Hears joint states and the URDF, asks for parameters, and compares endpoints."""

    def __init__(
        self,
        node: Node,
        executor: SingleThreadedExecutor,
        robot: RobotSpec,
        contract: Contract | None = None,
    ):
        self._node, self._executor, self._robot = node, executor, robot
        self._contract = contract
        self._fields: list[ObservationField] = []
        self._came: dict[str, list[tuple[float, float]]] = {}  # {stream: [(ROS time, age) [s]]}
        self._displaced: dict[str, str] = {}  # {stream: why its newest pose is in a wrong frame}
        self._heard: list[tuple[float, JointState]] = []  # with the ROS time they came [s]
        self._urdfs: list[str] = []
        qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(JointState, robot.joint_states_topic, self._hear, qos)
        node.create_subscription(
            String, 'robot_description', self._hear_urdf, support.LATCHED_READER
        )
        if contract is None:
            node.create_subscription(
                String, support.SESSION_STATE, self._hear_session, support.LATCHED_READER
            )

    def look(self, seconds: float) -> Iterator[Finding]:
        """Yield what is found in the graph."""
        self._spin(DISCOVER_S)
        if self._others():
            self._heard.clear()
            self._listen_to_streams()
            self._spin(seconds)
            self._ended = self._now()
        others = self._others()  # only now: a busy machine finds some of them late
        if not others:
            domain = self._node.context.get_domain_id()
            yield Finding(
                'WARN',
                'graph',
                f'no node runs in domain {domain}',
                'start one: robot-rl up deploy, or look into another ROS_DOMAIN_ID',
            )
            return
        yield Finding('OK', 'graph', f'{len(others)} nodes: {", ".join(others)}')
        yield from self._joint_states(seconds)
        yield from self._streams(seconds)
        yield from self._commands()
        yield from self._endpoints()
        yield from self._limits(others)
        yield from self._sim_time(others)

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _listen_to_streams(self) -> None:
        """Listen to what the contract reads besides joint states, once it is known."""
        read = self._contract.observation if self._contract else ()
        fields = {field.stream: field for field in read if field.kind}
        fields.pop('joint_states', None)
        self._fields = list(fields.values())
        for field in self._fields:
            self._listen(field)

    def _listen(self, field: ObservationField) -> None:
        """Note when what a field reads comes, and how old it is."""
        qos = support.LATCHED_READER if field.is_set else support.SENSOR
        came = self._came.setdefault(field.stream, [])

        def hear(message: Any) -> None:
            now = self._now()
            came.append((now, now - support.seconds(message.header.stamp)))
            if isinstance(message, PoseStamped):
                self._displaced[field.stream] = wrong_frame(message, self._robot)

        self._node.create_subscription(message_of(field), self._robot.topic(field), hear, qos)

    def _hear(self, message: JointState) -> None:
        self._heard.append((self._now(), message))

    def _hear_urdf(self, message: String) -> None:
        self._urdfs.append(message.data)

    def _hear_session(self, message: String) -> None:
        try:
            info = SessionInfo.from_json(message.data, origin=support.SESSION_STATE)
            self._contract = Contract.parse(info.contract) if info.contract else self._contract
        except SpecError:
            pass  # those who obey the session say what is wrong with it

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(left)

    def _others(self) -> list[str]:
        own = self._node.get_fully_qualified_name()
        pairs = self._node.get_node_names_and_namespaces()
        names = {f'{namespace.rstrip("/")}/{name}' for name, namespace in pairs}
        return sorted(name for name in names - {own} if '/_' not in name)

    def _joint_states(self, seconds: float) -> Iterator[Finding]:
        robot, node = self._robot, self._node
        topic, right = (
            node.resolve_topic_name(robot.joint_states_topic),
            'sensor_msgs/msg/JointState',
        )
        offers = node.get_publishers_info_by_topic(topic)
        if not offers:
            yield Finding(
                'ERROR',
                topic,
                'nobody publishes it',
                "start the arm's driver, or give --namespace and --robot",
            )
            return
        if wrong := {offer.topic_type for offer in offers} - {right}:
            yield Finding(
                'ERROR',
                topic,
                f'is {", ".join(sorted(wrong))}, right is {right}',
                f'let {", ".join(map(wiring.full_name, offers))} publish elsewhere',
            )
        if len(offers) > 1:
            names = ', '.join(map(wiring.full_name, offers))
            todo = 'of the joints of an arm, one is right'
            yield Finding('WARN', topic, f'{len(offers)} publishers: {names}', todo)
        if not self._heard:
            yield Finding(
                'ERROR',
                topic,
                f'nothing came within {seconds:g} s',
                'is the arm on, and its controller active?',
            )
            return
        yield from self._content(topic)
        rate, wanted = len(self._heard) / seconds, robot.joint_states_rate_hz
        if rate < (1 - RATE_OFF) * wanted:  # more of them do no harm
            yield Finding(
                'WARN',
                topic,
                f'{rate:.1f} Hz, joint_states_rate_hz is {wanted:g}',
                "mend the driver's rate, or the robot's file",
            )
        else:
            yield Finding('OK', topic, f'{rate:.1f} Hz, joint_states_rate_hz is {wanted:g}')
        ages = [now - support.seconds(message.header.stamp) for now, message in self._heard]
        yield self._stamps(topic, ages, TOO_OLD_S)

    def _content(self, topic: str) -> Iterator[Finding]:
        """Look at names and sizes; two publishers may each have a part."""
        robot = self._robot
        found = {name for _, message in self._heard for name in message.name}
        if missing := [name for name in robot.driver_joints if name not in found]:
            yield Finding(
                'ERROR',
                topic,
                f'joints {missing} are missing; found {sorted(found)}',
                "another arm or tf_prefix? --robot <robot>@<tf_prefix>, or mend the robot's file",
            )
            return
        newest = next(
            m for _, m in reversed(self._heard) if set(m.name) & set(robot.driver_joints)
        )
        sizes = len(newest.name), len(newest.position), len(newest.velocity)
        if sizes[1] != sizes[0]:
            yield Finding(
                'ERROR', topic, f'{sizes[0]} names, {sizes[1]} positions', 'mend the driver'
            )
        elif not sizes[2]:
            yield Finding(
                'WARN',
                topic,
                'velocities are empty',
                'policies that read them take the difference of positions, where their contract '
                'says so; better: let the driver measure them',
            )
        elif sizes[2] != sizes[0]:
            yield Finding(
                'WARN', topic, f'{sizes[0]} names, {sizes[2]} velocities', 'mend the driver'
            )
        else:
            yield Finding('OK', topic, f'has all {len(robot.joints)} joints, with velocities')
        if robot.gripper and robot.driver_gripper not in newest.name:
            yield Finding(
                'WARN',
                topic,
                f"the gripper's joint {robot.driver_gripper} is not beside the arm's",
                'policies read its width there: one message has to tell of both',
            )

    def _streams(self, seconds: float) -> Iterator[Finding]:
        """Look at what the contract reads besides joint states."""
        if not self._contract:
            words = 'none is known: no session has an episode in hand'
            yield Finding('OK', 'contract', words, '--task <task> looks at what that task reads')
        for field in self._fields:
            yield self._stream(field, seconds)
            yield from self._gaps(field)
        pictures = any(field.kind == 'image' for field in self._fields)
        if pictures and not self._node.count_publishers('image_feed/status'):
            todo = 'start deploy with cameras:=true, or python -m robot_rl.nodes image_feed'
            yield Finding('ERROR', 'image_feed', 'does not run: policy gets no picture', todo)

    def _gaps(self, field: ObservationField) -> Iterator[Finding]:
        """Say where messages come too seldom for a policy, or for the file of the robot."""
        topic, came = self._node.resolve_topic_name(self._robot.topic(field)), []
        if not field.is_set:
            came = [at for at, _ in self._came[field.stream]]
        if not came:
            return
        gap = max(later - at for at, later in itertools.pairwise([*came, self._ended]))
        if gap > field.age_limit_s:
            words = f'nothing for {gap:.2f} s; {field.name} may be {field.age_limit_s:g} s old'
            todo = 'publish more often, or find what keeps it: an episode would break off'
            yield Finding('ERROR', topic, words, todo)
        camera = self._robot.camera(field.stream) if field.kind == 'image' else None
        rate = (len(came) - 1) / max(came[-1] - came[0], 1e-9)
        if camera and rate < (1 - RATE_OFF) * camera.rate_hz:
            words = f"{rate:.1f} Hz, the robot's file says {camera.rate_hz:g}"
            yield Finding('WARN', topic, words, "mend the camera's rate, or the robot's file")

    def _stream(self, field: ObservationField, seconds: float) -> Finding:
        """Look at one stream: who publishes it, whether it comes, and how old."""
        topic = self._node.resolve_topic_name(self._robot.topic(field))
        right = wiring.type_name(message_of(field))
        ages = [age for _, age in self._came[field.stream]]
        offers = self._node.get_publishers_info_by_topic(topic)
        if not offers:
            what = f'nobody publishes it ({right}), and the task reads it'
            return Finding('ERROR', topic, what, 'start whatever measures it, or sim_robot')
        if wrong := {offer.topic_type for offer in offers} - {right}:
            found = f'is {", ".join(sorted(wrong))}, right is {right}'
            return Finding('ERROR', topic, found, 'mend its publisher')
        if wrong := self._displaced.get(field.stream):
            return Finding(
                'ERROR', topic, wrong, "transform it (tf2), or mend the robot's base_frame"
            )
        if field.is_set:
            if ages:
                return Finding('OK', topic, 'the goal is set')
            return Finding(
                'WARN', topic, 'no goal has been set', f'publish one, latched ({right})'
            )
        if not ages:
            what = f'has a publisher, but nothing came within {seconds:g} s'
            return Finding('ERROR', topic, what, 'is what measures it running, and does it see?')
        stamps = self._stamps(topic, ages, field.age_limit_s)
        return stamps._replace(found=f'{len(ages) / seconds:.1f} Hz, {stamps.found}')

    def _stamps(self, topic: str, ages: list[float], too_old_s: float) -> Finding:
        about = f'stamps of {topic}'
        if self._node.get_publishers_info_by_topic('/clock'):
            return Finding('OK', about, 'are not compared: time comes from /clock')
        age = float(np.median(ages))
        if age > NEVER_STAMPED_S:
            return Finding('ERROR', about, 'are empty', 'let whoever measures it stamp it')
        if age < -AHEAD_S:
            return Finding(
                'ERROR',
                about,
                f'{-age:.3f} s in the future',
                'synchronise the clocks of both computers (chrony)',
            )
        level = 'ERROR' if age > too_old_s else 'WARN' if age > OLD_S else 'OK'
        todo = 'synchronise the clocks (chrony), or find what delays them'
        return Finding(level, about, f'{age * 1e3:.1f} ms old', '' if level == 'OK' else todo)

    def _commands(self) -> Iterator[Finding]:
        """Look at the topics on which arm and gripper are commanded."""
        robot = self._robot
        by_name = robot.controller.kind == 'joint_trajectory'
        readers = yield from self._commanded('arm', robot.controller, by_name)
        yield from self._controllers(readers, robot.driver_joints, by_name)
        if robot.gripper:
            readers = yield from self._commanded('gripper', robot.gripper)
            if robot.gripper.kind == 'forward_position':
                yield from self._controllers(readers, [robot.driver_gripper])

    def _commanded(
        self, what: str, told: Controller | Gripper, by_name: bool = False
    ) -> Generator[Finding, None, list[str]]:
        """Look for one who commands and somebody who obeys; return who that may be."""
        node, topic = self._node, self._node.resolve_topic_name(told.topic)
        field = 'controller' if isinstance(told, Controller) else 'gripper'
        right = wiring.type_name(JointTrajectory if by_name else Float64MultiArray)
        writers = node.get_publishers_info_by_topic(topic)
        readers = node.get_subscriptions_info_by_topic(topic)
        if wrong := {end.topic_type for end in (*writers, *readers)} - {right}:
            yield Finding(
                'ERROR',
                topic,
                f'is {", ".join(sorted(wrong))}, right is {right}',
                f"compare {field}.kind and {field}.topic of the robot's file",
            )
        obeying = list(filter(wiring.may_be_an_arm, readers))
        if not obeying:
            others = ', '.join(map(wiring.full_name, readers))
            yield Finding(
                'ERROR',
                topic,
                f'no {what} listens, only {others}' if others else f'no {what} listens',
                'start your node that passes the width on'
                if isinstance(told, Gripper) and told.kind == 'width'
                else 'activate the controller: ros2 control switch_controllers',
            )
        if len(writers) > 1:
            names = ', '.join(map(wiring.full_name, writers))
            yield Finding(
                'ERROR',
                topic,
                f'{len(writers)} publishers command the {what}: {names}',
                'stop all but command_guard',
            )
        elif not writers:
            yield Finding('WARN', topic, f'nobody commands the {what}', 'start command_guard')
        elif obeying:
            yield Finding('OK', topic, f'commanded by {wiring.full_name(writers[0])} alone')
        return list(dict.fromkeys(map(wiring.full_name, obeying)))

    def _controllers(
        self, names: list[str], ours: Sequence[str], by_name: bool = False
    ) -> Iterator[Finding]:
        """Compare the joints of those who take commands with ours; positions have no names."""
        right = list(ours)
        for name, values in self._parameters(names, ['joints']).items():
            joints = list(values.get('joints') or ())
            same = sorted(joints) == sorted(right)
            if same and by_name:
                yield Finding('OK', f'joints of {name}', 'are those of the robot')
            elif joints == right:
                yield Finding('OK', f'joints of {name}', 'are those of the robot, in its order')
            elif joints:
                what = 'in another order' if same else 'other ones'
                yield Finding(
                    'ERROR',
                    f'joints of {name}',
                    f'{joints}, {what} than {right}',
                    f"mend the parameter joints of {name}, or joints of the robot's file",
                )

    def _endpoints(self) -> Iterator[Finding]:
        """Compare every publisher with every reader of its topic."""
        node, own = self._node, self._node.get_name()
        problems = []
        for topic, _ in node.get_topic_names_and_types():
            readers = node.get_subscriptions_info_by_topic(topic)
            writers = node.get_publishers_info_by_topic(topic)
            for writer, reader, wrong in wiring.unheard(writers, readers):
                if own not in (writer.node_name, reader.node_name):
                    names = wiring.full_name(writer), wiring.full_name(reader)
                    problems.append((topic, '{} publishes, {} reads: '.format(*names), wrong))
        for topic, names, wrong in dict.fromkeys(problems):
            what, _, todo = wrong.partition(': ') if ': ' in wrong else wrong.partition('; ')
            yield Finding('WARN', topic, names + what, todo)
        if not problems:
            yield Finding('OK', 'endpoints', 'QoS and types of all topics go together')

    def _limits(self, others: list[str]) -> Iterator[Finding]:
        robot = self._robot
        manager, known = self._told_limits('controller_manager', 'joint_limits', others)
        if known:
            yield from compare_limits(robot, known, manager)
        planner, planned = self._told_limits('move_group', _PLANNED, others)
        if planned:
            yield compare_accelerations(robot, planned, planner)
        for text in self._urdfs[-1:]:
            try:
                told = urdf_limits(text)
                yield from compare_limits(robot, told, 'robot_description')
                yield from compare_gripper(robot, told, 'robot_description')
            except SpecError as error:
                yield Finding('WARN', 'limits', str(error), 'publish a plain URDF')
        if not known and not self._urdfs:
            yield Finding(
                'WARN',
                'limits',
                'neither URDF nor controller_manager says',
                "compare the robot's file with the arm's manual",
            )

    def _told_limits(
        self, name: str, prefix: str, others: list[str]
    ) -> tuple[str, dict[str, Limits]]:
        """Return a node's full name, and {joint: limits} that its parameters have.

        A limit whose has_<kind>_limits is false is none.
        """
        node, theirs = self._node.resolve_service_name(name), {}
        if node not in others:
            return node, theirs
        switches = {key: f'has_{key.split("_")[1]}_limits' for key in LIMITS}
        keys, joints = {*switches, *switches.values()}, self._robot.driver_joints
        names = [f'{prefix}.{joint}.{key}' for joint in joints for key in keys]
        values = self._parameters([node], names).get(node, {})
        for joint in joints:
            told = {
                LIMITS[key]: float(value)
                for key, switch in switches.items()
                if isinstance(value := values.get(f'{prefix}.{joint}.{key}'), (int, float))
                and values.get(f'{prefix}.{joint}.{switch}') is not False
            }
            if told:
                theirs[joint] = Limits(**told)
        return node, theirs

    def _sim_time(self, others: list[str]) -> Iterator[Finding]:
        values = self._parameters(others, ['use_sim_time'])
        simulated = [name for name, given in values.items() if given.get('use_sim_time') is True]
        if simulated and not self._node.get_publishers_info_by_topic('/clock'):
            yield Finding(
                'ERROR',
                'use_sim_time',
                f'no /clock, for {", ".join(simulated)}',
                'use_sim_time:=false, or sim_robot with publish_clock',
            )
        elif simulated and len(simulated) < len(values):
            rest = ', '.join(sorted(values.keys() - set(simulated)))
            yield Finding(
                'WARN', 'use_sim_time', f'not set in {rest}', 'set it in all, or in none'
            )
        else:
            yield Finding('OK', 'use_sim_time', 'the same in all nodes that say it')

    def _parameters(self, nodes: list[str], names: list[str]) -> dict[str, dict[str, Any]]:
        """Return {node: {name: value}} of those that nodes have and tell in time.

        Asked for one that it does not have, a node tells none at all.
        """
        asked = ListParameters.Request(
            prefixes=names, depth=ListParameters.Request.DEPTH_RECURSIVE
        )
        listed = self._ask(ListParameters, 'list_parameters', dict.fromkeys(nodes, asked))
        requests = {
            node: GetParameters.Request(names=[n for n in answer.result.names if n in names])
            for node, answer in listed.items()
        }
        told = self._ask(GetParameters, 'get_parameters', requests)
        return {
            node: dict(
                zip(
                    requests[node].names,
                    map(parameter_value_to_python, answer.values),
                    strict=False,
                )
            )
            for node, answer in told.items()
        }

    def _ask(self, kind: type, service: str, requests: dict[str, Any]) -> dict[str, Any]:
        """Call a service of many nodes at once; return {node: response} of those who answer."""
        clients = {node: self._node.create_client(kind, f'{node}/{service}') for node in requests}
        futures: dict[str, Any] = {}
        end = time.monotonic() + ANSWER_WITHIN_S
        while time.monotonic() < end:
            for node, client in clients.items():
                if node not in futures and client.service_is_ready():
                    futures[node] = client.call_async(requests[node])
            if len(futures) == len(requests) and all(f.done() for f in futures.values()):
                break
            self._executor.spin_once(0.05)
        for client in clients.values():
            self._node.destroy_client(client)
        return {node: future.result() for node, future in futures.items() if future.done()}
