"""Local and halo attention against a direct NumPy loop over pixels, with its gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainlib.errors import ConfigError
from trainlib.model.weights import abstract, initialise
from trainlib.sharding.constrain import activate
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from vitattn.kernels import local as kernels
from vitattn.layers.local import HaloAttention, LocalAttention
from vitattn.layers.position import sine_positions

RULES = {"batch": ("replica", "data")}
NAMES = ("q", "k", "v", "rel_row", "rel_col")
# The papers do not scale, and neither does the loop below.
local_attention = functools.partial(kernels.local_attention, scale=1.0)
halo_attention = functools.partial(kernels.halo_attention, scale=1.0)


def inputs(batch=2, height=5, width=6, heads=2, d=6, e=4, offsets=3, seed=0):
    rng = np.random.default_rng(seed)
    maps = [(batch, height, width, heads, size) for size in (d, d, e)]
    shapes = [*maps, (offsets, d // 2), (offsets, d - d // 2), maps[2]]
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]


def neighbours(y, x, window, block, halo):
    """Corner of the keys of a query, and the table row of that corner, along both axes.

    A window begins K // 2 before its query, at offset 0. A block's square begins `halo` before the
    block; a query at place i of its block sees the square's corner at table row b - 1 - i.
    """
    if block is None:
        return (y - window // 2, x - window // 2), (0, 0), window
    corner = [i // block * block - halo for i in (y, x)]
    return corner, [block - 1 - i % block for i in (y, x)], block + 2 * halo


def reference(
    q, k, v, rel_row, rel_col, g, window=None, block=None, halo=None, border=False, keys=True
):
    """Output and the five gradients for cotangent g, in float64."""
    arrays = (q, k, v, rel_row, rel_col, g)
    q, k, v, rel_row, rel_col, g = (np.asarray(a, np.float64) for a in arrays)
    batch, height, width, heads, d = q.shape
    half, pad = d // 2, 20
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0), (0, 0))
    inside = np.pad(np.ones((height, width), bool), pad)
    k, v = np.pad(k * keys, pads), np.pad(v, pads)
    out, dq, dk, dv = (np.zeros(a.shape) for a in (g, q, k, v))
    drow, dcol = np.zeros(rel_row.shape), np.zeros(rel_col.shape)
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        corner, first, size = neighbours(y, x, window, block, halo)
        at = (b, *(slice(c + pad, c + pad + size) for c in corner), n)
        rows, cols = (slice(f, f + size) for f in first)
        query = q[b, y, x, n]
        place = (rel_row[rows] @ query[:half])[:, None] + (rel_col[cols] @ query[half:])[None, :]
        logits = k[at] @ query + place
        if border:
            logits = np.where(inside[at[1:3]], logits, -np.inf)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        out[b, y, x, n] = np.einsum("ac,ace->e", p, v[at])
        dp = v[at] @ g[b, y, x, n]
        ds = p * (dp - (p * dp).sum())
        dq[b, y, x, n] = np.einsum("ac,acd->d", ds, k[at])
        dq[b, y, x, n, :half] += ds.sum(1) @ rel_row[rows]
        dq[b, y, x, n, half:] += ds.sum(0) @ rel_col[cols]
        dk[at] += ds[:, :, None] * query * keys
        dv[at] += p[:, :, None] * g[b, y, x, n]
        drow[rows] += ds.sum(1)[:, None] * query[:half]
        dcol[cols] += ds.sum(0)[:, None] * query[half:]
    crop = (slice(None), slice(pad, pad + height), slice(pad, pad + width))
    return out, (dq, dk[crop], dv[crop], drow, dcol)


def value_and_vjp(fn, args, g):
    """fn(*args) and the gradients of its inner product with g, compiled as one program."""

    def run(args, g):
        out, vjp = jax.vjp(fn, *args)
        return out, vjp(g)

    return jax.jit(run)(args, g)


def compare(fn, arrays, **options):
    *args, g = arrays
    out, grads = value_and_vjp(fn, args, g)
    expected, wanted_grads = reference(*arrays, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for name, actual, wanted in zip(NAMES, grads, wanted_grads, strict=True):
        assert np.abs(actual - wanted).max() < 1e-5 * np.abs(wanted).max(), name


@pytest.mark.sample(5)
@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("window", [3, 5, 7, 9, 11])
def test_every_window_and_border_equals_the_loop(window, border):
    """The map is smaller than the larger windows: all four borders at once."""
    attention = functools.partial(local_attention, window=window, block=(4, 3), mask_border=border)
    compare(attention, inputs(offsets=window), window=window, border=border)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("height", "width", "block"),
    [(1, 1, (7, 7)), (8, 3, (7, 8)), (5, 9, (1, 4)), (9, 4, (2, 3)), (4, 8, None), (10, 7, None)],
)
def test_every_size_and_block_equals_the_loop(height, width, block):
    attention = functools.partial(local_attention, window=5, block=block)
    compare(attention, inputs(1, height, width, offsets=5), window=5)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("block", "halo", "form"),
    [(2, 0, "plain"), (3, 1, "plain"), (4, 3, "plain"), (3, 1, "interpret")],
)
@pytest.mark.parametrize("border", [False, True])
def test_halo_attention_equals_the_loop(block, halo, border, form):
    arrays = inputs(height=7, width=8, offsets=2 * (block + halo) - 1)
    attention = functools.partial(halo_attention, block=block, halo=halo, mask_border=border)
    with use_kernels(form):
        compare(attention, arrays, block=block, halo=halo, border=border)


def test_position_only_equals_the_loop_with_keys_of_zero():
    q, k, v, row, col, g = inputs(offsets=5)
    fn = functools.partial(local_attention, window=5, block=(4, 4))
    out, grads = value_and_vjp(lambda q, v, *rel: fn(q, None, v, *rel), (q, v, row, col), g)
    expected, wanted = reference(q, k, v, row, col, g, window=5, keys=False)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for actual, want in zip(grads, (wanted[0], *wanted[2:]), strict=True):
        assert np.abs(actual - want).max() < 1e-5 * np.abs(want).max()


def test_without_positions_it_equals_the_loop_with_tables_of_zero():
    q, k, v, row, col, g = inputs(offsets=5)
    out = local_attention(q, k, v, window=5, block=(4, 4))
    expected, _ = reference(q, k, v, 0 * row, 0 * col, g, window=5)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_queries_are_scaled_by_the_root_of_their_depth_unless_another_scale_is_given():
    """The scale covers content and positions, as if the queries had been scaled."""
    *args, _ = inputs(d=6, offsets=5)
    scaled = (args[0] * 6**-0.5, *args[1:])
    wide = [np.tile(table, (2, 1))[:9] for table in args[3:]]  # 2 (4 + 1) - 1 offsets
    for default, unscaled, tables in (
        (kernels.local_attention, local_attention, args[3:]),
        (kernels.halo_attention, halo_attention, wide),
    ):
        options = {"window": 5} if default is kernels.local_attention else {"block": 4, "halo": 1}
        expected = unscaled(*scaled[:3], *tables, **options)
        actual = default(*args[:3], *tables, **options)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k, v, row, col: local_attention(q, k, v, window=4), "window=4 has no centre"),
        (lambda q, k, v, row, col: local_attention(q, k, v, row, col, window=5), r"need \(5, 3\)"),
        (lambda q, k, v, row, col: local_attention(q, k, v, row, window=3), "one is None"),
        (lambda q, k, v, row, col: halo_attention(q, k, v, block=0), "block=0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call(*inputs(offsets=3)[:5])


def test_bfloat16_is_close_to_the_loop():
    arrays = [jnp.asarray(a, jnp.bfloat16) for a in inputs(d=16, offsets=7)]
    out = jax.jit(functools.partial(local_attention, window=7))(*arrays[:5])
    assert out.dtype == jnp.bfloat16
    expected, _ = reference(*(np.asarray(a, np.float32) for a in arrays), window=7)
    assert np.abs(np.asarray(out, np.float32) - expected).max() < 2**-4


def test_a_pixel_outside_the_window_has_no_influence():
    """By gradient, through the masks: keys and values of one output pixel are its window's only."""
    q, k, v, row, col, _ = inputs(1, 9, 9, offsets=3)

    def one_pixel(k, v):
        return jnp.sum(local_attention(q, k, v, row, col, window=3, block=(4, 3))[0, 4, 5] ** 2)

    for gradient in jax.jit(jax.grad(one_pixel, argnums=(0, 1)))(k, v):
        reached = np.abs(gradient[0]).sum((-2, -1)) > 0
        expected = np.zeros((9, 9), bool)
        expected[3:6, 4:7] = True
        np.testing.assert_array_equal(reached, expected)


