"""MJCF models: compiled by name, their elements found by name."""

from __future__ import annotations

import mujoco

from robot_rl import resources
from robot_rl.errors import SpecError


def load_model(name: str) -> mujoco.MjModel:
    """Compile the MJCF called `name`, see resources.model. Raises SpecError, UnknownName."""
    path = resources.model(name)
    try:
        # Absolute: of a relative one MuJoCo looks for the models that it attaches elsewhere.
        return mujoco.MjModel.from_xml_path(str(path.absolute()))
    except ValueError as error:
        reason = ' '.join(str(error).split())
        raise SpecError(f'{path}: MuJoCo cannot read it ({reason})') from None


def names(model: mujoco.MjModel, kind: str) -> list[str]:
    """Return the names of all elements of a kind ('joint', 'site', 'body', 'camera')."""
    counts = {
        'joint': model.njnt, 'site': model.nsite, 'body': model.nbody, 'camera': model.ncam
    }  # fmt: skip
    count = counts[kind]
    return [getattr(model, kind)(index).name for index in range(count)]


def find(model: mujoco.MjModel, kind: str, name: str) -> int | None:
    """Return the id of a named element, or None."""
    index = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f'mjOBJ_{kind.upper()}'), name)
    return index if index >= 0 else None


def find_tool(model: mujoco.MjModel, name: str) -> tuple[int, int | None]:
    """Return the body that carries the tool, and its site; None: the tool is the body itself.

    Raises SpecError that lists the names there are.
    """
    site, body = find(model, 'site', name), find(model, 'body', name)
    if site is not None:
        return int(model.site_bodyid[site]), site
    if body is not None:
        return body, None
    raise SpecError(
        f'the model has no site {name!r} and no body of that name; it has sites '
        f'{names(model, "site")} and bodies {names(model, "body")}'
    )


def named(model: mujoco.MjModel, kind: str, name: str) -> int:
    """Return the id of a named element. Raises SpecError that lists the names there are."""
    index = find(model, kind, name)
    if index is None:
        raise SpecError(f'the model has no {kind} {name!r}; it has {names(model, kind)}')
    return index
