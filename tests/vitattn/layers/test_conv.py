"""Convolutions against a direct sum in NumPy, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.model.flops import flops
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.kernels import use_kernels
from vitattn.layers import conv
from vitattn.layers.conv import Classifier, Conv, convolve
from vitattn.layers.norm import batch_normalise


def reference(x, kernel, stride):
    """y[b, i, j] = sum over taps of x[b, i s + a - p, j s + c - p] kernel[a, c], in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, groups = kernel.shape[0], x.shape[-1] // kernel.shape[2]
    side = (size - 1) // 2
    rows, cols = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    y = np.zeros((x.shape[0], rows, cols, kernel.shape[-1]))
    for i in range(rows):
        for j in range(cols):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            if groups == 1:
                y[:, i, j] = np.einsum("bacd,acdf->bf", window, kernel)
            else:
                y[:, i, j] = np.einsum("bacf,acf->bf", window, kernel[:, :, 0])
    return y


def random(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


CASES = [  # height, width, kernel size, stride
    (6, 5, 3, 1),
    (6, 5, 3, 2),
    (7, 7, 3, 2),
    (9, 8, 7, 2),
    (5, 6, 1, 1),
    (5, 6, 1, 2),
    (9, 9, 5, 1),
    # Maps smaller than the kernel, which take another path:
    (1, 1, 3, 1),
    (2, 2, 3, 1),
    (2, 2, 3, 2),
    (2, 5, 3, 2),
    (4, 4, 3, 2),
    (1, 4, 5, 1),
    (3, 4, 7, 2),
]


def forward_and_back(x, kernel, stride, g, platform):
    """y, dx and dw as the program of a platform computes them."""

    @jax.jit
    def run(x, kernel, g):
        y, pull = jax.vjp(lambda x, w: convolve(x, w, stride), x, kernel)
        return y, *pull(g)

    with lowered_for(platform):
        return run(x, kernel, g)


@pytest.mark.sample(15)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("height", "width", "size", "stride"), CASES)
def test_values_and_gradients_equal_the_direct_sum(height, width, size, stride, platform):
    x, kernel = random(0, 2, height, width, 3), random(1, size, size, 3, 4)
    expected = reference(x, kernel, stride)
    g = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)

    y, dx, dw = forward_and_back(x, kernel, stride, g, platform)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # The layer is bilinear, so its gradients are the coefficients of the reference.
    rng = np.random.default_rng(0)
    for _ in range(3):
        tx, tw = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        np.testing.assert_allclose(
            np.sum(dx * tx), np.sum(g * reference(tx, kernel, stride)), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            np.sum(dw * tw), np.sum(g * reference(x, tw, stride)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.thorough
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("size", "stride", "height"), [(3, 1, 6), (3, 2, 7), (5, 2, 6), (5, 1, 3)])
def test_depthwise_equals_the_direct_sum(size, stride, height, platform):
    x, kernel = random(0, 2, height, 5, 4), random(1, size, size, 1, 4)
    expected = reference(x, kernel, stride)
    g = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)
    y, dx, dw = forward_and_back(x, kernel, stride, g, platform)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    rng = np.random.default_rng(0)
    tx, tw = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    along = [np.sum(g * reference(tx, kernel, stride)), np.sum(g * reference(x, tw, stride))]
    np.testing.assert_allclose([np.sum(dx * tx), np.sum(dw * tw)], along, rtol=1e-4, atol=1e-4)