def loss(*args):
    return jnp.sum(jnp.sin(local_attention(*args, window=7)))


GRADIENT = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))


def specs(batch, size, heads, depth, window=7):
    maps = [jax.ShapeDtypeStruct((batch, size, size, heads, depth), jnp.float32)] * 3
    return maps + [jax.ShapeDtypeStruct((window, depth // 2), jnp.float32)] * 2


def test_memory_at_56_pixels_holds_no_window_of_all_pixels():
    """64 channels, batch 8, 8 heads: the 49 copies of keys would be 294 MiB, the [HW, 49] logits
    37.5 MiB, [HW, HW] 2.3 GiB; one image's haloed keys and values are 5.3 MiB."""
    stats = jax.jit(GRADIENT).lower(*specs(8, 56, 8, 8)).compile().memory_analysis()
    assert stats.temp_size_in_bytes <= 55 * 2**20


@pytest.mark.parametrize("border", [False, True])
def test_the_program_holds_no_window_of_all_pixels(border):
    """Masks, logits, constants, copies: no array of the compiled program, inside a fusion or not,
    is as large as [HW, K * K]. Here that is 614,656 elements; a tile of logits has at most 393,216,
    keys with their halo 392 blocks x 10 x 14 x 4 = 219,520.
    """

    def fn(*args):
        return jnp.sum(local_attention(*args, window=7, mask_border=border) ** 2)

    gradient = jax.value_and_grad(fn, argnums=(0, 1, 2, 3, 4))
    text = jax.jit(gradient).lower(*specs(1, 112, 1, 4)).compile().as_text()
    shapes = set(re.findall(r"\b(?:f32|s32|u32|pred|bf16)\[([\d,]+)\]", text))
    largest = max(shapes, key=lambda shape: math.prod(map(int, shape.split(","))))
    assert math.prod(map(int, largest.split(","))) < 112 * 112 * 7 * 7, largest


def test_forward_pass_is_not_run_again_in_the_backward_pass():
    text = str(jax.make_jaxpr(GRADIENT)(*inputs(height=16, width=16, offsets=7)[:5]))
    assert text.count(" = exp ") == 2
    # Of a small map: another two for what lies outside, and of one number a query, in either pass.
    text = str(jax.make_jaxpr(GRADIENT)(*inputs(offsets=7)[:5]))
    assert text.count(" = exp ") == 2 + 2 * 2 + 2


def test_eight_devices_equal_one():
    args = inputs(16, 4, 3, offsets=7)[:5]
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
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 12_344),  # 3 * 64^2 + 7 * 64 / 8
        ({"position": "none"}, 12_288),
        ({"position": "sine"}, 12_288),
        ({"position_only": True}, 8_248),  # 2 * 64^2 + 56
        ({"window": 11}, 12_376),  # 11 rows and 11 columns of 4
    ],
)
def test_parameter_count(options, count):
    assert abstract(LocalAttention(64, 64, **options)).param_count == count


