"""Residual networks: parameters as derived by hand, places of attention, one step of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn.layers.augmented import AugmentedConv
from vitattn.layers.conv import Conv
from vitattn.layers.norm import ZEROS
from vitattn.models import build
from vitattn.models.counts import forward_flops, params_by_part

TINY = {
    "name": "resnet",
    "depth": 26,
    "blocks": (1, 2, 1, 1),
    "width": 0.125,
    "num_classes": 5,
    "image_size": 12,
    "stem": "small_image",
}
TINY_AUGMENTED = TINY | {
    "attention": {"kind": "augmented", "num_heads": 2, "upsilon": 0.5, "min_key_depth": 2}
}


def count(**config):
    return nn.abstract(build({"name": "resnet", **config})).param_count


def augmented(**attention):
    return {"kind": "augmented", **attention}


def filled(specs):
    """Arrays for specs, made without a compilation for each shape."""
    rng, arrays = np.random.default_rng(0), {}
    for name, spec in specs.items():
        values = rng.normal(size=spec.shape) / np.prod(spec.shape[:-1]) ** 0.5
        if len(spec.shape) == 1:
            values = np.full(spec.shape, float(name.endswith(("scale", "var"))))
        arrays[name] = jnp.asarray(values, jnp.float32)
    return arrays


def ready(config):
    """A model, its arrays and a batch of 4 images."""
    spec = nn.abstract(build(config))
    images = jax.random.normal(jax.random.key(2), (4, 12, 12, 3))
    return spec, filled(spec.params), filled(spec.model_state), images


# A bottleneck C' -> C -> C -> 4C has C'C + 9CC + 4CC weights and 2(C + C + 4C) normalisation
# parameters; the first of a stage also has a shortcut of 4C'C + 8C. With the convolution of the
# stem, 7 x 7 x 3 x 64, and the classifier, 2048 x 1000 + 1000, this is all there is.
def bottleneck_stage(in_channels, width, blocks):
    def block(inner):
        return inner * width + 13 * width**2 + 12 * width

    first = block(in_channels) + 4 * in_channels * width + 8 * width
    return first + (blocks - 1) * block(4 * width)


def test_resnet_50_parameters_by_part():
    parts = params_by_part(nn.abstract(build({"name": "resnet"})))
    assert parts == {
        "stem": 7 * 7 * 3 * 64 + 2 * 64,
        "conv2_x": bottleneck_stage(64, 64, 3),
        "conv3_x": bottleneck_stage(256, 128, 4),
        "conv4_x": bottleneck_stage(512, 256, 6),
        "conv5_x": bottleneck_stage(1024, 512, 3),
        "head": 2048 * 1000 + 1000,
    }
    assert sum(parts.values()) == 25_557_032


# What augmentation changes in one block, 3x3 from C to C, dk and dv over 8 heads, map n x n:
#   - 9 C dv (filters of the convolution) + C (2 dk + dv) (queries, keys, values) + dv^2 (output)
#   + (4n - 2) dk / 8 (two relative tables, shared by the heads).
# The first block of conv4_x and conv5_x has its 3x3 from C to C too: the 1x1 before it has changed
# the width.
def augmentation(width, key_depth, value_depth, size):
    attention = width * (2 * key_depth + value_depth) + value_depth**2
    return attention + (4 * size - 2) * key_depth // 8 - 9 * width * value_depth


def test_aa_resnet_50_parameters_by_part():
    parts = params_by_part(nn.abstract(build({"name": "resnet", "attention": augmented()})))
    base = params_by_part(nn.abstract(build({"name": "resnet"})))
    change = {part: parts[part] - base[part] for part in parts}
    assert change == {
        "stem": 0,
        "conv2_x": 0,
        "conv3_x": 4 * augmentation(128, 160, 8, 14),
        "conv4_x": 6 * augmentation(256, 160, 24, 14),
        "conv5_x": 3 * augmentation(512, 160, 48, 7),
        "head": 0,
    }
    assert sum(parts.values()) == 25_809_392


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (26, 13_696_552),
        (34, 21_797_672),
        (38, 19_626_792),
        (101, 44_549_160),
        (152, 60_192_808),
    ],
)
def test_base_counts(depth, expected):
    assert count(depth=depth) == expected


@pytest.mark.parametrize(("depth", "expected"), [(101, 45_386_728), (152, 61_613_536)])
def test_augmented_counts(depth, expected):
    assert count(depth=depth, attention=augmented()) == expected


def test_augmented_resnet_34_count():
    assert count(depth=34, attention=augmented(kappa=0.25, upsilon=0.25)) == 20_745_072


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.25, 24_303_728), (0.5, 22_342_680), (0.75, 20_735_496), (1.0, 19_383_560)],
)
def test_attention_fraction_counts(fraction, expected):
    assert count(attention=augmented(kappa=fraction, upsilon=fraction)) == expected


def augmented_layers(model, stage):
    return [block.conv2 for block in getattr(model, f"conv{stage}_x")]


def test_attention_stands_where_the_paper_has_it():
    model = build({"name": "resnet", "attention": augmented()})
    assert all(isinstance(layer, Conv) for layer in augmented_layers(model, 2))
    expected = {  # stage -> blocks, convolution at, attention at, dk, dv
        3: (4, (28, 28), (14, 14), 160, 8),
        4: (6, (14, 14), (14, 14), 160, 24),
        5: (3, (7, 7), (7, 7), 160, 48),
    }
    for stage, (blocks, at, attends_at, key_depth, value_depth) in expected.items():
        layers = augmented_layers(model, stage)
        assert len(layers) == blocks
        assert [layer.stride for layer in layers] == [2] + [1] * (blocks - 1)
        for layer in layers:
            assert isinstance(layer, AugmentedConv)
            assert layer.size == at
            assert layer.attention_size == attends_at
            assert (layer.key_depth, layer.value_depth) == (key_depth, value_depth)


def test_downsampling_is_switched_off_by_configuration():
    small = {"name": "resnet", "stem": "small_image", "image_size": (32, 24)}
    model = build(small | {"attention": augmented(downsample=())})
    assert augmented_layers(model, 3)[0].attention_size == (16, 12)
    model = build(small | {"attention": augmented()})
    assert augmented_layers(model, 3)[0].attention_size == (8, 6)


def test_attention_of_all_channels_leaves_no_convolution():
    model = build({"name": "resnet", "attention": augmented(kappa=1.0, upsilon=1.0)})
    names = [name for name in nn.abstract(model).params if ".conv2." in name]
    assert {name.rsplit("conv2.", 1)[1] for name in names if not name.startswith("conv2_x")} == {
        *("qkv", "out", "rel_h", "rel_w")
    }


# Multiply-adds of a stage at n x n: the first 1x1 still runs at the input's size (v1.5), all else
# at n x n.
def stage_macs(in_channels, width, blocks, size, stride):
    first = in_channels * width * (size * stride) ** 2
    rest = (13 + 17 * (blocks - 1)) * width**2 + 4 * in_channels * width
    return first + rest * size**2


def resnet_50_macs():
    stages = (
        stage_macs(64, 64, 3, 56, 1)
        + stage_macs(256, 128, 4, 28, 2)
        + stage_macs(512, 256, 6, 14, 2)
        + stage_macs(1024, 512, 3, 7, 2)
    )
    return 7 * 7 * 3 * 64 * 112**2 + stages + 2048 * 1000


# Of one block, attention on n x n pixels: projections, then for each pair of pixels the products
# with keys and with values; two relative terms for each pixel and row or column; and the filters
# that are gone from the convolution on m x m pixels.
def augmentation_macs(width, key_depth, value_depth, attends_at, conv_at):
    pixels = attends_at**2
    projections = pixels * (width * (2 * key_depth + value_depth) + value_depth**2)
    pairs = pixels**2 * (key_depth + value_depth) + 2 * pixels * attends_at * key_depth
    return projections + pairs - conv_at**2 * 9 * width * value_depth


def aa_resnet_50_macs():
    return (
        resnet_50_macs()
        + 4 * augmentation_macs(128, 160, 8, 14, 28)
        + 6 * augmentation_macs(256, 160, 24, 14, 14)
        + 3 * augmentation_macs(512, 160, 48, 7, 7)
    )


@pytest.mark.parametrize(
    ("attention", "macs", "gflops"),
    # 8.43 where the relative terms are made for all 2n - 1 offsets and skewed; here for the n that
    # are used.
    [(None, resnet_50_macs(), 8.18), (augmented(), aa_resnet_50_macs(), 8.41)],
)
def test_forward_flops_are_those_derived_by_hand(attention, macs, gflops):
    assert 2 * macs == pytest.approx(gflops * 1e9, rel=1e-3)
    spec = nn.abstract(build({"name": "resnet", "attention": attention}))
    counted = forward_flops(spec, (224, 224))
    if attention is None:
        assert counted == 2 * macs
    else:  # bilinear upsampling in conv3_x is two small products, which the derivation leaves out
        assert 2 * macs < counted < 2 * macs * 1.001


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ({"depth": 34}, 7.4),
        ({"depth": 101}, 15.6),
        ({"depth": 152}, 23.0),
        ({"attention": augmented()}, 8.3),
        ({"depth": 101, "attention": augmented()}, 16.1),
        ({"depth": 152, "attention": augmented()}, 23.8),
    ],
)
def test_forward_flops_are_within_three_percent_of_the_published(config, published):
    spec = nn.abstract(build({"name": "resnet", **config}))
    assert forward_flops(spec, (224, 224)) == pytest.approx(published * 1e9, rel=0.03)


def test_stems():
    image = jax.ShapeDtypeStruct((2, 30, 20, 3), jnp.float32)

    def shapes(stem, **values):
        model = build(TINY | {"stem": stem, "image_size": (30, 20)} | values)
        spec = nn.abstract(model)
        arrays = [
            {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}
            for specs in (spec.params, spec.model_state)
        ]
        outputs = jax.eval_shape(
            lambda p, s, x: spec.bind(p, s).features(x, train=False), *arrays, image
        )
        return [output.shape for output in outputs]

    assert shapes("conv") == [(2, 8, 5, 32), (2, 4, 3, 64), (2, 2, 2, 128), (2, 1, 1, 256)]
    assert shapes("small_image") == [
        (2, 30, 20, 32),
        (2, 15, 10, 64),
        (2, 8, 5, 128),
        (2, 4, 3, 256),
    ]
    assert shapes("strided") == [(2, 15, 10, 32), (2, 8, 5, 64), (2, 4, 3, 128), (2, 2, 2, 256)]
    assert shapes("strided", blocks=(2, 1)) == [(2, 15, 10, 32), (2, 8, 5, 64)]


def test_a_network_of_three_stages_classifies_by_the_last_of_them():
    values = TINY | {"blocks": (1, 2, 1), "attention": augmented(num_heads=2, stages=(4,))}
    model = nn.abstract(build(values))
    assert not [name for name in model.params if name.startswith("conv5_x")]
    assert model.params["head.kernel"].shape[0] == 128  # 4 x 256 / 8
    with pytest.raises(ConfigError, match=r"model\.attention\.stages"):
        build(values | {"attention": augmented(num_heads=2, stages=(4, 5))})


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY | {"stem": "conv"}, marks=pytest.mark.thorough),
        TINY_AUGMENTED,
        TINY | {"depth": 34},
    ],
)
def test_every_weight_learns_and_statistics_move(config):
    spec, params, state, images = ready(config)

    def loss(params):
        model = spec.bind(params, state)
        logits = model(images, train=True)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), nn.observed(model)

    (value, seen), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    moved, _ = statistics.follow(state, statistics.fresh(state), seen)
    assert np.isfinite(value)
    still = [name for name, g in gradients.items() if not np.any(np.abs(g) > 0)]
    assert still == []
    assert [name for name in state if np.array_equal(state[name], moved[name])] == []


def test_zero_init_makes_every_block_its_shortcut():
    spec, params, state, images = ready(TINY)
    for name, declared in spec.params.items():
        if declared.init is ZEROS:
            params[name] = jnp.zeros_like(params[name])
    model = spec.bind(params, state)
    x = jax.jit(lambda: model.features(images, train=False)[1])()
    after = jax.jit(lambda x: model.conv3_x[1](x, train=False))(x)
    np.testing.assert_array_equal(after, jax.nn.relu(x))


@pytest.mark.thorough
def test_bfloat16_is_close_to_float32_and_gives_float32_logits():
    spec, params, state, images = ready(TINY_AUGMENTED)
    low = nn.abstract(build(TINY_AUGMENTED | {"dtype": "bfloat16"}))
    expected = jax.jit(lambda: spec.bind(params, state)(images, train=True))()
    logits = jax.jit(lambda: low.bind(params, state)(images, train=True))()
    assert logits.dtype == jnp.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=0.1 * scale)
    features = jax.eval_shape(lambda: low.bind(params, state).features(images, train=True))
    assert {f.dtype for f in features} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 51}, "model.depth.*Did you mean '50'|model.depth=51"),
        ({"stem": "smal_image"}, "Did you mean 'small_image'"),
        ({"blocks": (1, 2, 3, 1, 1)}, "or 3 or 4 entries, each a whole number from 1"),
        ({"width": 0.001}, "model.width"),
        ({"dtype": "float16"}, "model.dtype"),
        ({"attention": augmented(num_heads=7, stages=(3, 6))}, "model.attention.stages"),
        ({"attention": augmented(downsample=(1,))}, "model.attention.downsample"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "resnet", **change})
