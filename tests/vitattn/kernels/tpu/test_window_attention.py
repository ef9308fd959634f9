"""The kernels of windowed attention, interpreted, against the plain form and its gradients."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_compiler import needs_figures
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.constrain import activate
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from vitattn.kernels.local import local_attention
from vitattn.kernels.tpu.window.attention import packed_window_attention, takes
from vitattn.kernels.tpu.window.packing import Packing


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one call: B images, H W map, N heads, d and e channels, window, options."""

    batch: int = 2
    height: int = 5
    width: int = 6
    heads: int = 2
    depth: int = 6
    values: int = 4
    window: int = 3
    content: bool = True
    position: bool = True
    mask_border: bool = False
    scale: float | None = 1.0
    bands: int | None = None

    def options(self):
        return {"scale": self.scale, "mask_border": self.mask_border}


def inputs(shape, seed=0, dtype=jnp.float32):
    """q, k, v, tables and a cotangent of the result."""
    rng = np.random.default_rng(seed)
    maps = (shape.batch, shape.height, shape.width, shape.heads)

    def normal(*sizes):
        return jnp.asarray(rng.standard_normal(sizes), dtype)

    q, k = normal(*maps, shape.depth), normal(*maps, shape.depth)
    v, g = normal(*maps, shape.values), normal(*maps, shape.values)
    half = shape.depth // 2
    tables = normal(shape.window, half), normal(shape.window, shape.depth - half)
    return q, k if shape.content else None, v, tables if shape.position else (None, None), g


def kernel(q, k, v, tables, shape):
    packing = Packing(shape.batch, shape.heads, shape.height, shape.width, shape.window)
    q, v = packing.pack(q), packing.pack(v)
    k = None if k is None else packing.pack(k)
    row, col = tables
    options = {"interpret": True, "bands": shape.bands, **shape.options()}
    out = packed_window_attention(q, k, v, row, col, packing, **options)
    return packing.unpack(out)


def plain(q, k, v, tables, shape):
    with use_kernels("plain"):
        return local_attention(q, k, v, *tables, window=shape.window, **shape.options())


@functools.partial(jax.jit, static_argnums=(0, 3))
def value_and_gradients(function, args, g, shape):
    out, pull = jax.vjp(lambda *args: function(*args, shape), *args)
    return out, pull(g)


def compare(shape, seed=0, dtype=jnp.float32, tolerance=1e-5):
    """Value and every gradient, each by the largest number of the plain form's."""
    *args, g = inputs(shape, seed, dtype)
    actual = value_and_gradients(kernel, args, g, shape)
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (*args, g)]
    expected = value_and_gradients(plain, wide[:-1], wide[-1], shape)
    for one, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == dtype
        wanted = np.asarray(wanted)
        # Queries of one channel have a table of none for rows.
        error = np.abs(np.asarray(one, np.float32) - wanted).max(initial=0)
        assert error <= tolerance * np.abs(wanted).max(initial=0), (shape, one.shape, error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(height=3, width=4, window=7, mask_border=True),
        Shape(position=False, depth=3, values=9, scale=20.0),  # two parts of values; large logits
        Shape(height=1, width=1, heads=1, batch=1),
        Shape(batch=1, heads=1, height=2, width=126, depth=2, values=2),  # several lane tiles
        Shape(bands=2),  # of 3 and 2 rows
        Shape(height=14, width=3, bands=2, window=7, mask_border=True),
        Shape(batch=1, height=7, bands=3, content=False),  # a band that none is beside at an end
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(shape):
    compare(shape)


def drawn(seed):
    """A shape drawn at random."""
    rng = np.random.default_rng(seed)
    content, position = [(True, True), (True, False), (False, True)][rng.integers(3)]
    return Shape(
        batch=int(rng.integers(1, 4)),
        height=int(rng.integers(1, 12)),
        width=int(rng.integers(1, 12)),
        heads=int(rng.integers(1, 10)),
        depth=int(rng.integers(1, 20)),
        values=int(rng.integers(1, 20)),
        window=int(rng.choice([3, 5])),
        content=content,
        position=position,
        mask_border=bool(rng.integers(2)),
        scale=[None, 1.0, 0.3][rng.integers(3)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_shapes_drawn_at_random(seed):
    compare(drawn(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 200))
def test_many_shapes_drawn_at_random(seed):
    compare(drawn(seed), seed)


@pytest.mark.slow
def test_bfloat16_is_nearly_as_exact_as_its_results():
    """Products and sums are float32. What is lost is the rounding of results, 2^-9 of each, and in
    gradients that of the result of the forward pass, which they are computed from."""
    compare(Shape(batch=3, heads=4, height=3), dtype=jnp.bfloat16, tolerance=2**-6)


@pytest.mark.slow
def test_eight_devices_equal_one():
    shape = Shape(batch=8, height=2, width=3, heads=1, depth=2, values=2)
    q, k, v, tables, _ = inputs(shape)
    rules = {"batch": ("replica", "data")}
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])

    def loss(*args):
        return jnp.sum(jnp.sin(local_attention(*args, window=3, scale=1.0)))

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
    with use_kernels("plain"):
        expected = jax.jit(gradient)(q, k, v, *tables)
    with use_kernels("interpret"), activate(mesh, rules):
        actual = jax.jit(lambda *args: gradient(*args))(q, k, v, *tables)
    for one, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"window": 17}, False),  # code grows with the square of the window
        ({"position": False, "content": False}, False),
        ({"depth": 1}, False),  # tables of rows have no channel
        ({"depth": 1, "position": False}, True),
        ({"height": 400, "width": 400, "depth": 64, "values": 64}, False),  # memory
    ],
)
def test_sizes_that_the_kernels_do_not_take_are_left_to_the_plain_form(change, taken):
    shape = dataclasses.replace(Shape(), **change)
    maps = (shape.batch, shape.height, shape.width, shape.heads)
    q: Any = jax.ShapeDtypeStruct((*maps, shape.depth), jnp.float32)
    v: Any = jax.ShapeDtypeStruct((*maps, shape.values), jnp.float32)
    k = q if shape.content else None
    assert takes(q, k, v, shape.window, position=shape.position) == taken


