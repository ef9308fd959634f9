"""Relative bias and masks of attention, as rules and as arrays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.kernels.buckets import BUCKETS, relative_buckets
from moe.layers.attention_bias import AttentionBias, RelativeBias, segment_mask
from trainlib.model import weights as nn


def test_segment_mask_by_hand():
    queries, keys = np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 0, 0]])
    both = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(segment_mask(queries, keys)[0, 0], both)
    own = segment_mask(np.array([[1, 1, 2]]), np.array([[1, 1, 2]]), causal=True)
    np.testing.assert_array_equal(own[0, 0], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    late = segment_mask(np.array([[1]]), np.array([[1, 1, 1]]), causal=True, first_query=1)
    np.testing.assert_array_equal(late[0, 0], [[1, 1, 0]])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_is_a_lookup_and_so_is_its_gradient(bidirectional):
    module = RelativeBias(3, bidirectional=bidirectional)
    model = nn.abstract(module)
    table = np.random.default_rng(0).normal(size=(BUCKETS, 3)).astype(np.float32)
    queries, keys, first = 5, 150, 140
    upstream = np.random.default_rng(1).normal(size=(1, 3, queries, keys)).astype(np.float32)

    def bias(table):
        return model.bind({"table": table}, {})(queries, keys, first)

    actual, pull = jax.vjp(bias, jnp.asarray(table))
    offsets = np.arange(keys)[None] - (first + np.arange(queries))[:, None]
    buckets = relative_buckets(offsets, bidirectional=bidirectional)
    expected = np.zeros((1, 3, queries, keys), np.float32)
    gradient = np.zeros_like(table)
    for query in range(queries):
        for key in range(keys):
            bucket = buckets[query, key]
            expected[0, :, query, key] = table[bucket]
            gradient[bucket] += upstream[0, :, query, key]
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(pull(jnp.asarray(upstream))[0], gradient, atol=1e-4)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_rules_become_the_arrays_that_they_describe(causal, first):
    layer = RelativeBias(2, bidirectional=not causal, max_distance=20, rngs=nnx.Rngs(0))
    queries, keys = jnp.asarray([[1, 1, 2, 0]]), jnp.asarray([[1, 1, 1, 2, 2, 0]])
    rules = AttentionBias.of(layer, queries, keys, causal=causal)
    rules = dataclasses.replace(rules, first_query=first)
    made = rules.arrays(4, 6)
    np.testing.assert_array_equal(made.bias, layer(4, 6, first))
    mask = segment_mask(queries, keys, causal=causal, first_query=first)
    np.testing.assert_array_equal(made.mask, mask)


def test_without_segments_causality_is_all_of_the_mask():
    assert AttentionBias().arrays(3, 4) == (None, None)
    bias, mask = AttentionBias(causal=True, first_query=1).arrays(3, 4)
    assert bias is None
    np.testing.assert_array_equal(mask, np.tri(3, 4, 1, dtype=bool)[None, None])
