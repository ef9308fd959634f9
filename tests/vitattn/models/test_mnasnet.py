"""MnasNet-A1: counts derived by hand, where attention stands, dropout, one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn.layers.augmented import AugmentedConv
from vitattn.models import build
from vitattn.models.mnasnet import MnasNetConfig

AUGMENTED = {"kind": "augmented"}
TINY = {
    "name": "mnasnet",
    "width": 0.25,
    "blocks": (1, 1, 1, 2, 1, 2, 1),
    "image_size": 5,
    "stem": "small_image",
    "num_classes": 4,
    "dropout": 0.5,
}


# Expansion e of C, depthwise k x k, gate of hidden channels, projection to F; normalisations of
# two parameters a channel: e C + 2 e C (none for e = 1), k^2 e C + 2 e C, 2 e C h + h + e C, e C F
# + 2 F.
def inverted(channels, expansion, kernel, out, hidden=0):
    wide = expansion * channels
    count = wide * kernel**2 + 2 * wide + wide * out + 2 * out
    if expansion > 1:
        count += channels * wide + 2 * wide
    return count + (2 * wide * hidden + hidden + wide if hidden else 0)


def test_parameters_of_width_1():
    derived = (
        27 * 32
        + 64
        + inverted(32, 1, 3, 16)
        + inverted(16, 6, 3, 24)
        + inverted(24, 6, 3, 24)
        + inverted(24, 3, 5, 40, 6)
        + 2 * inverted(40, 3, 5, 40, 10)
        + inverted(40, 6, 3, 80)
        + 3 * inverted(80, 6, 3, 80)
        + inverted(80, 6, 3, 112, 20)
        + inverted(112, 6, 3, 112, 28)
        + inverted(112, 6, 5, 160, 28)
        + 2 * inverted(160, 6, 5, 160, 40)
        + inverted(160, 6, 3, 320)
        + 320 * 1280
        + 2 * 1280
        + 1280 * 1000
        + 1000
    )
    assert derived == 3_887_038
    assert nn.abstract(build({"name": "mnasnet"})).param_count == derived


def test_attention_stands_where_expansions_run_at_14_and_7_pixels():
    model = build({"name": "mnasnet", "attention": AUGMENTED})
    found = []
    for row in range(1, 8):
        for block in getattr(model, f"blocks{row}"):
            layer = getattr(block, "expand", None)
            if isinstance(layer, AugmentedConv):
                depths = layer.key_depth, layer.value_depth
                found.append((layer.out_channels, layer.attention_size, *depths))
    assert found == (
        [(480, (14, 14), 48, 24)] * 4 + [(672, (14, 14), 64, 32)] * 2 + [(960, (7, 7), 96, 48)] * 3
    )


def test_widths_are_multiples_of_8_and_never_much_smaller():
    config = MnasNetConfig(width=0.75)
    assert [config.channels(base) for base in (16, 24, 40, 80, 112)] == [16, 24, 32, 64, 88]
    # 18 rounds to 16, which is 11 % less: so it becomes 24.
    assert config.channels(24) == 24


def ready(**options):
    spec = nn.abstract(build(TINY | options))
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32)
        for name, s in spec.params.items()
    }
    state = {name: jnp.ones(s.shape) for name, s in spec.model_state.items()}
    return spec, params, state, jax.random.normal(jax.random.key(0), (4, 5, 5, 3))


@pytest.mark.thorough
def test_every_weight_learns_and_dropout_follows_its_key():
    spec, params, state, images = ready(attention=AUGMENTED | {"kappa": 0.25, "upsilon": 0.25})

    @jax.jit
    def step(params, key):
        def loss(params):
            model = spec.bind(params, state)
            logits = model(images, train=True, key=key)
            return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), nn.observed(model)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, seen), gradients = step(params, jax.random.key(1))
    moved, _ = statistics.follow(state, statistics.fresh(state), seen)
    still = [name for name, g in gradients.items() if not np.any(np.abs(g) > 0)]
    # Relative tables of maps of one pixel act on one logit a query: the softmax does not see them.
    assert all(".rel_" in name for name in still)
    assert [name for name in state if np.array_equal(state[name], moved[name])] == []
    (again, _), _ = step(params, jax.random.key(1))
    (other, _), _ = step(params, jax.random.key(2))
    assert value == again
    assert value != other


def test_dropout_needs_a_key_in_training_only():
    spec, params, state, images = ready()
    with pytest.raises(ValueError, match="key"):
        jax.eval_shape(lambda: spec.bind(params, state)(images, train=True))
    assert jax.eval_shape(lambda: spec.bind(params, state)(images, train=False)).shape == (4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 1.0}, "model.dropout"),
        ({"width": 0.0}, "model.width"),
        ({"blocks": (1, 2, 3)}, "list of 0 or 7 entries, each a whole number from 1"),
        ({"blocks": (1, 2, 3, 4, 2, 3, 0)}, "list of 0 or 7 entries, each a whole number from 1"),
        ({"stem": "small"}, "Did you mean 'small_image'"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "mnasnet", **change})
