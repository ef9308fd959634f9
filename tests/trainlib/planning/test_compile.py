"""Compilation from shapes alone: messages of the compiler, what a program needs.

Programs are compiled for the simulated CPU devices here; `tests/launch/test_compile.py` compiles
for TPUs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from trainlib.chips import GIB, target
from trainlib.planning import compile as aot
from trainlib.sharding.topology import devices

OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(54.79G) exceeds available HBM (15.75G)."
)


def test_the_compilers_verdict_is_read():
    shortfall = aot.read_shortfall(OUT_OF_MEMORY)
    assert shortfall.required == pytest.approx(54.79 * GIB)
    assert shortfall.available == pytest.approx(15.75 * GIB)
    older = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 26.37G of 15.75G hbm."
    assert aot.read_shortfall(older).required == pytest.approx(26.37 * GIB)


@pytest.mark.parametrize(
    "message", ["INTERNAL: a bug", "RESOURCE_EXHAUSTED: vmem", OUT_OF_MEMORY.replace("RES", "X")]
)
def test_other_errors_are_not_verdicts(message):
    assert aot.read_shortfall(message) is None


def test_largest_values_are_listed_once_each():
    def fn(x):
        wide = x @ x.T
        return jnp.sum(jnp.sin(wide) + wide)

    jaxpr = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((100, 3), jnp.float32)).jaxpr
    (size, text), *rest = aot.largest_values(jaxpr)
    assert size == 100 * 100 * 4
    assert text.startswith("float32[100, 100] of ")
    assert all(smaller < size for smaller, _ in rest)


@pytest.mark.thorough
def test_shared_code_changes_nothing_of_the_program():
    """What is predicted of the program with it holds of the one that trains, compiled without."""
    pytest.importorskip("libtpu")
    one = jax.sharding.SingleDeviceSharding(devices(target("v5e-1"))[0])
    matrix = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=one)

    def chain(x, weights):
        for weight in weights:  # the barrier keeps the first product from having a form of its own
            x = jnp.tanh(jax.lax.optimization_barrier(x) @ weight)
        return x

    lowered = jax.jit(chain).lower(matrix, [matrix] * 6)
    plain, shared = lowered.compile(), lowered.compile(compiler_options=aot._SHARED_CODE)
    assert shared.as_text() == plain.as_text()
    sizes = [one.memory_analysis().generated_code_size_in_bytes for one in (shared, plain)]
    assert sizes[0] < sizes[1] / 2
    assert aot._memory(shared.memory_analysis()).total == aot._memory(plain.memory_analysis()).total


def test_what_must_fit_is_the_larger_figure():
    assert aot.Memory(arguments=5, temporaries=7, peak=10, code=1, host=0).total == 12
    assert aot.Memory(arguments=5, temporaries=0, peak=10, code=1, host=0).total == 10
