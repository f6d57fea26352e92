import mujoco
import numpy as np
import pytest

from robot_rl import resources
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import RobotSpec

JOINT_ORDER = (
    'shoulder_pan_joint',
    'shoulder_lift_joint',
    'elbow_joint',
    'wrist_1_joint',
    'wrist_2_joint',
    'wrist_3_joint',
)
# The UR5e's published Denavit-Hartenberg parameters [m, rad].
D = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)
A = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
ALPHA = (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0)

MIXED = """
<mujoco><compiler angle="radian"/><worldbody>
  <body name="rail" pos="0.1 0.2 0.3" euler="0.3 0.1 -0.4">
    <joint name="slide" type="slide" axis="1 2 0" range="-1 1"/><geom size=".1"/>
    <body pos="0.2 0 0.1" euler="0.5 0 0.2">
      <joint name="hinge" axis="0 1 1" pos="0.05 -0.02 0.1" range="-2 2" ref="0.3"/>
      <joint name="hinge_b" axis="1 0 0" pos="-0.05 0 0"/><geom size=".1"/>
      <site name="tip" pos="0 0.1 0.2" euler="0 0.4 0"/>
    </body>
  </body>
  <body name="elsewhere"><joint name="other" type="ball"/><geom size=".1"/></body>
</worldbody></mujoco>
"""


def denavit_hartenberg(q):
    """The tool's transform in base_link, which is turned by pi about z against UR's `base`."""
    transform = np.diag([-1.0, -1.0, 1.0, 1.0])
    for theta, d, a, alpha in zip(q, D, A, ALPHA, strict=True):
        ct, st, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
        transform = transform @ np.array(
            [
                [ct, -st * ca, st * sa, a * ct],
                [st, ct * ca, -ct * sa, a * st],
                [0, sa, ca, d],
                [0, 0, 0, 1],
            ]
        )
    return transform


def rotation(quaternion):
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def site_pose(model, q, joints, site):
    data = mujoco.MjData(model)
    for name, value in zip(joints, q, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data.site(site).xpos, data.site(site).xmat.reshape(3, 3), data


def test_forward_is_that_of_the_published_dh_parameters(ur5e, chain):
    assert ur5e.joints == JOINT_ORDER
    q = np.random.default_rng(0).uniform(ur5e.lower, ur5e.upper, (50, 6))
    positions, quaternions = chain.forward(q)
    for values, position, quaternion in zip(q, positions, quaternions, strict=True):
        expected = denavit_hartenberg(values)
        np.testing.assert_allclose(position, expected[:3, 3], atol=1e-9)
        np.testing.assert_allclose(rotation(quaternion), expected[:3, :3], atol=1e-9)


def test_at_zero_the_arm_lies_along_x_of_base_link(chain):
    position, quaternion = chain.forward(np.zeros(6))
    np.testing.assert_allclose(position, [0.8172, 0.2329, 0.0628], atol=1e-12)
    np.testing.assert_allclose(rotation(quaternion)[:, 2], [0, 1, 0], atol=1e-12)


def test_forward_takes_any_leading_axes(chain):
    q = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 6))
    position, quaternion = chain.forward(q)
    assert position.shape == (2, 3, 4, 3) and quaternion.shape == (2, 3, 4, 4)
    alone = chain.forward(q[1, 2, 3])
    np.testing.assert_allclose(position[1, 2, 3], alone[0], atol=1e-14)
    np.testing.assert_allclose(quaternion[1, 2, 3], alone[1], atol=1e-14)
    np.testing.assert_array_equal(chain.position(q), position)
    with pytest.raises(ValueError, match='expected'):
        chain.forward(np.zeros(5))


def test_slides_anchors_references_and_joint_order_are_mujocos():
    model = mujoco.MjModel.from_xml_string(MIXED)
    joints = ('hinge_b', 'slide', 'hinge')
    chain = KinematicChain.from_model(model, joints, 'tip')
    np.testing.assert_array_equal(chain.lower, [-np.inf, -1, -2])
    rng = np.random.default_rng(2)
    for q in rng.uniform(-1, 1, (20, 3)):
        position, matrix, data = site_pose(model, q, joints, 'tip')
        found, quaternion = chain.forward(q)
        np.testing.assert_allclose(found, position, atol=1e-12)
        np.testing.assert_allclose(rotation(quaternion), matrix, atol=1e-12)
        linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, linear, angular, model.site('tip').id)
        columns = [model.joint(name).dofadr[0] for name in joints]
        expected = np.vstack([linear, angular])[:, columns]
        np.testing.assert_allclose(chain.jacobian(q), expected, atol=1e-12)
        batch = chain.jacobian(np.stack([np.zeros_like(q), q]))
        np.testing.assert_allclose(batch[1], expected, atol=1e-12)


def test_positions_are_relative_to_the_base_body():
    model = mujoco.MjModel.from_xml_string(MIXED)
    chain = KinematicChain.from_model(model, ('hinge', 'hinge_b'), 'tip', base='rail')
    q = np.array([0.4, -0.7])
    position, _, data = site_pose(model, [0.9, *q], ('slide', 'hinge', 'hinge_b'), 'tip')
    rail = data.body('rail')
    expected = rail.xmat.reshape(3, 3).T @ (position - rail.xpos)
    np.testing.assert_allclose(chain.position(q), expected, atol=1e-12)


