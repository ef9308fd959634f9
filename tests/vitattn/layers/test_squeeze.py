"""Gates against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from vitattn.layers.squeeze import make_gate

CHANNELS, RATIO = 8, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ready(kind, dtype="float32"):
    spec = nn.abstract(make_gate(kind, CHANNELS, ratio=RATIO, dtype=dtype))
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=s.shape), jnp.float32) for name, s in spec.params.items()
    }
    state = {
        name: jnp.asarray(rng.uniform(0.5, 1.5, size=s.shape), jnp.float32)
        for name, s in spec.model_state.items()
    }
    x = rng.normal(size=(2, 5, 4, CHANNELS)).astype(np.float32)
    return spec, params, state, x


def mlp(params, x):
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    hidden = np.maximum(x @ weights["excite.down"] + weights["excite.down_bias"], 0)
    return hidden @ weights["excite.up"] + weights["excite.up_bias"]


def test_squeeze_and_excitation():
    spec, params, state, x = ready("se")
    assert {name: s.shape for name, s in spec.params.items()} == {
        "excite.down": (8, 2),
        "excite.down_bias": (2,),
        "excite.up": (2, 8),
        "excite.up_bias": (8,),
    }
    expected = x * sigmoid(mlp(params, x.mean((1, 2))))[:, None, None]
    y = spec.bind(params, state)(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_gather_excite_has_no_parameters():
    spec, params, state, x = ready("gather_excite")
    assert params == {}
    y = spec.bind(params, state)(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, x * sigmoid(x.mean((1, 2), keepdims=True)), atol=1e-5)


def test_cbam_gates_channels_then_pixels():
    spec, params, state, x = ready("cbam")
    gate = sigmoid(mlp(params, x.mean((1, 2))) + mlp(params, x.max((1, 2))))
    x2 = x * gate[:, None, None]
    places = np.stack([x2.mean(-1), x2.max(-1)], -1)
    padded = np.pad(places, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(params["spatial.kernel"], np.float64)
    mixed = np.zeros(x.shape[:3])
    for i in range(5):
        for j in range(4):
            window = padded[:, i : i + 7, j : j + 7]
            mixed[:, i, j] = np.einsum("bacd,acd->b", window, kernel[..., 0])
    mean, var = np.asarray(state["norm.mean"]), np.asarray(state["norm.var"])
    normal = (mixed[..., None] - mean) / np.sqrt(var + 1e-5)
    normal = normal * np.asarray(params["norm.scale"]) + np.asarray(params["norm.bias"])
    y = jax.jit(lambda x: spec.bind(params, state)(x, train=False))(x)
    np.testing.assert_allclose(y, x2 * sigmoid(normal), atol=1e-5)


def test_gala_mixes_channels_and_pixels():
    spec, params, state, x = ready("gala")
    assert {name: s.shape for name, s in spec.params.items() if "excite" not in name} == {
        "shrink.kernel": (1, 1, 8, 2),
        "shrink.bias": (2,),
        "collapse.kernel": (1, 1, 2, 1),
        "sum_weight": (8,),
        "product_weight": (8,),
    }
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    channel = mlp(params, x.mean((1, 2)))[:, None, None]
    hidden = np.maximum(x @ weights["shrink.kernel"][0, 0] + weights["shrink.bias"], 0)
    pixel = hidden @ weights["collapse.kernel"][0, 0]
    mixed = weights["sum_weight"] * (channel + pixel)
    mixed += weights["product_weight"] * channel * pixel
    y = spec.bind(params, state)(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, x * np.tanh(mixed), atol=1e-5)


def test_bam_adds_what_it_gates():
    """Taps of the 3x3 convolutions lie 4 pixels apart, so that a map of 5 x 4 sees few of them."""
    spec, params, state, x = ready("bam")
    p = {name: np.asarray(value, np.float64) for name, value in {**params, **state}.items()}

    def normal(y, name):
        y = (y - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5)
        return y * p[f"{name}.scale"] + p[f"{name}.bias"]

    def dilated(y, kernel):
        padded = np.pad(y, ((0, 0), (4, 4), (4, 4), (0, 0)))
        taps = [
            padded[:, 4 * i : 4 * i + 5, 4 * j : 4 * j + 4] @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return sum(taps)

    y = np.maximum(normal(x @ p["reduce.kernel"][0, 0], "norm1"), 0)
    y = np.maximum(normal(dilated(y, p["dilated1.kernel"]), "norm2"), 0)
    y = np.maximum(normal(dilated(y, p["dilated2.kernel"]), "norm3"), 0)
    pixel = normal(y @ p["collapse.kernel"][0, 0], "pixel_norm")
    channel = normal(mlp(params, x.mean((1, 2))), "channel_norm")[:, None, None]
    got = jax.jit(lambda x: spec.bind(params, state)(x, train=False))(x)
    np.testing.assert_allclose(got, x * (1 + sigmoid(channel + pixel)), atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["se", "bam", "cbam", "gala", "gather_excite"])
def test_gates_keep_the_compute_type_and_pass_gradients(kind):
    spec, params, state, x = ready(kind, "bfloat16")
    x = jnp.asarray(x, jnp.bfloat16)
    if "excite.down_bias" in params:
        params["excite.down_bias"] = jnp.full(2, 5.0)  # above the kink of the ReLU for every image

    def total(params, x):
        y = spec.bind(params, state)(x, train=True)
        assert y.dtype == jnp.bfloat16
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    gradients, dx = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
    assert np.all(np.isfinite(dx.astype(jnp.float32)))
    assert [name for name, g in gradients.items() if not np.any(g != 0)] == []


def test_unknown_gates_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'cbam'"):
        make_gate("cbamm", 8)
