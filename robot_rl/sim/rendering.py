"""Pictures of MuJoCo models without a window: EGL (a GPU's, or Mesa's in software) or OSMesa."""

from __future__ import annotations

import importlib
import os
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from typing import Any, NamedTuple

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.robots.mjcf import find, named

# The camera that a scene may name for pictures; else its first, else MuJoCo's free camera.
CAMERA = 'overview'


class Renderer:
    """Draws any model's states, up to a size. Raises RobotRLError where offscreen OpenGL fails.

    `fast` leaves out shadows and smoothed edges: a tenth of the work where a CPU draws.
    Textures and meshes of the last `models` models are kept; loading takes longer than drawing.
    mujoco.Renderer takes its backend from MUJOCO_GL when mujoco is first imported, which is too
    late to mend here: hence MuJoCo's own drawing functions on another context. The context lives
    in a thread of its own, so that no other library's contexts are mixed up with it.
    """

    def __init__(self, width: int = 640, height: int = 480, fast: bool = False, models: int = 1):
        self.width, self.height, self._fast = width, height, fast
        self._most_models, self._loaded = models, OrderedDict[int, _Loaded]()
        self._thread = ThreadPoolExecutor(1, 'renderer')
        self._gl = self._thread.submit(_offscreen_context, width, height).result()
        # Also at exit: PyOpenGL is gone by the time that __del__ methods run.
        self._free_gl = weakref.finalize(self, self._gl.free)
        self._options = mujoco.MjvOption()

    def frame(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Return a picture [height, width, 3] uint8 RGB of `data`, on which mj_forward has run.

        `camera`: its name in the model; without it the one that shows the scene. Raises SpecError
        for a name that the model has not. `size`: (height, width), at most the renderer's.
        """
        if camera is not None:
            named(model, 'camera', camera)
        size = size or (self.height, self.width)
        return self._thread.submit(self._draw, model, data, camera, size).result()

    def close(self) -> None:
        """Release the graphics context and all that lives in it."""
        if self._free_gl.alive:
            self._thread.submit(self._free).result()
            self._thread.shutdown()

    def _draw(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: str | None,
        size: tuple[int, int],
    ) -> np.ndarray:
        _, context, scene = self._load(model)
        for field in range(model.nhfield):  # terrain may change between episodes
            mujoco.mjr_uploadHField(model, context, field)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        view = _camera(model, camera or CAMERA)
        mujoco.mjv_updateScene(model, data, self._options, None, view, everything, scene)
        height, width = size
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, scene, context)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, area, context)
        return picture[::-1].copy()  # OpenGL counts rows from below

    def _free(self) -> None:
        for loaded in self._loaded.values():
            loaded.context.free()
        self._free_gl()

    def _load(self, model: mujoco.MjModel) -> _Loaded:
        """Load the model's textures and meshes, unless they are, and make room for the picture."""
        loaded = self._loaded.get(id(model))
        if loaded is None:
            while len(self._loaded) >= self._most_models:
                self._loaded.popitem(last=False)[1].context.free()
            loaded = self._loaded[id(model)] = self._new(model)
        self._loaded.move_to_end(id(model))
        # Before every picture: another model may have been drawn in between.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, loaded.context)
        return loaded

    def _new(self, model: mujoco.MjModel) -> _Loaded:
        size = model.vis.global_
        size.offwidth = max(size.offwidth, self.width)
        size.offheight = max(size.offheight, self.height)
        quality = model.vis.quality
        asked = quality.offsamples, quality.shadowsize
        if self._fast:
            quality.offsamples = 0
            quality.shadowsize = 0  # else 64 MB are taken for the shadows left out
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        quality.offsamples, quality.shadowsize = asked  # another renderer may draw it well
        scene = mujoco.MjvScene(model, maxgeom=2000)
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW.value] = not self._fast
        return _Loaded(model, context, scene)


class _Loaded(NamedTuple):
    """What is kept of a model; the model itself, so that no other takes its id."""

    model: mujoco.MjModel
    context: mujoco.MjrContext
    scene: mujoco.MjvScene


def _offscreen_context(width: int, height: int) -> Any:
    """Return a context of EGL or OSMesa, current in this thread. Raises RobotRLError.

    MUJOCO_GL=osmesa asks for OSMesa, which else is taken only where there is no EGL.
    """
    backend = os.environ.get('MUJOCO_GL', '')
    if backend not in ('egl', 'osmesa'):
        backend = 'egl' if find_library('EGL') or not find_library('OSMesa') else 'osmesa'
    # PyOpenGL picks its platform once, at its first import.
    os.environ.setdefault('PYOPENGL_PLATFORM', backend)
    try:
        module = importlib.import_module(f'mujoco.{backend}')
        context = module.GLContext(width, height)
        context.make_current()
        return context
    except Exception as error:  # PyOpenGL fails in many ways where libraries are missing
        raise RobotRLError(
            f'pictures need offscreen OpenGL, EGL or OSMesa, and {backend} does not work here '
            f'({_brief(error)}); install Mesa: apt install libegl1 libgl1-mesa-dri'
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
