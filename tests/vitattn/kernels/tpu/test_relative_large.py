"""2-D relative attention by blocks of keys: the kernels, interpreted, against the plain form and a
float64 formula; what they do to bad numbers and large ones; sizes of blocks; and their figures.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_compiler import needs_figures
from tests.vitattn.kernels.tpu.test_relative_packed import (
    arguments,
    formula,
    value_and_gradients,
)
from tests.vitattn.kernels.tpu.test_relative_packed import check as packed_check
from trainlib.planning.ledger import ledger_of
from vitattn.kernels.relative import relative_attention_2d
from vitattn.kernels.tpu.relative.blocked import blocked_attention
from vitattn.kernels.tpu.relative.blocks import Blocks, chosen
from vitattn.kernels.tpu.relative.packed import Packing


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, rows of a block of keys and queries of a tile: small, so that there are several."""

    rows: int
    columns: int
    block: int
    tile: int = 128
    images: int = 1
    heads: int = 2
    depth: int = 6
    values: int = 3
    relative: bool = True

    @property
    def sizes(self):
        return self.images, self.rows, self.columns, self.heads, self.depth, self.values

    def attention(self, q, k, v, *tables, scale=None):
        """`relative_attention_2d` by the kernels."""
        packing = Packing(self.rows, self.columns, self.depth, self.values)
        depths = self.depth, self.values
        blocks = Blocks(self.rows, self.columns, *depths, self.relative, self.block, self.tile)
        q, k, v = packing.pack(q), packing.pack(k), packing.pack(v)
        scale = self.depth**-0.5 if scale is None else scale
        out = blocked_attention(q, k, v, tables, blocks, scale=scale, interpret=True)
        return packing.unpack(out, self.heads)


CASES = {
    "blocks and tiles, the last of each ragged": Case(17, 9, 8, images=2),
    "one block, keys that are no whole register": Case(5, 7, 5),
    "blocks in whole registers": Case(16, 16, 8, heads=1, depth=20, values=6),
    "a block of several registers of row terms": Case(37, 5, 16, heads=1),
    "one column": Case(19, 1, 8, heads=1),
    "columns of several products": Case(1, 125, 1, heads=1, depth=8, values=9),
    "one pixel": Case(1, 1, 1),
    "no position terms": Case(11, 13, 8, relative=False, depth=5, values=1),
}


def check(case, bound, dtype="float32", scale=None):
    """The kernels of a case against the plain form."""
    packed_check(case.sizes, bound, dtype, case.relative, scale, case.attention)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_are_those_of_the_plain_form(name):
    check(CASES[name], 1e-5)


@pytest.mark.thorough
def test_heads_of_a_detector_have_three_channels_and_values_of_one():
    check(Case(10, 10, 8, heads=1, depth=3, values=1), 1e-5)


def test_bfloat16_is_as_close_as_its_roundings():
    """Queries, terms, probabilities and their gradients are rounded at 2^-9 each."""
    check(CASES["blocks and tiles, the last of each ragged"], 2**-5, "bfloat16", scale=0.3)


