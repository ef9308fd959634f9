"""The attention kernels, interpreted, against the plain form: values and every gradient."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.attention import bias as module
from moe.kernels.attention import flash_attention, forward, plan
from tests.moe.kernels.attention.cases import Arrays, Case, differs, in_float64, random_case

MIB = 2**20
CASES = [
    Case(300, 300, heads=2, batch=2),
    Case(290, 290, heads=2, width=64, causal=True, segments="padded"),
    Case(200, 300, bias=False, segments="empty", batch=2),
    Case(5, 1, heads=3, width=48, segments="none"),
]


def tile_by_index(vector, tile):
    """What `toeplitz` makes. Interpreted, a strided roll is an operation a row: slow to compile."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (tile, tile), axis) for axis in (0, 1))
    return jnp.take(vector[0], tile - 1 - row + column)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(forward, "toeplitz", tile_by_index)


def check(case: Case, tolerance: float, *, wide: bool = False) -> None:
    for name, got, want in Arrays(case).compared(wide):
        # Sums over all pairs of a bucket, which cancel, in another order: 10^-5 was found.
        most = 5 * tolerance if name == "dtable" else tolerance
        assert differs(got, want) <= most, (name, differs(got, want), case)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_plain_form(case, quick):
    check(case, 1e-5)


def test_tiles_are_diagonals_and_their_gradients_sums_over_them():
    """Exactly, for whole numbers."""
    tile = 128
    from jax.experimental import pallas as pl

    def kernel(vector, gradient, made, summed):
        made[...] = module.toeplitz(vector[...], tile)
        summed[...] = module.diagonals(gradient[...], tile)

    draw = np.random.default_rng(0).integers
    vector = jnp.asarray(draw(-99, 99, size=(1, 2 * tile)), jnp.float32)
    gradient = jnp.asarray(draw(-99, 99, size=(tile, tile)), jnp.float32)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (gradient, vector)]
    made, summed = pl.pallas_call(kernel, out_shape=outputs, interpret=True)(vector, gradient)
    want, pull = jax.vjp(lambda vector: tile_by_index(vector, tile), vector)
    np.testing.assert_array_equal(made, want)
    np.testing.assert_array_equal(summed, *pull(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[1], dataclasses.replace(CASES[2], width=32, heads=4)])
def test_bfloat16_is_as_exact_as_its_operands(case, quick):
    """Against the plain form in float32: within 2 % of the largest number of each result, from
    probabilities and gradients of logits that are rounded before products, as the plain form's are.
    """
    check(dataclasses.replace(case, dtype=jnp.bfloat16), 2e-2, wide=True)


@pytest.mark.thorough
def test_sums_are_those_of_float64(quick):
    arrays = Arrays(Case(150, 260, heads=1, segments="packed", scale=2.0))
    got = [got for _, got, _ in arrays.compared()]
    for one, want in zip(got, in_float64(arrays), strict=True):
        assert differs(one, want) <= 1e-5


@pytest.mark.thorough
def test_keys_in_chunks(quick, monkeypatch):
    """Where a core holds a block of keys at a time."""
    monkeypatch.setattr(plan, "core_memory", lambda: int(2.4 * MIB))
    case = Case(300, 420)
    arrays = Arrays(case)
    bias = jnp.zeros((1, 257))
    cut = plan.plan_of(*arrays.inputs[:2], bias, causal=False, segments=True, block=128)
    assert cut is not None
    assert cut.chunks == 4
    check(case, 1e-5)


@pytest.mark.slow
def test_dropout_drops_what_its_reference_says(quick):
    """The plain form has the reference's mask on its probabilities."""
    check(Case(140, 200, heads=2, width=64, rate=0.3, causal=True), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [pytest.param(6, marks=pytest.mark.thorough), pytest.param(200, marks=pytest.mark.slow)],
)
def test_random_sizes_and_options(count, quick):
    """All combinations of lengths, heads, widths, segments, causality, bias and dropout."""
    draw = np.random.default_rng(count)
    for _ in range(count):
        check(random_case(draw), 1e-5)


def run(query, key, value, **options):
    return flash_attention(query, key, value, interpret=True, block=128, **options)


def operands(length: int, *, batch: int = 1, heads: int = 1):
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=(batch, length, heads, 128)), jnp.float32) for _ in range(3)]


@pytest.mark.slow
def test_nan_in_a_row_touches_that_row_alone():
    query, key, value = operands(200)
    out, logsumexp = run(query.at[0, 7].set(jnp.nan), key, value)
    others = np.arange(200) != 7
    assert np.all(np.isnan(out[0, 7]))
    assert np.isnan(logsumexp[0, 0, 7])
    want, want_logsumexp = run(query, key, value)
    np.testing.assert_array_equal(out[:, others], want[:, others])
    np.testing.assert_array_equal(logsumexp[..., others], want_logsumexp[..., others])


@pytest.mark.thorough
def test_large_logits_choose_a_key():
    """Logits of 10^6 and more: the largest takes all, nothing overflows, gradients vanish."""
    query, key, value = operands(150)
    best = np.argmax(np.einsum("bqnh,bknh->bnqk", query, key), axis=-1)[0, 0]
    (out, logsumexp), pull = jax.vjp(run, query * 1e5, key, value)
    np.testing.assert_array_equal(out[0, :, 0], value[0, best, 0])
    dquery, dkey, dvalue = pull((jnp.ones_like(out), jnp.zeros_like(logsumexp)))
    np.testing.assert_array_equal(dvalue[0, :, 0, 0], np.bincount(best, minlength=150))
    # What rounding leaves, of products of 128 numbers with ones.
    assert float(jnp.max(jnp.abs(dquery))) <= 1e-3
    assert float(jnp.max(jnp.abs(dkey))) <= 1e-3 * 1e5


@pytest.mark.slow
def test_a_query_without_keys_gets_zeros_and_gives_no_gradient():
    """Padding, and a segment that the keys do not have; also where no block is visited at all."""
    query, key, value = operands(300)
    segments = jnp.asarray(np.repeat([1, 7, 0], [100, 40, 160])[None], jnp.int32)
    keys = jnp.asarray(np.repeat([1, 0], [120, 180])[None], jnp.int32)

    def both(query, key, value):
        return run(query, key, value, query_segments=segments, key_segments=keys)

    (out, logsumexp), pull = jax.vjp(both, query, key, value)
    np.testing.assert_array_equal(out[0, 100:], 0)
    np.testing.assert_array_equal(logsumexp[0, 0, 100:], -1e9)
    ones = jnp.ones_like(out).at[0, :100].set(0), jnp.ones_like(logsumexp).at[..., :100].set(0)
    for gradient in pull(ones):
        np.testing.assert_array_equal(gradient, 0)


def test_segments_of_one_side_alone_are_refused():
    query, key, value = operands(8)
    with pytest.raises(ValueError, match="both, or neither"):
        run(query, key, value, query_segments=jnp.ones((1, 8), jnp.int32))
