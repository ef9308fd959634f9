"""RetinaNet: parameters as published and as derived by hand, and what is computed on which map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import InputError
from trainlib.model import statistics
from trainlib.model import weights as nn
from trainlib.model.flops import flops
from vitattn.models import build, configure
from vitattn.models.counts import forward_flops, params_by_part
from vitattn.models.retinanet.config import frozen_stages
from vitattn.papers.flops import paper_flops

LOCAL = {"kind": "local"}
AUGMENTED = {"kind": "augmented"}
TORCHVISION = {"num_scales": 3, "num_classes": 91, "pyramid_norm": "none"}

TINY = {
    "name": "retinanet",
    "depth": 18,
    "blocks": (1, 1, 1, 1),
    "width": 0.125,
    "features": 16,
    "head_layers": 1,
    "num_classes": 3,
    "image_size": (128, 256),
}


def retinanet(**config):
    return {"name": "retinanet", **config}


def count(**config):
    return nn.abstract(build(retinanet(**config))).param_count


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 33_420_404),
        ({"pyramid_norm": "none", "head_norm": "none"}, 33_397_364),
        ({"depth": 101}, 52_412_532),
        ({"num_scales": 3}, 34_070_414),
        ({"attention": LOCAL}, 25_878_876),
        ({"attention": LOCAL, "head_attention": "towers"}, 21_971_484),
        # Both forms of torchvision, as its documentation has them.
        (TORCHVISION | {"norm": "frozen", "head_norm": "none"}, 34_014_999),
        (TORCHVISION | {"head_norm": "group", "p6_from": "c5"}, 38_198_935),
    ],
)
def test_exact_parameters(config, expected):
    assert count(**config) == expected


def convolution(inputs, outputs, size=3):
    return size**2 * inputs * outputs + outputs


# Width 256 throughout: laterals of C3..C5, five 3x3 of the pyramid, a normalisation of each level;
# two towers of four 3x3 with one for each of five levels; predictors of 6 anchors.
def test_parameters_are_derived_by_hand():
    pyramid = sum(convolution(c, 256, 1) for c in (512, 1024, 2048)) + 5 * convolution(256, 256)
    towers = 8 * (convolution(256, 256) + 5 * 2 * 256)
    parts = params_by_part(nn.abstract(build(retinanet())))
    assert parts == {
        "backbone": 25_557_032 - (2048 * 1000 + 1000),  # ResNet-50 without its classifier
        "pyramid": pyramid + 5 * 2 * 256,
        "heads": towers + convolution(256, 6 * 90) + convolution(256, 6 * 4),
    }
    assert list(parts) == ["backbone", "pyramid", "heads"]


# A layer of attention: 3 x 256^2 for queries, keys and values, 7 x 32 for the tables of heads of
# 32 channels. Nine of them for each head, the last with a 1x1 convolution.
def test_attention_in_heads_is_derived_by_hand():
    attention = 3 * 256**2 + 7 * 32
    outputs = 6 * 90 + 6 * 4
    change = 10 * attention + 257 * outputs - 8 * convolution(256, 256) - convolution(256, outputs)
    assert 25_878_876 + change == 21_971_484
    everywhere = count(attention=LOCAL, head_attention="towers_and_pyramid")
    assert everywhere == 21_971_484 + 5 * (attention - convolution(256, 256)) == 20_005_244


@pytest.mark.parametrize(
    ("config", "gflops"),
    [({}, 182.33), ({"depth": 101}, 242.94), ({"num_scales": 3}, 193.41)],
)
def test_flops_of_a_forward_pass(config, gflops):
    spec = nn.abstract(build(retinanet(**config)))
    assert forward_flops(spec, (640, 640)) / 1e9 == pytest.approx(gflops, abs=0.01)


# With attention by the papers' formula; the facts of detection have 172.6 and 112.5, from rounded
# counts of the backbone.
@pytest.mark.parametrize(
    ("config", "gflops"),
    [
        ({"attention": LOCAL}, 172.43),
        ({"attention": LOCAL, "head_attention": "towers"}, 112.23),
        ({"attention": LOCAL, "head_attention": "towers_and_pyramid"}, 106.34),
    ],
)
def test_flops_as_the_papers_count_them(config, gflops):
    assert paper_flops(configure(retinanet(**config))) / 1e9 == pytest.approx(gflops, abs=0.01)


# Of the backbone, from the counts of classification: (8.18 - 6.97) GFLOP at 224 pixels. Of the
# heads, on all 8,525 places: 3x3 convolutions against three products with 49 keys, and
# projections.
def test_flops_of_attention_are_derived_by_hand():
    less = (8.178 - 6.966) * (640 / 224) ** 2
    assert 182.33 - less == pytest.approx(172.43, abs=0.05)
    attention = 3 * 256**2 + 3 * 49 * 256
    outputs = 6 * 94
    change = 10 * attention + 256 * outputs - 9 * 256 * (8 * 256 + outputs)
    assert 172.43 + 2 * 8525 * change / 1e9 == pytest.approx(112.23, abs=0.01)


# Attention of conv3_x at half of 80 x 80 as in ImageNet; pairs once would give 182.9 and 245.5.
@pytest.mark.parametrize(("depth", "gflops", "printed"), [(50, 184.4, 182), (101, 250.2, 245)])
def test_flops_of_augmented_attention(depth, gflops, printed):
    spec = nn.abstract(build(retinanet(depth=depth, attention=AUGMENTED)))
    counted = forward_flops(spec, (640, 640)) / 1e9
    assert counted == pytest.approx(gflops, abs=0.05)
    assert counted == pytest.approx(printed, rel=0.03)


def augmented_change(width, key_depth, value_depth, attends_at, conv_at):
    """Multiply-adds with pairs once, as in test_resnet: half of true ones."""
    pixels = attends_at**2
    projections = pixels * (width * (2 * key_depth + value_depth) + value_depth**2)
    pairs = pixels**2 * (key_depth + value_depth) / 2
    terms = 2 * pixels * attends_at * key_depth
    return projections + pairs + terms - conv_at**2 * 9 * width * value_depth


@pytest.mark.parametrize(
    ("base", "blocks", "printed"), [(182.33, (4, 6, 3), 182), (242.94, (4, 23, 3), 245)]
)
def test_only_the_largest_map_is_attended_at_half_resolution(base, blocks, printed):
    """The reading that is nearest to the printed figures at both depths, with pairs once."""
    depths = ((128, 24, 8, 80), (256, 48, 24, 40), (512, 96, 48, 20))

    def gflops(halved):
        change = sum(
            count * augmented_change(*layer[:3], layer[3] // (1 + (stage in halved)), layer[3])
            for stage, count, layer in zip((3, 4, 5), blocks, depths, strict=True)
        )
        return base + 2 * change / 1e9

    readings = [(), (3,), (3, 4), (3, 4, 5)]
    assert gflops((3,)) == pytest.approx(printed, rel=0.006)
    off = {halved: abs(gflops(halved) - printed) for halved in readings}
    assert off[(3,)] < 1 < off[()]
    if printed == 245:
        assert min(off, key=off.get) == (3,)


# ---------------------------------------------------------------- what is computed


def filled(specs, seed=0):
    """Arrays for specs, made without a compilation for each shape."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, spec in specs.items():
        values = rng.normal(size=spec.shape) / max(1, np.prod(spec.shape[:-1])) ** 0.5
        if name.endswith(("scale", "var")):
            values = np.ones(spec.shape)
        arrays[name] = jnp.asarray(values, jnp.float32)
    return arrays


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def ready(**config):
    spec = nn.abstract(build(TINY | config))
    return spec, filled(spec.params), filled(spec.model_state, 1)


