"""The empty chain: what rclpy and DDS cost by themselves, beside which bench deploy measures.

source -> JointState -> policy -> JointTrajectory -> guard -> Float64MultiArray -> source, as an
arm's driver is both ends, and a sink that hears it as well, as the recorder does: the processes,
messages and rates of the real chain, with nothing in them. And a timer of rclpy, which does
nothing.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Literal

import pydantic
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.specs import Spec

JOINTS = [f'joint_{i}' for i in range(6)]


class Parameters(Spec):
    """The ROS parameters of echo."""

    role: Literal['source', 'policy', 'guard', 'sink', 'timer'] = pydantic.Field(
        'source', description='which link of the chain this is'
    )
    rate_hz: pydantic.PositiveFloat = pydantic.Field(
        100.0, le=10_000, description='of source and timer'
    )


class Echo(support.WorkingNode):
    """One link. When they end, the source prints {"latency_s": [...]}, from stamp to arrival, and
    the timer {"ticks_ns": [...]}, since the epoch.
    """

    def __init__(self) -> None:
        super().__init__('echo')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        self._latencies: list[float] = []
        self._ticks: list[int] = []
        getattr(self, f'_be_{self._given.role}')()

    def start(self, end: End) -> None:
        """Begin to publish, where this is the source."""
        if self._given.role == 'source':
            super().start(end)

    def close(self) -> None:
        """Say what was measured, where this is the source or the timer."""
        super().close()
        if self._given.role == 'source':
            print(json.dumps({'latency_s': self._latencies}), flush=True)
        if self._given.role == 'timer':
            print(json.dumps({'ticks_ns': self._ticks}), flush=True)

    def _be_source(self) -> None:
        self._states = self.create_publisher(JointState, 'echo/states', support.STREAM)
        # Read once a period, as by a driver.
        self._commands = support.Polled(self, Float64MultiArray, 'echo/commands', support.STREAM)

    def _be_policy(self) -> None:
        publisher = self.create_publisher(JointTrajectory, 'echo/command', support.COMMAND)
        message = support.trajectory(JOINTS, 0.01)

        def echo(state: JointState) -> None:
            message.header.stamp = state.header.stamp
            message.points[0].positions = state.position
            publisher.publish(message)

        self.create_subscription(JointState, 'echo/states', echo, support.SENSOR)

    def _be_guard(self) -> None:
        publisher = self.create_publisher(Float64MultiArray, 'echo/commands', support.COMMAND)
        message = Float64MultiArray()

        def echo(command: JointTrajectory) -> None:
            stamp = command.header.stamp
            message.data = [float(stamp.sec), float(stamp.nanosec)]
            publisher.publish(message)

        self.create_subscription(JointTrajectory, 'echo/command', echo, support.COMMAND)

    def _be_sink(self) -> None:
        self.create_subscription(
            Float64MultiArray, 'echo/commands', lambda _: None, support.STREAM
        )

    def _be_timer(self) -> None:
        period_s = 1.0 / self._given.rate_hz
        self.create_timer(period_s, lambda: self._ticks.append(time.time_ns()))

    def _work(self, stop: threading.Event) -> None:
        message = JointState(name=JOINTS, position=[0.0] * len(JOINTS))
        message.velocity = message.position
        for _ in support.every(1.0 / self._given.rate_hz, stop):
            for command, about in self._commands.drain():
                sent_ns = int(command.data[0]) * 1_000_000_000 + int(command.data[1])
                self._latencies.append((about['received_timestamp'] - sent_ns) * 1e-9)
            message.header.stamp = self.get_clock().now().to_msg()
            self._states.publish(message)
