"""Attention in a window around each pixel, of packed maps (`packing`).

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, S
sublanes, L lanes.
"""

from __future__ import annotations

import jax

from vitattn.kernels.local import local_attention
from vitattn.kernels.tpu.window.packing import Packing

Array = jax.Array


def packed_window_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Array | None,
    rel_col: Array | None,
    packing: Packing,
    *,
    scale: float | None = None,
    mask_border: bool = False,
    interpret: bool = False,
) -> Array:
    """`vitattn.kernels.local.local_attention` of packed maps, in value and gradients.

    Args:
      q: [T, H, d, S, L], see `Packing`; its padding holds zeros, as that of k and v.
      k: [T, H, d, S, L], or None for logits of the position term alone.
      v: [T, H, e, S, L].
      rel_row: [window, d // 2], or None together with rel_col for no position term.
      rel_col: [window, d - d // 2].
      packing: sizes.
      scale: what content and position terms are multiplied by; None is d**-0.5.
      mask_border: leaves pixels outside the map out of the softmax; otherwise they count as zeros.
      interpret: run the kernels step by step on any backend, for tests.

    Returns:
      [T, H, e, S, L] in the type of v, with zeros in the padding; so have the gradients.
    """
    del interpret
    out = local_attention(
        packing.unpack(q),
        None if k is None else packing.unpack(k),
        packing.unpack(v),
        rel_row,
        rel_col,
        window=packing.window,
        scale=scale,
        mask_border=mask_border,
    )
    return packing.pack(out)
