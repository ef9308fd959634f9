"""Layers and models with `rngs`, used as a Flax user uses any module: they hold arrays at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.layers.attention import Attention
from moe.layers.attention_bias import RelativeBias
from moe.layers.embed import Embedding, Output
from moe.layers.ffn import FeedForward
from moe.layers.norm import RMSNorm
from moe.layers.sparse import SparseFFN
from moe.models.block import Block
from moe.models.stack import Stack
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from trainlib.model import weights

ROUTING = RoutingConfig(num_experts=4)


@pytest.mark.slow
def test_a_sparse_layer_in_one_line():
    x = jax.random.normal(jax.random.key(0), (2, 8, 32))
    y, out = SparseFFN(32, 64, ROUTING, rngs=nnx.Rngs(0))(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert np.abs(y).max() > 0
    assert 0 < float(auxiliary_loss(out.losses, ROUTING)) < 1


def test_each_layer_alone():
    rngs, call = nnx.Rngs(0), nnx.jit(lambda layer, *inputs: layer(*inputs))
    x = jax.random.normal(jax.random.key(0), (2, 8, 32))
    assert call(FeedForward(32, 64, rngs=rngs), x).shape == x.shape
    assert call(RMSNorm(32, rngs=rngs), x).shape == x.shape
    assert call(Attention(32, 4, 8, rngs=rngs), x)[0].shape == x.shape
    assert call(Attention(32, 4, 8, rngs=rngs), x, x[:, :3])[0].shape == x.shape
    assert call(Embedding(50, 32, rngs=rngs), jnp.ones((2, 8), jnp.int32)).shape == x.shape
    assert call(Output(32, 50, rngs=rngs), x).shape == (2, 8, 50)
    assert RelativeBias(4, bidirectional=True, rngs=rngs)(8, 8).shape == (1, 4, 8, 8)


@pytest.fixture(scope="module")
def builders(small):
    """Name -> what builds a module, given `rngs` or not."""
    config = small()
    routing = config.stack_routing("decoder")
    return {
        "sparse": lambda **rngs: SparseFFN(16, 24, ROUTING, expert_bias="additive", **rngs),
        "block": lambda **rngs: Block(config, routing, extra=True, causal=True, cross=True, **rngs),
        "stack": lambda **rngs: Stack(config, "decoder", **rngs),
        "model": lambda **rngs: Transformer(config, **rngs),
    }


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name", ["sparse", "block", pytest.param("stack", marks=pytest.mark.thorough), "model"]
)
def test_arrays_are_those_that_are_declared(builders, name):
    """Name by name: shape and axes, the same scale, and every member of a stack its own draw."""
    build = builders[name]
    declared = weights.abstract(build())
    params = nnx.state(build(rngs=nnx.Rngs(0)), nnx.Param)
    arrays = weights.flatten(nnx.to_pure_dict(params))
    assert {n: a.shape for n, a in arrays.items()} == {
        n: spec.shape for n, spec in declared.params.items()
    }
    later = weights.initialise(declared.params, jax.random.key(1))
    drawn = [n for n, spec in declared.params.items() if np.std(later[n]) > 0 and spec.size > 300]
    assert drawn
    for weight in drawn:
        np.testing.assert_allclose(np.std(arrays[weight]), np.std(later[weight]), rtol=0.2)
        if declared.params[weight].axes[0] == "period":
            members = np.reshape(arrays[weight], (len(arrays[weight]), -1))
            assert len(np.unique(members[:, 0])) == len(members)
    flat = [np.ravel(arrays[n])[:8] for n in drawn]
    assert len(np.unique(np.stack(flat), axis=0)) == len(flat)  # no two weights share a key


class Classifier(nnx.Module):
    """A user's own model: two of our layers among Flax's."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(50, 32, rngs=rngs)
        self.attention = Attention(32, 4, 8, rngs=rngs)
        self.norm = RMSNorm(32, rngs=rngs)
        self.experts = SparseFFN(32, 64, ROUTING, init_scale=1.0, rngs=rngs)
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, tokens, key=None, *, train=False):
        x = self.embed(tokens)
        x = x + self.attention(x)[0]
        y, out = self.experts(self.norm(x), key=key, train=train)
        return self.head((x + y).mean(1)), auxiliary_loss(out.losses, ROUTING)


@pytest.mark.thorough
def test_a_users_own_module_learns():
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    tokens = jax.random.randint(jax.random.key(1), (16, 6), 0, 50)
    labels = jax.random.randint(jax.random.key(2), (16,), 0, 3)

    def loss_of(model, key):
        logits, auxiliary = model(tokens, key, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean() + auxiliary

    @nnx.jit
    def step(model, optimizer, key):
        loss, grads = nnx.value_and_grad(loss_of)(model, key)
        optimizer.update(model, grads)
        return loss, grads

    first, grads = step(model, optimizer, jax.random.key(0))
    moved = weights.flatten(nnx.to_pure_dict(nnx.state(grads, nnx.Param)))
    assert all(np.abs(g).max() > 0 for g in moved.values()), moved
    for number in range(1, 20):
        last, _ = step(model, optimizer, jax.random.key(number))
    assert float(last) < 0.5 * float(first)


@pytest.mark.thorough
def test_a_whole_model_at_once(small, text):
    config = small()
    model = Transformer(config, rngs=nnx.Rngs(0))
    batch = text(2)
    out = nnx.jit(lambda model, *inputs: model(*inputs))(
        model, batch["encoder_inputs"], batch["decoder_inputs"]
    )
    assert out.logits.shape == (2, 7, config.vocab_size)
    assert np.all(np.isfinite(out.logits))
    assert set(out.routers) == {"encoder", "decoder"}
