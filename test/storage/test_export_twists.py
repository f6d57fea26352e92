"""A joint path as a twist, in exported data sets: MuJoCo's Jacobian gives the same."""

import itertools

import mujoco
import numpy as np
import pytest

from robot_rl.cli.main import main
from robot_rl.specs.contract import TWIST
from robot_rl.storage.episode import EpisodeWriter

START_NS, MS = 1_700_000_000_000_000_000, 1_000_000
JOINTS, PERIOD_S, BOUND = ('shoulder', 'elbow'), 0.05, 2.0
ARM = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody><body name="base_link" pos="0.3 0 0.1" euler="0 0 1">
    <body pos="0 0 0.2"><joint name="shoulder"/><geom size="0.02"/>
      <body pos="0.3 0 0"><joint name="elbow" axis="0 1 0"/><geom size="0.02"/>
        <site name="tool" pos="0.25 0.05 -0.1"/>
      </body>
    </body>
  </body></worldbody>
</mujoco>
"""


@pytest.fixture
def paths():
    """Where the joints were asked to be and where the guard led them [13, 2] [rad], from one."""
    phase = np.linspace(0, 3, 13)[:, None] * [1.0, 1.7]
    start = np.array([0.4, -0.7])
    return start + 0.02 * np.sin(phase), start + 0.012 * np.sin(1.3 * phase)


@pytest.fixture
def store(tmp_path, ros, robot, contract, header, paths):
    """A store with one episode of a person who led an arm that stood still."""
    (tmp_path / 'arm.xml').write_text(ARM)
    bounds = {'lower': (-BOUND,) * 6, 'upper': (BOUND,) * 6}
    twist = {'name': 'twist', 'kind': 'cartesian_twist', 'names': TWIST} | bounds
    about = header(
        source='teleop',
        robot_spec=robot.replace(mjcf=str(tmp_path / 'arm.xml')),
        contract=contract.replace(action=[twist], observation=[contract.observation[0].to_dict()]),
    )
    asked, led = paths
    sent = [(at, 'joint_states', ros.joint_state(at, JOINTS, asked[0])) for at in grid(0, 120, 10)]
    for tick, at in enumerate(grid(503, 12, 50), start=1):
        sent.append((at, 'teleop/command', ros.trajectory(0, JOINTS, asked[tick])))
        message = ros.trajectory(0, JOINTS, led[tick], 'teleop')
        sent.append((at + 8 * MS, 'command_guard/applied', message))
    with EpisodeWriter(tmp_path / 'store', about) as writer:
        for at, topic, message in sorted(sent, key=lambda item: item[0]):
            ros.write(writer, topic, message, at)
        writer.commit()
    return tmp_path / 'store'


def grid(start_ms, count, step_ms):
    return [START_NS + MS * (start_ms + step_ms * number) for number in range(count)]


def twists(path):
    """Return J(q) dq / dt [12, 6], half-way between each two of the positions, in base_link."""
    model = mujoco.MjModel.from_xml_string(ARM)
    data, found = mujoco.MjData(model), []
    for before, after in itertools.pairwise(path):
        data.qpos[:] = (before + after) / 2
        mujoco.mj_forward(model, data)
        jacobian = np.zeros((2, 3, 2))
        mujoco.mj_jacSite(model, data, jacobian[0], jacobian[1], model.site('tool').id)
        base = data.body('base_link').xmat.reshape(3, 3)
        found.append(np.concatenate(base.T @ jacobian @ (after - before)) / PERIOD_S)
    return np.array(found)


def test_robomimic(store, paths, tmp_path):
    h5py = pytest.importorskip('h5py', reason='needs the extra `doors`')
    out = tmp_path / 'set.hdf5'
    command = ['episodes', 'export', str(out), '--format', 'robomimic', '--store', str(store)]
    assert main(command) == 0
    with h5py.File(out) as hdf5:
        found = hdf5['data/demo_0/actions'][()] * BOUND
    expected = twists(paths[1])
    assert (np.abs(expected).max(axis=0) > 0.01).all()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_lerobot(store, paths, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet', reason='needs the extra `doors`')
    out = tmp_path / 'set'
    command = ['episodes', 'export', str(out), '--format', 'lerobot', '--store', str(store)]
    assert main(command) == 0
    table = parquet.read_table(out / 'data/chunk-000/file-000.parquet')
    for name, path in zip(('requested_action', 'action'), paths, strict=True):
        found, expected = np.array(table[name].to_pylist()), twists(path)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
