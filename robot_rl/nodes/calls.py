"""Services of a graph, called by a program that is no part of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

ANSWER_WITHIN_S = 5.0


class Caller:
    """Calls Trigger services in the ROS domain, and over the network, that `environment` names."""

    def __init__(self, environment: Mapping[str, str]):
        own = dict(os.environ)
        os.environ.update(environment)  # DDS reads it while the node is made
        try:
            self._context = rclpy.Context()
            rclpy.init(context=self._context)
            self._node = Node('robot_rl_caller', context=self._context, enable_rosout=False)
        finally:
            os.environ.clear()
            os.environ.update(own)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._clients: dict[str, rclpy.client.Client] = {}

    def call(self, name: str) -> str | None:
        """Call a service; return why it did not do what it was asked for, None: it did."""
        if name not in self._clients:
            self._clients[name] = self._node.create_client(Trigger, name)
        client = self._clients[name]
        if not client.wait_for_service(ANSWER_WITHIN_S):
            return f'there is no service {name}'
        future = client.call_async(Trigger.Request())
        self._executor.spin_until_future_complete(future, ANSWER_WITHIN_S)
        if not future.done():
            return f'{name} does not answer'
        answer = future.result()
        return None if answer.success else f'{name}: {answer.message}'

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)
