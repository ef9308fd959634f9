"""What layers and models report of single tokens, against `route` and their own metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.route import route
from tests.moe.layers.test_sparse import TIGHT, B, D, E, F, L, made
from tests.moe.meshes import RULES
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs

CONFIGS = {
    "index": dataclasses.replace(TIGHT, capacity_factor_eval=1.0),
    "experts": dataclasses.replace(TIGHT, router="experts_choose", capacity_factor_eval=1.0),
    "dropless": dataclasses.replace(TIGHT, dispatch="dropless", second_policy_eval="threshold"),
}


def traced(config, quick, shape=None):
    """(output without a trace, output and choices with it), on a mesh of `shape`."""
    spec, params, x, mask, _ = made(config)

    def both(params, x):
        layer = spec.bind(params, {})
        (plain, none), (y, out) = layer(x, mask), layer(x, mask, trace=True)
        assert none.choices is None
        return plain, y, out.choices

    if shape is None:
        return jax.device_get(quick(both)(params, x))
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with activate(mesh, RULES):
        params = jax.device_put(params, resolve_specs(spec.params, RULES, mesh))
        return jax.device_get(quick(both)(params, jax.device_put(x, batch_sharding(RULES, mesh))))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CONFIGS)
def test_choices_are_those_of_the_router(name, quick):
    config = CONFIGS[name]
    _, params, x, mask, _ = made(config)
    plain, y, choices = traced(config, quick)
    np.testing.assert_array_equal(plain, y)
    logits = x @ params["router"]
    # Groups are one sequence each.
    routed = jax.device_get(route(logits, config, mask=jnp.asarray(mask)))
    np.testing.assert_array_equal(choices.expert, routed.expert)
    np.testing.assert_allclose(choices.gate, routed.gates, atol=1e-5)
    _, position = routed.expert_and_position()
    np.testing.assert_array_equal(choices.placed, position >= 0)
    p = np.exp(np.float64(logits))
    p /= p.sum(-1, keepdims=True)
    sent = (choices.expert < E).any(-1)
    np.testing.assert_allclose(choices.entropy, np.where(sent, -(p * np.log(p)).sum(-1), 0), 1e-4)
    assert not choices.placed[~mask].any()
    assert (choices.expert[~mask] == E).all()
    assert (sent & ~choices.placed.any(-1)).any() == (name == "index")


def test_choices_are_the_same_on_eight_devices(quick):
    one, eight = (traced(CONFIGS["index"], quick, shape)[2] for shape in (None, (2, 2, 2)))
    for field in dataclasses.fields(one):
        np.testing.assert_allclose(*(getattr(c, field.name) for c in (one, eight)), atol=1e-5)


def test_a_model_reports_its_blocks_in_order(small, made, text, quick):
    """The choices of each block are those that its metrics count."""
    config = small(routing={"capacity_factor_eval": 1.0}, encoder_blocks=5, partial_period=True)
    abstract, params = made(config)
    batch = text(4)

    def run(params, batch):
        model = abstract.bind(params, {})
        inputs = batch["encoder_inputs"], batch["decoder_inputs"]
        segments = {f"{name}_segments": batch[f"{name}_segments"] for name in config.stacks}
        return model(*inputs, **segments, trace=True).routers

    routers = jax.device_get(quick(run)(params, batch))
    assert routers["decoder"].choices.expert.shape == (1, *batch["decoder_inputs"].shape, 2)
    for stack, blocks in (("encoder", 2), ("decoder", 1)):
        choices, metrics = routers[stack].choices, routers[stack].metrics
        assert choices.expert.shape[0] == len(config.sparse_blocks(stack)) == blocks
        for layer in range(blocks):
            expert = choices.expert[layer]
            load = np.bincount(expert[expert < 4], minlength=4)
            np.testing.assert_array_equal(load, metrics["load"][0][layer])
            lost = ((expert < 4) & ~choices.placed[layer]).sum()
            assert lost == metrics["dropped_choices"][0][layer]
            total, count = (np.float64(v[layer]) for v in metrics["entropy"])
            assert choices.entropy[layer].sum() / count == pytest.approx(total / count, rel=1e-4)
    assert routers["encoder"].metrics["dropped_choices"][0].sum() > 0


def test_training_is_not_traced():
    layer = SparseFFN(D, F, RoutingConfig(E), rngs=None)
    with pytest.raises(ValueError, match="trace=True is for evaluation"):
        layer(jnp.zeros((B, L, D)), train=True, trace=True)
