"""Digests: one answer for every layout, and none for a changed array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib import digest
from trainlib.digest import fingerprints
from trainlib.mesh import make_mesh

LARGE = (8, 64, 300)  # above HOST_ELEMENTS: summed on the devices
MASK = 0xFFFFFFFF


def expected(x: np.ndarray) -> str:
    """The same in Python integers, word by word."""
    size = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]

    def turn(word: int, multiplier: int) -> int:
        word = word * multiplier & MASK
        return word ^ word >> 15

    one = two = 0
    for i, word in enumerate(x.reshape(-1).view(size).tolist()):
        first = turn(turn(word ^ i * 2654435761 & MASK, 2246822519), 3266489917)
        one = one + first & MASK
        two = two + turn(first + 668265263 & MASK, 2246822507) & MASK
    return f"{one:08x}{two:08x}"


def values(shape, dtype, seed=0):
    drawn = 9 * np.random.default_rng(seed).normal(size=shape)
    return np.asarray(drawn).astype(dtype)


def of(x) -> str:
    return fingerprints({"x": x})["x"].digest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5, 2)])
def test_a_digest_is_the_sum_of_mixed_words(dtype, shape):
    x = values(shape, jnp.dtype(dtype))
    assert of(x) == expected(x)
    assert of(jnp.asarray(x)) == expected(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_devices_and_host_agree_on_large_arrays(dtype):
    x = values(LARGE, jnp.dtype(dtype))
    assert x.size > digest.HOST_ELEMENTS
    assert of(jnp.asarray(x)) == of(x)


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        ((1, 8, 1), P("data")),
        ((1, 4, 2), P("data", "model")),
        ((2, 2, 2), P(("replica", "data"), "model")),
        ((1, 4, 2), P(None, None, "model")),
        ((1, 4, 2), P()),
    ],
)
@pytest.mark.parametrize("shape", [(8, 16, 4), LARGE])
def test_a_digest_does_not_depend_on_the_layout(sizes, spec, shape):
    x = values(shape, np.float32)
    assert of(jax.device_put(x, NamedSharding(make_mesh(*sizes), spec))) == of(x)


def test_every_single_bit_counts():
    x = values((5, 3), np.float32)
    flipped = set()
    for bit in range(8 * x.nbytes):
        bits = x.copy().view(np.uint8)
        bits.reshape(-1)[bit // 8] ^= 1 << bit % 8
        flipped.add(of(bits.view(np.float32)))
    assert of(x) not in flipped
    assert len(flipped) == 8 * x.nbytes


def test_order_lost_chunks_and_shifts_count():
    x = values((64, 8), np.float32)
    cleared, shifted = x.copy(), x.copy()
    cleared[16:32] = 0
    changed = [x[::-1].copy(), cleared, np.roll(shifted, 1), x + np.float32(0), -x]
    assert of(x + np.float32(0)) == of(x)
    assert len({of(x), *map(of, changed)}) == len(changed)
    # Both sums take part: 4096 arrays that differ in one word have 4096 different halves each.
    many = [of(np.array([0, i], np.uint32)) for i in range(4096)]
    assert len({d[:8] for d in many}) == len({d[8:] for d in many}) == 4096


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(8, 4), LARGE])
def test_values_that_are_not_finite_are_counted(dtype, shape):
    x = values(shape, dtype)
    assert fingerprints({"x": jnp.asarray(x)})["x"].not_finite == 0
    x[0, 0], x[-1, -1, ...] = np.nan, np.inf
    count = int((~np.isfinite(x.astype(np.float32))).sum())
    assert fingerprints({"x": jnp.asarray(x)})["x"].not_finite == count
    assert fingerprints({"n": jnp.arange(3)})["n"].not_finite == 0


def test_a_digest_on_a_device_takes_one_read_and_no_memory():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = digest._device_sums.lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096
