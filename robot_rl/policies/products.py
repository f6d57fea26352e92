"""float32 matrix products on a CPU by the faster of the two libraries that torch has for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

# A product of 512 terms near 1 in float32 is off by 5e-5; in TF32 by 1e-2, in bfloat16 by 1e-1.
_ROUNDING = 1e-3


def fast_products(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return what to enter for float32 products on `device` to be as fast as they can be.

    It halves their time where the CPU is AMD's and has AVX-512, and is nothing elsewhere. torch
    multiplies by MKL, which uses AVX-512 on Intel's CPUs alone; at the precision that torch calls
    'medium' it asks oneDNN, which uses it everywhere. oneDNN may then round to bfloat16, and does
    where a CPU multiplies that in hardware of its own (AMX): there nothing is changed. What comes
    out is float32 either way, and equal but for the order of the additions.
    """
    return _by_onednn if device.type == 'cpu' and _helps() else contextlib.nullcontext


@contextlib.contextmanager
def _by_onednn() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _helps() -> bool:
    """Tell whether oneDNN is the faster one on this CPU, and as exact."""
    if torch.backends.cpu.get_cpu_capability() != 'AVX512' or not _made_by_amd():
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) for size in ((64, 512), (512, 64)))
    with _by_onednn():
        found = left @ right
    return bool((found - left.double() @ right.double()).abs().max() < _ROUNDING)


def _made_by_amd() -> bool:
    try:
        return 'AuthenticAMD' in Path('/proc/cpuinfo').read_text()
    except OSError:  # not Linux
        return False
