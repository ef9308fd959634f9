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


@pytest.mark.parametrize("kind", ["se", "cbam", "gather_excite"])
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
