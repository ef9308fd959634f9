"""The word table: lookup and its gradient on every mesh, logits in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.embed import Embedding, Output, lookup
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve

RULES = {
    "batch": ("replica", "data", "model"),
    "layer_batch": ("replica", "data"),
    "table": "model",
    "tokens": None,
    "embed": "data",
    "vocab": "model",
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4)])
def test_lookup_is_indexing_on_every_mesh(shape, platform):
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    table = jax.random.normal(jax.random.key(0), (13, 8))
    tokens = jax.random.randint(jax.random.key(1), (8, 5), 0, 13)
    upstream = jax.random.normal(jax.random.key(2), (8, 5, 8))
    where = resolve("table", table.shape, ("tokens", "table"), RULES, mesh)

    @jax.jit
    def run(table, tokens, upstream):
        with lowered_for(platform), activate(mesh, RULES):
            found, pull = jax.vjp(lambda table: lookup(table, tokens), table)
            return found, pull(upstream)[0]

    split = jax.device_put(tokens, batch_sharding(RULES, mesh))
    found, gradient = run(jax.device_put(table, where), split, upstream)
    np.testing.assert_array_equal(found, np.asarray(table)[np.asarray(tokens)])
    expected = np.zeros((13, 8))
    np.add.at(expected, np.asarray(tokens), np.asarray(upstream, np.float64))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradients_of_a_word_are_added_in_float32_whatever_the_compute_type(platform):
    model = nn.abstract(Embedding(3, 2))
    tokens = jnp.zeros((1, 4096), jnp.int32)  # bfloat16 sums of ones end at 256

    def total(table):
        with lowered_for(platform):
            words = model.bind({"table": table}, {})(tokens, jnp.bfloat16)
        assert words.dtype == jnp.bfloat16
        return words.astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((3, 2)))[0], [4096, 4096])


def test_gradients_of_a_tied_table_are_added_in_float32():
    """257 ones: bfloat16 has no such number."""
    model = nn.abstract(Embedding(2, 1))
    x = jnp.ones((1, 257, 1), jnp.bfloat16)
    gradient = jax.grad(lambda table: model.bind({"table": table}, {}).attend(x).sum())
    np.testing.assert_array_equal(gradient(jnp.ones((2, 1))), [[257], [257]])


def test_logits_are_float32_and_tied_ones_are_scaled():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8)).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    table = np.random.default_rng(0).normal(size=(5, 8)).astype(jnp.bfloat16)
    tied = nn.abstract(Embedding(5, 8)).bind({"table": table}, {}).attend(x)
    untied = nn.abstract(Output(8, 5)).bind({"kernel": table.T}, {})(x)
    assert tied.dtype == untied.dtype == jnp.float32
    expected = wide @ np.asarray(table, np.float64).T
    np.testing.assert_allclose(untied, expected, atol=1e-4)
    np.testing.assert_allclose(tied, expected / np.sqrt(8), atol=2e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_tpu_a_sequence_with_an_unknown_token_begins_with_nan(dtype):
    table, tokens = jnp.ones((5, 3)), jnp.array([[1, 2, 4], [1, 5, 2], [-1, 0, 0]])
    with lowered_for("tpu"):
        x = lookup(table, tokens, dtype)
        gradient = jax.grad(lambda table: lookup(table, tokens[:1], dtype).sum())(table)
    np.testing.assert_array_equal(np.isnan(x[:, 0, 0]), [False, True, True])
    assert np.isfinite(x[0]).all()
    np.testing.assert_array_equal(gradient[:, 0], [0, 1, 1, 0, 1])
