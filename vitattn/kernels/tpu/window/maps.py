"""Windowed attention of what a map is projected to.

Dimension letters: B images, H W map, C channels of the map, N heads, d width a head.

Heads are padded to blocks of eight, which fill the sublanes of the packed layout, with zeros among
the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from vitattn.kernels.tpu.window.attention import packed_window_attention
from vitattn.kernels.tpu.window.projection import (
    packing_of,
    project_into,
    unpack,
    weights_of,
)

Array = jax.Array


def projected_window_attention(
    x: Array,
    kernels: Sequence[Array],
    tables: tuple[Array, ...],
    *,
    heads: int,
    window: int,
    scale: float | None,
    mask_border: bool,
    interpret: bool,
) -> Array:
    """Queries, keys and values of a map, attention, and its result as a map.

    Args:
      x: [B, H, W, C].
      kernels: [C, N d] of queries, of keys unless there are none, and of values, in the type of x.
      tables: [window, d // 2] and [window, d - d // 2], or none.
      heads: N.
      window: odd K.
      scale: of the logits; None is d**-0.5.
      mask_border: leaves pixels outside the map out of the softmax.
      interpret: run the kernels step by step on any backend.

    Returns:
      [B, H, W, N d] in the type of x.
    """
    batch, height, width, _ = x.shape
    packing = packing_of(batch, heads, height, width, window)
    weights = tuple(weights_of(kernel, heads) for kernel in kernels)
    packed: tuple[Array, ...] = project_into(x, weights, packing, interpret)
    keys = packed[1] if len(packed) == 3 else None
    options: dict[str, Any] = {"scale": scale, "mask_border": mask_border}
    options |= {"packing": packing, "interpret": interpret}
    row, col = tables or (None, None)
    out = packed_window_attention(packed[0], keys, packed[-1], row, col, **options)
    return unpack(out, heads, batch, packing, interpret)