@needs_figures
@pytest.mark.slow
def test_time_of_the_kernels_on_a_chip():
    """28 px, 128 channels in 8 heads, batch 32, window 7: the goal with projections is 0.8 ms."""
    packing = Packing(32, 8, 28, 28, 7)
    x = jax.ShapeDtypeStruct(packing.shape(16), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((7, 8), jnp.float32)

    def run(q, k, v, row, col, g):
        attention = functools.partial(packed_window_attention, packing=packing)
        out, pull = jax.vjp(lambda *args: attention(*args), q, k, v, row, col)
        return out, pull(g)

    # Gradients take the place of queries, keys and values, which arguments of a program have to be
    # copied for; in a network these are projections, and there is no copy.
    ledger = ledger_of(run, x, x, x, table, table, x)
    kernels = [one for one in ledger.operations if one.kind == "kernel"]
    assert 1e3 * sum(one.total_seconds for one in kernels) < 0.7
    least = 8 * 32 * 28 * 28 * 8 * 16 * 2  # q, k, v, out and their gradients
    assert sum(one.total_hbm_bytes for one in kernels) < 2 * least


@pytest.mark.thorough
def test_local_attention_takes_the_kernels_and_packs_for_them():
    shape = Shape(heads=3, depth=4, window=5)
    q, k, v, tables, _ = inputs(shape)

    def run(choice):
        with use_kernels(choice):
            fn = functools.partial(local_attention, window=5, scale=1.0)
            return jax.jit(fn)(q, k, v, *tables), str(jax.make_jaxpr(fn)(q, k, v, *tables))

    (actual, traced), (expected, plainly) = run("interpret"), run("plain")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert "pallas_call" in traced
    assert "pallas_call" not in plainly


@pytest.mark.thorough
def test_a_pixel_that_is_not_a_number_reaches_only_those_that_see_it():
    """Forward: the queries whose window it lies in. Backward: what those see; the other maps that
    share its registers stay as they are."""
    shape = Shape(batch=3, heads=1, height=4, width=5, depth=2, values=2)
    q, k, v, tables, g = inputs(shape)
    assert k is not None
    k = k.at[1, 1, 0].set(jnp.nan)
    out, (dq, dk, dv, _) = value_and_gradients(kernel, (q, k, v, tables), g, shape)
    seen = np.zeros((3, 4, 5), bool)
    seen[1, :3, :2] = True
    for one in (out, dq):
        np.testing.assert_array_equal(np.isnan(one).any((3, 4)), seen)
    for one in (dk, dv):
        reached = np.isnan(one).any((3, 4))
        assert not reached[[0, 2]].any()
        assert not reached[1, :, 3:].any()
        assert reached[1, 1, 0]
