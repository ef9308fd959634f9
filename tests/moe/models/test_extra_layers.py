"""Extra dense layers at listed places: against plain formulas, block after block.

Letters: B batch, L length, N heads, H width of one head, D model width, E experts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.attention_bias import RelativeBias
from moe.models import stack as stack_lib
from moe.models.transformer import Transformer
from moe.models.tuned import adaptable
from moe.start.subsets import kind_of
from trainlib.model import weights as nn

ODD = {"encoder_blocks": 5, "decoder_blocks": 3, "partial_period": True}  # sparse: 1, 3 and 1
LAYOUTS = {
    "dense in periods": (0, {"encoder_blocks": 5, "extra_ffn_blocks": (1, 3)}),
    "dense neighbours": (0, {"encoder_blocks": 3, "extra_ffn_blocks": (1, 2), "remat": "minimal"}),
    "sparse, at odd places": (4, ODD | {"extra_ffn_blocks": (0, 3, 4)}),
    "sparse, before": (4, ODD | {"extra_ffn_blocks": (1, 2), "extra_ffn": "before"}),
}


@pytest.fixture(autouse=True)
def loops(monkeypatch):
    """As on other platforms, where few blocks are a loop too."""
    monkeypatch.setattr(stack_lib, "MOST_WRITTEN_OUT", 0)


def norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def geglu(x, gate, up, down):
    return (jax.nn.gelu(x @ gate, approximate=True) * (x @ up)) @ down


def plain(config, params, x, segments):
    """The encoder by its formulas: every expert computes every token, nothing is dropped."""
    length, heads = x.shape[1], config.num_heads
    bias = nn.abstract(RelativeBias(heads, bidirectional=True))
    bias = bias.bind({"table": params["encoder.bias.table"]}, {})(length, length)
    pairs = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
    for number in range(config.encoder_blocks):
        for tree, numbers in config.trees("encoder").items():
            for index in np.argwhere(numbers == number):
                start, index = f"encoder.{tree}.", tuple(index)
                w = {n.removeprefix(start): v[index] for n, v in params.items() if start in n}

        def ffn(x, name, w=w):
            matrices = (w[f"{name}.{m}"] for m in ("gate", "up", "down"))
            return x + geglu(norm(x, w[f"{name}_norm.scale"]), *matrices)

        y = norm(x, w["attention_norm.scale"])
        q, k, v = ((y @ w[f"attention.{m}"]) for m in ("query", "key", "value"))
        q, k, v = (z.reshape(*z.shape[:2], heads, -1) for z in (q, k, v))
        logits = jnp.einsum("bqnh,bknh->bnqk", q, k) + bias
        shares = jax.nn.softmax(jnp.where(pairs[:, None], logits, -1e9))
        y = jnp.einsum("bnqk,bknh->bqnh", shares, v).reshape(*x.shape[:2], -1)
        x = x + y @ w["attention.out"]

        listed = number in config.extra_ffn_blocks
        if number in config.sparse_blocks("encoder"):
            if listed and config.extra_ffn == "before":
                x = ffn(x, "ffn")
            y = norm(x, w["experts_norm.scale"])
            probs = jax.nn.softmax(y @ w["experts.router"])  # [B, L, E]
            top, chosen = jax.lax.top_k(probs, 2)
            top = top / top.sum(-1, keepdims=True)
            gates = jnp.einsum("blk,blke->ble", top, jax.nn.one_hot(chosen, probs.shape[-1]))
            gates = gates * (segments > 0)[..., None]
            for e in range(probs.shape[-1]):
                matrices = (w[f"experts.{m}"][e] for m in ("gate", "up", "down"))
                x = x + gates[..., e, None] * geglu(y, *matrices)
            if listed and config.extra_ffn == "after":
                x = ffn(x, "ffn")
        else:
            x = ffn(x, "ffn")
            x = ffn(x, "extra_ffn") if listed else x
    return norm(x, params["encoder.norm.scale"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dense in periods", marks=pytest.mark.thorough),
        "dense neighbours",
        "sparse, at odd places",
        pytest.param("sparse, before", marks=pytest.mark.thorough),
    ],
)
def test_values_and_gradients_are_those_of_the_formulas(small, made, text, quick, name):
    experts, layout = LAYOUTS[name]
    config = small(experts, kind="encoder", **layout)
    abstract, params = made(config)
    batch = text(2)
    segments = jnp.asarray(batch["encoder_segments"])
    real = (segments > 0)[..., None]

    @quick
    def both(params):
        def ours(params):
            hidden = abstract.bind(params, {}).hidden(batch)[0]
            return jnp.sum(jnp.square(jnp.where(real, hidden, 0) - 1)), hidden

        def theirs(params):
            x = params["embedding.table"][batch["encoder_inputs"]]
            hidden = plain(config, params, x, segments)
            return jnp.sum(jnp.square(jnp.where(real, hidden, 0) - 1)), hidden

        return [jax.value_and_grad(f, has_aux=True)(params) for f in (ours, theirs)]

    with jax.default_matmul_precision("highest"):
        ((_, hidden), gradients), ((_, expected), wanted) = both(params)
    where = np.broadcast_to(real, hidden.shape)
    np.testing.assert_allclose(hidden[where], expected[where], atol=2e-5)
    extra = [n for n in params if ".extra_ffn." in n]
    assert bool(extra) == any(
        n not in config.sparse_blocks("encoder") for n in config.extra_ffn_blocks
    )
    for weight, gradient in wanted.items():
        scale = float(np.abs(gradient).max())
        assert scale > 0 or weight == "output.kernel", weight
        np.testing.assert_allclose(gradients[weight], gradient, atol=2e-5 * scale, err_msg=weight)


@pytest.mark.thorough
def test_a_decoder_with_a_cache_is_the_whole_model(small, made, text, quick):
    config = small(4, **ODD, extra_ffn_blocks=(4,), decoder_extra_ffn_blocks=(0, 1))
    abstract, params = made(config)
    batch = text(2)
    words = np.random.default_rng(0).integers(1, 48, (2, 5), dtype=np.int32)
    segments = np.ones((2, 12), np.int32)

    @quick
    def both(params):
        model = abstract.bind(params, {})
        encoded, _ = model.encode(batch["encoder_inputs"], segments)
        whole = model.logits(model.decode(words, np.ones_like(words), encoded, segments)[0])
        cache, found = model.init_cache(2, 5, encoded), []
        for position in range(5):
            logits, cache = model.decode_step(words[:, position], cache, position, segments)
            found.append(logits)
        return whole, jnp.stack(found, axis=1)

    whole, found = both(params)
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(found, whole, atol=2e-5)


def test_an_evaluation_that_draws_policies_drops_nothing_out(small, made, text, quick):
    """The key of a random policy is no key of dropout."""
    routing = {"second_policy": "random", "second_policy_eval": "random"}
    places = {"kind": "encoder", "extra_ffn_blocks": (0,), "encoder_blocks": 2}
    config = small(4, routing, **places)
    abstract, params = made(config)
    dropping = nn.abstract(Transformer(dataclasses.replace(config, dropout=0.5)))
    run = quick(lambda p: [m.bind(p, {}).hidden(text(2))[0] for m in (abstract, dropping)])
    np.testing.assert_array_equal(*run(params))


def test_extra_layers_count_as_dense_ones_in_fine_tuning(small):
    model = Transformer(small(0, encoder_blocks=4, extra_ffn_blocks=(1,)))
    name = "encoder.tail.extra_ffn.up"
    assert adaptable(model)[name] == (16, 24)
    assert kind_of(name, True) == "ffn"
    assert kind_of("encoder.tail.extra_ffn_norm.scale", True) == "other"
