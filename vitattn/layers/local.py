"""Attention in a window around each pixel, or in a block with a halo, on the primitive `attend`.

Dimension letters: B batch, H W map, N heads, d query/key width a head, e value width a head, K
window, b block, h halo, M = b + 2h rows (and columns) of the keys of a block, R C rows and columns
of blocks.

Local attention (arXiv 1906.05909): the query at (y, x) attends to the K x K pixels around it,

    logit[y, x, y+a, x+c] = q[y, x] . k[y+a, x+c] + q[y, x] . r[a, c]

where the first half of r depends on the row offset a and the second half on c. So the position
term is a row term plus a column term, and so is the mask of the window: the map is cut into blocks
of b x b queries, whose keys are the same square with a halo of K // 2, and offsets outside the
window are masked in either factor. Halo attention (arXiv 2103.12731) lets every query of a block
attend to the whole square. Keys outside the map are zeros and stay in the softmax unless
`mask_border`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import declare
from trainlib.sharding.constrain import batch_local
from vitattn.layers.attend import MASKED
from vitattn.layers.conv import pointwise
from vitattn.layers.pool import average_pool
from vitattn.layers.position import sine_positions, table_init
from vitattn.layers.tiling import attend_tiled, map_images, plan

Array = jax.Array
Table = jax.Array | None

HALO_BLOCK = 7

POSITIONS = ("relative", "none", "sine")
KINDS = ("local", "halo")
LECUN_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class _Axis:
    """How one axis of the map is cut: b queries a block, M = b + 2h keys.

    Attributes:
      size: H or W.
      block: b.
      halo: h.
      index: [b, M], table row of a (query, key) of a block.
      mask: [blocks or 1, b, M], 0 where the query may attend and `MASKED` elsewhere.
    """

    size: int
    block: int
    halo: int
    index: np.ndarray
    mask: np.ndarray

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)


def _axis(size: int, block: int, halo: int, window: int | None, mask_border: bool) -> _Axis:
    """An axis of local attention, or of halo attention when there is no window."""
    keys = np.arange(block + 2 * halo)
    offset = keys[None, :] - np.arange(block)[:, None]
    if window is None:
        index, inside = offset + block - 1, np.ones((1, *offset.shape), bool)
    else:
        # Within the window the offset of a key from the window's first is 0 .. window - 1.
        index, inside = np.clip(offset, 0, window - 1), (offset >= 0)[None] & (offset < window)
    if mask_border:
        first = np.arange(-(-size // block))[:, None] * block - halo
        inside = inside & ((first + keys >= 0) & (first + keys < size))[:, None, :]
    return _Axis(size, block, halo, index, np.where(inside, 0.0, MASKED).astype(np.float32))


def local_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    window: int,
    mask_border: bool = False,
    block: tuple[int, int] | None = None,
) -> Array:
    """Each pixel attends to the window x window pixels around it.

    Args:
      q: [B, H, W, N, d], not scaled in the paper.
      k: [B, H, W, N, d], or None for logits of the position term alone.
      v: [B, H, W, N, e].
      rel_row: [window, d // 2], shared by the heads: what the row offset contributes, for the first
        half of q; None together with rel_col for no position term.
      rel_col: [window, d - d // 2].
      window: odd K.
      mask_border: leaves pixels outside the map out of the softmax.
      block: rows and columns of a block of queries; results do not depend on it.

    Returns:
      [B, H, W, N, e] in the type of v.
    """
    sides = block or _block(*q.shape[1:3])
    rows, cols = (
        _axis(size, side, window // 2, window, mask_border)
        for size, side in zip(q.shape[1:3], sides, strict=True)
    )
    return _blocked(q, k, v, rel_row, rel_col, rows, cols)


def halo_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    block: int = HALO_BLOCK,
    halo: int = 3,
    mask_border: bool = False,
) -> Array:
    """Each block of queries attends to the whole of its block and halo; halo 0: separate blocks.

    As `local_attention`, but the tables have one row for each offset within a square, 2b + 2h - 1.
    """
    rows, cols = (_axis(size, block, halo, None, mask_border) for size in q.shape[1:3])
    return _blocked(q, k, v, rel_row, rel_col, rows, cols)


def _block(height: int, width: int) -> tuple[int, int]:
    """Sides of a block of queries of local attention.

    The fewer queries a block has, the fewer keys each reads in vain, but the more often keys are
    copied. 32 queries fill vector registers; on small maps blocks of about 7 x 7 waste less at the
    edge.
    """
    if min(height, width) > 14 or (height % 4 == 0 and width % 8 == 0):
        return 4, 8
    return -(-height // -(-height // 7)), -(-width // -(-width // 7))


def _blocked(
    q: Array, k: Array | None, v: Array, rel_row: Table, rel_col: Table, rows: _Axis, cols: _Axis
) -> Array:
    tables = () if rel_row is None or rel_col is None else (rel_row, rel_col)
    keys = () if k is None else (k,)

    def local(q: Array, v: Array, *rest: Array) -> Array:
        keys = rest[: len(rest) - len(tables)]
        axes = (rows, cols)[: len(tables)]
        gathered = [t[a.index] for t, a in zip(rest[len(keys) :], axes, strict=True)]
        groups = rows.blocks * cols.blocks * q.shape[3]
        tiles = plan(q.shape[0], groups, 1, rows.mask[0].size * cols.mask[0].size * 4)

        def chunk(inputs: tuple[Array, ...]) -> Array:
            q, v, *k = inputs
            queries, values = _cut(q, rows, cols, halo=False), _cut(v, rows, cols)
            bias = _bias(queries, gathered, rows.mask, cols.mask)
            # Without keys the content term is an inner product of width 0.
            keys = _cut(k[0], rows, cols) if k else values[..., :0]
            queries = queries if k else queries[..., :0]
            flat = (_flat(x, 2) for x in (queries, keys, values))
            terms = tuple(_flat(term, 1) for term in bias)
            out = attend_tiled(*flat, terms, tiles, rows.block * cols.block)
            return _join(out.reshape(*queries.shape[:-1], -1), rows.size, cols.size)

        return map_images(chunk, (q, v, *keys), tiles)

    return batch_local(local)(q, v, *keys, replicated=tables)


def _cut(x: Array, rows: _Axis, cols: _Axis, *, halo: bool = True) -> Array:
    """[I, H, W, N, c] -> overlapping rectangles [I, N, C, R, Y, X, c] of a zero-padded map."""
    x = _bands(x.transpose(0, 3, 2, 1, 4), 2, cols, cols.halo if halo else 0)
    return _bands(x.swapaxes(3, 4), 3, rows, rows.halo if halo else 0)


def _bands(x: Array, at: int, axis: _Axis, halo: int) -> Array:
    """Cuts the axis `at` into blocks with a halo, [.., H, ..] -> [.., R, M, ..].

    A band is a block of the padded map and what it takes of the blocks after it: two or three
    slices of all blocks at once. The transpose adds as few pieces, with neither a scatter nor one
    pass over the map for each block.
    """
    block, length = axis.block, axis.block + 2 * halo
    pieces = -(-length // block)
    total = axis.blocks + pieces - 1
    pads = [(0, 0)] * x.ndim
    pads[at] = (halo, total * block - axis.size - halo)
    x = jnp.pad(x, pads)
    x = x.reshape(*x.shape[:at], total, block, *x.shape[at + 1 :])
    parts = []
    for shift in range(pieces):
        part = jax.lax.slice_in_dim(x, shift, shift + axis.blocks, axis=at)
        width = min(block, length - shift * block)
        parts.append(jax.lax.slice_in_dim(part, 0, width, axis=at + 1))
    return jnp.concatenate(parts, at + 1)


def _join(x: Array, height: int, width: int) -> Array:
    """Rectangles of queries [I, N, C, R, y, x, c] -> [I, H, W, N, c]."""
    x = x.transpose(0, 3, 4, 2, 5, 1, 6)
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], *x.shape[5:])
    return x[:, :height, :width]


def _flat(x: Array, first: int) -> Array:
    """[I, N, C, R, a, b, c] -> [I*N*C*R, .., ..], merging (a, b) if `first` is 2, (b, c) if 1."""
    a, b, c = x.shape[4:]
    return x.reshape(math.prod(x.shape[:4]), *((a * b, c) if first == 2 else (a, b * c)))


def _bias(
    q: Array, tables: Sequence[Array], row_mask: np.ndarray, col_mask: np.ndarray
) -> tuple[Array, Array]:
    """Row terms [I, N, C, R, M, y, x] and column terms of the logits: positions and masks.

    Args:
      q: [I, N, C, R, y, x, d].
      tables: row table [y, M, d // 2] and column table [x, M', d - d // 2], gathered; or none.
      row_mask: [R or 1, y, M].
      col_mask: [C or 1, x, M'].
    """
    row_mask = row_mask.swapaxes(1, 2)[:, :, :, None]
    col_mask = col_mask.swapaxes(1, 2)[:, None, :, None, :]
    if not tables:
        shapes = [
            (*q.shape[:4], keys, *q.shape[4:6]) for keys in (row_mask.shape[1], col_mask.shape[2])
        ]
        return jnp.broadcast_to(row_mask, shapes[0]), jnp.broadcast_to(col_mask, shapes[1])
    half = tables[0].shape[-1]
    row = jnp.einsum("incryxd,yYd->incrYyx", q[..., :half], tables[0].astype(q.dtype))
    col = jnp.einsum("incryxd,xXd->incrXyx", q[..., half:], tables[1].astype(q.dtype))
    return row + row_mask.astype(q.dtype), col + col_mask.astype(q.dtype)


class LocalAttention(nnx.Module):
    """Attention in place of a spatial convolution: [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), F].

    One dense projection to queries, keys and values, heads that share their relative tables, no
    scale, no projection of the output; with a stride of 2, a 2x2 average pool after the attention
    (arXiv 1906.05909, the reading that reproduces its parameter and FLOP counts).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 8,
        window: int = 7,
        stride: int = 1,
        position: str = "relative",
        position_only: bool = False,
        mask_border: bool = False,
        kind: str = "local",
        block: int = HALO_BLOCK,
        dtype=jnp.float32,
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          num_heads: N.
          window: odd size of the window; for "halo" the halo is window // 2, so that 1 means
            separate blocks.
          stride: 1 or 2.
          position: "relative", "none", or "sine" (absolute, added to the input).
          position_only: logits are q.r alone, without keys; needs relative positions.
          mask_border: leaves pixels outside the map out of the softmax.
          kind: "local" (a window around each pixel) or "halo" (a block and its halo).
          block: side of a block of "halo" attention.
          dtype: type of the computation; weights are float32.

        Raises:
          ConfigError: a value outside these lists, or heads that do not divide out_channels.
        """
        _check(out_channels, num_heads, window, stride, position, position_only, kind, block)
        self.num_heads, self.window, self.stride, self.block = num_heads, window, stride, block
        self.position, self.position_only, self.kind = position, position_only, kind
        self.out_channels, self.mask_border, self.dtype = out_channels, mask_border, dtype
        parts = 2 if position_only else 3
        self.qkv = declare(
            (in_channels, parts * out_channels), ("conv_in", "conv_out"), LECUN_NORMAL
        )
        if position == "relative":
            depth = out_channels // num_heads
            offsets = window if kind == "local" else 2 * (block + window // 2) - 1
            axes = ("offset", "head_dim")
            self.rel_row = declare((offsets, depth // 2), axes, table_init)
            self.rel_col = declare((offsets, depth - depth // 2), axes, table_init)

    def __call__(self, x: Array) -> Array:
        """Any map size; the result is in `dtype`."""
        x = x.astype(self.dtype)
        if self.position == "sine":
            x = x + sine_positions(*x.shape[1:]).astype(self.dtype)
        qkv = pointwise(x, self.qkv[...].astype(self.dtype))
        qkv = qkv.reshape(*x.shape[:3], -1, self.num_heads, self.out_channels // self.num_heads)
        q, v = qkv[:, :, :, 0], qkv[:, :, :, -1]
        k = None if self.position_only else qkv[:, :, :, 1]
        tables = (self.rel_row[...], self.rel_col[...]) if self.position == "relative" else ()
        if self.kind == "local":
            sizes = {"window": self.window}
            out = local_attention(q, k, v, *tables, **sizes, mask_border=self.mask_border)
        else:
            sizes = {"halo": self.window // 2, "block": self.block}
            out = halo_attention(q, k, v, *tables, **sizes, mask_border=self.mask_border)
        out = out.reshape(*x.shape[:3], self.out_channels)
        return out if self.stride == 1 else _halve(out)


def _halve(x: Array) -> Array:
    """2x2 average pool; the last window of an odd size averages the pixels that exist."""
    odd = [(0, 0), *((0, size % 2) for size in x.shape[1:3]), (0, 0)]
    return average_pool(jnp.pad(x, odd, mode="edge"), 2, 2)


def _check(
    out_channels: int,
    num_heads: int,
    window: int,
    stride: int,
    position: str,
    position_only: bool,
    kind: str,
    block: int,
) -> None:
    if position not in POSITIONS:
        raise one_of("position", position, POSITIONS)
    if kind not in KINDS:
        raise one_of("attention", kind, KINDS)
    if window < 1 or window % 2 == 0 or stride not in (1, 2) or block < 1:
        raise ConfigError(
            f"window={window}, stride={stride}, block={block} in a local attention layer: the "
            "window is odd, the stride is 1 or 2, and a block has at least one pixel."
        )
    if num_heads < 1 or out_channels % num_heads:
        raise ConfigError(
            f"num_heads={num_heads} does not divide the {out_channels} channels of a local "
            "attention layer. Change the number of heads or the width."
        )
    if position == "relative" and out_channels // num_heads < 2:
        raise ConfigError(
            f"num_heads={num_heads} leaves {out_channels // num_heads} channel a head of "
            f"{out_channels}. Relative positions need at least 2, one for rows and one for "
            "columns: use fewer heads."
        )
    if position_only and position != "relative":
        raise ConfigError(
            f"Attention without keys needs position='relative', not {position!r}: nothing would be "
            "left of its logits."
        )
