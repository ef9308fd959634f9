"""The pre-training loss and its metrics against NumPy, term by term."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import objective as pretrain
from moe.data.sources.packing import batch_fields
from moe.eval.measured import Measured
from trainlib.errors import ConfigError


def logsumexp(x):
    top = x.max(-1, keepdims=True)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


@pytest.mark.thorough
def test_the_loss_is_the_sum_of_its_parts(small, made, text, quick):
    """Every weight is put on a scale of its own, so that a part left out or doubled is seen."""
    config = small(
        4, {"balance_loss_weight": 0.3, "z_loss_weight": 0.07}, encoder_blocks=2, scan_layers=False
    )
    abstract, params = made(config)
    batch = text(2)
    objective = pretrain.Objective(z_loss=0.11, attention_z_loss=0.013)
    loss_fn = pretrain.loss_function(abstract, config.routing, objective)

    @quick
    def both(params):
        loss, out = loss_fn(params, {}, batch, jax.random.key(0))
        model = abstract.bind(params, {})
        hidden, reports = model.hidden(batch, train=True, key=jax.random.key(0))
        return loss, out, model.logits(hidden), reports

    loss, out, logits, reports = both(params)
    weights = batch["decoder_weights"]
    total = logsumexp(np.asarray(logits, np.float64))
    own = np.take_along_axis(np.asarray(logits), batch["decoder_targets"][..., None], -1)[..., 0]
    expected = (weights * (total - own)).sum() / weights.sum()
    np.testing.assert_allclose(out.metrics["cross_entropy"][0] / weights.sum(), expected, rtol=1e-5)
    expected += 0.11 * (weights * total**2).sum() / weights.sum()
    for trees in reports.values():
        for name, report in trees.items():
            expected += 0.013 * sum(np.sum(v) for n, v in report.items() if n.endswith("_z"))
            if name == "sparse":
                for part, weight in (("balance", 0.3), ("z", 0.07)):
                    value, count = report["router"].losses[part]
                    expected += weight * float(np.sum(value / count))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert float(out.count) == weights.sum()


@pytest.mark.thorough
def test_padding_reaches_no_expert_and_no_loss(small, made, text, quick):
    """Other words in the padding change no loss, gradient or metric, bit for bit, where experts are
    full and every z-loss is on; the routers count real tokens alone.
    """
    routing = {
        "capacity_factor": 0.5,
        "min_capacity": 1,
        "balance_loss_weight": 0.3,
        "z_loss_weight": 0.07,
    }
    config = small(4, routing, encoder_blocks=1, decoder_blocks=1, sparse_period=1)
    abstract, params = made(config)
    objective = pretrain.Objective(z_loss=0.11, attention_z_loss=0.013)
    loss_fn = pretrain.loss_function(abstract, config.routing, objective)

    @quick
    def run(params, batch):
        return jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, jax.random.key(0))

    batch = text(4)
    other, more = dict(batch), dict(batch)
    for name in ("encoder_inputs", "decoder_inputs", "decoder_targets"):
        real = batch[f"{name.split('_')[0]}_segments"] > 0
        assert not real.all()
        other[name] = np.where(real, batch[name], 7)
        more[name] = np.where(real, 7, batch[name])
    results = [run(params, b) for b in (batch, other, more)]
    for first, second in zip(*(jax.tree.leaves(r) for r in results[:2]), strict=True):
        np.testing.assert_array_equal(first, second)
    assert results[2][0][0] != results[0][0][0]  # real words do matter
    metrics = results[0][0][1].metrics
    for stack in ("encoder", "decoder"):
        tokens = float((batch[f"{stack}_segments"] > 0).sum())
        for name in ("entropy", "dropped_tokens", "second_rate", "nonfinite"):
            assert metrics[f"router/{stack}/{name}"][1].tolist() == [tokens], name
        assert metrics[f"router/{stack}/load"][0].sum() == 2 * tokens
        assert metrics[f"router/{stack}/dropped_choices"][0][0] > 0


def test_values_are_named_by_stack_block_and_expert(small):
    blocks = {"encoder": (1, 3), "decoder": (1,)}
    sums = {
        "cross_entropy": (jnp.float32(6), jnp.float32(2)),
        "router/encoder/load": (jnp.array([[1.0, 3.0], [4.0, 0.0]]), jnp.array([4.0, 8.0])),
        "router/decoder/entropy": (jnp.array([9.0]), jnp.array([3.0])),
    }
    assert Measured.of(sums, blocks).flat() == {
        "cross_entropy": 3.0,
        "router/encoder.1/load_0": 0.25,
        "router/encoder.1/load_1": 0.75,
        "router/encoder.3/load_0": 0.5,
        "router/encoder.3/load_1": 0.0,
        "router/decoder.1/entropy": 3.0,
    }


def test_microbatches_and_dense_models_have_a_loss(small, made, text, quick):
    config = dataclasses.replace(small(0, kind="decoder"), routing=None)
    abstract, params = made(config)
    loss_fn = pretrain.loss_function(abstract, None, pretrain.Objective(z_loss=0.0))
    batch = {name: value for name, value in text(2).items() if name in batch_fields("decoder")}
    loss, out = quick(lambda params: loss_fn(params, {}, batch, jax.random.key(0)))(params)
    np.testing.assert_allclose(loss, out.metrics["cross_entropy"][0] / out.count, rtol=1e-6)
    assert set(out.metrics) == {"cross_entropy", "accuracy"}


def test_an_encoder_alone_has_no_targets():
    with pytest.raises(ConfigError, match="encoder_decoder"):
        batch_fields("encoder")


@pytest.mark.parametrize(("rows", "kept"), [(0, None), (2, (2, 3)), (9, (6, 1))])
def test_evaluation_keeps_the_choices_of_its_sample_alone(
    rows, kept, small, made, text, monkeypatch
):
    """And not those of every token, in no array of the program: a batch may have millions."""
    monkeypatch.setattr(pretrain, "PROBE_TOKENS", 6)
    config = small(4, encoder_blocks=2, decoder_blocks=2)
    abstract, params = made(config)
    batch = text(7)
    evaluate = pretrain.evaluate_function(abstract, rows)
    _, chosen = jax.eval_shape(evaluate, params, {}, batch)
    blocks, choices = len(config.sparse_blocks("encoder")), config.routing.top_k
    shapes = {stack: array.shape for stack, array in chosen.items()}
    assert shapes == (dict.fromkeys(config.stacks, (blocks, *kept, choices)) if kept else {})
    program = str(jax.make_jaxpr(evaluate)(params, {}, batch))
    length = batch["encoder_inputs"].shape[1]
    assert f"i32[{blocks},7,{length},{choices}]" not in program
