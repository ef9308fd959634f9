"""Memory that is freed and taken again, and when it is kept."""

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from trainlib.step import heap, memory

PROGRAM = """
import resource
from trainlib.step import heap

heap.one_heap()
heap.keep_freed()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)  # 16,384 pages
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Page faults of the second time that 64 MiB are used."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_memory_that_is_kept_has_no_page_faults_unless_the_user_decides():
    assert faults() < 500
    assert faults(MALLOC_ARENA_MAX="1") > 16_000


@pytest.mark.parametrize(("room", "kept"), [(2**20, False), (2**34, True)])
def test_a_program_keeps_its_memory_where_there_is_plenty(monkeypatch, room, kept):
    calls = []
    monkeypatch.setattr(heap, "_set", lambda name, value: calls.append(name))
    monkeypatch.setattr(memory, "device_memory", lambda devices: room)
    program = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), 0) @ x).lower(jnp.ones(512)).compile()
    assert program.memory_analysis().temp_size_in_bytes > 2**20 / heap.GAPS
    assert heap.keep_memory_of(program) is kept
    assert bool(calls) is kept
