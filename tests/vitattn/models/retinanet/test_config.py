"""RetinaNet as data: parameters and FLOPs, as published and as derived by hand; what is refused."""

import dataclasses
import re

import pytest

from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from vitattn.layers.augmented import AugmentedConfig
from vitattn.models import build, configure
from vitattn.models.counts import forward_flops, params_by_part
from vitattn.models.retinanet.config import frozen_stages
from vitattn.papers.flops import paper_flops

LOCAL = {"kind": "local"}
AUGMENTED = {"kind": "augmented"}
TORCHVISION = {"num_scales": 3, "num_classes": 91, "pyramid_norm": "none"}


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


def test_a_configuration_is_the_backbones_with_a_pyramid():
    config = configure(retinanet(gate="se", norm="frozen", bn_decay=0.5, width=0.5))
    shared = {field.name for field in dataclasses.fields(config.backbone)}
    assert all(getattr(config.backbone, name) == getattr(config, name) for name in shared)


def test_the_preset_of_augmented_attention_has_no_least_depth_of_keys():
    attention = configure(retinanet(attention=AUGMENTED)).attention
    assert isinstance(attention, AugmentedConfig)
    assert (attention.kappa, attention.upsilon, attention.num_heads) == (0.2, 0.1, 8)
    assert attention.min_key_depth == 0
    least = count(attention=AUGMENTED | {"min_key_depth": 20})
    assert least > 33_600_000  # not the printed 33.1 M


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 600}, r"image_size=600 .* Nearest: 640"),
        ({"image_size": (640, 700)}, r"Nearest: \(640, 640\)"),
        ({"image_size": 20}, "Nearest: 128"),
        ({"image_size": 128, "max_level": 8}, "1/256 .* Nearest: 256"),
        ({"min_level": 1}, "model.min_level=1"),
        ({"min_level": 6}, "model.min_level=6"),
        ({"max_level": 4}, "model.max_level=4"),
        ({"num_scales": 0}, "model.num_scales=0"),
        ({"aspect_ratios": ()}, "model.aspect_ratios is empty"),
        ({"aspect_ratios": (1.0, -1.0)}, "entry 2 is -1.0"),
        ({"anchor_scale": 0.0}, "model.anchor_scale=0"),
        ({"anchors": "centered"}, "Did you mean 'centred'"),
        ({"prior": 1.0}, "model.prior=1.0"),
        ({"p6_from": "c4"}, "model.p6_from='c4'"),
        ({"stem": "small_image"}, "model.stem='small_image'"),
        ({"features": 100, "head_attention": "towers"}, "Nearest: 96"),
        ({"attention": LOCAL | {"stages": (1, 2)}}, "model.attention.stages"),
        ({"norm": "group"}, "model.norm='group'"),
        ({"freeze": 2}, "model.freeze is not a field"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        configure(retinanet(**config))


def test_patterns_of_frozen_parts():
    names = nn.abstract(build(retinanet())).params

    def frozen(number):
        patterns = frozen_stages(number)
        return {n.split(".")[1] for n in names if any(re.search(p, n) for p in patterns)}

    assert frozen_stages(0) == ()
    assert frozen(1) == {"stem"}
    assert frozen(3) == {"stem", "conv2_x", "conv3_x"}
    assert len(frozen(5)) == 5
    with pytest.raises(ConfigError, match="5 parts"):
        frozen_stages(6)
