"""A trace of a few steps for the profiler, and a count of compilations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from trainlib.files import make_directory


class Trace:
    """Traces the steps `first` to `last` into `workdir/profile`, to be opened in TensorBoard or
    XProf.

    Call `before(step)` and `after(step, result)` around every step; `last` below `first` traces
    nothing. Skip the first steps: they compile.
    """

    def __init__(self, workdir: str | Path, first: int, last: int):
        self._directory = Path(workdir) / "profile"
        self._first, self._last, self._running = first, last, False

    def before(self, step: int) -> None:
        """Starts the trace when it is time."""
        if self._first <= step <= self._last and not self._running:
            make_directory(self._directory)
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, result: Any = None) -> None:
        """Stops the trace after `last`, when `result` has been computed."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running = False


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the names of the functions that are compiled inside the block, one entry a
    compilation.

    with compilations() as compiled:
        ...
    assert compiled.count("jit(on_mesh)") == 1
    """
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