@pytest.mark.parametrize(
    ('joints', 'site', 'base', 'words'),
    [
        (('slide', 'hinge'), 'tip', None, 'hinge_b'),
        (('slide', 'hinge', 'hinge_b'), 'tipp', None, "no site 'tipp'"),
        (('slide', 'hinge', 'hinge_b'), 'tip', 'floor', "no body 'floor'"),
        (('slide', 'hinge', 'hinge_b'), 'tip', 'elsewhere', 'does not hang below'),
    ],
)
def test_a_chain_that_the_model_lacks_is_one_clear_line(joints, site, base, words):
    model = mujoco.MjModel.from_xml_string(MIXED)
    with pytest.raises(SpecError, match=words) as caught:
        KinematicChain.from_model(model, joints, site, base)
    assert '\n' not in str(caught.value)


def test_a_broken_mjcf_is_one_clear_line(ur5e, tmp_path):
    path = tmp_path / 'broken.xml'
    path.write_text('<mujoco><worldbody>')
    with pytest.raises(SpecError, match=r'broken\.xml'):
        KinematicChain.from_spec(ur5e.replace(mjcf=str(path)))


def test_inverse_finds_what_forward_gave(ur5e, chain):
    q = np.random.default_rng(3).uniform(-2.5, 2.5, (15, 6))
    for position, quaternion in zip(*chain.forward(q), strict=True):
        found = chain.inverse(position, quaternion, start=ur5e.home_position)
        assert (found >= ur5e.lower).all() and (found <= ur5e.upper).all()
        reached, orientation = chain.forward(found)
        np.testing.assert_allclose(reached, position, atol=1e-5)
        np.testing.assert_allclose(rotation(orientation), rotation(quaternion), atol=1e-5)


def test_inverse_of_a_position_alone_leaves_the_orientation_free(chain):
    np.testing.assert_allclose(
        chain.position(chain.inverse([0.4, 0.2, 0.3])), [0.4, 0.2, 0.3], atol=1e-5
    )


def test_inverse_says_what_is_out_of_reach(chain):
    with pytest.raises(RobotRLError, match=r'no joint positions .* \[1.5, 0.0, 0.0\]'):
        chain.inverse([1.5, 0.0, 0.0])
    with pytest.raises(RobotRLError, match=r'\[0.0, 1.6, 0.0\] .* \[0.0, 1.0, 0.0, 0.0\]'):
        chain.inverse([[0.4, 0.2, 0.3], [0.0, 1.6, 0.0]], [[0, 1, 0, 0], [0, 1, 0, 0]])


def test_a_batch_is_bit_by_bit_what_each_is_alone(ur5e, chain):
    """Else an episode would hang on how many others are simulated beside it."""
    rng = np.random.default_rng(4)
    q, way = rng.uniform(-2.5, 2.5, (3, 5, 6)), rng.normal(size=(3, 5, 6)) * 0.02
    position, orientation = chain.forward(q)
    displaced = chain.displaced(q, way, ur5e.workspace)
    found = chain.inverse(position, orientation, ur5e.home_position)  # some from random starts
    for row in np.ndindex(3, 5):
        place, turned = chain.forward(q[row])
        assert (place == position[row]).all() and (turned == orientation[row]).all()
        assert (chain.jacobian(q[row]) == chain.jacobian(q)[row]).all()
        assert (chain.points(q[row]) == chain.points(q)[row]).all()
        assert (chain.displaced(q[row], way[row], ur5e.workspace) == displaced[row]).all()
        assert (chain.inverse(place, turned, ur5e.home_position) == found[row]).all()


def test_the_spec_repeats_the_models_limits_and_torques(ur5e):
    model = mujoco.MjModel.from_xml_path(str(resources.model(ur5e.mjcf)))
    for joint in ur5e.joints:
        limits = ur5e.joint_limits[joint]
        np.testing.assert_allclose(
            model.joint(joint).range, [limits.min_position, limits.max_position], atol=1e-8
        )
        np.testing.assert_allclose(
            model.actuator(joint).forcerange, [-limits.max_effort, limits.max_effort]
        )
    # Published link masses; that of the base is not published and says nothing: it stands still.
    moving = model.body_mass[model.body_jntnum > 0].sum()
    np.testing.assert_allclose(moving, 3.761 + 8.058 + 2.846 + 1.37 + 1.3 + 0.365)


@pytest.mark.parametrize('robot', ['ur5e', 'ur5e_gripper', 'j2s7s300'])
def test_no_point_moves_farther_than_its_reach_lets_it(robot):
    chain = KinematicChain.from_spec(RobotSpec.load(robot))
    rng = np.random.default_rng(0)
    start = rng.uniform(-3, 3, (500, len(chain.joints)))
    turned = rng.normal(size=start.shape) * rng.uniform(0, 0.3, (500, 1))
    # All joints at once, and each alone.
    for joints in (slice(None), *range(len(chain.joints))):
        way = np.zeros_like(turned)
        way[:, joints] = turned[:, joints]
        moved = np.linalg.norm(chain.points(start + way) - chain.points(start), axis=-1).max(
            axis=1
        )
        allowed = np.abs(way) @ chain.reach
        assert (moved <= allowed + 1e-12).all()
        if joints == slice(None) or chain.reach[joints] > 0.2:
            assert (moved / allowed).max() > 0.3  # and is not just a large number


def test_the_reach_of_a_slide_is_its_way_and_what_it_carries():
    model = """<mujoco><worldbody><body><joint name="turn" axis="0 0 1"/>
      <geom size="0.1"/><body pos="0.5 0 0"><joint name="slide" type="slide" axis="1 0 0"
      range="0 2" limited="true"/><geom size="0.1"/><body name="tool" pos="0.25 0 0"/></body>
      </body></worldbody></mujoco>"""
    chain = KinematicChain.from_model(
        mujoco.MjModel.from_xml_string(model), ['slide', 'turn'], 'tool'
    )
    np.testing.assert_allclose(chain.reach, [1.0, 0.5 + 2 + 0.25])
