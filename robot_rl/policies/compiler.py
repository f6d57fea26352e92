"""torch.compile, with a plain path where nothing can be compiled."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import torch._inductor.config

F = TypeVar('F', bound=Callable)


def compiled(function: F) -> F:
    """Return `function` of tensors compiled for the shapes it is called with.

    Where that is not possible it comes back as it is, and one line on stderr says so.
    """
    # In this process: a pool of workers costs more than it saves on graphs as small as these.
    torch._inductor.config.compile_threads = 1
    reason = _missing()
    if reason:
        print(
            f'robot-rl: learner.execution: compiled is not possible here ({reason}); going on '
            'without, more slowly',
            file=sys.stderr,
        )
        return function
    return torch.compile(function, dynamic=False)


@functools.cache
def _missing() -> str:
    """Say why nothing can be compiled on this machine; nothing: it can.

    A compiler alone does not show it: Python's headers may be missing, or room for the cache.
    """
    try:
        with warnings.catch_warnings():
            # Of torch's own modules, as they load: dm_control shows every one of this kind.
            warnings.simplefilter('ignore', DeprecationWarning)
            torch.compile(lambda x: x.sin() + 1)(torch.ones(2))
    except Exception as error:  # whatever a compiler, a linker and a cache may fail with
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f'{lines[0][:160]}; g++ and Python.h are needed'
    return ''
