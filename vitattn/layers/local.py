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

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.nn import declare
from trainlib.sharding import batch_local
from vitattn.layers.attend import MASKED, attend, keep_outputs
from vitattn.layers.conv import pointwise
from vitattn.layers.pool import average_pool
from vitattn.layers.position import sine_positions, table_init
from vitattn.layers.relative import largest_divisor, map_batched, tile_bytes

Array = jax.Array
Table = jax.Array | None

# Divides the maps of 224 px images (56, 28, 14, 7); other sizes are filled up with unused queries.
BLOCK = 7

POSITIONS = ("relative", "none", "sine")
KINDS = ("local", "halo")
LECUN_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def local_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    window: int,
    mask_border: bool = False,
    block: int = BLOCK,
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
      block: side of a block of queries; results do not depend on it.

    Returns:
      [B, H, W, N, e] in the type of v.
    """
    halo = window // 2
    offset = _offsets(block, halo)
    inside = (offset >= 0) & (offset < window)
    index = np.clip(offset, 0, window - 1)
    return _blocked(q, k, v, rel_row, rel_col, index, inside, block, halo, mask_border)


def halo_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    block: int = BLOCK,
    halo: int = 3,
    mask_border: bool = False,
) -> Array:
    """Each block of queries attends to the whole of its block and halo; halo 0: separate blocks.

    As `local_attention`, but the tables have one row for each offset within a square, 2b + 2h - 1.
    """
    index = _offsets(block, halo) + block - 1
    inside = np.ones(index.shape, bool)
    return _blocked(q, k, v, rel_row, rel_col, index, inside, block, halo, mask_border)


def _offsets(block: int, halo: int) -> np.ndarray:
    """[b, M] row of the key minus row of the query, where a window would begin at 0."""
    return np.arange(block + 2 * halo)[None, :] - np.arange(block)[:, None]


def _blocked(q, k, v, rel_row, rel_col, index, inside, block, halo, mask_border) -> Array:
    height, width = q.shape[1:3]
    masks = [_mask(inside, size, block, halo, mask_border) for size in (height, width)]
    tables = () if rel_row is None or rel_col is None else (rel_row, rel_col)
    keys = () if k is None else (k,)

    def local(q: Array, v: Array, *rest: Array) -> Array:
        keys = rest[: len(rest) - len(tables)]
        gathered = [table[index] for table in rest[len(keys) :]]

        def image(inputs: tuple[Array, ...]) -> Array:
            q, v, *k = inputs
            queries, values = _cut(q, block, 0), _cut(v, block, halo)
            bias = _bias(queries, gathered, masks)
            # Without keys the content term is an inner product of width 0.
            keys = _cut(k[0], block, halo) if k else values[..., :0]
            queries = queries if k else queries[..., :0]
            out = _tiled(*(_flat(x) for x in (queries, keys, values, *bias)))
            return _join(out.reshape(*queries.shape[:-1], -1), height, width)

        return map_batched(keep_outputs(image), (q, v, *keys), 1)

    return batch_local(local)(q, v, *keys, replicated=tables)


def _mask(inside: np.ndarray, size: int, block: int, halo: int, border: bool) -> np.ndarray:
    """[blocks or 1, b, M]: 0 where a query may attend along one axis, else `MASKED`."""
    inside = inside[None]
    if border:
        start = np.arange(-(-size // block)) * block - halo
        key = start[:, None] + np.arange(inside.shape[-1])
        inside = inside & ((key >= 0) & (key < size))[:, None, :]
    return np.where(inside, 0.0, MASKED).astype(np.float32)


def _cut(x: Array, block: int, halo: int) -> Array:
    """[H, W, N, c] -> overlapping squares [R, C, N, M, M, c] of a zero-padded map.

    In two stages of static slices, rows then columns: the transpose is pad and add, no scatter.
    """
    for axis in (0, 2):
        size = x.shape[axis]
        count = -(-size // block)
        pads = [(0, 0)] * x.ndim
        pads[axis] = (halo, count * block - size + halo)
        x = jnp.pad(x, pads)
        starts = range(0, count * block, block)
        bands = [jax.lax.slice_in_dim(x, i, i + block + 2 * halo, axis=axis) for i in starts]
        x = jnp.stack(bands, axis=axis // 2)
    return x.transpose(0, 1, 4, 2, 3, 5)


def _join(x: Array, height: int, width: int) -> Array:
    """Squares of queries [R, C, N, b, b, c] -> [H, W, N, c]: what `_cut` without a halo undoes."""
    rows, cols, heads, block, _, depth = x.shape
    x = x.transpose(0, 3, 1, 4, 2, 5).reshape(rows * block, cols * block, heads, depth)
    return x[:height, :width]


def _flat(x: Array) -> Array:
    """[R, C, N, y, x, c] -> [R*C*N, y*x, c]."""
    rows, cols, heads, height, width, depth = x.shape
    return x.reshape(rows * cols * heads, height * width, depth)


def _bias(q: Array, tables: Sequence[Array], masks: Sequence[Array]) -> tuple[Array, Array]:
    """Row and column terms [R, C, N, b, b, M] of the logits: positions and masks.

    Args:
      q: [R, C, N, b, b, d].
      tables: row table [b, M, d // 2] and column table [b, M, d - d // 2], gathered; or none.
      masks: rows [R or 1, b, M] and columns [C or 1, b, M].
    """
    mask_row = masks[0][:, None, None, :, None, :]
    mask_col = masks[1][None, :, None, None, :, :]
    if not tables:
        shape = (*q.shape[:-1], mask_row.shape[-1])
        return jnp.broadcast_to(mask_row, shape), jnp.broadcast_to(mask_col, shape)
    half = tables[0].shape[-1]
    row = jnp.einsum("rcnyxd,yYd->rcnyxY", q[..., :half], tables[0].astype(q.dtype))
    col = jnp.einsum("rcnyxd,xXd->rcnyxX", q[..., half:], tables[1].astype(q.dtype))
    return row + mask_row.astype(q.dtype), col + mask_col.astype(q.dtype)


def _tiled(q: Array, k: Array, v: Array, bias_row: Array, bias_col: Array) -> Array:
    """`attend` over the leading axis, some (block, head) pairs at a time."""
    groups = q.shape[0]
    pairs = largest_divisor(groups, tile_bytes() // (q.shape[1] * k.shape[1] * 4))
    args = [x.reshape(groups // pairs, pairs, *x.shape[1:]) for x in (q, k, v, bias_row, bias_col)]
    out = map_batched(lambda xs: attend(*xs), args, 1)
    return out.reshape(groups, *out.shape[2:])


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
        heads: int = 8,
        window: int = 7,
        stride: int = 1,
        position: str = "relative",
        position_only: bool = False,
        mask_border: bool = False,
        kind: str = "local",
        block: int = BLOCK,
        dtype=jnp.float32,
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          heads: N.
          window: odd size of the window; for "halo" the halo is window // 2, so that 1 means
            separate blocks.
          stride: 1 or 2.
          position: "relative", "none", or "sine" (absolute, added to the input).
          position_only: logits are q.r alone, without keys; needs relative positions.
          mask_border: leaves pixels outside the map out of the softmax.
          kind: "local" (a window around each pixel) or "halo" (a block and its halo).
          block: side of a block of queries; part of the model for "halo" only.
          dtype: type of the computation; weights are float32.

        Raises:
          ConfigError: a value outside these lists, or heads that do not divide out_channels.
        """
        _check(out_channels, heads, window, stride, position, position_only, kind, block)
        self.heads, self.window, self.stride, self.block = heads, window, stride, block
        self.position, self.position_only, self.kind = position, position_only, kind
        self.out_channels, self.mask_border, self.dtype = out_channels, mask_border, dtype
        parts = 2 if position_only else 3
        self.qkv = declare(
            (in_channels, parts * out_channels), ("conv_in", "conv_out"), LECUN_NORMAL
        )
        if position == "relative":
            depth = out_channels // heads
            offsets = window if kind == "local" else 2 * (block + window // 2) - 1
            axes = ("offset", "head_depth")
            self.rel_row = declare((offsets, depth // 2), axes, table_init)
            self.rel_col = declare((offsets, depth - depth // 2), axes, table_init)

    def __call__(self, x: Array) -> Array:
        """Any map size; the result is in `dtype`."""
        x = x.astype(self.dtype)
        if self.position == "sine":
            x = x + sine_positions(*x.shape[1:]).astype(self.dtype)
        qkv = pointwise(x, self.qkv[...].astype(self.dtype))
        qkv = qkv.reshape(*x.shape[:3], -1, self.heads, self.out_channels // self.heads)
        q, v = qkv[:, :, :, 0], qkv[:, :, :, -1]
        k = None if self.position_only else qkv[:, :, :, 1]
        tables = (self.rel_row[...], self.rel_col[...]) if self.position == "relative" else ()
        if self.kind == "local":
            sizes = {"window": self.window, "block": self.block}
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
    heads: int,
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
    if heads < 1 or out_channels % heads:
        raise ConfigError(
            f"heads={heads} does not divide the {out_channels} channels of a local attention "
            "layer. Change the number of heads or the width."
        )
    if position == "relative" and out_channels // heads < 2:
        raise ConfigError(
            f"heads={heads} leaves {out_channels // heads} channel a head of {out_channels}. "
            "Relative positions need at least 2, one for rows and one for columns: use fewer heads."
        )
    if position_only and position != "relative":
        raise ConfigError(
            f"Attention without keys needs position='relative', not {position!r}: nothing would be "
            "left of its logits."
        )
