"""What layers and models refuse to be called with, as a stranger calls them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import moe
import vitattn
from trainlib.errors import ConfigError, InputError
from trainlib.model.inputs import check_array
from vitattn import layers

F32, I32 = jnp.float32, jnp.int32


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def sparse(*widths, routing=None, rngs=None):
    routing = moe.RoutingConfig(4, top_k=1) if routing is None else routing
    return moe.SparseFFN(*widths, routing, rngs=rngs)


RESNET = vitattn.create_model("resnet50", rngs=None, blocks=(1, 1, 1, 1), width=0.125)
STAND_ALONE = vitattn.create_model("sasa_resnet26", rngs=None, stem="attention", width=0.25)
MNASNET = vitattn.create_model("mnasnet", rngs=None)
WIDE = vitattn.create_model("wrn28_10", rngs=None, depth=10, widening=1)


@pytest.mark.parametrize("model", [RESNET, MNASNET, WIDE], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (shape(32, 32, 3), r"float32 of the shape \(32, 32, 3\)\. A batch of one is x\[None\]"),
        (shape(2, 3, 32, 32), r"\(2, 3, 32, 32\)\. Channels come last: x\.transpose\(0, 2, 3, 1\)"),
        (shape(2, 32, 32, 1), r"takes an array \[B, H, W, C=3\], and was given .*32, 1\)\.$"),
        (shape(0, 32, 32, 3), "It is empty"),
        (shape(2, 0, 32, 3), "It is empty"),
        ([[1.0]], "was given .* of the type list"),
    ],
)
def test_a_network_says_which_images_it_takes(model, images, words):
    with pytest.raises(InputError, match=words):
        model(images)


def test_an_attention_stem_has_a_smallest_image():
    with pytest.raises(InputError, match=r"at least 4 x 4 pixels.*\(1, 3, 8, 3\)"):
        STAND_ALONE(jnp.zeros((1, 3, 8, 3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: layers.Conv(8, 8, 3)(x),
        lambda x: layers.AugmentedConv(8, 8, num_heads=2)(x),
        lambda x: layers.LocalAttention(8, 8, num_heads=2)(x),
        lambda x: layers.HaloAttention(8, 8, num_heads=2)(x),
        lambda x: layers.AttentionStem(8, 8)(x),
        lambda x: layers.SqueezeExcite(8, 2)(x),
        lambda x: layers.Cbam(8, 2)(x),
    ],
)
def test_layers_say_which_maps_they_take(call):
    for x in (shape(7, 7, 8), shape(2, 7, 7, 9), shape(0, 7, 7, 8)):
        with pytest.raises(InputError, match=r"takes an array .*\[B, H, W, C=8\]"):
            call(x)


WHOLE = shape(2, 7, 7, 8, dtype=I32)
HEADS = jnp.zeros((2, 7, 7, 2, 4), I32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sparse(8, 16)(shape(2, 4, 8, dtype=I32)),
        lambda: layers.BatchNorm(8)(WHOLE),
        lambda: layers.SqueezeExcite(8, 2)(WHOLE),
        lambda: layers.Cbam(8, 2)(WHOLE),
        lambda: layers.GatherExcite()(WHOLE),
        lambda: layers.relative_attention_2d(HEADS, HEADS, HEADS),
        lambda: layers.local_attention(HEADS, HEADS, HEADS, window=3),
        lambda: layers.halo_attention(HEADS, None, HEADS),
        lambda: moe.combine(
            jnp.zeros((4, 1, 2, 8), I32),
            jnp.ones((1, 2, 1)),
            jnp.zeros((1, 2, 1), I32),
            jnp.zeros((4, 1, 2), I32),
        ),
    ],
)
def test_whole_numbers_are_refused_where_the_result_would_be_cut_off_to_them(call):
    with pytest.raises(InputError, match=r"array of floats .* int32 of the .*astype\(jnp\.float32"):
        call()


def test_whole_numbers_are_computed_on_in_floats_where_a_layer_has_its_own_type():
    conv = layers.Conv(3, 4, 3, rngs=nnx.Rngs(0))
    assert jax.eval_shape(conv, shape(1, 8, 8, 3, dtype=jnp.uint8)).dtype == F32
    logits, config = shape(1, 4, 4, dtype=I32), moe.RoutingConfig(4, top_k=1)
    assert jax.eval_shape(lambda x: moe.route(x, config).gates, logits).dtype == F32


def test_queries_keys_and_values_have_to_go_together():
    q, v = jnp.zeros((2, 7, 7, 2, 4)), jnp.zeros((2, 7, 7, 2, 6))
    assert layers.relative_attention_2d(q, q, v).shape == v.shape
    for k, values, words in (
        (q[:, :6], v, r"k of local_attention takes .*H=7.*\(2, 6, 7, 2, 4\)"),
        (q, v[:, :, :, :1], r"v of local_attention takes .*N=2.*\(2, 7, 7, 1, 6\)"),
    ):
        with pytest.raises(InputError, match=words):
            layers.local_attention(q, k, values, window=3)


def test_checks_hold_inside_transformations():
    conv = layers.Conv(3, 4, 3, rngs=nnx.Rngs(0))
    stacked = jnp.zeros((2, 1, 8, 8, 3))
    assert jax.vmap(conv)(stacked).shape == (2, 1, 8, 8, 4)
    for transformed in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(InputError, match=r"\[B, H, W, C=3\]"):
            transformed(lambda x: conv(x).sum())(jnp.zeros((2, 8, 3)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sparse(0, 128), "expert_embed 0, .*whole number of at least 1"),
        (lambda: sparse(8, -128), "expert_mlp -128"),
        (lambda: sparse(8, 16.0), r"expert_mlp 16\.0"),
        (lambda: layers.Conv(3, 0, 3), "conv_out 0"),
        (lambda: sparse(8, 16, rngs=0), r"rngs=0 has no keys.*nnx\.Rngs\(0\)"),
        (lambda: layers.Conv(3, 4, 3, rngs=nnx.Rngs(dropout=1)), "has no keys for weights"),
        (lambda: vitattn.create_model("resnet50", rngs=0), "rngs=0 has no keys"),
        (lambda: sparse(8, 16, routing={"num_experts": 4}), r"moe\.RoutingConfig\(\*\*mapping"),
        (lambda: moe.route(jnp.zeros((1, 2, 4)), {"num_experts": 4}), "route takes a moe.Routing"),
        (lambda: moe.auxiliary_loss({}, None), "auxiliary_loss takes a moe.RoutingConfig"),
        (lambda: sparse(8, 16)(shape(0, 4, 8)), r"SparseFFN takes .*d_model=8.*It is empty"),
        (lambda: sparse(8, 16)(shape(2, 0, 8)), "It is empty"),
        (lambda: sparse(8, 16)(shape(2, 4, 8), shape(2, 5)), "The mask of .*length=4"),
        (lambda: sparse(8, 16)(jnp.ones((2, 4, 8))), "rngs=None.*nnx.Rngs"),
        (lambda: RESNET(jnp.zeros((1, 32, 32, 3))), "rngs=None, so its weights"),
    ],
)
def test_what_cannot_work_is_said(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_tokens_are_whole_numbers_of_a_batch():
    model = moe.create_model("t5_1_1_small", rngs=None, encoder_blocks=1, decoder_blocks=1)
    good = jnp.ones((2, 4), I32)
    for tokens, words in (
        (good[0], r"A batch of one is x\[None\]"),
        (good * 1.0, "array of whole numbers .* float32"),
    ):
        with pytest.raises(InputError, match=f"encoder_inputs takes .*{words}"):
            model(tokens, good)


def test_keys_are_no_numbers():
    with pytest.raises(InputError, match=r"A layer takes an array \[B\], and was given key"):
        check_array("A layer", jax.random.key(0)[None], "B")
