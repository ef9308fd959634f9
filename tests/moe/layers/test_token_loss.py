"""The loss of tokens, in tiles and on meshes, against the formula on all logits at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels import cross_entropy
from moe.layers.embed import Embedding, Output
from moe.layers.token_loss import token_loss
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve

WORDS, WIDTH = 24, 8
RULES = {
    "batch": ("replica", "data", "model"),
    "layer_batch": ("replica", "data"),
    "embed": "data",
    "vocab": "model",
    "table": "model",
    "tokens": None,
}


def drawn(sequences, length, dtype=jnp.float32):
    """x, matrix, targets, weights: some of them 0, the others not equal."""
    keys = jax.random.split(jax.random.key(length), 4)
    x = jax.random.normal(keys[0], (sequences, length, WIDTH)).astype(dtype)
    matrix = jax.random.normal(keys[1], (WIDTH, WORDS))
    targets = jax.random.randint(keys[2], (sequences, length), 0, WORDS)
    weights = jax.random.uniform(keys[3], (sequences, length))
    return x, matrix, targets, jnp.where(weights < 0.3, 0.0, weights)


def textbook(x, matrix, targets, weights, z_loss):
    """The same in float32 from all logits."""
    logits = jnp.einsum("bld,dv->blv", x.astype(jnp.float32), matrix)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    each = normaliser - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    right = jnp.argmax(logits, axis=-1) == targets
    values = each, normaliser, right.astype(jnp.float32)
    counted = weights > 0
    loss = jnp.sum(jnp.where(counted, weights * (each + z_loss * normaliser**2), 0))
    return loss, [jnp.where(counted, value, 0) for value in values]


def ours(x, matrix, targets, weights, z_loss, **options):
    bound = nn.abstract(Output(WIDTH, WORDS)).bind({"kernel": matrix}, {})
    return token_loss(x, bound.kernel, targets, weights, z_loss=z_loss, **options)


def tiles_of(monkeypatch, tokens, words=WORDS):
    monkeypatch.setattr(cross_entropy, "TILE_BYTES", 4 * words * tokens)


@pytest.mark.thorough
@pytest.mark.parametrize("tokens", [12, 1000])  # three tiles, the last not full, and one
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_all_logits_at_once(monkeypatch, dtype, tokens):
    tiles_of(monkeypatch, tokens)
    x, matrix, targets, weights = drawn(2, 14, dtype)
    matrix = matrix.astype(dtype).astype(jnp.float32)  # as both see it
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(fn, z_loss=0.1), (0, 1, 3), has_aux=True))(
            x, matrix, targets, weights
        )
        for fn in (ours, textbook)
    )
    exact = dtype == jnp.float32
    tolerance = {"rtol": 1e-5, "atol": 2e-5} if exact else {"rtol": 1e-2, "atol": 2e-2}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), **tolerance
        )
    plain, _ = jax.jit(functools.partial(ours, z_loss=0.1))(x, matrix, targets, weights)
    np.testing.assert_allclose(plain, found[0][0], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 5, 7, 13, 114])
def test_tiles_are_nearly_even_and_hold_no_more_than_they_may(monkeypatch, length):
    tiles_of(monkeypatch, 4 * 12)
    step = cross_entropy.tile_length(4, length, WORDS)
    tiles = -(-length // step)
    assert step <= 12
    assert tiles == -(-length // 12)
    assert tiles * step - length < tiles
    assert cross_entropy.tile_length(1000, length, WORDS) == 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "reduce"),
    [
        ((1, 8, 1), "float32"),
        ((1, 1, 4), "float32"),
        ((2, 2, 2), "float32"),
        ((2, 2, 2), "bfloat16"),
    ],
)
def test_the_same_on_every_mesh(monkeypatch, shape, reduce):
    """Words lie over the axis model, sequences over all, the matrix is split over data as well."""
    tiles_of(monkeypatch, 16)
    x, matrix, targets, weights = drawn(8, 5)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])

    @jax.jit
    def run(x, matrix, targets, weights):
        with activate(mesh, RULES):
            fn = functools.partial(ours, z_loss=0.1, reduce=reduce)
            return jax.value_and_grad(fn, (0, 1), has_aux=True)(x, matrix, targets, weights)

    place = resolve("kernel", matrix.shape, ("embed", "vocab"), RULES, mesh)
    batch = batch_sharding(RULES, mesh)
    split = [jax.device_put(array, batch) for array in (x, targets, weights)]
    found = run(split[0], jax.device_put(matrix, place), *split[1:])
    assert found[1][1].sharding.is_equivalent_to(place, 2)
    reference = functools.partial(textbook, z_loss=0.1)
    expected = jax.value_and_grad(reference, (0, 1), has_aux=True)(x, matrix, targets, weights)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        rounded = reduce == "bfloat16" and one.shape == matrix.shape
        tolerance = 3e-2 if rounded else 2e-5
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_tied_table_is_a_matrix_that_is_stored_the_other_way():
    x, matrix, targets, weights = drawn(2, 3)
    tied = nn.abstract(Embedding(WORDS, WIDTH))

    def loss(table):
        weight = tied.bind({"table": table}, {}).table
        return token_loss(x, weight, targets, weights, z_loss=0.1, transposed=True)[0]

    value, gradient = jax.value_and_grad(loss)(matrix.T)
    expected = jax.value_and_grad(lambda m: textbook(x, m, targets, weights, 0.1)[0])(matrix)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1].T, atol=1e-5)


def read(logits, targets, weights):
    """What is measured of tokens with these logits."""
    matrix = jnp.eye(logits.shape[-1])
    fn = functools.partial(cross_entropy.token_values, gradients=True)
    return fn(jnp.asarray(logits), matrix, jnp.asarray(targets), jnp.asarray(weights), 0.1)


def test_equal_logits_are_right_for_one_word_and_nan_for_none():
    targets, weights = np.arange(4)[None], np.ones((1, 4))
    values, _ = read(np.zeros((1, 4, 4)), targets, weights)
    assert values.right.tolist() == [[1, 0, 0, 0]]
    values, _ = read(np.full((1, 4, 4), np.nan), targets, weights)
    assert not values.right.any()
    assert np.isnan(values.cross_entropy).all()


@pytest.mark.thorough
def test_padding_adds_nothing_even_where_it_is_nan():
    logits = np.random.default_rng(1).normal(size=(1, 3, 5)).astype(np.float32)
    logits[0, 2] = np.nan
    targets, weights = np.array([[1, 2, 9]]), np.array([[1.0, 1.0, 0.0]])
    values, gradients = read(logits, targets, weights)
    expected, others = read(logits[:, :2], targets[:, :2], weights[:, :2])
    np.testing.assert_allclose(values.cross_entropy[:, :2], expected.cross_entropy, rtol=1e-6)
    assert values.cross_entropy[0, 2] == values.normaliser[0, 2] == values.right[0, 2] == 0
    assert not gradients[0][0, 2].any()
    np.testing.assert_allclose(gradients[1], others[1], atol=1e-6)


def test_gradients_of_the_matrix_are_added_in_float32(monkeypatch):
    """257 equal tokens, one a tile: bfloat16 would stop at 256."""
    tiles_of(monkeypatch, 1, words=2)
    x = jnp.ones((1, 257, 1), jnp.bfloat16)
    targets, weights = jnp.zeros((1, 257), jnp.int32), jnp.full((1, 257), 2.0)
    _, gradients = cross_entropy.token_values(
        x, jnp.zeros((1, 2), jnp.bfloat16), targets, weights, 0.0, gradients=True
    )
    assert gradients[1].tolist() == [[-257, 257]]


def test_no_array_of_all_logits_is_kept(monkeypatch):
    tiles_of(monkeypatch, 16)
    x, matrix, targets, weights = drawn(8, 64)

    def temporaries(fn):
        run = jax.jit(jax.grad(functools.partial(fn, z_loss=0.1), (0, 1), has_aux=True))
        compiled = run.lower(x, matrix, targets, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(ours) < 4 * 8 * 64 * WORDS < temporaries(textbook)
