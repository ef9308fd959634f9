"""Reading weights of a checkpoint that are stored in another type than here, leaf by leaf.

A model that was trained in float32 is rounded to int8 where its experts are frozen, and one with
int8 experts is given back in float32. One leaf at a time is held twice: of 269 billion parameters
in float32 no slice of small chips holds all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.kernels import int8
from trainlib.checkpoint.checkpoints import Checkpoints

Struct = jax.ShapeDtypeStruct
_PARAMS, _STATE = "params/", "model_state/"


def scales_of(names: Mapping[str, Any]) -> dict[str, str]:
    """Leaf of int8 experts in a checkpoint -> the leaf of its scales, of those that are there."""
    pairs = {
        name: _STATE + int8.scale_of(name.removeprefix(_PARAMS))
        for name in names
        if name.startswith(_PARAMS)
    }
    return {name: scale for name, scale in pairs.items() if scale in names}


def read(
    checkpoints: Checkpoints,
    step: int,
    stored: Mapping[str, Struct],
    wanted: Mapping[str, Struct],
    *,
    averaged: bool = False,
) -> dict[str, jax.Array]:
    """Reads weights and what is kept beside them.

    Args:
      checkpoints: to read from.
      step: of them.
      stored: `params/NAME`, `model_state/NAME` -> shape and type, as it lies there.
      wanted: the same with shardings, as it is wanted here; of `params/` all are there.
      averaged: take `ema/NAME`, the moving averages, in place of both.

    Returns:
      Leaf -> array; without the leaves of `model_state/` that are not there.

    Raises:
      CheckpointError: it is damaged.
    """

    def fetch(some: Mapping[str, Struct]) -> dict[str, jax.Array]:
        places = {n: f"ema/{n.partition('/')[2]}" if averaged else n for n in some}
        found = checkpoints.restore_some(step, {places[n]: leaf for n, leaf in some.items()})
        return {n: found[places[n]] for n in some}

    ours, theirs = scales_of(wanted), scales_of(stored)
    converted = {
        name
        for name in wanted
        if name.startswith(_PARAMS) and wanted[name].dtype != stored[name].dtype
    }
    beside = {ours[name] for name in converted if name in ours}
    plain = {n: w for n, w in wanted.items() if n in stored and n not in converted | beside}
    arrays = fetch(plain)
    for name in sorted(converted):
        like = wanted[name]
        there = {name: Struct(like.shape, stored[name].dtype, sharding=like.sharding)}
        if name in theirs:
            shape = (*like.shape[:-2], like.shape[-1])
            there[theirs[name]] = Struct(shape, np.float32, sharding=_of_channels(like.sharding))
        found = fetch(there)
        if name in theirs:
            found[name] = _floats(like)(found[name], found[theirs[name]])
        if name in ours:
            scale = wanted[ours[name]]
            arrays[name], arrays[ours[name]] = _whole(like.sharding, scale.sharding)(found[name])
        else:
            arrays[name] = found[name].astype(like.dtype)
    return arrays


def _of_channels(sharding: NamedSharding) -> NamedSharding:
    """Of the scales of a matrix [.., I, O], which are [.., O]."""
    *stacked, _, outputs = sharding.spec
    return NamedSharding(sharding.mesh, P(*stacked, outputs))


def _floats(like: Struct) -> Any:
    restored = functools.partial(int8.restored, dtype=np.float32)
    return jax.jit(restored, out_shardings=like.sharding)


@functools.cache
def _whole(matrix: NamedSharding, scale: NamedSharding) -> Any:
    return jax.jit(int8.rounded, out_shardings=(matrix, scale), donate_argnums=0)
