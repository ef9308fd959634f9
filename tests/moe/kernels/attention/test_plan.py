"""Blocks of attention: which are visited, and that they fit into the memory of a core."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.attention import fits, flash_attention
from moe.kernels.attention import plan as module
from moe.kernels.attention.blocks import meet, runs, segment_ranges
from moe.kernels.attention.plan import Plan, plan_of
from trainlib.model.flops import subjaxprs
from trainlib.sharding.kernels import CORE_MEMORY

MIB = 2**20


def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype)


def plan_for(queries, keys, *, heads=1, width=128, distance=None, causal=False, **options) -> Plan:
    bias = None if distance is None else shape(heads, 2 * distance + 1, dtype=jnp.float32)
    query, key = (shape(1, length, heads, width) for length in (queries, keys))
    found = plan_of(query, key, bias, causal=causal, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("distance", [None, 1, 127, 128, 129, 500])
@pytest.mark.parametrize(("queries", "keys"), [(1000, 1000), (300, 1100), (1100, 300), (7, 1)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_every_pair_that_is_seen_is_visited_once(queries, keys, causal, distance, chunks):
    """And where a tile is left out, the bias is that of the ends for all of its pairs."""
    plan = plan_for(queries, keys, distance=distance, causal=causal, block=128)
    if plan.k_blocks % chunks == 0:
        plan = Plan(**{**vars(plan), "chunk": plan.k_blocks // chunks})
    for i in range(plan.q_blocks):
        visited = []
        for chunk in range(plan.chunks):
            for run in runs(plan, i, chunk):
                for j in range(int(run.start), int(run.stop)):
                    block = chunk * plan.chunk + j
                    visited.append(block)
                    nearest, farthest = offsets(plan, i, block)
                    if run.near:
                        assert abs(block - i) <= plan.aside
                    elif plan.tiled and run.side == 0:
                        assert farthest <= -(distance or 0)
                        assert not causal or farthest <= 0
                    elif plan.tiled:
                        assert nearest >= (distance or 0)
        seen = [j for j in range(plan.k_blocks) if not causal or j <= i]
        assert sorted(visited) == seen


def offsets(plan: Plan, i: int, j: int) -> tuple[int, int]:
    """The least and the largest position of a key minus that of a query, of two blocks."""
    start = j * plan.columns - i * plan.rows
    return start - plan.rows + 1, start + plan.columns - 1


def test_blocks_that_are_passed_over_hold_no_pair_of_a_segment():
    draw = np.random.default_rng(0)
    plan = plan_for(1024, 1280, segments=True, block=128)
    for _ in range(20):
        own, keys = (
            np.sort(draw.integers(0, 6, size=(2, length)), axis=1) for length in (1024, 1280)
        )
        ranges = np.asarray(segment_ranges(plan, jnp.asarray(own), jnp.asarray(keys)))
        for b in range(2):
            pairs = (own[b][:, None] == keys[b]) & (keys[b] > 0)
            pairs = pairs.reshape(8, 128, 10, 128).any(axis=(1, 3))
            for i, j in np.ndindex(8, 10):
                assert bool(meet(plan, ranges, b, i, j)) == pairs[i, j]


@pytest.mark.parametrize("chip", list(CORE_MEMORY))
@pytest.mark.parametrize("width", [32, 64, 128, 256])
@pytest.mark.parametrize("length", [1, 512, 2048, 8192, 32768])
def test_what_is_chosen_fits(monkeypatch, chip, width, length):
    monkeypatch.setattr(module, "core_memory", lambda: MIB * CORE_MEMORY[chip])
    plan = plan_for(length, length, heads=8, width=width, distance=128, segments=True)
    assert plan.memory(2) <= 0.75 * MIB * CORE_MEMORY[chip]
    # Blocks of 512 and all keys at once where the sizes are, on chips with the memory.
    if chip in ("v5e", "v6e") and length in (512, 2048, 8192) and width >= 64:
        assert (plan.rows, plan.chunks) == (512, 1)


@pytest.mark.parametrize("length", [1, 100, 129, 500, 640, 1100, 2047, 2049])
def test_padding_is_at_most_a_tile_or_a_seventh(length):
    plan = plan_for(length, length)
    assert length <= plan.queries <= max(1.15 * (length + 127), 128)


def test_what_does_not_fit_is_told():
    query = shape(1, 64, 2, 64)
    assert fits(query, query)
    assert not fits(query, shape(1, 64, 2, 64, dtype=jnp.float32))
    assert not fits(*[shape(1, 64, 2, 64, dtype=jnp.float16)] * 2)
    assert not fits(shape(1, 0, 2, 64), query)
    # A tile for each of 65,536 distances.
    far = shape(2, 2 * 65536 + 1, dtype=jnp.float32)
    long = shape(1, 65536, 2, 64)
    assert fits(long, long)
    assert not fits(long, long, far)
    assert fits(query, query, far)


def arrays_of(jaxpr):
    """Shapes of all values of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield getattr(variable.aval, "shape", ())
        for value in equation.params.values():
            for inner in subjaxprs(value):
                yield from arrays_of(inner)


def test_no_array_of_all_pairs():
    """8,192 tokens, forward and backward: nothing has as many numbers as there are pairs."""
    length = 8192
    operand = shape(1, length, 2, 128)
    bias = shape(2, 257, dtype=jnp.float32)
    segments = shape(1, length, dtype=jnp.int32)

    def step(query, key, value, bias, segments):
        def run(*operands):
            options = {"query_segments": segments, "key_segments": segments}
            return flash_attention(*operands[:3], bias=operands[3], **options)

        out, pull = jax.vjp(run, query, key, value, bias)
        return out, pull(out)

    program = jax.make_jaxpr(step)(operand, operand, operand, bias, segments)
    assert max(map(np.prod, arrays_of(program.jaxpr))) < length**2 / 8
