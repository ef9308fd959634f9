"""2-D relative attention: against the formula, in memory, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainlib.errors import ConfigError
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from vitattn.kernels.plain import tiling
from vitattn.kernels.relative import (
    relative_attention_2d,
    relative_attention_maps,
    relative_index,
)

RULES = {"batch": ("replica", "data")}


def inputs(batch=2, heads=2, height=5, width=7, d=6, e=4, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    maps = [(batch, height, width, heads, size) for size in (d, d, e)]
    arrays = [rng.standard_normal(s) for s in [*maps, (2 * height - 1, d), (2 * width - 1, d)]]
    return [jnp.asarray(a, dtype) for a in arrays]


def direct(q, k, v, rel_h, rel_w, scale=None):
    """The formula with the relative tensor r[j - i + L - 1] of every pair of pixels, in float64."""
    q, k, v, rel_h, rel_w = (np.asarray(a, np.float64) for a in (q, k, v, rel_h, rel_w))
    batch, height, width, heads, d = q.shape
    scale = 1 / np.sqrt(d) if scale is None else scale
    out = np.zeros(v.shape)
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        logits = np.zeros((height, width))
        for Y, X in np.ndindex(height, width):
            place = rel_h[Y - y + height - 1] + rel_w[X - x + width - 1]
            logits[Y, X] = scale * q[b, y, x, n] @ (k[b, Y, X, n] + place)
        p = np.exp(logits - logits.max())
        out[b, y, x, n] = np.einsum("YX,YXe->e", p / p.sum(), v[b, :, :, n])
    return out


def probabilities(q, k, rel_h, rel_w):
    """Softmax [B, N, H, W, H, W] with every intermediate tensor held."""
    height, width, d = q.shape[1], q.shape[2], q.shape[4]
    rows = rel_h[jnp.arange(height)[None, :] - jnp.arange(height)[:, None] + height - 1]
    cols = rel_w[jnp.arange(width)[None, :] - jnp.arange(width)[:, None] + width - 1]
    place = rows[:, None, :, None] + cols[None, :, None, :]
    logits = jnp.einsum("byxnd,bYXnd->bnyxYX", q, k) + jnp.einsum("byxnd,yxYXd->bnyxYX", q, place)
    shape = logits.shape
    flat = jax.nn.softmax((logits / d**0.5).reshape(*shape[:4], -1), axis=-1)
    return flat.reshape(shape)


def materialised(q, k, v, rel_h, rel_w):
    """The formula once more, for jax's own differentiation."""
    return jnp.einsum("bnyxYX,bYXne->byxne", probabilities(q, k, rel_h, rel_w), v)


def value_and_vjp(fn, args, g):
    """fn(*args) and the gradients of its inner product with g, compiled as one program."""

    def run(args, g):
        out, vjp = jax.vjp(fn, *args)
        return out, vjp(g)

    return jax.jit(run)(args, g)


def test_index_is_the_offset_of_the_key_from_the_query():
    index = relative_index(5)
    assert all(index[i, j] == j - i + 4 for i in range(5) for j in range(5))


@pytest.mark.sample(2)
@pytest.mark.parametrize(("height", "width"), [(5, 7), (6, 4), (1, 3), (7, 7)])
def test_equals_the_formula(height, width):
    args = inputs(height=height, width=width)
    out = relative_attention_2d(*args)
    np.testing.assert_allclose(out, direct(*args), rtol=1e-5, atol=1e-5)


def test_the_scale_can_be_chosen_and_covers_positions_too():
    args = inputs(height=3, width=4)
    for scale in (1.0, 0.3):
        out = relative_attention_2d(*args, scale=scale)
        np.testing.assert_allclose(out, direct(*args, scale=scale), rtol=1e-5, atol=1e-5)


def test_the_maps_are_the_probabilities_of_the_formula():
    q, k, _, *tables = inputs(height=3, width=4)
    maps = relative_attention_maps(q, k, *tables)
    np.testing.assert_allclose(maps, probabilities(q, k, *tables), atol=1e-6)
    scaled = relative_attention_maps(q * q.shape[-1] ** -0.5, k, *tables, scale=1.0)
    np.testing.assert_allclose(scaled, maps, atol=1e-6)


