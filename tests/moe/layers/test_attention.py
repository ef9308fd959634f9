"""Attention against NumPy in float64: bias, masks, packing, types, gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from moe.layers.attention import Attention, Drop, attend, attend_by
from moe.layers.attention_bias import BiasArrays
from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(query, key, value, bias, mask):
    logits = np.einsum("bqnh,bknh->bnqk", query, key) + bias
    return np.einsum("bnqk,bknh->bqnh", softmax(np.where(mask, logits, -1e9)), value)


def inputs(dtype=np.float32, queries=5, keys=7):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (queries, keys, keys))
    bias = rng.normal(size=(1, 3, queries, keys)).astype(np.float32)
    mask = rng.random((2, 1, queries, keys)) < 0.6
    mask[..., 0] = True
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), bias, mask


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attend_is_its_formula(dtype, tolerance):
    q, k, v, bias, mask = inputs(dtype)
    actual, total = attend(q, k, v, bias, mask)
    assert actual.dtype == dtype
    assert total.dtype == jnp.float32
    wide = [np.asarray(x, np.float64) for x in (q, k, v, bias)]
    expected = reference(*wide, mask)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=tolerance)
    logits = np.where(mask, np.einsum("bqnh,bknh->bnqk", *wide[:2]) + wide[3], -np.inf)
    np.testing.assert_allclose(total, np.log(np.exp(logits).sum(-1)), rtol=1e-5)


def both_forms(function, *args):
    """Its value and gradients as on a CPU and as elsewhere."""
    made = []
    for platform in ("cpu", "tpu"):
        with lowered_for(platform):
            value, pull = jax.vjp(function, *args)
            made.append((value, pull(jax.tree.map(jnp.cos, value))))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 4e-2)])
def test_a_cpu_computes_what_others_do(dtype, tolerance):
    q, k, v, bias, mask = inputs(dtype)
    drop = Drop(0.4, jax.random.key(3))
    rules = BiasArrays(mask=mask)

    def dropped(q, k, v, bias):
        return attend_by(q, k, v, rules._replace(bias=bias), drop)

    # Where keys are dropped, a CPU drops values, and others probabilities.
    for mine, other in zip(*map(jax.tree.leaves, both_forms(dropped, q, k, v, bias)), strict=True):
        assert mine.dtype == other.dtype
        wide = (np.asarray(x, np.float64) for x in (mine, other))
        np.testing.assert_allclose(*wide, atol=tolerance, rtol=tolerance)


def test_a_cpu_writes_fewer_arrays_of_pairs():
    """Exponentials, and no probabilities beside them."""

    def written(platform):
        def total(q, k, v):
            with lowered_for(platform):
                return jnp.sum(attend(q, k, v)[0] ** 2)

        arrays = (jnp.ones((2, 24, 3, 4)),) * 3
        text = jax.jit(jax.grad(total, (0, 1, 2))).lower(*arrays).compile().as_text()
        program = text[text.index("\nENTRY") :]
        return len(re.findall(r" = f32\[2,3,24,24\]\S* (?:fusion|dot|copy)\(", program))

    assert written("cpu") < written("tpu")


@pytest.mark.thorough
def test_gradients():
    q, k, v, bias, mask = inputs(queries=2, keys=3)
    check_grads(
        lambda *args: attend(*args, mask), (q, k, v, bias), 1, ["rev"], atol=2e-2, rtol=2e-2
    )


def test_a_query_without_keys_gets_no_nan_and_gives_none():
    q, k, v, bias, _ = inputs()
    mask = np.zeros((2, 1, 5, 7), bool)
    value, grads = jax.value_and_grad(lambda q: attend(q, k, v, bias, mask)[0].sum())(q)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grads))


@pytest.mark.parametrize("own", [True, False])
def test_layer_is_its_formula(own):
    layer = nn.abstract(Attention(5, 3, 4))
    weights = nn.initialise(layer.params, jax.random.key(0))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 6, 5)).astype(np.float32)
    source = x if own else rng.normal(size=(2, 3, 5)).astype(np.float32)
    mask = np.tri(6, source.shape[1], dtype=bool)[None, None]
    actual, _ = layer.bind(weights, {})(x, None if own else source, bias=BiasArrays(mask=mask))
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    heads = [
        (y @ w[name]).reshape(2, -1, 3, 4)
        for name, y in (("query", x), ("key", source), ("value", source))
    ]
    expected = reference(*heads, 0.0, mask).reshape(2, 6, 12) @ w["out"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_query_matrix_carries_the_scale_of_the_logits():
    specs = nn.abstract(Attention(400, 4, 64, init_scale=0.1)).params
    made = nn.initialise(specs, jax.random.key(0))
    ratio = float(made["query"].std() / made["key"].std())
    np.testing.assert_allclose(ratio, 64**-0.5, rtol=0.02)
