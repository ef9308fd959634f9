"""`moe.layers` in a stranger's own encoder over packed rows, written with public names alone."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import moe.layers
from moe.layers import Attention, AttentionBias, RelativeBias, t5_attention, use_kernels

WORDS, WIDTH, HEADS, LENGTH = 11, 32, 4, 12


class Tagger(nnx.Module):
    """Says of each word which word stands two places before it in its own text."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.positions = RelativeBias(HEADS, bidirectional=True, rngs=rngs)
        self.attention = Attention(WIDTH, HEADS, 8, dropout_rate=0.05, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, words, segments, key=None):
        bias = AttentionBias.of(self.positions, segments)
        return self.head(self.attention(self.embed(words), bias=bias, dropout_key=key)[0])


@nnx.jit
def train_step(model, optimizer, words, segments, targets, key):
    def loss_of(model):
        logits = model(words, segments, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(jnp.where(targets > 0, losses, 0)) / jnp.sum(targets > 0)

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def rows(rng):
    """Two texts in a row and padding; targets are 0 where there is no word two places before."""
    words = rng.integers(1, WORDS, (16, LENGTH))
    segments = np.repeat([[1] * 5 + [2] * 5 + [0] * 2], 16, axis=0)
    targets = np.where(segments == np.roll(segments, 2, axis=1), np.roll(words, 2, axis=1), 0)
    targets[:, :2] = targets[:, 10:] = 0
    return words, segments, targets


def test_an_encoder_of_ones_own_learns_positions_within_a_text():
    model, rng = Tagger(nnx.Rngs(0)), np.random.default_rng(0)
    optimizer = nnx.Optimizer(model, optax.adam(2e-2), wrt=nnx.Param)
    losses = [
        float(train_step(model, optimizer, *rows(rng), jax.random.key(step))) for step in range(150)
    ]
    assert np.mean(losses[-10:]) < 0.3 * losses[0], losses


def test_the_function_is_what_the_layer_computes():
    model = Tagger(nnx.Rngs(0))
    words, segments, _ = rows(np.random.default_rng(1))
    x, layer = model.embed(words), model.attention
    heads = [
        (x @ weight[...]).reshape(16, LENGTH, HEADS, 8)
        for weight in (layer.query, layer.key, layer.value)
    ]
    out, _ = t5_attention(
        *heads,
        bias_table=model.positions.table[...],
        query_segments=segments,
        key_segments=segments,
    )
    expected = model.head(out.reshape(16, LENGTH, -1) @ layer.out[...])
    np.testing.assert_allclose(model(words, segments), expected, atol=1e-5)


def test_a_user_may_take_no_kernels():
    q = jnp.ones((1, 4, 2, 8))
    with use_kernels("plain"):
        out, logsumexp = t5_attention(q, q, q)
    np.testing.assert_allclose(out, q)
    np.testing.assert_allclose(logsumexp, jnp.full((1, 2, 4), 8 + np.log(4)), rtol=1e-6)


def test_names_are_imported_when_they_are_used():
    code = (
        "import sys, moe.layers\n"
        "assert 'jax' not in sys.modules\n"
        "assert dir(moe.layers) == sorted(moe.layers.__all__)\n"
        "for name in moe.layers.__all__:\n"
        "    assert getattr(moe.layers, name).__name__ == name, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        moe.layers.flash  # noqa: B018
