"""Unit quaternions: MuJoCo writes them wxyz, ROS writes them xyzw; this is where they meet."""

import numpy as np


def wxyz_to_xyzw(quaternion: np.ndarray) -> np.ndarray:
    """Turn MuJoCo's order [..., 4] into ROS's."""
    return np.roll(np.asarray(quaternion), -1, axis=-1)


def xyzw_to_wxyz(quaternion: np.ndarray) -> np.ndarray:
    """Turn ROS's order [..., 4] into MuJoCo's."""
    return np.roll(np.asarray(quaternion), 1, axis=-1)


def to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Turn unit quaternions, wxyz [..., 4], into rotation matrices [..., 3, 3]."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, dtype=float), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Turn rotation matrices [..., 3, 3] into unit quaternions, wxyz [..., 4], with w >= 0.

    Every entry of 4 q qᵀ is a sum of matrix entries; the row of the largest diagonal entry,
    normalised, is q without loss of precision (Shepperd, J. Guidance and Control 1(3), 1978).
    """
    m = np.asarray(matrix, dtype=float)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    outer = np.empty((*m.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + xx + yy + zz
    outer[..., 1, 1] = 1 + xx - yy - zz
    outer[..., 2, 2] = 1 - xx + yy - zz
    outer[..., 3, 3] = 1 - xx - yy + zz
    for i, j, value in (
        (0, 1, m[..., 2, 1] - m[..., 1, 2]),
        (0, 2, m[..., 0, 2] - m[..., 2, 0]),
        (0, 3, m[..., 1, 0] - m[..., 0, 1]),
        (1, 2, m[..., 0, 1] + m[..., 1, 0]),
        (1, 3, m[..., 0, 2] + m[..., 2, 0]),
        (2, 3, m[..., 1, 2] + m[..., 2, 1]),
    ):
        outer[..., i, j] = outer[..., j, i] = value
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    quaternion = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    quaternion /= np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the quaternion [..., 4] of turning by `right`, then by `left` (Hamilton product)."""
    a, b = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    (w, x, y, z), (s, u, v, t) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    parts = [
        w * s - x * u - y * v - z * t,
        w * u + x * s + y * t - z * v,
        w * v - x * t + y * s + z * u,
        w * t + x * v - y * u + z * s,
    ]
    return np.stack(parts, axis=-1)


def conjugate(quaternion: np.ndarray) -> np.ndarray:
    """Return the opposite turn [..., 4]."""
    return np.asarray(quaternion, dtype=float) * (1.0, -1.0, -1.0, -1.0)


def rotate(quaternion: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return `vectors` [..., 3] turned by quaternions [..., 4]."""
    return (to_matrix(quaternion) @ np.asarray(vectors, dtype=float)[..., None])[..., 0]


def from_rotation_vector(vector: np.ndarray) -> np.ndarray:
    """Turn rotation vectors [..., 3] [rad] into unit quaternions [..., 4]."""
    vector = np.asarray(vector, dtype=float)
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    # sin(x) / x by numpy's sinc, which knows its limit at 0.
    return np.concatenate([np.cos(half), 0.5 * np.sinc(half / np.pi) * vector], axis=-1)


def to_rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Turn unit quaternions [..., 4] into the shorter rotation vectors [..., 3] [rad]."""
    quaternion = np.asarray(quaternion, dtype=float)
    w, xyz = quaternion[..., :1], quaternion[..., 1:]
    w, xyz = np.abs(w), np.where(w < 0, -xyz, xyz)
    sine = np.linalg.norm(xyz, axis=-1, keepdims=True)
    tiny = sine < 1e-12
    return np.where(tiny, 2.0, 2 * np.arctan2(sine, w) / np.where(tiny, 1.0, sine)) * xyz
