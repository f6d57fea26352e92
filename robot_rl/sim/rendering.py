"""Pictures of MuJoCo models without a window, through EGL: a GPU's, or Mesa's in software."""

from __future__ import annotations

import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.robots.mjcf import find, named

# The camera that a scene may name for pictures; else its first, else MuJoCo's free camera.
CAMERA = 'overview'


class Renderer:
    """Draws any model's states at one size. Raises RobotRLError where offscreen OpenGL fails.

    `fast` leaves out shadows and smoothed edges: a tenth of the work where a CPU draws.
    mujoco.Renderer takes its backend from MUJOCO_GL when mujoco is first imported, which is too
    late to mend here: hence MuJoCo's own drawing functions on an EGL context. The context lives
    in a thread of its own, so that no other library's contexts are mixed up with it.
    """

    def __init__(self, width: int = 640, height: int = 480, fast: bool = False):
        self.width, self.height, self._fast = width, height, fast
        self._thread = ThreadPoolExecutor(1, 'renderer')
        self._gl = self._thread.submit(_offscreen_context, width, height).result()
        # Also at exit: PyOpenGL is gone by the time that __del__ methods run.
        self._free_gl = weakref.finalize(self, self._gl.free)
        self._model: mujoco.MjModel | None = None
        self._context: mujoco.MjrContext | None = None
        self._options = mujoco.MjvOption()

    def frame(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: str | None = None
    ) -> np.ndarray:
        """Return a picture [height, width, 3] uint8 RGB of `data`, on which mj_forward has run.

        `camera`: its name in the model; without it the one that shows the scene. Raises SpecError
        for a name that the model has not.
        """
        if camera is not None:
            named(model, 'camera', camera)
        return self._thread.submit(self._draw, model, data, camera).result()

    def close(self) -> None:
        """Release the graphics context and all that lives in it."""
        if self._free_gl.alive:
            self._thread.submit(self._free).result()
            self._thread.shutdown()

    def _draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str | None) -> np.ndarray:
        if model is not self._model:
            self._prepare(model)
        for field in range(model.nhfield):  # terrain may change between episodes
            mujoco.mjr_uploadHField(model, self._context, field)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        view = _camera(model, camera or CAMERA)
        mujoco.mjv_updateScene(model, data, self._options, None, view, everything, self._scene)
        area = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(area, self._scene, self._context)
        picture = np.empty((self.height, self.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, area, self._context)
        return picture[::-1].copy()  # OpenGL counts rows from below

    def _free(self) -> None:
        if self._context is not None:
            self._context.free()
        self._free_gl()

    def _prepare(self, model: mujoco.MjModel) -> None:
        """Load the model's textures and meshes, and make room for the picture."""
        size = model.vis.global_
        size.offwidth = max(size.offwidth, self.width)
        size.offheight = max(size.offheight, self.height)
        if self._fast:
            model.vis.quality.offsamples = 0
        if self._context is not None:
            self._context.free()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW.value] = not self._fast
        self._model = model


def _offscreen_context(width: int, height: int) -> Any:
    """Return an EGL context, current in this thread. Raises RobotRLError: what to install."""
    # PyOpenGL picks its platform once, at its first import.
    os.environ.setdefault('PYOPENGL_PLATFORM', 'egl')
    try:
        from mujoco.egl import GLContext

        context = GLContext(width, height)
        context.make_current()
        return context
    except Exception as error:  # PyOpenGL fails in many ways where libraries are missing
        raise RobotRLError(
            f'pictures need offscreen OpenGL, which does not work here ({_brief(error)}); '
            'install Mesa: apt install libegl1 libgl1-mesa-dri'
        ) from None


def _brief(error: Exception) -> str:
    return ' '.join(str(error).split())[:120]


def _camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    camera, index = mujoco.MjvCamera(), find(model, 'camera', name)
    if index is None and model.ncam == 0:
        mujoco.mjv_defaultFreeCamera(model, camera)
        return camera
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, index or 0
    return camera


def intrinsics(model: mujoco.MjModel, camera: str, width: int, height: int) -> np.ndarray:
    """Return K [3, 3] of pictures of this size: pixel centres are at whole numbers.

    It maps directions in the optical frame (x right, y down, z forward) to pixels (column, row),
    as sensor_msgs/CameraInfo has it. Raises SpecError for a camera that the model has not, or
    that is none with a field of view.
    """
    index = named(model, 'camera', camera)
    flat = getattr(model, 'cam_projection', np.zeros(model.ncam))[index]  # not in every MuJoCo 3
    if flat or model.cam_sensorsize[index].any():
        raise SpecError(f'camera {camera!r} of the model needs fovy: no other kind is supported')
    focal = 0.5 * height / np.tan(np.radians(model.cam_fovy[index]) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
