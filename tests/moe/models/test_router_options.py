"""Models with the options of today's routers: what a training step does to the balance bias, and
that everything which reads a model knows of it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import configs
import moe
from moe import describe, interop
from moe.config import default_config
from moe.conformance import oracle
from moe.models import architecture, fine_grained, named
from moe.models.transformer import Transformer
from moe.objective import Objective, loss_function
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.step.step import make_train_step
from trainlib.step.train_state import TrainState

RATE = 0.01
ROUTING = {
    **{"scores": "sigmoid", "balance_bias": True, "bias_update_rate": RATE, "top_k": 2},
    **{"expert_groups": 2, "groups_per_token": 1, "balance_over": "sequence"},
}
BIASES = ("encoder.sparse.experts.balance_bias", "decoder.sparse.experts.balance_bias")


@pytest.fixture(scope="module")
def trained(small, made, text):
    """`trained(microbatches, spoiled)`: a state, the one after a step, and what was measured; a
    spoiled batch has no finite loss.
    """
    config = small(4, ROUTING, shared_experts=1, encoder_blocks=4, decoder_blocks=2)
    abstract, params = made(config)
    rng = np.random.default_rng(0)
    held = {n: np.float32(0.1 * rng.normal(size=s.shape)) for n, s in abstract.model_state.items()}
    optimizer = optax.sgd(0.1)
    loss_fn = loss_function(abstract, config.routing, Objective())
    batch = text(4)

    @functools.cache
    def run(microbatches):
        step = make_train_step(loss_fn, optimizer, seed=0, microbatches=microbatches)
        return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})

    def once(microbatches=1, spoiled=False):
        state = TrainState(
            *(jnp.int32(0), params, held, optimizer.init(params), {}, jnp.zeros(2, jnp.int32))
        )
        given = batch | {"decoder_weights": batch["decoder_weights"] * (np.nan if spoiled else 1)}
        return state, *run(microbatches)(state, given)

    return once


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_moves_every_bias_once_by_what_was_sent(trained, microbatches):
    """By the choices of the whole batch, in all periods of both stacks, however it is cut."""
    before, after, metrics = trained(microbatches)
    assert set(after.model_state) == set(BIASES)
    for name in BIASES:
        old, new = before.model_state[name], np.asarray(after.model_state[name])
        loads = np.asarray(metrics[f"router/{name.partition('.')[0]}/load"][0])
        assert old.shape == loads.shape == ((2, 4) if name.startswith("encoder") else (1, 4))
        for period, load in enumerate(loads):
            want = oracle.moved_bias(old[period], load, RATE)
            np.testing.assert_allclose(new[period], want, atol=1e-7)


def test_a_skipped_step_leaves_the_bias(trained):
    before, after, _ = trained(spoiled=True)
    assert after.skipped.tolist() == [1, 1]
    for name in BIASES:
        np.testing.assert_array_equal(after.model_state[name], before.model_state[name])


@pytest.mark.slow
def test_a_module_of_flax_moves_its_biases_as_a_step_does(small, text):
    """`Transformer.rebalance`, over whole periods of a stack and one that is cut off."""
    config = small(4, ROUTING, partial_period=True, encoder_blocks=7, decoder_blocks=2)
    config = dataclasses.replace(config, sparse_offset=0)
    model = Transformer(config, rngs=nnx.Rngs(0))
    batch = text(2)

    @functools.partial(nnx.jit)
    def step(model):
        out = model(batch["encoder_inputs"], batch["decoder_inputs"], train=True)
        model.rebalance(out)
        return {stack: router.metrics["load"][0] for stack, router in out.routers.items()}

    loads = jax.tree.map(np.asarray, step(model))
    assert loads["encoder"].shape == (4, 4)
    moved = [
        *model.encoder.sparse.experts.balance_bias[...],
        *model.encoder.rest_sparse.experts.balance_bias[...],
        *model.decoder.sparse.experts.balance_bias[...],
    ]
    for bias, load in zip(moved, [*loads["encoder"], *loads["decoder"]], strict=True):
        np.testing.assert_allclose(bias, oracle.moved_bias(np.zeros(4), load, RATE), atol=1e-8)


@pytest.mark.slow
def test_decoding_chooses_by_the_bias_too(small):
    """Greedy answers, token by token with a cache, are the likeliest words of whole passes; a
    model with other biases gives other answers.
    """
    config = small(4, ROUTING | {"top_k": 1}, shared_experts=1, encoder_blocks=2, init_scale=1.0)
    model = Transformer(config, rngs=nnx.Rngs(1))
    inputs = np.random.default_rng(0).integers(2, 48, (3, 8))

    def answers(bias):
        for stack in (model.encoder, model.decoder):
            stack.sparse.experts.balance_bias[...] = jnp.asarray([bias])
        return np.asarray(moe.generate(model, inputs, max_length=5, min_length=5).tokens)

    first, second = answers([0.0, 0.0, 5.0, 0.0]), answers([0.0, 9.0, 0.0, 0.0])
    assert np.any(first != second)
    shifted = np.pad(second[:, :-1], ((0, 0), (1, 0)))
    logits = np.array(model(inputs, shifted).logits)
    logits[..., 0] = -np.inf  # padding is no word
    logits[:, :4, 1] = -np.inf  # nor is the end, before so many words
    np.testing.assert_array_equal(logits.argmax(-1), second)


def test_fine_grained_experts_cost_what_the_others_did():
    """Parameters but for the router's columns, FLOPs but for their product, and capacity."""
    coarse = named("st_moe_tiny", None, shared_experts=1)
    fine = fine_grained(coarse, 4)
    assert (fine.routing.num_experts, fine.routing.top_k, fine.expert_width) == (16, 8, 64)
    parts = [describe.params_by_part(nn.abstract(Transformer(model))) for model in (coarse, fine)]
    routers = [part.pop("routers") for part in parts]
    assert parts[0] == parts[1]
    assert routers[1] == 4 * routers[0]
    flops = [describe.forward_flops(model, 128, 48) for model in (coarse, fine)]
    columns = 2 * coarse.d_model * (16 - 4) * (128 + 48)  # one sparse block in each stack
    assert flops[1] - flops[0] == columns
    for segments in (0, 3):
        with pytest.raises(ConfigError, match=f"segments={segments} does not divide the 256"):
            fine_grained(coarse, segments)


