"""Maps of one query against independent sums, and how layers of whole models are reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from vitattn.analysis import attention_maps
from vitattn.layers.attention_stem import AttentionStem
from vitattn.layers.augmented import AugmentedConv
from vitattn.layers.local import HaloAttention, LocalAttention
from vitattn.layers.position import sine_positions
from vitattn.models import build

HEIGHT, WIDTH = 7, 10  # neither is a multiple of a block
QUERIES = [(0, 0), (3, 4), (6, 9)]

LOCAL = {
    "window": (LocalAttention, {"window": 5}),
    "window_masked": (LocalAttention, {"window": 5, "mask_border": True}),
    "window_sine": (LocalAttention, {"window": 3, "position": "sine"}),
    "window_no_position": (LocalAttention, {"window": 3, "position": "none"}),
    "position_only": (LocalAttention, {"window": 5, "position_only": True}),
    "halo": (HaloAttention, {"halo": 2, "block": 4, "mask_border": False}),
    "halo_masked": (HaloAttention, {"halo": 1, "block": 4}),
    "blocks": (HaloAttention, {"halo": 0, "block": 3, "mask_border": False}),
}
STEM = {"plain": {"relative": False}, "relative": {"relative": True}}


def bound(layer, seed=0):
    """The layer with random weights, tables large enough to shape the softmax."""
    abstract = nn.abstract(layer)
    rng = np.random.default_rng(seed)
    params = {
        name: jnp.asarray(rng.normal(size=spec.shape), jnp.float32) * 0.5
        for name, spec in abstract.params.items()
    }
    return abstract.bind(params, {}), params


def image(channels, seed=1):
    shape = (2, HEIGHT, WIDTH, channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check_reproduces(layer, x, values):
    """Values summed by the map are what the layer gives at the query.

    Keys beyond the border have zero values, so what the map leaves out adds nothing.
    """
    values = values.reshape(*x.shape[:3], layer.num_heads, -1)
    expected = jax.jit(layer)(x)
    for query in QUERIES:
        maps = attention_maps.query_map(layer, x, query, (HEIGHT, WIDTH))
        assert maps.shape == (2, layer.num_heads, HEIGHT, WIDTH)
        summed = jnp.einsum("bnyx,byxnd->bnd", maps, values).reshape(2, -1)
        np.testing.assert_allclose(summed, expected[:, query[0], query[1]], atol=2e-5, rtol=2e-5)
        total = maps.sum((2, 3))
        assert float(total.max()) < 1 + 1e-5
        if getattr(layer, "mask_border", True):
            np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("kind", "options"), LOCAL.values(), ids=LOCAL)
def test_values_summed_by_the_map_are_the_output_of_stand_alone_attention(kind, options):
    layer, params = bound(kind(6, 8, num_heads=2, **options))
    x = image(6)
    seen = x + sine_positions(HEIGHT, WIDTH, 6) if layer.position == "sine" else x
    check_reproduces(layer, x, seen @ params["qkv"][:, -8:])


@pytest.mark.thorough
@pytest.mark.parametrize("options", STEM.values(), ids=STEM)
def test_values_summed_by_the_map_are_the_output_of_the_attention_stem(options):
    layer, params = bound(AttentionStem(3, 8, num_heads=2, values="plain", **options))
    x = image(3)
    check_reproduces(layer, x, x @ params["value"])


def test_a_window_is_the_softmax_of_its_definition():
    """logit = q.k + q.r (row half and column half), over the K x K pixels; beyond them k = 0."""
    layer, params = bound(LocalAttention(6, 8, num_heads=2, window=3))
    x = image(6)
    maps = attention_maps.query_map(layer, x, (0, 4), (HEIGHT, WIDTH))
    qkv = np.asarray(x @ params["qkv"], np.float64).reshape(2, HEIGHT, WIDTH, 3, 2, 4)
    expected = np.zeros((2, 2, HEIGHT, WIDTH))
    for b, n in np.ndindex(2, 2):
        q = qkv[b, 0, 4, 0, n]
        weights = {}
        for a, c in np.ndindex(3, 3):
            y, x_ = a - 1, 4 + c - 1
            key = qkv[b, y, x_, 1, n] if y >= 0 else np.zeros(4)
            table = np.concatenate([params["rel_row"][a], params["rel_col"][c]])
            weights[y, x_] = np.exp(q @ key + q @ table)
        for (y, x_), weight in weights.items():
            if y >= 0:
                expected[b, n, y, x_] = weight / sum(weights.values())
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert (maps.sum((2, 3)) < 0.999).all()  # a third of the window lies above the image


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_augmented_rows_sum_to_one_and_equal_a_softmax(dtype):
    """logit = (q.k + q.rel_h[Y-y+H-1] + q.rel_w[X-x+W-1]) / sqrt(d), over all pixels."""
    height, width, heads, depth = 3, 5, 2, 4
    layer, params = bound(
        AugmentedConv(
            6,
            8,
            3,
            num_heads=heads,
            key_depth=heads * depth,
            value_depth=4,
            size=(height, width),
            dtype=dtype,
        )
    )
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, height, width, 6)), jnp.float32)
    query = (20, 33)  # of an image of 30 x 50 pixels: the cell in row 2, column 3
    maps = attention_maps.query_map(layer, x, query, (30, 50))
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps.sum((2, 3)), 1, atol=1e-5)
    qkv = np.asarray(x @ params["qkv"], np.float64)[0]
    expected = np.zeros((heads, height, width))
    for n in range(heads):
        q = qkv[2, 3, n * depth : (n + 1) * depth]
        for y, x_ in np.ndindex(height, width):
            k = qkv[y, x_, heads * depth + n * depth :][:depth]
            relative = params["rel_h"][y - 2 + height - 1] + params["rel_w"][x_ - 3 + width - 1]
            expected[n, y, x_] = np.exp((q @ k + q @ np.asarray(relative)) / np.sqrt(depth))
        expected[n] /= expected[n].sum()
    np.testing.assert_allclose(maps[0], expected, atol=1e-5 if dtype == "float32" else 3e-2)


RESNET = {"name": "resnet", "blocks": (1, 2, 1, 1), "width": 0.25, "num_classes": 3}
AUGMENTED = {"kind": "augmented", "num_heads": 2, "min_key_depth": 4}
MODELS = {
    "augmented": (
        RESNET | {"image_size": 32, "stem": "small_image", "attention": AUGMENTED},
        # conv3_x at 1/2, halved again by `downsample`; conv4_x at 1/4, conv5_x at 1/8.
        {"conv3_x.0.conv2": 8, "conv3_x.1.conv2": 8, "conv4_x.0.conv2": 8, "conv5_x.0.conv2": 4},
        "conv4_x.0.conv2",
    ),
    "local": (
        # The first layer of a stage attends before it is pooled.
        RESNET
        | {
            "image_size": 32,
            "stem": "attention",
            "attention": {"kind": "local", "num_heads": 2, "stages": (3, 4), "window": 3},
        },
        {"stem.attention": 32, "conv3_x.0.conv2": 8, "conv3_x.1.conv2": 4, "conv4_x.0.conv2": 4},
        "conv3_x.0.conv2",
    ),
    "wide": (
        {
            "name": "wide_resnet",
            "depth": 10,
            "widening": 1,
            "image_size": 8,
            "attention": AUGMENTED | {"num_heads": 1, "stages": (3, 4)},
        },
        {"conv3_x.0.conv1": 4, "conv4_x.0.conv1": 2},
        "conv3_x.0.conv1",
    ),
    "mnasnet": (
        {
            "name": "mnasnet",
            "image_size": 32,
            "stem": "small_image",
            "attention": AUGMENTED | {"stages": (5,)},
        },
        # Strides count the stem of an ImageNet model; blocks7 runs at 1/32 there, at 1/16 here.
        {"blocks6.1.expand": 2, "blocks6.2.expand": 2, "blocks7.0.expand": 2},
        "blocks7.0.expand",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("config", "sizes", "default"), MODELS.values(), ids=MODELS)
def test_every_attention_layer_is_found_in_the_order_in_which_it_runs(config, sizes, default):
    abstract = nn.abstract(build(config))
    side = config["image_size"]
    found = attention_maps.survey(abstract, (side, side))
    assert {name: facts.size[0] for name, facts in found.items()} == sizes
    assert list(found) == list(sizes)
    assert attention_maps.choose_layers(found, ()) == [default]


def test_observing_a_model_changes_nothing_and_sees_each_layer_once():
    config = MODELS["augmented"][0] | {"image_size": 16}
    abstract = nn.abstract(build(config))
    params, statistics = (
        {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in specs.items()}
        for specs in (abstract.params, abstract.model_state)
    )
    seen = []

    def forward(params, statistics, images, names):
        model = abstract.bind(params, statistics)
        attention_maps.watch(model, names, lambda name, *_: seen.append(name))
        return model(images, train=False)

    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    names = MODELS["augmented"][1]
    plain = jax.jit(lambda p, s, x: abstract.bind(p, s)(x, train=False))
    watched = jax.jit(lambda p, s, x: forward(p, s, x, names))
    text = [f.lower(params, statistics, images).as_text() for f in (plain, watched)]
    strip = [t.split("\n", 1)[1] for t in text]  # the module's name is the function's
    assert strip[0] == strip[1]
    assert seen == list(names)


FOUND = {
    "stem.attention": attention_maps.LayerFacts(4, (32, 32), True),
    "conv2_x.0.conv2": attention_maps.LayerFacts(2, (16, 16), False),
    "conv2_x.1.conv2": attention_maps.LayerFacts(2, (16, 16), False),
    "conv3_x.0.conv2": attention_maps.LayerFacts(8, (8, 8), False),
}


def test_layers_are_chosen_by_name_by_part_or_all():
    choose = attention_maps.choose_layers
    assert choose(FOUND, ["conv3_x", "conv2_x.0.conv2"]) == ["conv2_x.0.conv2", "conv3_x.0.conv2"]
    assert choose(FOUND, ["conv2_x"]) == ["conv2_x.0.conv2", "conv2_x.1.conv2"]
    assert choose(FOUND, ["all"]) == list(FOUND)
    assert choose({"stem.attention": FOUND["stem.attention"]}, []) == ["stem.attention"]
    heads = attention_maps.choose_heads(FOUND, ["conv2_x.0.conv2", "conv3_x.0.conv2"], [])
    assert [len(h) for h in heads.values()] == [2, 8]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention_maps.choose_layers({}, []), ["no layer of this model attends"]),
        (
            lambda: attention_maps.choose_layers(FOUND, ["conv3_x.0.conv3"]),
            ["Did you mean 'conv3_x.0.conv2'", "stem.attention", "all"],
        ),
        (lambda: attention_maps.choose_layers(FOUND, ["conv2"]), ["Did you mean 'conv2_x'"]),
        (
            lambda: attention_maps.choose_heads(FOUND, ["conv2_x.0.conv2"], [0, 2]),
            ["conv2_x.0.conv2 has no head 2", "0 to 1"],
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_is(call, words):
    with pytest.raises(ConfigError) as error:
        call()
    for word in words:
        assert word in str(error.value)
