"""`colcon build` installs scripts, config, launch files and models where ROS 2 looks for them."""

from __future__ import annotations

import json
import sys

from robot_rl.nodes.main import NODES

FIND = """
import json, robot_rl
from robot_rl import resources
from robot_rl.specs import RobotSpec
print(json.dumps({
    'package': robot_rl.__file__,
    'share': str(resources.share()),
    'model': str(resources.model(RobotSpec.load('ur5e').mjcf)),
    'robots': resources.names('config/robots'),
    'nodes': resources.names('config/nodes'),
    'launch': resources.names('launch', '.launch.py'),
}))
"""


def test_everything_is_found_in_the_installed_copy(workspace, tmp_path):
    done = workspace.run(sys.executable, '-c', FIND, folder=tmp_path / 'empty')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind in ('package', 'share', 'model'):
        assert found[kind].startswith(str(workspace.prefix)), found[kind]
    assert 'ur5e' in found['robots'] and {'deploy', 'record'} <= set(found['nodes'])
    assert {'train', 'sim_robot', 'deploy', 'record'} <= {
        name.removesuffix('.launch') for name in found['launch']
    }


def test_the_package_is_in_the_ament_index(workspace):
    share = workspace.prefix / 'share'
    assert (share / 'ament_index/resource_index/packages/robot_rl').is_file()
    assert (share / 'robot_rl/package.xml').is_file()
    assert str(workspace.prefix) in workspace.environment['AMENT_PREFIX_PATH'].split(':')


def test_scripts_are_where_ros2_run_looks_and_work(workspace, tmp_path):
    scripts = workspace.prefix / 'lib' / 'robot_rl'
    # Those that benchmarks run are no one's to launch.
    nodes = {n for n in NODES if n not in ('echo', 'generator') and not n.startswith('traced_')}
    assert {path.name for path in scripts.iterdir()} == {'robot-rl', *nodes}
    done = workspace.run(scripts / 'robot-rl', 'tasks', '--json', folder=tmp_path / 'empty')
    assert done.returncode == 0 and 'ur5e/reach' in done.stdout, done.stderr
    arguments = ['--ros-args', '-p', 'robot:=ur55e']
    done = workspace.run(scripts / 'command_guard', *arguments, folder=tmp_path / 'empty')
    assert done.returncode == 2 and "did you mean 'ur5e'" in done.stderr
