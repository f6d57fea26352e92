import pytest

from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import RobotSpec


@pytest.fixture(scope='session')
def ur5e():
    return RobotSpec.load('ur5e')


@pytest.fixture(scope='session')
def chain(ur5e):
    return KinematicChain.from_spec(ur5e)
