"""Where the slots of an optimiser lie: shardings that follow from those of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


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


def slot_shardings(
    opt_state: Any,
    specs: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> Any:
    """Shardings of an optimiser state, derived from those of the weights.

    A slot of its weight's shape is sharded as the weight; a row or column moment as the weight
    without the dimension that was averaged away; counters and placeholders are replicated.

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

    def place(path: tuple, slot: Any) -> NamedSharding:
        name, field = (str(getattr(k, "key", getattr(k, "name", k))) for k in (path[-1], path[-2]))
        if slot.shape == ():
            return NamedSharding(mesh, P())
        spec = None
        if name in specs:
            weight = tuple(specs[name].shape)
            spec = _slot_spec(field, tuple(slot.shape), weight, param_shardings[name].spec)
        if spec is None:
            raise ValueError(
                f"Optimiser slot {jax.tree_util.keystr(path)} {slot.shape} follows from no weight."
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, opt_state)
