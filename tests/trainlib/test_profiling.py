"""The trace window and the count of compilations."""

import jax
import jax.numpy as jnp

from trainlib.profiling import Trace, compilations


def test_compilations_are_counted_by_name_inside_the_block_only():
    def doubled(x):
        return x * 2

    compiled = jax.jit(doubled)
    with compilations() as names:
        for _ in range(3):
            compiled(jnp.ones(3)).block_until_ready()
        assert names.count("jit(doubled)") == 1
        compiled(jnp.ones(4)).block_until_ready()
    assert names.count("jit(doubled)") == 2
    compiled(jnp.ones(5))
    assert names.count("jit(doubled)") == 2


def test_a_window_of_steps_is_traced(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    trace = Trace(tmp_path, 3, 5)
    for step in range(1, 8):
        calls.append(step)
        trace.before(step)
        trace.after(step, jnp.ones(()))
    assert calls == [1, 2, 3, ("start", str(tmp_path / "profile")), 4, 5, ("stop",), 6, 7]
    calls.clear()
    off = Trace(tmp_path, 1, 0)
    off.before(1)
    off.after(1)
    assert calls == []
