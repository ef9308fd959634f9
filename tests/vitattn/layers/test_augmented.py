"""The augmented convolution against a NumPy reference written from the paper (arXiv 1904.09925).

The reference works in float64 on one pixel at a time: padded convolution by taps, pooling by
windows, the relative term r[j - i + L - 1] looked up for every pair of pixels. Gradients are
compared with central differences of it along random directions, and entry by entry with jax's
differentiation of a version that materialises everything.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model.weights import abstract, initialise
from vitattn.layers.augmented import AugmentedConv, augmented_depths
from vitattn.layers.position import coordinates, sine_positions

BASE = {"kernel_size": 3, "num_heads": 2, "key_depth": 6, "value_depth": 4, "size": (5, 4)}
VARIANTS = {
    "odd": {"size": (5, 7)},
    "non_square": {"size": (3, 6), "num_heads": 1},
    "wide_values": {"key_depth": 4, "value_depth": 6},
    "strided": {"stride": 2},
    "strided_odd": {"stride": 2, "odd_input": True},
    "downsampled": {"downsample": True, "size": (6, 5)},
    "strided_downsampled": {"stride": 2, "downsample": True},
    "attention_only": {"out_channels": 4},
    "pointwise": {"kernel_size": 1, "stride": 2},
    "kernel_5": {"kernel_size": 5},
    "no_position": {"position": "none"},
    "sine": {"position": "sine"},
    "coord": {"position": "coord"},
}


def build(in_channels=5, out_channels=7, odd_input=False, seed=0, **options):
    options = {**BASE, **options}
    model = abstract(AugmentedConv(in_channels, out_channels, **options))
    params = initialise(model.params, jax.random.key(seed))
    stride = options.get("stride", 1)
    height, width = (side * stride - odd_input for side in options["size"])
    x = jax.random.normal(jax.random.key(1), (2, height, width, in_channels))
    return model, params, x, {**options, "out_channels": out_channels}


def convolution(x, kernel, stride):
    size, pad = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for y, z in np.ndindex(height, width):
        window = padded[:, y * stride : y * stride + size, z * stride : z * stride + size]
        out[:, y, z] = np.einsum("bijc,ijcf->bf", window, kernel)
    return out


def pooled(x):
    height, width = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for y, z in np.ndindex(height, width):
        rows, cols = slice(max(2 * y - 1, 0), 2 * y + 2), slice(max(2 * z - 1, 0), 2 * z + 2)
        out[:, y, z] = x[:, rows, cols].mean((1, 2))
    return out


def interpolation(target, source):
    """[target, source] weights of half-pixel bilinear interpolation with the edge repeated."""
    matrix = np.zeros((target, source))
    for i in range(target):
        at = np.clip((i + 0.5) * source / target - 0.5, 0, source - 1)
        low = int(at)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, source - 1)] += at - low
    return matrix


def reference(params, x, *, options):
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = np.asarray(x, np.float64)
    heads, dk, dv = (options[name] for name in ("num_heads", "key_depth", "value_depth"))
    stride, position = options.get("stride", 1), options.get("position", "relative")
    a = x
    for _ in range((stride == 2) + options.get("downsample", False)):
        a = pooled(a)
    batch, height, width, channels = a.shape
    if position == "sine":
        a = a + sine_positions(height, width, channels)
    if position == "coord":
        place = np.broadcast_to(coordinates(height, width), (batch, height, width, 2))
        a = np.concatenate([a, place], -1)
    qkv = a @ p["qkv"]
    q, k, v = qkv[..., :dk], qkv[..., dk : 2 * dk], qkv[..., 2 * dk :]
    d, e = dk // heads, dv // heads
    out = np.zeros((batch, height, width, dv))
    for b, n, y, z in np.ndindex(batch, heads, height, width):
        query, mine = q[b, y, z, n * d : n * d + d], slice(n * d, n * d + d)
        logits = k[b, :, :, mine] @ query
        if position == "relative":
            rows, cols = np.arange(height) - y + height - 1, np.arange(width) - z + width - 1
            logits += (p["rel_h"][rows] @ query)[:, None] + (p["rel_w"][cols] @ query)[None, :]
        weights = np.exp(logits / np.sqrt(d))
        values = v[b, :, :, n * e : n * e + e]
        out[b, y, z, n * e : n * e + e] = np.einsum("YZ,YZe->e", weights / weights.sum(), values)
    out = out @ p["out"]
    rows, cols = (
        interpolation(target, source)
        for target, source in zip(options["size"], (height, width), strict=True)
    )
    out = np.einsum("yY,xX,bYXc->byxc", rows, cols, out)
    if options["out_channels"] == dv:
        return out
    return np.concatenate([convolution(x, p["conv.kernel"], stride), out], -1)


def value_and_vjp(fn, params, x, g):
    """fn(params, x) and the gradients of its inner product with g, compiled as one program."""

    def run(params, x, g):
        out, vjp = jax.vjp(fn, params, x)
        return out, vjp(g)

    return jax.jit(run)(params, x, jnp.asarray(g, jnp.float32))


@pytest.mark.sample(3)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference_in_value_and_directional_derivatives(variant):
    model, params, x, options = build(**VARIANTS[variant])
    rng = np.random.default_rng(2)
    expected = reference(params, x, options=options)
    g = rng.standard_normal(expected.shape)
    out, (grads, dx) = value_and_vjp(lambda p, x: model.bind(p, {})(x), params, x, g)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)

    values = {name: np.asarray(v, np.float64) for name, v in {**params, "x": x}.items()}
    for name, gradient in {**grads, "x": dx}.items():
        direction = rng.standard_normal(gradient.shape)

        def along(step, name=name, direction=direction):
            moved = {**values, name: values[name] + step * direction}
            return np.sum(g * reference(moved, moved.pop("x"), options=options))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(gradient * direction) - slope) < 1e-5 * scale, name


def materialised(params, x, options):
    """Relative case, stride 1, with the relative tensor of every pair of pixels held."""
    heads, dk, dv = (options[name] for name in ("num_heads", "key_depth", "value_depth"))
    batch, height, width, _ = x.shape
    q, k, v = jnp.split(x @ params["qkv"], (dk, 2 * dk), -1)
    q, k, v = (a.reshape(batch, height * width, heads, -1) for a in (q, k, v))
    y, z = jnp.divmod(jnp.arange(height * width), width)
    place = params["rel_h"][y[None] - y[:, None] + height - 1]
    place = place + params["rel_w"][z[None] - z[:, None] + width - 1]
    logits = jnp.einsum("bind,bjnd->bnij", q, k) + jnp.einsum("bind,ijd->bnij", q, place)
    p = jax.nn.softmax(logits / np.sqrt(dk // heads), axis=-1)
    attended = jnp.einsum("bnij,bjne->bine", p, v).reshape(batch, height, width, dv)
    window = jax.lax.conv_general_dilated(
        x, params["conv.kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.concatenate([window, attended @ params["out"]], -1)


@pytest.mark.thorough
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 8)])
def test_every_entry_of_every_gradient_equals_the_materialised_version(height, width):
    model, params, x, options = build(8, 24, size=(height, width), num_heads=4, key_depth=32)
    g = jax.random.normal(jax.random.key(3), (2, height, width, 24))
    out, grads = value_and_vjp(lambda p, x: model.bind(p, {})(x), params, x, g)
    expected, wanted_grads = value_and_vjp(lambda p, x: materialised(p, x, options), params, x, g)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True)
    for actual, wanted in pairs:
        assert np.abs(actual - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_bfloat16_output_is_close_to_float32():
    options = {"size": (6, 6), "num_heads": 2, "key_depth": 16, "value_depth": 8}
    model, params, x, _ = build(16, 24, **options)
    half, *_ = build(16, 24, **options, dtype=jnp.bfloat16)
    out = jax.jit(lambda: half.bind(params, {})(x))()
    assert out.dtype == jnp.bfloat16
    full = jax.jit(lambda: model.bind(params, {})(x))()
    difference = np.asarray(out, np.float32) - np.asarray(full)
    assert np.abs(difference).max() < 2**-4


def test_attention_maps_are_probabilities_that_move_with_the_input():
    model, params, x, _ = build()
    maps = jax.jit(lambda: model.bind(params, {}).attention_maps(x))()
    assert maps.shape == (2, 2, 5, 4, 5, 4)
    np.testing.assert_allclose(maps.sum((-2, -1)), 1.0, rtol=1e-5)
    assert maps.std() > 1e-3


@pytest.mark.parametrize(
    ("channels", "size", "count"),
    [(128, 14, 181_368), (256, 14, 624_248), (512, 7, 2_329_352)],
)
def test_parameter_count_of_the_layers_of_the_published_resnet_50(channels, size, count):
    """9 F (F - dv) + F (2 dk + dv) + dv^2 + (2 (H + W) - 2) dk / 8; dk 160, dv floored."""
    key_depth, value_depth = augmented_depths(channels, 0.2, 0.1, 8)
    layer = AugmentedConv(
        channels,
        channels,
        3,
        num_heads=8,
        key_depth=key_depth,
        value_depth=value_depth,
        size=size,
    )
    assert abstract(layer).param_count == count


@pytest.mark.parametrize(
    ("arguments", "depths"),
    [
        ((128, 0.2, 0.1, 8), (160, 8)),  # 25.6 -> 160 by the minimum; 12.8 -> 8
        ((256, 0.2, 0.1, 8), (160, 24)),
        ((512, 0.2, 0.1, 8), (160, 48)),
        ((256, 0.75, 0.75, 8), (192, 192)),
        ((512, 1.0, 1.0, 8), (512, 512)),
        ((480, 0.1, 0.05, 4, 0), (48, 24)),  # the expansions of the mobile network
        ((672, 0.1, 0.05, 4, 0), (64, 32)),
        ((960, 0.1, 0.05, 4, 0), (96, 48)),
    ],
)
def test_depths_of_the_published_models(arguments, depths):
    assert augmented_depths(*arguments) == depths


@pytest.mark.parametrize(
    "arguments", [(16, 0.2, 0.1, 8), (64, 0.01, 0.5, 8, 0), (64, 0.2, 1.2, 8), (64, 1, 1, 0)]
)
def test_depths_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError, match="heads"):
        augmented_depths(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 4}, "num_heads=4 does not divide key_depth=6"),
        ({"value_depth": 3}, "does not divide value_depth=3"),
        ({"value_depth": 10}, "more than its out_channels=7"),
        ({"position": "relativ"}, "Did you mean 'relative'"),
        ({"stride": 3}, "stride=3"),
        ({"kernel_size": 4}, "kernel_size=4"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        AugmentedConv(5, 7, **{**BASE, **options})


def test_a_map_of_another_size_is_refused_with_both_sizes():
    model, params, x, _ = build(size=(5, 4))
    with pytest.raises(ConfigError, match=r"5 x 4 x 5 .* got 4 x 4 x 5"):
        model.bind(params, {})(x[:, :4])
