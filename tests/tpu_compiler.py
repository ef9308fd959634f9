"""Marks of tests that compile for a TPU: its compiler is an extra, and figures are of one version.

What one version expects of a program is not to be compared with what another does, so gates on
cycles and bytes are left out where another is installed.
"""

from __future__ import annotations

import importlib.util

import pytest

from trainlib.planning.ledger.ledger import compiler_version

LIBTPU = "0.0.42"  # with which the figures in tests were taken
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (extra aot) is not installed"
)
needs_figures = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or compiler_version() != LIBTPU,
    reason=f"the figures are those of libtpu {LIBTPU} (extra aot)",
)
