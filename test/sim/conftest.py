import pytest

from robot_rl import registry


@pytest.fixture(scope='session')
def reach():
    return registry.make_task('ur5e/reach')