def test_parameter_count_of_halo_attention():
    """2 (7 + 3) - 1 = 19 rows and columns of 4."""
    assert abstract(HaloAttention(64, 64)).param_count == 12_288 + 152


def layer(x, kind=LocalAttention, **options):
    """A function (weights, x) -> output, and weights."""
    model = abstract(kind(x.shape[-1], 12, num_heads=2, **options))
    params = initialise(model.params, jax.random.key(0))
    return lambda params, x: model.bind(params, {})(x), params


def pooling(height, width):
    """[H', W', H, W]: the share that a pixel has in the mean over its 2x2 window."""
    rows, cols = (
        np.equal(np.arange(size)[None] // 2, np.arange(-(-size // 2))[:, None]) * 1.0
        for size in (height, width)
    )
    rows, cols = (axis / axis.sum(1, keepdims=True) for axis in (rows, cols))
    return rows[:, None, :, None] * cols[None, :, None, :]


@pytest.mark.sample(4)
@pytest.mark.parametrize("position", ["relative", "sine", "none"])
@pytest.mark.parametrize(("stride", "height", "width"), [(1, 7, 4), (2, 5, 7), (2, 6, 3)])
def test_layer_equals_the_loop_with_its_gradients(position, stride, height, width):
    """Projection without scale or bias, heads in order, and the pool after the attention."""
    rng = np.random.default_rng(0)
    x = np.asarray(rng.standard_normal((2, height, width, 5)), np.float32)
    fn, params = layer(x, window=3, stride=stride, position=position)
    pool = pooling(height, width) if stride == 2 else np.eye(height * width)
    pool = pool.reshape(-(-height // stride), -(-width // stride), height, width)
    g = np.asarray(rng.standard_normal((2, *pool.shape[:2], 12)), np.float32)
    out, (d_params, dx) = value_and_vjp(fn, (params, x), g)

    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    source = x + (position == "sine") * sine_positions(height, width, 5)
    parts = np.split(source @ params["qkv"], 3, axis=-1)
    q, k, v = (part.reshape(2, height, width, 2, 6) for part in parts)
    row, col = (params.get(name, np.zeros((3, 3))) for name in ("rel_row", "rel_col"))
    spread = np.einsum("ijyx,bijc->byxc", pool, g).reshape(v.shape)
    attended, (dq, dk, dv, d_row, d_col) = reference(q, k, v, row, col, spread, window=3)
    expected = np.einsum("ijyx,byxc->bijc", pool, attended.reshape(2, height, width, 12))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    d_qkv = np.concatenate([d.reshape(2, height, width, 12) for d in (dq, dk, dv)], -1)
    wanted = {"qkv": np.einsum("byxc,byxf->cf", source, d_qkv), "rel_row": d_row, "rel_col": d_col}
    pairs = [(d_params[name], wanted[name]) for name in params] + [(dx, d_qkv @ params["qkv"].T)]
    for actual, want in pairs:
        assert np.abs(actual - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"position_only": True, "stride": 2}, marks=pytest.mark.thorough)]
)
def test_a_large_map_is_computed_by_rows(options, monkeypatch):
    """5 rows of blocks of 7 pixels, of which 4 and 1 are computed at once."""
    x = np.asarray(np.random.default_rng(0).standard_normal((2, 33, 3, 5)), np.float32)
    fn, params = layer(x, window=5, **options)

    def run():
        out = jax.jit(lambda *args: fn(*args))(params, x)
        return value_and_vjp(lambda *args: fn(*args), (params, x), jnp.cos(out))

    expected = run()
    monkeypatch.setattr(kernels, "LARGE_MAP", 0)
    monkeypatch.setattr(kernels, "tile_bytes", lambda: 1)
    assert kernels._rows_at_a_time(x.shape, 2, 5) == 28
    actual = run()
    for one, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(one - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_halo_layer_equals_the_loop():
    x = np.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 5)), np.float32)
    fn, params = layer(x, HaloAttention, block=3, halo=1, mask_border=False)
    out = jax.jit(fn)(params, x)
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    parts = np.split(x @ params["qkv"], 3, axis=-1)
    q, k, v = (part.reshape(2, 6, 5, 2, 6) for part in parts)
    tables = params["rel_row"], params["rel_col"]
    expected, _ = reference(q, k, v, *tables, v, block=3, halo=1)
    np.testing.assert_allclose(out, expected.reshape(2, 6, 5, 12), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 7}, "num_heads=7 does not divide the 64"),
        ({"num_heads": 64}, "fewer heads"),
        ({"window": 4}, "window=4"),
        ({"stride": 3}, "stride=3"),
        ({"position": "relativ"}, "Did you mean 'relative'"),
        ({"position_only": True, "position": "none"}, "Attention without keys"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        LocalAttention(64, 64, **options)
