"""Stacks: a loop over periods computes what its blocks compute one after the other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.attention_bias import AttentionBias
from moe.models import stack as stack_lib
from moe.models.block import Block, Context
from moe.models.stack import Stack
from moe.objective import router_metrics
from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for

LAYOUTS = [  # experts, blocks, period, offset
    (4, 4, 2, -1),  # dense, sparse
    (4, 8, 4, 1),  # dense, sparse, dense, dense
    (4, 2, 1, 0),  # sparse only
    (0, 3, 4, -1),  # dense only
    (4, 8, 3, 1),  # ends after a sparse block
]


@pytest.fixture(autouse=True)
def loops(monkeypatch):
    """As on other platforms, where few blocks are a loop too."""
    monkeypatch.setattr(stack_lib, "MOST_WRITTEN_OUT", 0)


def pick(params, prefix):
    return {n.removeprefix(prefix): w for n, w in params.items() if n.startswith(prefix)}


def one_by_one(config, params, x, segments):
    """The encoder with each block built alone and given its slice of the stacked weights."""
    stack = nn.abstract(Stack(config, "encoder")).bind(pick(params, "encoder."), {})
    context = Context(
        bias=AttentionBias.of(stack.bias, segments),
        valid=segments > 0,
    )
    places = {
        int(number): (tree, place)
        for tree, numbers in config.trees("encoder").items()
        for place, number in np.ndenumerate(numbers)
    }
    for number in range(config.encoder_blocks):
        tree, index = places[number]
        routing = config.routing if tree.endswith("sparse") else None
        extra = number in config.extra_blocks("encoder")
        block = nn.abstract(Block(config, routing, extra=extra, causal=False, cross=False))
        weights = {n: w[index] for n, w in pick(params, f"encoder.{tree}.").items()}
        x, _ = block.bind(weights, {})(x, context, None, train=False)
    return stack.norm(x)


@pytest.mark.thorough
@pytest.mark.parametrize(("experts", "blocks", "period", "offset"), LAYOUTS)
def test_a_stack_runs_its_blocks_in_order(
    small, made, text, quick, experts, blocks, period, offset
):
    places = {"encoder_blocks": blocks, "sparse_period": period, "sparse_offset": offset}
    places["partial_period"] = bool(blocks % period)
    config = small(experts, kind="encoder", **places)
    abstract, params = made(config)
    batch = text(2)

    @quick
    def both(params):
        model = abstract.bind(params, {})
        x = model.embedding(batch["encoder_inputs"], jnp.float32)
        expected = one_by_one(config, params, x, jnp.asarray(batch["encoder_segments"]))
        return *model.hidden(batch, train=False), expected

    hidden, reports, expected = both(params)
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    if experts:
        router = reports["encoder"]["sparse"]["router"]
        assert router.losses["balance"][0].shape == (blocks // period,)
        count = len(config.sparse_blocks("encoder"))
        for total, _ in router_metrics(reports).values():
            assert total.shape[0] == count
        shares = router.metrics["load"][0].sum(-1) / router.metrics["load"][1]
        np.testing.assert_allclose(shares, np.ones(blocks // period), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": False, "remat": "minimal"},
        pytest.param({"scan_layers": False}, marks=pytest.mark.thorough),
        pytest.param({"remat": "minimal"}, marks=pytest.mark.thorough),
    ],
    ids=["both", "scan", "remat"],
)
def test_scan_and_remat_change_nothing(small, made, text, quick, change):
    """With dropout and a random second choice, so that the keys of blocks are compared as well."""
    places = {"encoder_blocks": 6, "sparse_period": 3, "sparse_offset": 2}
    config = small(
        4, {"second_policy": "random"}, kind="encoder", dropout=0.2, extra_ffn="none", **places
    )
    batch, key = text(2), jax.random.key(5)

    def gradients(config):
        abstract, params = made(config)

        def loss(params):
            hidden, reports = abstract.bind(params, {}).hidden(batch, train=True, key=key)
            return jnp.mean(jnp.square(hidden)), reports

        return quick(jax.value_and_grad(loss, has_aux=True))(params)

    plain = gradients(config)
    changed = gradients(dataclasses.replace(config, **change))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(changed), strict=True
    ):
        scale = float(np.abs(a).max()) + 1e-6
        np.testing.assert_allclose(a, b, atol=5e-6 * scale, err_msg=f"{change} {path}")


def test_dropout_of_blocks_and_sequences_differs(small, made, text, quick):
    """Equal sequences: only keys can make a difference between them, or between two calls."""
    config = small(0, kind="encoder", encoder_blocks=2, dropout=0.5)
    abstract, params = made(config)
    batch = {name: np.repeat(value[:1], 2, axis=0) for name, value in text(1).items()}
    run = quick(lambda key: abstract.bind(params, {}).hidden(batch, train=True, key=key)[0])
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.allclose(first, second)
    assert not np.allclose(first[0], first[1])
    np.testing.assert_array_equal(first, run(jax.random.key(0)))


@pytest.mark.parametrize(("platform", "loops"), [("cpu", False), ("tpu", True)])
def test_few_blocks_follow_one_another_on_a_cpu(small, made, text, monkeypatch, platform, loops):
    monkeypatch.setattr(stack_lib, "MOST_WRITTEN_OUT", 4)
    batch = text(2)

    def looped(blocks):
        abstract, params = made(small(0, kind="encoder", encoder_blocks=blocks))
        with lowered_for(platform):
            program = jax.make_jaxpr(lambda p: abstract.bind(p, {}).hidden(batch)[0])(params)
        return " scan[" in str(program)

    assert looped(4) is loops
    assert looped(5)
