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

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

NAME = "positioned-sum-64"
DIFFER = "copies differ"  # in place of a digest
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
    names in the same order; all get the same answer. Every copy of a piece is read, and copies that
    are not equal give a digest that no array has. On a device it costs one read of the array and no
    memory; devices do not wait for each other.
    """
    started = {name: _start(leaf) for name, leaf in leaves.items()}
    parts = np.array([_finish(*part) for part in started.values()], np.uint32).reshape(-1, 2, 3)
    if jax.process_count() > 1:
        with jax.transfer_guard("allow"):
            gathered = multihost_utils.process_allgather(parts)
        parts = np.asarray(gathered).sum(0, dtype=np.uint32).reshape(-1, 2, 3)
    of_leaves = {}
    for name, (once, copies) in zip(leaves, parts, strict=True):
        same = np.array_equal(once * np.uint32(_copies(leaves[name])), copies)
        of_leaves[name] = Fingerprint(
            f"{once[0]:08x}{once[1]:08x}" if same else DIFFER, int(once[2])
        )
    return of_leaves


def _start(leaf: Any) -> tuple[Any, Any]:
    """(leaf, sums), where the sums of a large leaf are still being computed on its devices."""
    if isinstance(leaf, jax.Array):
        if leaf.size > HOST_ELEMENTS or not leaf.is_fully_replicated:
            if isinstance(leaf.sharding, NamedSharding):
                return leaf, _each_device(leaf.sharding.mesh, leaf.sharding.spec)(leaf)
            return leaf, _device_sums(leaf, jnp.zeros((), jnp.uint32), leaf.shape)[None]
        leaf = jax.device_get(leaf.addressable_data(0))
    return leaf, None


def _finish(leaf: Any, sums: Any) -> np.ndarray:
    """uint32 [2, 3]: what this process adds to the sums of the array, and to those of all copies.

    The first copy of each piece is in one process only, so the former add up over processes.
    """
    if sums is None:
        own = np.array(_host_sums(np.asarray(leaf)), np.uint32)
        return np.stack([own * np.uint32(jax.process_index() == 0), own])
    of_device = {s.device: jax.device_get(s.data)[0] for s in sums.addressable_shards}
    total = np.zeros((2, 3), np.uint32)
    for shard in leaf.addressable_shards:
        total += of_device[shard.device] * np.array([[shard.replica_id == 0], [1]], np.uint32)
    return total


def _copies(leaf: Any) -> int:
    """How many copies of every piece `_finish` adds up, over all processes."""
    if not isinstance(leaf, jax.Array):
        return jax.process_count()
    if leaf.size <= HOST_ELEMENTS and leaf.is_fully_replicated:
        return jax.process_count()
    pieces = {str(index) for index in leaf.sharding.devices_indices_map(leaf.shape).values()}
    return len(leaf.sharding.device_set) // len(pieces)


@functools.cache
def _each_device(mesh: Mesh, spec: P) -> Callable[..., Any]:
    """Array -> uint32 [devices, 3]: each device's sums of its own piece.

    A partitioned sum would end in a collective for every leaf. Many of these at once hang on
    simulated devices, which share a few threads.
    """

    @jax.jit
    def sums(x: jax.Array) -> jax.Array:
        def local(piece: jax.Array) -> jax.Array:
            first, stride = jnp.zeros((), jnp.uint32), 1
            for axis in reversed(range(x.ndim)):
                names = spec[axis] if axis < len(spec) else None
                if names:
                    start = lax.axis_index(names).astype(jnp.uint32)
                    first += start * jnp.uint32(piece.shape[axis] * stride % 2**32)
                stride *= x.shape[axis]
            return _device_sums(piece, first, x.shape)[None]

        out = P(mesh.axis_names)
        return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)(x)

    return sums


@functools.partial(jax.jit, static_argnums=2)
def _device_sums(x: jax.Array, first: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The three sums, uint32 [3]. One variadic reduction, so that XLA reads the array once.

    Args:
      x: a piece of an array.
      first: uint32, position of the first element of x in the array.
      shape: of the whole array.
    """
    bad = ~jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(x.shape, bool)
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    words = bits.dtype.itemsize // np.dtype(_WORDS[bits.dtype.itemsize]).itemsize
    bits = lax.bitcast_convert_type(bits, _WORDS[bits.dtype.itemsize])  # [..., 2] for eight bytes
    bad = jnp.broadcast_to(bad.reshape(x.shape + (1,) * (bits.ndim - x.ndim)), bits.shape)
    position, stride = jnp.full(bits.shape, first * jnp.uint32(words), jnp.uint32), 1
    for axis, size in reversed(list(enumerate((*shape, words)[: bits.ndim]))):
        along = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= size
    first_sum, second_sum = _mixed(bits.astype(jnp.uint32), position)
    zero = jnp.uint32(0)
    operands = (first_sum, second_sum, bad.astype(jnp.uint32))
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