def test_cut_experts_compute_what_whole_ones_do(small, made, text, quick):
    """With columns of the router that are equal in all pieces, gates being probabilities: those of
    a piece are an m-th of the whole's, which `gate_scale` makes up for.
    """
    options = {"normalize_gates": False, "capacity_factor_eval": 16.0}
    coarse = small(4, options, encoder_blocks=1, sparse_period=1, kind="encoder")
    fine = fine_grained(coarse, 3)
    fine = dataclasses.replace(fine, routing=dataclasses.replace(fine.routing, gate_scale=3.0))
    original, weights = made(coarse)
    abstract, _ = made(fine)
    cut = dict(weights)
    for name, axis in (("gate", 3), ("up", 3), ("down", 2)):
        whole = f"encoder.sparse.experts.{name}"
        pieces = np.stack(np.split(weights[whole], 3, axis), axis=2)  # [P, E, m, ..]
        cut[whole] = pieces.reshape(abstract.params[whole].shape)
    router = "encoder.sparse.experts.router"
    cut[router] = np.repeat(weights[router], 3, axis=-1)
    batch = text(2)

    @quick
    def both(weights, cut):
        return original.bind(weights, {}).hidden(batch)[0], abstract.bind(cut, {}).hidden(batch)[0]

    one, other = map(np.asarray, both(weights, cut))
    real = batch["encoder_segments"] > 0
    np.testing.assert_allclose(one[real], other[real], atol=2e-5)


def test_an_export_holds_the_bias_and_other_libraries_names_do_not():
    config = default_config("st_moe_tiny")
    config.routing.balance_bias = True
    names = {entry.ours for entry in interop.layout(config, "safetensors").entries}
    assert names >= set(BIASES)
    assert "balance_bias" in " ".join(
        interop.hf.obstacles(named("switch_base", {"balance_bias": True}))
    )
    with pytest.raises(ConfigError, match=r"routing\.balance_bias=True"):
        interop.layout(config, "t5x")


def test_a_description_names_what_is_unlike_a_softmax():
    config = configs.load("st_moe_tiny:deepseek")
    facts = describe.describe(config)
    assert facts["params"] == 2_694_400
    assert facts["params_by_part"]["shared experts"] == 2 * 3 * 128 * 256
    said = describe.routing(architecture(config.model, config.routing))
    assert said.startswith(
        "16 experts, top-4, by sigmoids, with balance biases, in 2 of 4 groups, 4 shared beside"
    )


def test_the_state_lies_whole_on_every_device():
    from moe import plan as plan_lib

    config = default_config("st_moe_tiny")
    config.routing.update(balance_bias=True, num_experts=8)
    plan = plan_lib.make(config, make_mesh(1, 8, 1))
    assert set(plan.abstract.model_state) == set(BIASES)
    assert all(plan.shardings.model_state[name].is_fully_replicated for name in BIASES)
