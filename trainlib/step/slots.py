"""Where the slots of an optimiser lie: shardings that follow from those of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

OPTAX_STAGE = "optax"  # of the chain: a rule of optax, whose slots we know nothing about


def _slot_spec(field: str, slot: tuple[int, ...], shape: tuple[int, ...], spec: P) -> P | None:
    """The partition of a slot of a weight of `shape` and `spec`; None when the slot is of no known
    form.
    """
    if slot == shape:
        return spec
    if slot == (1,):  # Adafactor's placeholder for a moment it does not keep
        return P()
    dropped = {"v_row": -1, "v_col": -2}.get(field)
    if dropped is None or len(shape) < 2:
        return None
    dim = int(np.argsort(shape)[dropped])
    if slot != shape[:dim] + shape[dim + 1 :]:
        return None
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    return P(*entries[:dim], *entries[dim + 1 :])


def _optax_spec(slot: tuple[int, ...], shape: tuple[int, ...] | None, spec: P) -> P | None:
    """The partition of a slot of a rule that we know nothing about; `shape` is that of its weight,
    None where it belongs to none.

    Only what is smaller than its weight is replicated: sums over dimensions, ratios, keys.
    """
    if slot == shape:
        return spec
    if shape is None or math.prod(slot) < math.prod(shape):
        return P()
    if slot[1:] == shape:  # several copies of the weight, as the memory of L-BFGS
        return P(None, *spec)
    return None


def slot_shardings(
    opt_state: Any,
    specs: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> Any:
    """Shardings of an optimiser state, derived from those of the weights.

    A slot of its weight's shape is sharded as the weight; a row or column moment as the weight
    without the dimension that was averaged away; counters and placeholders are replicated. Of a
    rule of optax, what is smaller than its weight is replicated too.

    Args:
      opt_state: the state, abstract (`jax.eval_shape(optimizer.init, params)`) or not.
      specs: name -> anything with `shape` (Spec, ShapeDtypeStruct, array).
      param_shardings: name -> NamedSharding.
      mesh: the mesh.

    Returns:
      NamedShardings in the structure of `opt_state`.

    Raises:
      ValueError: a leaf that belongs to no weight and is no scalar, or whose shape follows from no
        rule.
    """

    def sharding(path: tuple, slot: Any) -> NamedSharding:
        keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        shape = tuple(slot.shape)
        if shape == ():
            return NamedSharding(mesh, P())
        spec = None
        if keys[0] == OPTAX_STAGE:
            weight = next((key for key in reversed(keys) if key in specs), None)
            whole = None if weight is None else tuple(specs[weight].shape)
            spec = _optax_spec(shape, whole, param_shardings[weight].spec if weight else P())
        elif keys[-1] in specs:
            weight = keys[-1]
            whole = tuple(specs[weight].shape)
            spec = _slot_spec(keys[-2], shape, whole, param_shardings[weight].spec)
        if spec is None:
            raise ValueError(
                f"Optimiser slot {jax.tree_util.keystr(path)} {shape} follows from no weight."
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)
