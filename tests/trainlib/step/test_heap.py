"""A process restarted in huge pages has few page faults, and the arguments that it had."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainlib.step import heap

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import resource, sys
from trainlib.step.heap import restart_in_huge_pages

restart_in_huge_pages()
assert sys.argv == ["-c", "a b", "--flag"], sys.argv
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(64 << 20)  # 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    rest = {name: value for name, value in os.environ.items() if name != heap.VARIABLE}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "a b", "--flag"],
        env={**rest, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return int(result.stdout)


@pytest.mark.skipif(
    not MODE.exists() or "[madvise]" not in MODE.read_text(),
    reason="a kernel that gives huge pages to those who ask",
)
def test_memory_comes_in_huge_pages_unless_the_user_decides():
    assert faults() < 2_000
    assert faults(**{heap.VARIABLE: "glibc.malloc.hugetlb=0"}) > 16_000


def test_a_process_that_was_told_is_not_restarted(monkeypatch):
    def restarted(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(os, "execv", restarted)
    monkeypatch.setenv(heap.VARIABLE, heap.HUGE)
    heap.restart_in_huge_pages()
