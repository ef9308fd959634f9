"""The kernels of halo attention, interpreted, against the plain form: values and every gradient.

`tests/vitattn/layers/test_local.py` holds both against a loop in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tpu_compiler import needs_figures
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from vitattn.kernels.local import halo_attention
from vitattn.kernels.tpu.halo.attention import fits, geometry_of

NAMES = ("value", "q", "k", "v", "rel_row", "rel_col")
RULES = {"batch": ("replica", "data")}


def inputs(batch, height, width, heads, d, e, offsets, dtype=np.float32, seed=0):
    """Operands, tables and a cotangent."""
    rng = np.random.default_rng(seed)
    maps = [(batch, height, width, heads, size) for size in (d, d, e)]
    shapes = [*maps, (offsets, d // 2), (offsets, d - d // 2), maps[2]]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    return [jnp.asarray(a, np.float32 if 3 <= n < 5 else dtype) for n, a in enumerate(arrays)]


def value_and_gradients(kernels, fn, arrays):
    *args, g = arrays

    def run(args, g):
        out, pull = jax.vjp(fn, *args)
        return out, *pull(g)

    with use_kernels(kernels):
        return jax.jit(run)(args, g)


def compare(fn, arrays, bound=1e-5):
    expected = value_and_gradients("plain", fn, arrays)
    actual = value_and_gradients("interpret", fn, arrays)
    for name, a, b in zip(NAMES, actual, expected, strict=False):
        assert a.dtype == b.dtype, name
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= bound * max(np.abs(b).max(), 1e-3), name


def sizes(block, halo):
    return {"block": block, "halo": halo, "scale": 1.0}


CASES = {
    # batch, height, width, heads, d, e, block, halo, mask_border
    "odd map": (1, 9, 11, 3, 6, 4, 4, 2, True),
    "map smaller than the block": (1, 3, 5, 5, 5, 8, 7, 3, False),
    "one pixel": (1, 1, 1, 1, 2, 2, 8, 3, True),
    "separate blocks": (2, 6, 9, 4, 16, 16, 4, 0, True),
    "wide heads": (1, 7, 7, 2, 64, 64, 7, 1, False),
    "two tiles of channels": (1, 4, 8, 5, 32, 20, 4, 1, False),
    "more queries than lanes": (1, 13, 12, 2, 4, 4, 12, 1, True),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradients_equal_the_plain_form(case):
    *shape, block, halo, border = case
    fn = functools.partial(halo_attention, **sizes(block, halo), mask_border=border)
    compare(fn, inputs(*shape, offsets=2 * (block + halo) - 1))


def random_case(seed):
    rng = np.random.default_rng(seed)
    block, halo = int(rng.integers(1, 10)), int(rng.integers(0, 5))
    batch, heads = (int(n) for n in rng.integers(1, [3, 7]))
    height, width = (int(n) for n in rng.integers(1, 20, 2))
    d, e = (int(n) for n in rng.integers(2, 34, 2))
    return (batch, height, width, heads, d, e), block, halo, bool(rng.integers(2))


def compare_random(seed):
    shape, block, halo, border = random_case(seed)
    fn = functools.partial(halo_attention, **sizes(block, halo), mask_border=border)
    compare(fn, inputs(*shape, 2 * (block + halo) - 1, seed=seed), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_random_shapes(seed):
    compare_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 200))
def test_many_random_shapes(seed):
    compare_random(seed)


@pytest.mark.slow
def test_content_only_and_position_only():
    arrays = inputs(1, 6, 8, 2, 8, 8, 9)
    fn = functools.partial(halo_attention, **sizes(4, 1))
    q, k, v, row, col, g = arrays
    compare(lambda q, k, v: fn(q, k, v), (q, k, v, g))
    compare(lambda q, v, row, col: fn(q, None, v, row, col), (q, v, row, col, g))


@pytest.mark.thorough
def test_bfloat16_is_as_close_as_its_eight_bits():
    """Probabilities, and gradients of logits, are rounded to bfloat16 before the last products."""
    arrays = inputs(1, 4, 8, 2, 16, 16, 9, jnp.bfloat16)
    compare(functools.partial(halo_attention, block=4, halo=1), arrays, 2**-5)


@pytest.mark.thorough
def test_large_logits():
    """Of a softmax that has all its weight on one key the gradients are what rounding leaves."""
    q, *rest = inputs(1, 4, 4, 1, 8, 8, 9)
    fn = functools.partial(halo_attention, **sizes(4, 1), mask_border=True)
    expected = fn(300 * q, *rest[:-1])
    value, *gradients = value_and_gradients("interpret", fn, (300 * q, *rest))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.thorough
@pytest.mark.parametrize("what", [0, 1, 2])
def test_a_nan_reaches_only_the_queries_that_see_it(what):
    """The pixel (1, 9) lies in the square of the block of columns 8 to 11 alone."""
    arrays = inputs(1, 4, 12, 2, 8, 8, 9)
    arrays[what] = arrays[what].at[0, 1, 9].set(jnp.nan)
    with use_kernels("interpret"):
        out = halo_attention(*arrays[:5], block=4, halo=1)
    reached = np.isnan(np.asarray(out)).any((0, 3, 4))
    expected = np.zeros((4, 12), bool)
    if what == 0:
        expected[1, 9] = True
    else:
        expected[:, 8:] = True
    np.testing.assert_array_equal(reached, expected)


@pytest.mark.slow
def test_eight_devices_equal_one():
    """Tables that are whole on every device, and their gradients summed over them."""
    arrays = inputs(8, 4, 5, 2, 8, 8, 9)
    fn = functools.partial(halo_attention, **sizes(4, 1))
    expected = value_and_gradients("interpret", fn, arrays)
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])
    rows, whole = batch_sharding(RULES, mesh), NamedSharding(mesh, PartitionSpec())
    where = (rows, rows, rows, whole, whole, rows)
    arrays = [jax.device_put(a, at) for a, at in zip(arrays, where, strict=True)]
    with activate(mesh, RULES):
        actual = value_and_gradients("interpret", fn, arrays)
    for name, a, b in zip(NAMES, actual, expected, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-5 * jnp.abs(b).max().item(), err_msg=name
        )


def test_what_the_kernels_leave_to_the_plain_form():
    def fitting(size=(14, 14), block=7, halo=3, depth=32, memory=128 << 20):
        return fits(geometry_of(size, block, halo, 8, depth), jnp.bfloat16, memory)

    assert fitting()
    assert not fitting(depth=65)  # a head wider than half a tile
    assert not fitting(block=15, halo=10)  # 35 rows and columns of one-hot depth
    assert not fitting(size=(400, 400))  # a map that the memory does not hold
    assert not fitting(memory=1 << 20)


def test_types_that_the_kernels_leave_to_the_plain_form():
    """float16, and queries of another type than the values: they would be rounded to it."""

    def traced(q, k, v):
        shapes = (jax.ShapeDtypeStruct((1, 7, 7, 1, 8), dtype) for dtype in (q, k, v))
        with use_kernels("interpret"):
            return str(jax.make_jaxpr(halo_attention)(*shapes))

    assert "pallas_call" in traced(*["bfloat16"] * 3)
    assert "pallas_call" not in traced(*["float16"] * 3)
    assert "pallas_call" not in traced("float32", "float32", "bfloat16")


def test_a_program_for_any_batch_takes_the_plain_form():
    (batch,) = jax.export.symbolic_shape("B")
    shape = jax.ShapeDtypeStruct((batch, 7, 7, 1, 8), jnp.float32)
    with use_kernels("interpret"):
        text = jax.export.export(jax.jit(halo_attention))(shape, shape, shape).mlir_module()
    assert "halo_forward" not in text


def test_a_program_for_a_tpu_is_written_on_a_machine_without_one():
    """Several heads to a product, so that every part of the kernels is lowered."""
    maps = jax.ShapeDtypeStruct((1, 8, 8, 2, 8), jnp.float32)
    table = jax.ShapeDtypeStruct((9, 4), jnp.float32)

    def both(*args):
        return jax.value_and_grad(
            lambda *args: halo_attention(*args, block=4, halo=1).sum(), (0, 1, 2, 3, 4)
        )(*args)

    with lowered_for("tpu"):
        program = jax.export.export(jax.jit(both), platforms=["tpu"])
        text = program(maps, maps, maps, table, table).mlir_module()
    assert text.count("tpu_custom_call") == 2


@needs_figures
@pytest.mark.slow
def test_figures_of_one_stage():
    """28 px, 8 heads of 16, batch 32, v5e: 0.63 ms in the kernels where 0.38 are products, and
    nothing but operands and results through HBM.
    """
    args = [jax.ShapeDtypeStruct((32, 28, 28, 8, 16), jnp.bfloat16)] * 3
    args += [jax.ShapeDtypeStruct((19, 8), jnp.float32)] * 2

    def step(g, *args):
        out, pull = jax.vjp(functools.partial(halo_attention, block=7, halo=3), *args)
        return out, pull(g)

    ledger = ledger_of(step, args[0], *args, target="v5e-1")
    kernels = [one for one in ledger.operations if one.kind == "kernel"]
    assert len(kernels) == 2
    assert 1e3 * sum(one.total_seconds for one in kernels) < 0.68
