"""Which endpoints of a topic cannot hear each other, in words: another type, or another QoS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

# Of rmw itself: nobody can mend these here, and every node has them.
_OWN_OF_ROS = ('/rosout', '/parameter_events')
# What DDS tells of a duration that has no limit is near the greatest it can tell.
_NO_LIMIT_NS = 2**62


# Who subscribes to whatever there is, and moves no arm, by how the names of nodes begin; the first
# is one whose name has yet to be discovered. What micro-ROS calls _CREATED_BY_BARE_DDS_APP_ may be
# an arm.
_LISTENERS = (
    '_NODE_NAME_UNKNOWN_', '_ros2cli', 'episode_recorder', 'robot_rl_doctor', 'rosbag2',
    'rosbridge', 'foxglove', 'rqt', 'rviz', 'plotjuggler',
)  # fmt: skip


def problems(node: Node) -> Iterator[str]:
    """Yield one line for each endpoint of another node that one of `node` cannot talk to."""
    own = node.get_fully_qualified_name()
    ends = (*node.subscriptions, *node.publishers)
    for topic in dict.fromkeys(end.topic_name for end in ends):
        if topic not in _OWN_OF_ROS:
            writers = node.get_publishers_info_by_topic(topic)
            readers = node.get_subscriptions_info_by_topic(topic)
            for writer, reader, wrong in unheard(writers, readers):
                names = full_name(writer), full_name(reader)
                if own in names:
                    yield '{}: {} publishes, {} reads: {}'.format(topic, *names, wrong)


def unheard(writers: Sequence[Any], readers: Sequence[Any]) -> Iterator[tuple[Any, Any, str]]:
    """Yield the endpoints of a topic that cannot talk to each other, and why.

    A node that reads a topic at best effort as well does so for whom its reliable reader does not
    hear: that is as it should be.
    """
    for writer in writers:
        hear, wrong = set(), []
        for reader in readers:
            offered, wanted = writer.qos_profile, reader.qos_profile
            if why := mismatch(writer.topic_type, offered, reader.topic_type, wanted):
                wrong.append((writer, reader, why))
            elif wanted.reliability == ReliabilityPolicy.BEST_EFFORT:
                hear.add(full_name(reader))
        yield from (found for found in wrong if full_name(found[1]) not in hear)


def may_be_an_arm(reader: Any) -> bool:
    """Tell whether who subscribes to commands may be an arm; a recorder is none.

    By the names of nodes, as well as these tell.
    """
    return not reader.node_name.startswith(_LISTENERS)


def mismatch(offered_type: str, offered: QoSProfile, wanted_type: str, wanted: QoSProfile) -> str:
    """Say why a reader hears nothing of a publisher, and what to do; '': it hears it.

    Which offers serve which wishes: ROS 2 documentation, "Quality of Service settings".
    """
    if offered_type != wanted_type:
        return f'type {offered_type}, wanted {wanted_type}; give one of the two another topic name'
    words = []
    if (offered.reliability, wanted.reliability) == (
        ReliabilityPolicy.BEST_EFFORT,
        ReliabilityPolicy.RELIABLE,
    ):
        words.append('reliability best_effort, wanted reliable')
    if (offered.durability, wanted.durability) == (
        DurabilityPolicy.VOLATILE,
        DurabilityPolicy.TRANSIENT_LOCAL,
    ):
        words.append('durability volatile, wanted transient_local')
    if (offered.liveliness, wanted.liveliness) == (
        LivelinessPolicy.AUTOMATIC,
        LivelinessPolicy.MANUAL_BY_TOPIC,
    ):
        words.append('liveliness automatic, wanted manual_by_topic')
    for name in ('deadline', 'liveliness_lease_duration'):
        offer, wish = _seconds(getattr(offered, name)), _seconds(getattr(wanted, name))
        if offer > wish:
            words.append(f'{name} {offer:g} s, wanted at most {wish:g} s')
    if not words:
        return ''
    return f'QoS {"; ".join(words)}: change the publisher to what is wanted, or the reader'


def _seconds(duration: Any) -> float:
    """Return a duration of a QoS; infinite where it says nothing, or as much as there is.

    rclpy's qos_check_compatible takes the 0 of a profile of our own for no time at all.
    """
    nanoseconds = duration.nanoseconds
    return nanoseconds * 1e-9 if 0 < nanoseconds < _NO_LIMIT_NS else math.inf


def full_name(endpoint: Any) -> str:
    """Return the node of a topic's endpoint, with its namespace."""
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'


def type_name(message: type) -> str:
    """Return the ROS name of a message's type: package/msg/Name."""
    return f'{message.__module__.split(".")[0]}/msg/{message.__name__}'