def structs(specs):
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}


def shapes(config, batch=2):
    """Shapes of what a network gives for images of its size; nothing is computed."""
    spec, size = nn.abstract(build(config)), configure(config).size
    arrays = structs(spec.params), structs(spec.model_state)
    x = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return jax.eval_shape(lambda p, s, x: spec.bind(p, s)(x, train=True), *arrays, x)


VARIANTS = [
    {},
    {"dtype": "bfloat16"},
    {"image_size": 128, "depth": 26},
    {"attention": {"kind": "augmented", "num_heads": 1, "upsilon": 0.5}},
    {"attention": {"kind": "local", "num_heads": 2}, "stem": "attention", "depth": 26},
    {"head_attention": "towers"},
    {"head_attention": "towers_and_pyramid", "p6_from": "c5"},
    {"head_norm": "group", "pyramid_norm": "none", "p6_from": "c5"},
    {"head_norm": "none", "norm": "frozen", "num_scales": 3},
    {"min_level": 2, "max_level": 5, "image_size": (32, 96), "head_layers": 0},
    {"min_level": 5, "max_level": 9, "image_size": 512},
    {"gate": "se", "aspect_ratios": (1.0,), "num_scales": 1},
]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_every_level_has_its_map(config):
    resolved = configure(TINY | config)
    outputs = shapes(TINY | config)
    assert len(outputs) == len(resolved.levels)
    per_place = len(resolved.aspect_ratios) * resolved.num_scales
    assert per_place == resolved.num_anchors
    height, width = resolved.size
    for level, output in zip(resolved.levels, outputs, strict=True):
        at = (2, height // 2**level, width // 2**level)
        assert at[1:] == resolved.map_sizes[level - resolved.min_level]
        assert output.classes.shape == (*at, 3 * per_place)
        assert output.boxes.shape == (*at, 4 * per_place)
        assert output.classes.dtype == output.boxes.dtype == jnp.float32


@pytest.mark.parametrize("config", [{}, {"head_attention": "towers", "depth": 26}], ids=str)
def test_blocks_counted_once_are_those_of_the_whole_program(config):
    spec, size = nn.abstract(build(TINY | config)), (128, 256)
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    arrays = structs(spec.params), structs(spec.model_state)
    whole = flops(lambda p, s, x: spec.bind(p, s)(x, train=False), *arrays, x)
    assert forward_flops(spec, size) == whole


def test_images_of_another_size_are_taken_and_of_a_wrong_one_refused():
    spec, params, state = ready()

    def network(*shape):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(lambda x: spec.bind(params, state)(x), x)

    assert [out.boxes.shape[1:3] for out in network(1, 256, 128, 3)][-1] == (2, 1)
    with pytest.raises(InputError, match="multiples of 128"):
        network(1, 128, 200, 3)


def convolved(x, kernel, bias, stride=1):
    """A convolution [H, W, C] -> [H', W', F] in loops over its taps, padded as an odd one is."""
    size = kernel.shape[0]
    side = size // 2
    x = np.pad(x, ((side, side), (side, side), (0, 0)))
    rows, columns = ((n - 2 * side - 1) // stride + 1 for n in x.shape[:2])
    y = np.zeros((rows, columns, kernel.shape[-1])) + bias
    for a in range(size):
        for b in range(size):
            tap = x[a::stride, b::stride][:rows, :columns]
            y += tap @ kernel[a, b]
    return y


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_pyramid_and_heads_against_plain_loops(p6_from):
    """Without normalisations, on one image; the predictors give each anchor its outputs in turn."""
    config = {"p6_from": p6_from, "pyramid_norm": "none", "head_norm": "none", "num_scales": 1}
    spec, params, state = ready(**config)
    x = images(1, 128, 128, 3)

    @jax.jit
    def network(x):
        model = spec.bind(params, state)
        return model.backbone.features(x), model(x)

    maps, outputs = network(x)
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    c3, c4, c5 = (np.asarray(m[0], np.float64) for m in maps[1:])

    def layer(name, x, stride=1):
        return convolved(x, w[f"{name}.kernel"], w[f"{name}.bias"], stride)

    merged = [layer(f"pyramid.lateral.{n}", c) for n, c in enumerate((c3, c4, c5))]
    for finer in (1, 0):
        merged[finer] = merged[finer] + merged[finer + 1].repeat(2, 0).repeat(2, 1)
    levels = [layer(f"pyramid.output.{n}", m) for n, m in enumerate(merged)]
    levels.append(layer("pyramid.coarse.0", c5 if p6_from == "c5" else levels[-1], 2))
    levels.append(layer("pyramid.coarse.1", relu(levels[-1]), 2))
    for level, output in zip(levels, outputs, strict=True):
        for head, outs in (("classes", 3), ("boxes", 4)):
            name = f"heads.{head}"
            y = relu(layer(f"{name}.tower.0.conv", level))
            kernel, bias = w[f"{name}.predictor.kernel"], w[f"{name}.predictor.bias"]
            result = np.asarray(getattr(output, head)[0]).reshape(*y.shape[:2], 3, outs)
            for anchor in range(3):
                expected = convolved(y, kernel[..., anchor, :], bias[anchor])
                np.testing.assert_allclose(result[:, :, anchor], expected, atol=1e-4)


def test_initial_values():
    """The prior of every class everywhere, and boxes close to their anchors."""
    config = TINY | {"prior": 0.02, "head_layers": 2}
    spec = nn.abstract(build(config))
    heads = {n: s for n, s in spec.params.items() if n.startswith("heads") and "norm" not in n}
    arrays = nn.initialise(heads, jax.random.key(0))
    logit = arrays["heads.classes.predictor.bias"]
    np.testing.assert_allclose(jax.nn.sigmoid(logit), 0.02, rtol=1e-5)
    assert not arrays["heads.classes.predictor.kernel"].any()
    assert not arrays["heads.boxes.predictor.bias"].any()
    for name in ("boxes.predictor", "boxes.tower.0.conv", "classes.tower.1.conv"):
        assert float(arrays[f"heads.{name}.kernel"].std()) == pytest.approx(0.01, rel=0.1)


def test_values_of_attention_in_heads_start_small():
    spec = nn.abstract(build(TINY | {"head_attention": "towers", "features": 64}))
    name = "heads.classes.tower.0.conv.qkv"
    q, k, v = jnp.split(nn.initialise({name: spec.params[name]}, jax.random.key(0))[name], 3, 1)
    assert float(v.std()) == pytest.approx(0.01, rel=0.1)
    assert float(q.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert float(k.std()) == pytest.approx(64**-0.5, rel=0.1)


def test_rows_that_do_not_count_change_nothing():
    """Neither outputs of the others in training nor what the layers saw."""
    spec, params, state = ready()

    @jax.jit
    def network(x, weights):
        model = spec.bind(params, state)
        return model(x, train=True, weights=weights), nn.observed(model)

    x = images(3, 128, 128, 3)
    outputs, seen = network(x, jnp.asarray([1.0, 0, 1]))
    disturbed = x.at[1].set(100 * x[1])
    outputs_of_other, seen_of_other = network(disturbed, jnp.asarray([1.0, 0, 1]))
    for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(seen_of_other), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(outputs, outputs_of_other, strict=True):
        np.testing.assert_allclose(one.classes[::2], other.classes[::2], atol=1e-4)
    assert len(seen) == len(statistics.layers(spec.model_state))


def test_frozen_normalisations_are_statistics_that_stay():
    spec, params, state = ready(norm="frozen", pyramid_norm="none", head_norm="none")
    assert not [name for name in spec.params if "norm" in name]
    assert {n.rpartition(".")[2] for n in spec.model_state} == {"scale", "bias", "mean", "var"}

    @functools.partial(jax.jit, static_argnums=1)
    def network(x, train):
        model = spec.bind(params, state)
        return model(x, train=train), nn.observed(model), nn.stats(model)

    x = images(2, 128, 128, 3)
    outputs, seen, after = network(x, True)
    assert not seen
    for one, other in zip(outputs, network(x, False)[0], strict=True):
        np.testing.assert_array_equal(one.classes, other.classes)
    for name, value in after.items():
        np.testing.assert_array_equal(value, state[name])


def test_frozen_parts_have_no_backward_pass():
    """`optimizer.frozen` with these patterns leaves the stem and conv2_x out of the program: the
    gradients of all else take the multiply-adds of a backbone's backward pass fewer.
    """
    import re

    spec, params, state = ready()
    x = jax.ShapeDtypeStruct((1, 128, 256, 3), jnp.float32)

    def cost(count):
        (pattern,) = frozen_stages(count) or ("^$",)
        fixed = {name: value for name, value in params.items() if re.search(pattern, name)}
        learned = {name: value for name, value in params.items() if name not in fixed}
        assert all(".stem." in n or ".conv2_x." in n for n in fixed)

        def loss(learned, x):
            outputs = spec.bind(learned | fixed, state)(x, train=True)
            return sum(jnp.sum(level.classes + 0.0) + jnp.sum(level.boxes) for level in outputs)

        return flops(jax.grad(loss), learned, x)

    assert frozen_stages(0) == ()
    assert cost(2) < cost(1) < cost(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_finite_and_reach_every_weight(dtype):
    spec, params, state = ready(dtype=dtype)
    x = images(2, 128, 128, 3)

    @jax.jit
    def gradients(params):
        def loss(params):
            outputs = spec.bind(params, state)(x, train=True)
            return sum(
                jnp.mean(jnp.square(level.classes)) + jnp.mean(jnp.square(level.boxes - 1))
                for level in outputs
            )

        return jax.grad(loss)(params)

    for name, gradient in gradients(params).items():
        assert bool(jnp.isfinite(gradient).all()), name
        if not name.endswith("bias"):  # a normalisation takes away what is added before it
            assert bool((gradient != 0).any()), name


def test_a_configuration_is_the_backbones_with_a_pyramid():
    config = configure(TINY | {"gate": "se", "norm": "frozen", "bn_decay": 0.5})
    shared = {field.name for field in dataclasses.fields(config.backbone)}
    assert all(getattr(config.backbone, name) == getattr(config, name) for name in shared)
