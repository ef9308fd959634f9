"""Residual networks with windows, halos, attention stems and gates: places, shapes, one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model import weights as nn
from vitattn.layers.conv import Conv
from vitattn.layers.local import HaloAttention, LocalAttention
from vitattn.models import build

TINY = {
    "name": "resnet",
    "depth": 26,
    "blocks": (1, 1, 1, 1),
    "width": 0.125,
    "num_classes": 3,
    "image_size": 8,
    "stem": "small_image",
}
LOCAL = {"kind": "local", "num_heads": 2, "window": 3}
HALO = {"kind": "halo", "num_heads": 2, "block": 2, "halo": 1}


def ready(config, size=8):
    spec = nn.abstract(build(config))
    rng, arrays = np.random.default_rng(0), []
    for specs in (spec.params, spec.model_state):
        filled = {}
        for name, s in specs.items():
            values = rng.normal(size=s.shape) / np.prod(s.shape[:-1]) ** 0.5
            if name.endswith(("scale", "var")):
                values = np.ones(s.shape)
            filled[name] = jnp.asarray(values, jnp.float32)
        arrays.append(filled)
    images = jnp.asarray(rng.normal(size=(2, size, size, 3)), jnp.float32)
    return spec, *arrays, images


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"attention": LOCAL}, marks=pytest.mark.thorough),
        {"attention": HALO | {"stages": (3, 4)}, "gate": "se", "gate_ratio": 4},
        pytest.param(
            {
                "attention": LOCAL | {"position_only": True, "stages": (4,)},
                "gate": "cbam",
                "gate_ratio": 4,
            },
            marks=pytest.mark.slow,
        ),
        {"stem": "attention", "stem_relative": True, "width": 0.25},
    ],
    ids=["local", "halo-se", "position-only-cbam", "attention-stem"],
)
def test_every_weight_learns(options):
    config = TINY | options
    size = 32 if options.get("stem") else 8
    spec, params, state, images = ready(config, size)

    def loss(params):
        logits = spec.bind(params, state)(images, train=True)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.all(np.isfinite(g)) for g in gradients.values())
    still = [name for name, g in gradients.items() if not np.any(np.abs(g) > 0)]
    # ReLUs inside a gate may be off for both images; nothing else may be without a gradient.
    assert [name for name in still if ".excite." not in name] == []


def spatial(model, stage):
    return [block.conv2 for block in getattr(model, f"conv{stage}_x")]


def test_stages_are_chosen_and_the_first_block_attends_before_its_stride():
    model = build({"name": "resnet", "attention": {"kind": "local", "stages": (4, 5)}})
    kinds = {stage: {type(layer) for layer in spatial(model, stage)} for stage in (2, 3, 4, 5)}
    assert kinds == {2: {Conv}, 3: {Conv}, 4: {LocalAttention}, 5: {LocalAttention}}
    assert [layer.stride for layer in spatial(model, 4)] == [2, 1, 1, 1, 1, 1]


def test_basic_blocks_have_both_convolutions_replaced():
    model = build({"name": "resnet", "depth": 34, "attention": {"kind": "local"}})
    for block in model.conv3_x:
        assert isinstance(block.conv1, LocalAttention)
        assert isinstance(block.conv2, LocalAttention)
        assert block.conv2.stride == 1


def test_a_network_can_attend_in_blocks_with_a_halo():
    config = {"name": "resnet", "attention": {"kind": "halo", "block": 4, "halo": 2}}
    layer = spatial(build(config), 3)[0]
    assert isinstance(layer, HaloAttention)
    assert (layer.block, layer.halo) == (4, 2)


@pytest.mark.parametrize("stem", ["attention", "attention_plain", "attention_conv"])
def test_attention_stems_give_a_quarter_of_the_image(stem):
    spec, params, state, images = ready(TINY | {"stem": stem, "width": 0.25}, 32)
    stage = jax.eval_shape(lambda: spec.bind(params, state).features(images, train=False)[0])
    assert stage.shape == (2, 8, 8, 64)