def test_tables_that_do_not_fit_are_refused():
    q, k, v, rel_h, rel_w = inputs(height=3, width=4)
    with pytest.raises(ConfigError, match=r"rows has the shape \(7, 6\).*need \(5, 6\)"):
        relative_attention_2d(q, k, v, rel_w, rel_h)
    with pytest.raises(ConfigError, match="one of columns"):
        relative_attention_2d(q, k, v, rel_h)


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_values_and_gradients_do_not_depend_on_the_tile(rows):
    args = inputs(height=6, width=5)
    g = jnp.asarray(np.random.default_rng(1).standard_normal(args[2].shape), jnp.float32)
    tiled = functools.partial(relative_attention_2d, rows_per_tile=rows)
    out, grads = value_and_vjp(tiled, args, g)
    expected, wanted_grads = value_and_vjp(materialised, args, g)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(grads, wanted_grads, strict=True):
        assert np.abs(actual - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("size", [0.2, 0.5, 1, 2, 100])
def test_tiles_of_part_of_an_image_or_of_several_images_equal_one(monkeypatch, size):
    args = inputs(batch=6)
    single = relative_attention_2d(*args)
    monkeypatch.setattr(tiling, "tile_bytes", lambda: size * 2 * (5 * 7) ** 2 * 4)
    np.testing.assert_allclose(relative_attention_2d(*args), single, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(3)
@pytest.mark.parametrize(("height", "width"), [(20, 33), (10, 10), (5, 5), (5, 8)])
def test_maps_of_a_detector_equal_the_naive_form_with_all_gradients(height, width, monkeypatch):
    """Keys of 3 channels a head and values of 1; the largest of these maps by rows of queries."""
    monkeypatch.setattr(tiling, "tile_bytes", lambda: 4 * (10 * 10) ** 2)
    args = inputs(batch=1, height=height, width=width, d=3, e=1)
    g = jnp.asarray(np.random.default_rng(1).standard_normal(args[2].shape), jnp.float32)
    actual = jax.tree.leaves(value_and_vjp(lambda *a: relative_attention_2d(*a), args, g))
    expected = jax.tree.leaves(value_and_vjp(materialised, args, g))
    for one, wanted in zip(actual, expected, strict=True):
        assert np.abs(one - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_bfloat16_is_close_to_float32():
    args = inputs(height=6, width=5, d=16, dtype=jnp.bfloat16)
    out = relative_attention_2d(*args)
    assert out.dtype == jnp.bfloat16
    # Logits of size about 6 rounded at 2^-9 in their position terms: probabilities to about 2^-6.
    assert np.abs(np.asarray(out, np.float32) - direct(*args)).max() < 2**-4


def test_without_tables_it_does_not_know_positions():
    """Permuting the pixels of keys and values alike changes nothing."""
    q, k, v, _, _ = inputs(height=3, width=4)
    order = np.random.default_rng(3).permutation(12)
    shuffled = [a.reshape(2, 12, 2, -1)[:, order].reshape(a.shape) for a in (k, v)]
    out = relative_attention_2d(q, k, v)
    np.testing.assert_allclose(out, relative_attention_2d(q, *shuffled), rtol=1e-5, atol=1e-6)


def loss(*args):
    return jnp.sum(jnp.sin(relative_attention_2d(*args)))


GRADIENT = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))


def test_memory_at_28_pixels_is_one_tile_and_not_the_logits():
    """Batch 16, 8 heads, d 20, e 4: all logits are 300 MiB, one image's 19 MiB. Kept between the
    passes are q, k, v (17 MiB, with the pixels of a head together), the output and a number a
    query."""
    specs = [jax.ShapeDtypeStruct((16, 28, 28, 8, width), jnp.float32) for width in (20, 20, 4)] + [
        jax.ShapeDtypeStruct((55, 20), jnp.float32)
    ] * 2
    stats = jax.jit(GRADIENT).lower(*specs).compile().memory_analysis()
    assert stats.temp_size_in_bytes <= (17 + 15) * 2**20


def test_forward_pass_is_not_run_again_in_the_backward_pass():
    """Two exponentials of a tile of logits: one in the forward pass, one rebuilding probabilities.
    A third would mean that the checkpoint policy lost the named outputs."""
    text = str(jax.make_jaxpr(GRADIENT)(*inputs()))
    assert text.count(" = exp ") == 2


def test_eight_devices_equal_one():
    args = inputs(batch=16, height=4, width=3)
    expected, grads = jax.jit(GRADIENT)(*args)
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])
    rows, whole = batch_sharding(RULES, mesh), NamedSharding(mesh, PartitionSpec())
    args = [jax.device_put(a, rows) for a in args[:3]] + jax.device_put(args[3:], whole)
    with activate(mesh, RULES):
        compiled = jax.jit(lambda *a: GRADIENT(*a)).lower(*args).compile()
    actual, split = compiled(*args)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for a, b in zip(split, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))
    # Images stay on their device: only table gradients and the loss are summed over devices.
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text()
