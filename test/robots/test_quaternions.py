import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_rl.robots import quaternions

FOUR = hnp.arrays(float, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 1e-3)


def test_orders_are_those_of_mujoco_and_ros():
    # A quarter turn about z: MuJoCo (w, x, y, z), ROS (x, y, z, w).
    half = np.sqrt(0.5)
    np.testing.assert_array_equal(quaternions.wxyz_to_xyzw([half, 0, 0, half]), [0, 0, half, half])
    np.testing.assert_array_equal(quaternions.xyzw_to_wxyz([0, 0, half, half]), [half, 0, 0, half])


@given(hnp.arrays(float, (3, 2, 4), elements=st.floats(-1, 1)))
def test_order_round_trip_keeps_batches(batch):
    there = quaternions.wxyz_to_xyzw(batch)
    np.testing.assert_array_equal(quaternions.xyzw_to_wxyz(there), batch)


@given(FOUR)
def test_matrix_is_mujocos_and_comes_back_up_to_sign(values):
    unit = values / np.linalg.norm(values)
    expected = np.empty(9)
    mujoco.mju_quat2Mat(expected, unit)
    matrix = quaternions.to_matrix(unit)
    np.testing.assert_allclose(matrix, expected.reshape(3, 3), atol=1e-12)
    back = quaternions.from_matrix(matrix)
    assert back[0] >= 0
    assert min(np.abs(back - unit).max(), np.abs(back + unit).max()) < 1e-9


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_half_turns_keep_their_axis(axis):
    # Where w is 0 and the trace -1, a formula through w would divide by zero.
    unit = np.zeros(4)
    unit[1 + axis] = 1
    back = quaternions.from_matrix(quaternions.to_matrix(unit))
    np.testing.assert_allclose(np.abs(back), unit, atol=1e-12)


def unit(values):
    return values / np.linalg.norm(values)


@given(FOUR, FOUR, hnp.arrays(float, 3, elements=st.floats(-1, 1)))
def test_products_and_turns_are_mujocos(left, right, vector):
    left, right = unit(left), unit(right)
    product, turned = np.empty(4), np.empty(3)
    mujoco.mju_mulQuat(product, left, right)
    np.testing.assert_allclose(quaternions.multiply(left, right), product, atol=1e-12)
    mujoco.mju_rotVecQuat(turned, vector, left)
    np.testing.assert_allclose(quaternions.rotate(left, vector), turned, atol=1e-12)
    back = quaternions.rotate(quaternions.conjugate(left), turned)
    np.testing.assert_allclose(back, vector, atol=1e-12)


@given(hnp.arrays(float, 3, elements=st.floats(-1.8, 1.8)))
def test_a_rotation_vector_is_axis_times_angle_and_comes_back(vector):
    expected, angle = np.empty(4), np.linalg.norm(vector)
    axis = vector / angle if angle > 0 else np.array([1.0, 0, 0])
    mujoco.mju_axisAngle2Quat(expected, axis, angle)
    found = quaternions.from_rotation_vector(vector)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if angle < np.pi - 1e-6:  # beyond half a turn the other way round is shorter
        np.testing.assert_allclose(quaternions.to_rotation_vector(found), vector, atol=1e-9)
        np.testing.assert_allclose(quaternions.to_rotation_vector(-found), vector, atol=1e-9)


def test_batches_keep_their_axes():
    rng = np.random.default_rng(0)
    vectors = rng.uniform(-1, 1, (4, 2, 3))
    turns = quaternions.from_rotation_vector(vectors)
    products = quaternions.multiply(turns, turns[0, 0])
    assert turns.shape == products.shape == (4, 2, 4)
    expected = quaternions.multiply(turns[3, 1], turns[0, 0])
    np.testing.assert_allclose(products[3, 1], expected, atol=1e-15)
