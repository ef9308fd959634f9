"""The kernels of windowed attention, interpreted, against the plain form and its gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.sharding.kernels import use_kernels
from vitattn.kernels.local import local_attention
from vitattn.kernels.tpu.window.attention import packed_window_attention
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
    packed = (None if x is None else packing.pack(x) for x in (q, k, v))
    out = packed_window_attention(*packed, *tables, packing, interpret=True, **shape.options())
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
        error = np.abs(np.asarray(one, np.float32) - wanted).max()
        assert error <= tolerance * np.abs(wanted).max(), (shape, one.shape, error)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(window=7, mask_border=True),
        Shape(content=False, window=5),
        Shape(position=False, values=9),
        Shape(height=1, width=1, heads=1, batch=1, window=5),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(shape):
    compare(shape)


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
