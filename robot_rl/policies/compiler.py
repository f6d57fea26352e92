"""torch.compile, with a plain path where nothing can be compiled."""

from __future__ import annotations

import functools
import sys
import types
import warnings
from typing import TypeVar

import torch

M = TypeVar('M', bound=types.MethodType)

# No look at the strides of what our own graph has just made; and no patterns sought in it, which
# would join a product and its bias again (see networks.Linear) and find nothing else.
_OPTIONS = {
    'size_asserts': False,
    'alignment_asserts': False,
    'scalar_asserts': False,
    'pattern_matcher': False,
}


def compiled(method: M) -> M:
    """Return an object's `method` of tensors compiled for the shapes it is called with.

    The object, its networks and all else in it must keep their structure: looking at that before
    every call takes a tenth of D4PG's update. Where nothing can be compiled the method comes back
    as it is, and one line on stderr says so.
    """
    reason = missing()
    if reason:
        print(
            f'robot-rl: learner.execution: compiled is not possible here ({reason}); going on '
            'without, more slowly',
            file=sys.stderr,
        )
        return method
    from torch._inductor import config  # here, and not above: it takes two seconds

    # In this process: a pool of workers costs more than it saves on graphs as small as these.
    config.compile_threads = 1
    options = {name: value for name, value in _OPTIONS.items() if hasattr(config, name)}
    if hasattr(torch.compiler, 'keep_tensor_guards_unsafe'):  # from torch 2.9 on
        options['guard_filter_fn'] = torch.compiler.keep_tensor_guards_unsafe
    return torch.compile(_with_own_code(method), dynamic=False, options=options)


def _with_own_code(method: M) -> M:
    """Return a copy that shares nothing with the methods of other objects of the class.

    torch keeps what it has compiled with the code, and would take the one object's for another's.
    """
    function = method.__func__
    copied = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return types.MethodType(copied, method.__self__)


@functools.cache
def missing() -> str:
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
