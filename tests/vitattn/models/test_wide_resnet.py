"""Wide residual networks: counts derived by hand, shortcuts without parameters, one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn.layers.augmented import AugmentedConv
from vitattn.models import build
from vitattn.models.counts import params_by_part
from vitattn.models.wide_resnet import widen

TINY = {"name": "wide_resnet", "depth": 10, "widening": 1, "image_size": 10, "num_classes": 4}
AUGMENTED = {"kind": "augmented", "num_heads": 2, "upsilon": 0.25, "min_key_depth": 2}


# A group of n blocks from C' to C: first convolution 9 C' C, all others 9 C^2; a normalisation of
# 2 C' before the first, of 2 C before every other.
def group(in_channels, channels, blocks=4):
    kernels = 9 * in_channels * channels + (2 * blocks - 1) * 9 * channels**2
    return kernels + 2 * in_channels + (2 * blocks - 1) * 2 * channels


def test_wrn_28_10_parameters_by_part():
    parts = params_by_part(nn.abstract(build({"name": "wide_resnet"})))
    assert parts == {
        "stem": 9 * 3 * 16,
        "conv2_x": group(16, 160),
        "conv3_x": group(160, 320),
        "conv4_x": group(320, 640),
        "norm": 2 * 640,
        "head": 640 * 100 + 100,
    }
    assert sum(parts.values()) == 36_278_324


# First convolution of a block from C' to C with dk 160, dv and n x n pixels, against 9 C' C:
def augmentation(in_channels, value_depth, size):
    attention = in_channels * (2 * 160 + value_depth) + value_depth**2
    return attention + (4 * size - 2) * 20 - 9 * in_channels * value_depth


def test_aa_wrn_28_10_parameters_and_places():
    model = build({"name": "wide_resnet", "attention": {"kind": "augmented"}})
    change = (
        augmentation(16, 16, 32)
        + 3 * augmentation(160, 16, 32)
        + augmentation(160, 32, 16)
        + 3 * augmentation(320, 32, 16)
        + augmentation(320, 64, 8)
        + 3 * augmentation(640, 64, 8)
    )
    assert nn.abstract(model).param_count == 36_278_324 + change == 36_054_100
    for stage, size, value_depth in ((2, 32, 16), (3, 16, 32), (4, 8, 64)):
        for block in getattr(model, f"conv{stage}_x"):
            assert isinstance(block.conv1, AugmentedConv)
            assert not isinstance(block.conv2, AugmentedConv)
            assert block.conv1.attention_size == (size, size)
            assert (block.conv1.key_depth, block.conv1.value_depth) == (160, value_depth)


def test_shortcut_averages_pixels_and_adds_zeros():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    y = widen(jnp.asarray(x), 8, 2)
    means = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(y[..., 2:5], means, atol=1e-6)
    assert not np.any(y[..., :2])
    assert not np.any(y[..., 5:])


def test_shortcut_of_an_odd_map_averages_the_pixels_that_exist():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_allclose(widen(x, 1, 2)[0, ..., 0], [[2, 3.5], [6.5, 8]])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"gate": "se", "gate_ratio": 2}, marks=pytest.mark.thorough),
        {"attention": AUGMENTED},
    ],
)
def test_every_weight_learns_and_statistics_move(options):
    spec = nn.abstract(build(TINY | options))
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=s.shape) * 0.3, jnp.float32)
        for name, s in spec.params.items()
    }
    state = {name: jnp.ones(s.shape) for name, s in spec.model_state.items()}
    images = jax.random.normal(jax.random.key(0), (4, 10, 10, 3))

    def loss(params):
        model = spec.bind(params, state)
        logits = model(images, train=True)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), nn.observed(model)

    gradients, seen = jax.jit(jax.grad(loss, has_aux=True))(params)
    moved, _ = statistics.follow(state, statistics.fresh(state), seen)
    assert [name for name, g in gradients.items() if not np.any(np.abs(g) > 0)] == []
    assert [name for name in state if np.array_equal(state[name], moved[name])] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 27}, "Nearest: 28"),
        ({"widening": 0}, "model.widening"),
        ({"gate": "sse"}, "Did you mean 'se'"),
        ({"attention": {"kind": "augmented", "stages": (5,)}}, "model.attention.stages"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "wide_resnet", **change})
