from __future__ import annotations

import numpy as np
import pytest

from robot_rl.errors import ContractMismatch
from robot_rl.sim.driver import SimulatedDriver
from robot_rl.specs import RobotSpec


def driver_of(kind, **more):
    robot = RobotSpec.load('ur5e')
    driver = SimulatedDriver(robot.replace(controller={'kind': kind, 'topic': 'c', **more}))
    driver.reset(np.zeros(6))
    return driver


def test_positions_are_taken_as_they_come():
    driver = driver_of('forward_position')
    assert (driver.advance(0.01) == 0).all()
    driver.command(np.full(6, 0.3))
    assert (driver.advance(0.01) == 0.3).all()


def test_velocities_are_integrated_until_the_driver_misses_commands():
    driver = driver_of('forward_velocity', driver_timeout_s=0.05)
    driver.command(np.linspace(-1, 1, 6))
    for step in range(1, 6):
        np.testing.assert_allclose(driver.advance(0.01), 0.01 * step * np.linspace(-1, 1, 6))
    stood = driver.advance(0.02)
    np.testing.assert_array_equal(driver.advance(1.0), stood)
    driver.command(np.full(6, 100.0))
    assert (driver.advance(0.05) <= RobotSpec.load('ur5e').upper).all()


def test_a_point_of_a_trajectory_is_approached_on_a_line_and_replaced_on_the_way():
    driver = driver_of('joint_trajectory')
    driver.command(np.full(6, 0.2), 0.02)
    np.testing.assert_allclose(driver.advance(0.01), 0.1)
    driver.command(np.full(6, 0.4), 0.03)
    np.testing.assert_allclose(driver.advance(0.01), 0.2)
    np.testing.assert_allclose(driver.advance(0.05), 0.4)


@pytest.mark.parametrize('bad', [[0.0] * 5, [np.nan] * 6, [[0.0] * 6]])
def test_a_bad_command_is_refused_and_changes_nothing(bad):
    driver = driver_of('forward_velocity', driver_timeout_s=0.1)
    driver.command(np.ones(6))
    with pytest.raises(ContractMismatch, match='takes 6 finite joint velocities'):
        driver.command(bad)
    np.testing.assert_allclose(driver.advance(0.01), 0.01)
