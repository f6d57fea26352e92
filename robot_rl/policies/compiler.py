"""torch.compile, with a plain path where there is no C++ compiler."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch._inductor.config

F = TypeVar('F', bound=Callable)


def compiled(function: F) -> F:
    """Return `function` of tensors compiled for the shapes it is called with.

    Without a compiler it comes back as it is, and one line on stderr says so.
    """
    reason = _missing()
    if reason:
        print(f'robot-rl: execution: compiled is not possible here: {reason}', file=sys.stderr)
        return function
    # In this process: a pool of workers costs more than it saves on graphs as small as these.
    torch._inductor.config.compile_threads = 1
    # On a GPU the graph is captured once and replayed: one call an update, no launches between.
    mode = 'reduce-overhead' if torch.cuda.is_available() else None
    return torch.compile(function, dynamic=False, mode=mode)


@functools.cache
def _missing() -> str:
    """Say what torch.compile lacks on this machine; nothing: it works."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return 'no C++ compiler is found (install g++); going on without, more slowly'
    return ''
