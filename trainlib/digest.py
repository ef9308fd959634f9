"""A 64-bit digest of an array that does not depend on where its pieces lie.

Every 8-, 16- or 32-bit word of the array is mixed with its position, and the results are summed
modulo 2^32, twice, with different mixing. A sum has no order: each device adds up its own shard,
and the digest of an array on eight devices is that on one. Mixing is one to one for a given
position, so a change of any single word always changes both sums; other changes pass with a
chance of 2^-64. It guards against accidents, not against people.

The constants are the multipliers of xxHash32 (Collet) and of the finaliser of MurmurHash3
(Appleby).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NAME = "positioned-sum-64"
# A leaf up to this size is summed on the host where a whole copy of it is at hand: a compilation
# for each of the many small shapes of a model costs more than all their sums.
HOST_ELEMENTS = 1 << 16

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # bytes of an element -> its word


class Fingerprint(NamedTuple):
    """What is known of an array without keeping it.

    Attributes:
      digest: 16 hexadecimal digits.
      not_finite: how many elements are NaN or infinite (modulo 2^32).
    """

    digest: str
    not_finite: int


def fingerprints(leaves: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Name -> fingerprint of arrays on the host or on devices, sharded in any way.

    Shape and dtype are not part of a digest. Every process of a run must call this with the same
    names in the same order; all get the same answer. On a device it costs one read of the array and
    no memory.
    """
    sums = {name: _sums(leaf) for name, leaf in leaves.items()}
    found = jax.device_get(sums)
    return {
        name: Fingerprint(f"{int(first):08x}{int(second):08x}", int(bad))
        for name, (first, second, bad) in found.items()
    }


def _sums(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        if leaf.size > HOST_ELEMENTS or not leaf.is_fully_replicated:
            return _device_sums(leaf)
        leaf = jax.device_get(leaf.addressable_data(0))
    return _host_sums(np.asarray(leaf))


@jax.jit
def _device_sums(x: jax.Array) -> jax.Array:
    """The three sums, uint32 [3]. One variadic reduction, so that XLA reads the array once."""
    bad = ~jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(x.shape, bool)
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    size = bits.dtype.itemsize
    bits = lax.bitcast_convert_type(bits, _WORDS[size])  # [..., 2] for eight bytes
    bad = jnp.broadcast_to(bad.reshape(x.shape + (1,) * (bits.ndim - x.ndim)), bits.shape)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        along = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    first, second = _mixed(bits.astype(jnp.uint32), position)
    zero = jnp.uint32(0)
    operands = (first, second, bad.astype(jnp.uint32))
    return jnp.stack(lax.reduce(operands, (zero, zero, zero), _add, tuple(range(bits.ndim))))


def _add(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))


def _host_sums(x: np.ndarray) -> tuple[int, int, int]:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    bad = int(np.sum(~np.isfinite(x.astype(np.float32) if x.itemsize < 4 else x))) if inexact else 0
    bits = np.ascontiguousarray(x).reshape(-1).view(_WORDS[x.dtype.itemsize]).astype(np.uint32)
    first, second = _mixed(bits, np.arange(bits.size, dtype=np.uint32))
    return int(first.sum(dtype=np.uint32)), int(second.sum(dtype=np.uint32)), bad


def _mixed(word: Any, position: Any) -> tuple[Any, Any]:
    """Two mixings of uint32 words with their positions, by NumPy or JAX."""
    first = _round(_round(word ^ (position * np.uint32(2654435761)), 2246822519), 3266489917)
    return first, _round(first + np.uint32(668265263), 2246822507)


def _round(word: Any, multiplier: int) -> Any:
    word = word * np.uint32(multiplier)  # odd, so that it can be undone
    return word ^ (word >> np.uint32(15))