# Shapes that a program on CPU convolves by another form than XLA's, forward or backward:
# batch, height, width, C, F, kernel size, stride, and which of (fewer, products) it is.
FORMS = [
    (8, 8, 8, 128, 128, 3, 1, (True, False)),
    (8, 7, 9, 136, 120, 3, 1, (True, False)),
    (32, 4, 3, 160, 200, 3, 1, (True, True)),
    (1, 4, 4, 64, 80, 3, 1, (False, True)),
    (2, 8, 8, 32, 40, 3, 2, (False, True)),
    (1, 5, 6, 24, 40, 3, 2, (False, True)),
    (2, 7, 9, 24, 40, 5, 2, (False, True)),
    (1, 11, 5, 16, 40, 5, 3, (False, True)),
    (1, 9, 9, 16, 40, 3, 4, (False, True)),
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms_of_the_cpu_equal_xla_s_convolution(case):
    """And are within 2e-6 of the largest of a sum in float64, gradients of kernels within 1e-5."""
    batch, height, width, channels, features, size, stride, (fewer, products) = case
    x, kernel = random(0, batch, height, width, channels), random(1, size, size, channels, features)
    with jax.enable_x64(True):
        wide = x.astype(jnp.float64), kernel.astype(jnp.float64)
        y, pull = jax.vjp(lambda x, w: conv._xla_convolution(x, w, stride), *wide)
        g = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
        expected = [np.asarray(part) for part in (y, *pull(jnp.asarray(g, jnp.float64)))]
    assert conv._by_fewer(x, kernel, stride) == fewer
    assert conv._by_products(jnp.asarray(g), kernel, stride) == products
    said = forward_and_back(x, kernel, stride, g, "cpu")
    for part, there, most in zip(said, expected, (2e-6, 2e-6, 1e-5), strict=True):
        assert part.dtype == jnp.float32
        np.testing.assert_allclose(part, there, rtol=0, atol=most * np.abs(there).max())


def test_forms_of_the_cpu_stay_on_the_cpu():
    """bfloat16, other platforms and `plain` have XLA's; FLOPs are counted as papers do."""
    x, kernel = jax.ShapeDtypeStruct((8, 8, 8, 128), jnp.float32), random(0, 3, 3, 128, 128)

    def operations(dtype, platform):
        with lowered_for(platform):
            args = [jax.ShapeDtypeStruct(a.shape, dtype) for a in (x, kernel)]
            program = jax.jit(lambda x, w: convolve(x, w)).lower(*args).as_text()
        return program.count("stablehlo.convolution"), program.count("stablehlo.dot_general")

    assert operations(jnp.float32, "cpu") == (0, 1)
    assert operations(jnp.bfloat16, "cpu") == (1, 0)
    assert operations(jnp.float32, "tpu") == (1, 0)
    with use_kernels("plain"):
        assert operations(jnp.float32, "cpu") == (1, 0)
    assert flops(convolve, x, kernel) == 2 * 8 * 8 * 8 * 9 * 128 * 128


@pytest.mark.parametrize("stride", [1, 2])
def test_a_program_for_any_batch_has_the_form_of_one_map(stride):
    (batch,) = jax.export.symbolic_shape("batch")
    x, kernel = jax.ShapeDtypeStruct((batch, 19, 19, 128), jnp.float32), random(0, 3, 3, 128, 128)
    made = jax.export.export(jax.jit(lambda x: convolve(x, kernel, stride)), platforms=["cpu"])(x)
    maps = random(1, 2, 19, 19, 128)
    expected = conv._xla_convolution(maps, kernel, stride)
    np.testing.assert_allclose(made.call(maps), expected, rtol=0, atol=2e-4)


def test_a_kernel_is_not_transposed_for_a_small_map():
    """The gradient of 4 x 4 maps of 512 channels is one product, and one addition of its taps."""
    shapes = (8, 4, 4, 512), (3, 3, 512, 512), (8, 4, 4, 512)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def pull(x, w, g):
        return jax.vjp(lambda x: convolve(x, w), x)[1](g)

    program = jax.jit(pull).lower(*args).compile().as_text() or ""
    assert "ynn_fusion" in program or " dot(" in program
    assert "convolution(" not in program
    assert not re.search(r"f32\[3,3,512,512\][^\n]* (copy|transpose)\(", program)


def test_small_maps_have_no_convolution_in_the_program():
    def operations(height):
        shapes = jax.ShapeDtypeStruct((2, height, height, 3), jnp.float32), random(0, 3, 3, 3, 4)
        return str(jax.make_jaxpr(convolve)(*shapes))

    assert "conv_general_dilated" in operations(3)
    assert "conv_general_dilated" not in operations(2)


def test_layer_declares_computes_in_its_type_and_keeps_weights_in_float32():
    spec = nn.abstract(Conv(3, 8, 3, 2, bias_init=jax.nn.initializers.ones, dtype="bfloat16"))
    assert {name: s.shape for name, s in spec.params.items()} == {
        "kernel": (3, 3, 3, 8),
        "bias": (8,),
    }
    params = nn.initialise(spec.params, jax.random.key(0))
    assert {p.dtype for p in params.values()} == {jnp.dtype("float32")}
    x = random(3, 2, 8, 8, 3)
    y = spec.bind(params, {})(x)
    assert y.dtype == jnp.bfloat16
    assert y.shape == (2, 4, 4, 8)
    expected = reference(x, params["kernel"], 2) + 1
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.05, atol=0.05)


def test_a_bias_that_a_normalisation_takes_away_has_no_gradient():
    """The values and all other gradients are as without the shortcut."""
    spec = nn.abstract(Conv(3, 4, 3, bias_init=jax.nn.initializers.normal(1.0)))
    params = nn.initialise(spec.params, jax.random.key(0))
    x, g = random(1, 2, 5, 6, 3), random(2, 2, 5, 6, 4)

    def run(params, x, centred):
        y = spec.bind(params, {})(x, centred=centred)
        return jnp.sum(g * batch_normalise(y, jnp.full(4, 1.5), jnp.ones(4), 1e-5)[0])

    plain, short = (
        jax.value_and_grad(run, (0, 1))(params, x, centred) for centred in (False, True)
    )
    assert float(plain[0]) == float(short[0])
    np.testing.assert_allclose(plain[1][0]["bias"], 0, atol=1e-4)
    assert not short[1][0]["bias"].any()
    np.testing.assert_allclose(plain[1][0]["kernel"], short[1][0]["kernel"], atol=1e-5)
    np.testing.assert_allclose(plain[1][1], short[1][1], atol=1e-5)


def test_he_normal_keeps_the_variance_of_gradients():
    # Fan-out of a 3x3 convolution to 64 channels is 576, of a depthwise 3x3 it is 9.
    kernel = nn.initialise(nn.abstract(Conv(128, 64, 3)).params, jax.random.key(0))["kernel"]
    assert np.std(kernel) == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    depthwise = Conv(2048, 2048, 3, depthwise=True)
    kernel = nn.initialise(nn.abstract(depthwise).params, jax.random.key(0))["kernel"]
    assert np.std(kernel) == pytest.approx((2 / 9) ** 0.5, rel=0.02)


def test_impossible_layers_are_refused():
    with pytest.raises(ConfigError, match="odd"):
        Conv(3, 8, 2)
    with pytest.raises(ConfigError, match="depthwise"):
        Conv(3, 8, 3, depthwise=True)


def test_classifier_is_affine_in_float32():
    spec = nn.abstract(Classifier(5, 3))
    params = nn.initialise(spec.params, jax.random.key(0))
    params["bias"] = jnp.arange(3.0)
    x = random(1, 4, 5).astype(jnp.bfloat16)
    logits = spec.bind(params, {})(x)
    assert logits.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(params["kernel"]) + np.arange(3)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
