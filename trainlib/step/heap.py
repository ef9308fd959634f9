"""Memory that a process on CPU keeps, and need not ask the system for at each step.

XLA takes the temporary memory of a program on CPU from the C library when it is called, and gives
it back at the end. Of so much at once glibc makes a mapping that ends with it, so each step of a
training touches all of its pages for the first time: 201,000 page faults, a seventh of the CPU time
of a step of AA-ResNet-50 (batch 8, 224 px, one thread). Memory that stays in the heap has none.

The price is a heap with gaps, up to a few times what a program needs: a process keeps nothing where
`GAPS` times as much is not there. (Huge pages would leave no gaps, but glibc asks for them from the
start of a process only, and a virtual machine may have to ask its host for each of them.)
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # names of `mallopt` in glibc's malloc.h
# Of a user who has decided.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")

GAPS = 8  # the memory of the machine over that of a program that stays in the heap


def one_heap() -> None:
    """Gives all threads one heap, for that of a further thread ends at 64 MiB.

    Call it before JAX is first used. The host of an accelerator is better off without it: there
    threads prepare the input.
    """
    _set(_ARENA_MAX, 1)


def keep_freed() -> None:
    """Makes the heap keep what is freed, until the process ends."""
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, 2**31 - 1)


def keep_memory_of(program: Any) -> bool:
    """`keep_freed` where a compiled program of `jax.jit` runs on CPU and there is enough memory.

    Returns:
      Whether it was called.
    """
    from trainlib.step.memory import device_memory

    devices = program.runtime_executable().local_devices()
    stats = program.memory_analysis()
    if devices[0].platform != "cpu" or stats is None:
        return False
    kept = len(devices) * stats.temp_size_in_bytes * GAPS
    if kept > (device_memory(devices) or 0) * len(devices):
        return False
    keep_freed()
    return True


def _set(name: int, value: int) -> None:
    """Nothing where the C library is not glibc, or where the environment says how it allocates."""
    if sys.platform != "linux" or any(variable in os.environ for variable in _VARIABLES):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(name, value)
