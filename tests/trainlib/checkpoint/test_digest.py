"""Digests: one answer for every layout, and none for a changed array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.checkpoint import digest
from trainlib.checkpoint.digest import fingerprints
from trainlib.sharding.mesh import make_mesh

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


def test_devices_read_their_pieces_once_without_memory_or_waiting():
    mesh = make_mesh(2, 2, 2)
    place = NamedSharding(mesh, P("data", "model"))
    x = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=place)
    compiled = digest._each_device(mesh, place.spec).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096
    text = compiled.as_text()
    assert "reduce(" in text
    for collective in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
        assert collective not in text


def test_copies_that_differ_have_no_digest():
    mesh = make_mesh(1, 8, 1)
    whole, ones = NamedSharding(mesh, P()), np.ones((300, 300), np.float32)
    pieces = [jax.device_put(ones, device) for device in mesh.devices.flat]
    good = jax.make_array_from_single_device_arrays(ones.shape, whole, pieces)
    assert of(good) == of(ones)
    pieces[5] = pieces[5].at[7, 7].set(2.0)
    bad = jax.make_array_from_single_device_arrays(ones.shape, whole, pieces)
    assert of(bad) == digest.DIFFER