def random_case(rng):
    def whole(low, high):
        return int(rng.integers(low, high + 1))

    rows = whole(1, 40)
    blocks = [rows, *range(8, rows, 8)]
    return Case(
        rows=rows,
        columns=whole(1, 24),
        block=blocks[whole(0, len(blocks) - 1)],
        tile=128 * whole(1, 3),
        images=whole(1, 2),
        heads=whole(1, 2),
        depth=int(rng.choice([1, whole(1, 40), whole(40, 128)])),
        values=int(rng.choice([1, whole(1, 12), whole(12, 64)])),
        relative=bool(rng.integers(4)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_shapes(seed):
    rng = np.random.default_rng(seed)
    case = random_case(rng)
    check(case, 1e-5)
    check(case, 2**-4, "bfloat16", scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_some_random_shapes(seed):
    check(random_case(np.random.default_rng(1000 + seed)), 1e-5)


@pytest.mark.thorough
def test_the_float64_formula():
    case = Case(10, 9, 8, heads=1)
    given, cotangent = arguments(case.sizes)
    actual = value_and_gradients(case.attention, given, cotangent)
    for one, other in zip(actual, formula([*given, cotangent]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1))


def test_a_bad_pixel_touches_its_own_head_of_its_own_image_only():
    case = CASES["blocks and tiles, the last of each ragged"]
    given, cotangent = arguments(case.sizes)

    @jax.jit
    def run(given):
        value, pull = jax.vjp(case.attention, *given)
        return value, *pull(cotangent)

    good = run(given)
    for operand in range(3):
        bad = list(given)
        bad[operand] = bad[operand].at[1, 2, 3, 1].set(jnp.nan)
        touched = run(bad)
        for one, other in zip(good[:4], touched[:4], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[:, :, :, 0], other[:, :, :, 0])
        assert np.isnan(touched[0][1, :, :, 1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_logits_neither_overflow_nor_lose_the_maximum(dtype):
    """Logits of some 1e4 whose largest are in any block: one key has all the weight."""
    case = CASES["blocks and tiles, the last of each ragged"]
    (q, *rest), cotangent = arguments(case.sizes, dtype)
    given = [q * 5000, *rest]
    actual = value_and_gradients(case.attention, given, cotangent)
    expected = value_and_gradients(relative_attention_2d, given, cotangent, "plain")
    assert all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in actual)
    if dtype == "float32":
        np.testing.assert_allclose(actual[0], expected[0], atol=1e-2)


@pytest.mark.slow
def test_it_can_be_mapped_over():
    case = Case(10, 4, 8, heads=1)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a * 0.5]), arguments(case.sizes))
    both = value_and_gradients(jax.vmap(case.attention), *stacked)
    one = jax.tree.map(lambda a: a[1], stacked)
    alone = value_and_gradients(jax.checkpoint(case.attention), *one)
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_the_public_function_takes_them_for_maps_of_more_pixels_than_a_kernel_holds():
    sizes = (1, 50, 24, 1, 8, 2)
    packing = Packing(50, 24, 8, 2)
    assert not packing.at_once("float32")
    assert packing.blocks("float32") is not None
    given, cotangent = arguments(sizes)
    actual = value_and_gradients(relative_attention_2d, given, cotangent)
    expected = value_and_gradients(relative_attention_2d, given, cotangent, "plain")
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1))


@pytest.mark.parametrize("memory", [12, 48, 96])  # three quarters of the cores, MiB
@pytest.mark.parametrize("size", [(32, 33), (56, 56), (80, 80), (50, 76), (75, 51)])
def test_maps_of_detection_fit_into_every_core(size, memory):
    blocks = chosen(size, 20, 6, True, 2, memory * 2**20)
    assert blocks is not None
    assert blocks.memory(2) <= memory * 2**20
    assert blocks.rows % 8 == 0
    # One product of the matrix unit makes a logit with all of its terms.
    assert blocks.contracted <= 128
    # The last block and the last tile leave little unused.
    assert blocks.blocks * blocks.rows <= 1.15 * size[0] + 7
    assert blocks.tiles * blocks.queries <= 1.2 * blocks.pixels


@needs_figures
@pytest.mark.slow
def test_80_pixels_take_little_more_than_their_products():
    """8 images, 8 heads, d 20, values 3 on v5e, forward and backward.

    Of a head, 6,400^2 logits are 320,000 rows of 128 to be pushed through four matrix units:
    forward 1 + 16/128 times; backward 1 (logits), 1 (of dout), 112/128 (queries and terms), 32/128
    (keys) and 16/128 (values) times. In all 4.375 x 80,000 cycles a head, 14.9 ms.
    """
    heads, pixels, d, e = 64, 6400, 20, 3
    blocks = chosen((80, 80), d, e, True, 2, 96 * 2**20)
    assert blocks is not None
    attention = functools.partial(blocked_attention, blocks=blocks, scale=d**-0.5)

    def step(q, k, v, tables, dout):
        out, pull = jax.vjp(attention, q, k, v, tables)
        return out, pull(dout)

    keys, values = (jax.ShapeDtypeStruct((heads, n, pixels), jnp.bfloat16) for n in (d, e))
    table = jax.ShapeDtypeStruct((159, d), jnp.float32)
    ledger = ledger_of(step, keys, keys, values, (table, table), values)
    kernels = [one for one in ledger.operations if one.kind == "kernel"]
    assert len(kernels) == 2
    taken = sum(one.total_seconds for one in kernels)
    assert taken <= 1.1 * 14.9e-3, taken  # 15.9 ms
    least = 2 * heads * pixels * (2 * (2 * d + e) + 2 * e)  # operands and results, each once
    moved = sum(one.hbm_bytes + one.vmem_bytes for one in kernels)
    assert moved <= 2 * least, moved / least  # 1.9: two passes read q, k and v, d is 24 in memory
