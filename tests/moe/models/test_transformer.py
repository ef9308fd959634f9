"""Whole models: causality by gradient, packing, padding, types, and eight devices against one."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import config as config_lib
from moe import objective as pretrain
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs


@pytest.fixture(scope="module")
def logits_of(made, quick):
    """`logits_of(config)`: a compiled function of a batch."""

    def make(config):
        abstract, params = made(config)

        @quick
        def run(params, batch):
            model = abstract.bind(params, {})
            return model.logits(model.hidden(batch)[0])

        return lambda batch: np.asarray(run(params, batch))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 4])
def test_decoder_is_causal_by_gradient_and_reads_all_of_the_encoder(small, made, quick, experts):
    config = small(experts, encoder_blocks=2)
    abstract, params = made(config)
    rng = np.random.default_rng(0)
    x, source = (rng.normal(size=(1, n, 16)).astype(np.float32) for n in (7, 12))

    @quick
    def jacobian(x, source):
        def run(x, source):
            own, other = jnp.ones((1, 7), jnp.int32), jnp.ones((1, 12), jnp.int32)
            decoder = abstract.bind(params, {}).decoder
            return decoder(x, own, source, other, train=False)[0][0].sum(-1)

        return jax.jacobian(run, argnums=(0, 1))(x, source)

    by_input, by_source = jacobian(x, source)
    reach = np.abs(by_input[:, 0]).sum(-1)  # [output position, input position]
    assert np.all(reach[np.triu_indices(7, 1)] == 0)
    assert np.all(reach[np.tril_indices(7)] > 0)
    assert np.all(np.abs(by_source).sum((1, 3)) > 0)


def test_a_decoder_without_the_output_of_its_encoder_is_refused(small, made):
    """Its cross-attention would else attend to the decoder itself, the future included."""
    abstract, params = made(small(0, encoder_blocks=2))
    tokens = np.ones((1, 4), np.int32)
    with pytest.raises(ValueError, match="needs the output of the encoder"):
        abstract.bind(params, {}).decode(tokens, tokens)


def test_encoder_sees_both_ways(small, made, quick):
    abstract, params = made(small(kind="encoder", encoder_blocks=2))
    x = np.random.default_rng(0).normal(size=(1, 9, 16)).astype(np.float32)

    def run(x):
        segments = jnp.ones((1, 9), jnp.int32)
        return abstract.bind(params, {}).encoder(x, segments, train=False)[0][0].sum(-1)

    assert np.all(np.abs(quick(jax.jacobian(run))(x)).sum((1, 3)) > 0)


def row(*examples):
    """One row of packed (encoder, decoder) word lists."""
    out = {}
    for name, length, part in (("encoder", 12, 0), ("decoder", 8, 1)):
        ids, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        place = 0
        for number, example in enumerate(examples, 1):
            end = place + len(example[part])
            ids[0, place:end], segments[0, place:end], place = example[part], number, end
        out[f"{name}_inputs"], out[f"{name}_segments"] = ids, segments
    return out


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 4])
def test_packed_examples_and_padding_do_not_matter(small, logits_of, experts):
    """Two examples in one row give what each gives in a row of its own, whatever the padding."""
    run, rng = logits_of(small(experts)), np.random.default_rng(0)
    first, second = ((rng.integers(1, 48, e), rng.integers(1, 48, d)) for e, d in ((5, 3), (6, 4)))
    packed = run(row(first, second))[0]
    np.testing.assert_allclose(packed[:3], run(row(first))[0, :3], atol=1e-5)
    np.testing.assert_allclose(packed[3:7], run(row(second))[0, :4], atol=1e-5)
    junk = row(first, second)
    for stack in ("encoder", "decoder"):
        junk[f"{stack}_inputs"][junk[f"{stack}_segments"] == 0] = 7
    np.testing.assert_array_equal(run(junk)[0, :7], packed[:7])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_one_stack_alone_with_a_tied_output(small, logits_of, text, kind):
    logits = logits_of(small(kind=kind, tie_word_embeddings=True, encoder_blocks=2))(text(2))
    assert logits.shape == (2, 12 if kind == "encoder" else 7, 48)
    assert np.all(np.isfinite(logits))


@pytest.mark.slow
def test_options_of_the_stability_studies_act(small, made, logits_of, text):
    """Each one changes the logits and leaves them finite."""
    base = small(kind="decoder")
    plain = logits_of(base)(text(2))
    for change in (
        *({"activation": "relu"}, {"norm_scale": False}, {"residual_scale": 0.5}),
        *({"expert_bias": "additive"}, {"router_input": "both"}, {"extra_ffn": "before"}),
    ):
        logits = logits_of(dataclasses.replace(base, **change))(text(2))
        assert np.all(np.isfinite(logits)), change
        assert np.abs(logits - plain).max() > 1e-3, change


@pytest.mark.slow
def test_a_random_policy_in_evaluation_draws_the_same_every_time(small, made, text, quick):
    """In scoring and in decoding, with other draws in each block."""
    routing = {"second_policy": "random", "second_policy_eval": "random", "second_threshold": 1.0}
    config = small(4, routing, kind="decoder", decoder_blocks=4, scan_layers=False)
    abstract, params = made(config)
    # The same router in both sparse blocks, and nothing beside it that changes what it sees.
    params = {
        n: w if "router" in n else 0 * w if "down" in n or "out" in n else w
        for n, w in params.items()
    }
    params["decoder.sparse.experts.router"][1] = params["decoder.sparse.experts.router"][0]
    batch = text(8)

    @quick
    def run(params):
        model = abstract.bind(params, {})
        step = [
            model.decode_step(batch["decoder_inputs"][:, 0], model.init_cache(8, 3), 0)[0]
            for _ in range(2)
        ]
        return model.hidden(batch, train=False)[1]["decoder"]["sparse"]["router"].metrics, step

    metrics, (first, again) = run(params)
    np.testing.assert_array_equal(first, again)
    sent, tokens = metrics["second_rate"]
    assert np.all((sent > 0) & (sent < tokens))
    assert sent[0] != sent[1]
    np.testing.assert_array_equal(run(params)[0]["second_rate"][0], sent)


@pytest.mark.slow
def test_bfloat16_activations_float32_weights_and_logits(small, made, text, quick):
    config = small(dtype="bfloat16", encoder_blocks=2)
    abstract, params = made(config)

    def run(model):
        hidden, reports = model.hidden(text(2), train=False)
        return hidden, model.logits(hidden), reports["encoder"]["sparse"]["router"]

    hidden, logits, router = quick(lambda params: run(abstract.bind(params, {})))(params)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(router)} == {jnp.dtype("float32")}
    assert {spec.dtype for spec in abstract.params.values()} == {jnp.dtype("float32")}
    wide, _ = made(dataclasses.replace(config, dtype="float32"))
    _, expected, _ = quick(lambda params: run(wide.bind(params, {})))(params)
    # 8 bits of each activation: a hundredth of the logits' deviation of 1, times a few layers. A
    # token near a tie may go to another expert, so the typical error is bounded, not the largest.
    assert np.median(np.abs(logits - expected)) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((1, 4, 2), "fsdp"),
        pytest.param((2, 2, 2), "replicated", marks=pytest.mark.thorough),
    ],
)
def test_eight_devices_are_one(small, made, text, quick, capfd, shape, weights):
    """Loss within 1e-5 and every gradient; the random policy draws the same on any mesh, and so
    does the dropout of whole experts. With what appendix J of ST-MoE tried.
    """
    routing = {"second_policy": "random", "capacity_factor": 1.0, "whole_expert_dropout": 0.3}
    routing |= {"later_balance_weight": 0.5, "entropy_loss_weight": 0.01}
    tried = {"router_history": True, "expert_embedding": True, "router_input": "both"}
    config = small(8, routing, encoder_blocks=4, remat="full", **tried)
    abstract, params = made(config)
    batch = text(16)
    loss_fn = pretrain.loss_function(abstract, config.routing, pretrain.Objective())

    def grads(params, batch):
        return jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, jax.random.key(3))

    (expected, out), wanted = quick(grads)(params, batch)
    run = compiled_on(make_mesh(*shape), weights, abstract, grads, params, batch)
    # [8 experts, 16, 24] over 4 or 2 rows and 2 columns: gathered over rows it would be this.
    gathered = re.findall(r"= \S+\[8,(?:16,12|12,16|16,24|24,16)\]\S* all-gather", run.text)
    assert not gathered
    assert "rematerialization" not in capfd.readouterr().err
    (loss, split), actual = run()
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)
    for name, gradient in wanted.items():
        scale = float(np.abs(gradient).max()) + 1e-6
        np.testing.assert_allclose(actual[name], gradient, atol=2e-5 * scale, err_msg=name)
    for name, (total, _) in out.metrics.items():
        np.testing.assert_allclose(split.metrics[name][0], total, rtol=1e-4, err_msg=name)


@pytest.mark.thorough
def test_gradients_of_weights_are_added_up_in_float32_over_devices(small, made, text):
    """With bfloat16 activations on a mesh of 2 x 2 x 2, read from what is handed to the
    compiler: what expert layers reduce, and every matrix's gradient, which the partitioner reduces.
    """
    config = small(dtype="bfloat16", encoder_blocks=2, tie_word_embeddings=True)
    abstract, params = made(config)
    loss_fn = pretrain.loss_function(abstract, config.routing, pretrain.Objective())

    def grads(params, batch):
        return jax.grad(loss_fn, has_aux=True)(params, {}, batch, jax.random.key(3))

    lowered, _ = lowered_on(make_mesh(2, 2, 2), "replicated", abstract, grads, params, text(16))
    program = lowered.as_text()
    reduced = re.findall(
        r'"stablehlo\.all_reduce".*?\) : \((tensor<[^)]*)\) ->', program, re.DOTALL
    )
    assert {"tensor<2x16x12xf32>", "tensor<2x12x16xf32>"} <= set(reduced)  # gate and up, down
    assert not [kind for kind in reduced if "bf16" in kind]
    matrices = re.findall(r"stablehlo\.dot_general .* -> tensor<(\d+x\d+x(?:bf16|f32))>", program)
    # A dense layer, and of the tied table what one device adds up: half of its words.
    assert matrices.count("16x24xf32") > 1
    assert "(tensor<4x16x48xf32>" in program  # these parts, added up over devices
    assert not [kind for kind in matrices if "bf16" in kind]


def lowered_on(mesh, weights, abstract, grads, params, batch):
    """Loss and gradients with weights and batch split over a mesh: what is compiled, arguments."""
    config = config_lib.default_config("st_moe_tiny")
    config.sharding = weights
    rules = config_lib.sharding_rules(config)

    def on_mesh(params, batch):
        with activate(mesh, rules):
            return grads(params, batch)

    places = resolve_specs(abstract.params, rules, mesh)
    rows = batch_sharding(rules, mesh)
    args = jax.device_put(params, places), jax.device_put(batch, rows)
    return jax.jit(on_mesh, in_shardings=(places, rows)).lower(*args), args


def compiled_on(*given):
    """The same compiled: a call, and its program."""
    lowered, args = lowered_on(*given)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})

    def run():
        return compiled(*args)

    run.text = compiled.as_text()
    return run
