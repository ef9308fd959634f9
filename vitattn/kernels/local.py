"""Attention in a window around each pixel, or in a block with a halo, on the primitive `attend`.

Dimension letters: B batch, H W map, N heads, d query/key width a head, e value width a head, K
window, b block, h halo, M = b + 2h rows (and columns) of the keys of a block, R C rows and columns
of blocks.

Local attention (arXiv 1906.05909): the query at (y, x) attends to the K x K pixels around it,

    logit[y, x, y+a, x+c] = s (q[y, x] . k[y+a, x+c] + q[y, x] . r[a, c])

where s is the scale, the first half of r depends on the row offset a and the second half on c. So
the position term is a row term plus a column term, and so is the mask of the window: the map is cut
into blocks of b x b queries, whose keys are the same square with a halo of K // 2, and offsets
outside the window are masked in either factor. Halo attention (arXiv 2103.12731) lets every query
of a block attend to the whole square. Keys outside the map are zeros and stay in the softmax unless
`mask_border`. The paper does not scale (s = 1), and neither do the layers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.errors import ConfigError
from trainlib.sharding.constrain import batch_is_local, batch_local, platform
from trainlib.sharding.kernels import core_memory, kernel_mode
from vitattn.kernels.plain.attend import MASK_BIAS, check_heads, checked_tables, scaled
from vitattn.kernels.plain.border import beside, inside_starts, outside
from vitattn.kernels.plain.tiling import Tiles, attend_tiled, map_images, plan, tile_bytes
from vitattn.kernels.tpu.window.attention import takes, window_attention

Array = jax.Array
Table = jax.Array | None

HALO_BLOCK = 7
# Of a map that is computed by rows where there is no kernel: what the blocks of a smaller one hold
# is little beside the network around it.
LARGE_MAP = 64 * 64


@dataclasses.dataclass(frozen=True)
class _Axis:
    """How one axis of the map is cut: b queries a block, M = b + 2h keys.

    Attributes:
      size: H or W.
      block: b.
      halo: h.
      index: [b, M], table row of a (query, key) of a block.
      mask: [blocks or 1, b, M], 0 where the query may attend and `MASK_BIAS` elsewhere.
      starts: first key of each block, where blocks have as few keys as lie inside the map; index
        and mask are [blocks, b, M] then, M the number of these keys.
    """

    size: int
    block: int
    halo: int
    index: np.ndarray
    mask: np.ndarray
    starts: tuple[int, ...] = ()

    @property
    def blocks(self) -> int:
        """R or C."""
        return -(-self.size // self.block)


def _axis(size: int, block: int, halo: int, window: int | None, mask_border: bool) -> _Axis:
    """An axis of local attention, or of halo attention when there is no window."""
    keys = np.arange(block + 2 * halo)  # [M]
    offset = keys[None, :] - np.arange(block)[:, None]  # [b, M]
    if window is None:
        index, inside = offset + block - 1, np.ones((1, *offset.shape), bool)
    else:
        # Within the window the offset of a key from the window's first is 0 .. window - 1.
        index, inside = np.clip(offset, 0, window - 1), (offset >= 0)[None] & (offset < window)
    if mask_border:
        first = np.arange(-(-size // block))[:, None] * block - halo  # [blocks, 1]
        inside = inside & ((first + keys >= 0) & (first + keys < size))[:, None, :]
    return _Axis(size, block, halo, index, np.where(inside, 0.0, MASK_BIAS).astype(np.float32))


def _axis_inside(size: int, block: int, window: int) -> _Axis | None:
    """An axis of local attention on a small map, of keys inside the map alone; None where that
    would be no fewer.
    """
    halo = window // 2
    inside = inside_starts(size, block, halo)
    if inside is None:
        return None
    starts, length = inside
    queries = np.arange(len(starts) * block).reshape(-1, block, 1)
    keys = np.asarray(starts)[:, None, None] + np.arange(length)
    offset = keys - queries + halo  # [R, b, M]
    mask = np.where((offset >= 0) & (offset < window), 0.0, MASK_BIAS).astype(np.float32)
    return _Axis(size, block, halo, np.clip(offset, 0, window - 1), mask, starts)


def local_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    window: int,
    scale: float | None = None,
    mask_border: bool = False,
    block: tuple[int, int] | None = None,
) -> Array:
    """Each pixel attends to the window x window pixels around it (arXiv 1906.05909, section 3).

    Args:
      q: [B, H, W, N, d], heads before the depth of a head; not scaled.
      k: [B, H, W, N, d], or None for logits of the position term alone.
      v: [B, H, W, N, e]; e may differ from d.
      rel_row: [window, d // 2], shared by the heads: what the row offset contributes, for the first
        half of q; None together with rel_col for no position term.
      rel_col: [window, d - d // 2], the same for columns and the rest of q.
      window: odd K.
      scale: what content and position terms are multiplied by; None is d**-0.5. The paper does not
        scale: `LocalAttention` gives 1.
      mask_border: leaves pixels outside the map out of the softmax; otherwise they count as zeros.
      block: rows and columns of a block of queries; results do not depend on it.

    Returns:
      [B, H, W, N, e] in the type of v; the softmax is float32 whatever the inputs are. On a TPU it
      is computed by kernels (`vitattn.kernels.tpu.window`) where they take these sizes.

    Raises:
      ConfigError: a window without a centre, or tables that do not fit.
      InputError: q, k and v of shapes that do not go together, or of whole numbers.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 8, 32))
      >>> local_attention(q, k, v, window=7).shape  # [B, H, W, N, d]
      (2, 14, 14, 8, 32)
    """
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"window={window} has no centre: use an odd number of pixels.")
    check_heads("local_attention", q, k, v)
    tables = _checked(q, rel_row, rel_col, window)
    mode = kernel_mode()
    if mode and batch_is_local() and takes(q, k, v, window, position=bool(tables)):
        return _on_vector_unit(
            *(q, k, v, tables),
            window=window,
            scale=scale,
            mask_border=mask_border,
            interpret=mode == "interpret",
        )
    sides = block or _block(*q.shape[1:3])
    given = list(zip(q.shape[1:3], sides, strict=True))
    rows, cols = (_axis_inside(*pair, window) for pair in given)
    if platform() == "cpu" and rows is not None and cols is not None:
        border = None if mask_border else [outside(*pair, window) for pair in given]
        return _blocked(q, k, v, tables, rows, cols, scale, border)
    rows, cols = (_axis(*pair, window // 2, window, mask_border) for pair in given)
    return _blocked(q, k, v, tables, rows, cols, scale)


def halo_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Table = None,
    rel_col: Table = None,
    *,
    block: int = HALO_BLOCK,
    halo: int = 3,
    scale: float | None = None,
    mask_border: bool = False,
) -> Array:
    """Each block of queries attends to the whole of its block and a halo (arXiv 2103.12731).

    Args:
      q: [B, H, W, N, d], heads before the depth of a head; not scaled.
      k: [B, H, W, N, d], or None for logits of the position term alone.
      v: [B, H, W, N, e]; e may differ from d.
      rel_row: [2 block + 2 halo - 1, d // 2], shared by the heads, one row for each offset within a
        square, for the first half of q; None together with rel_col for no position term.
      rel_col: [2 block + 2 halo - 1, d - d // 2], the same for columns and the rest of q.
      block: side of a block in pixels.
      halo: pixels around a block that it also attends to; 0 for separate blocks.
      scale: what content and position terms are multiplied by; None is d**-0.5. `HaloAttention`
        does not scale: it gives 1.
      mask_border: leaves pixels outside the map out of the softmax; otherwise they count as zeros.

    Returns:
      [B, H, W, N, e] in the type of v; the softmax is float32 whatever the inputs are.

    Raises:
      ConfigError: a block without a pixel, a negative halo, or tables that do not fit.
      InputError: q, k and v of shapes that do not go together, or of whole numbers.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 8, 32))
      >>> halo_attention(q, k, v, block=7, halo=3).shape  # [B, H, W, N, d]
      (2, 14, 14, 8, 32)
    """
    if block < 1 or halo < 0:
        raise ConfigError(
            f"block={block}, halo={halo}: a block has at least one pixel, and a halo is not "
            "negative."
        )
    check_heads("halo_attention", q, k, v)
    tables = _checked(q, rel_row, rel_col, 2 * (block + halo) - 1)
    if rows_at_once := _rows_of_kernel(q, k, v, block, halo):
        options = {"block": block, "halo": halo, "mask_border": mask_border}
        return _on_matrix_unit(q, k, v, tables, rows_at_once, scale, options)
    rows, cols = (_axis(size, block, halo, None, mask_border) for size in q.shape[1:3])
    return _blocked(q, k, v, tables, rows, cols, scale)


def _rows_of_kernel(q: Array, k: Array | None, v: Array, block: int, halo: int) -> int:
    """Rows of a map that the kernels for a TPU are given at a time, 0 where halo attention of these
    is left to the plain form. Blocks without a halo do not see each other: some rows of them will
    do where a whole map is too large.
    """
    maps = [x for x in (q, k, v) if x is not None]
    # Sizes of an exported program may be unknown, and a kernel has operands of one type.
    known = all(isinstance(size, int) and size > 0 for x in maps for size in x.shape)
    alike = len({x.dtype for x in maps}) == 1
    if kernel_mode() is None or not batch_is_local() or not known or not alike:
        return 0
    from vitattn.kernels.tpu.halo.attention import fits, geometry_of

    height, width = q.shape[1:3]
    blocks, cut = divmod(height, block)
    rows = [height]
    if not halo and not cut:
        rows += [n * block for n in range(blocks - 1, 0, -1) if blocks % n == 0]
    heads, depth, memory = q.shape[3], max(q.shape[4], v.shape[4]), core_memory()
    for some in rows:
        if fits(geometry_of((some, width), block, halo, heads, depth), v.dtype, memory):
            return some
    return 0


def _on_matrix_unit(
    q: Array,
    k: Array | None,
    v: Array,
    tables: tuple[Array, ...],
    rows: int,
    scale: float | None,
    options: dict[str, Any],
) -> Array:
    """`halo_attention` by the kernels for a TPU, which are given so many rows at a time."""
    from vitattn.kernels.tpu.halo.attention import attention

    interpret = kernel_mode() == "interpret"

    def local(q: Array, k: Array | None, v: Array, tables: tuple[Array, ...]) -> Array:
        def strips(x: Array) -> Array:
            """[B H / rows, rows, W, ..]: parts of a map follow each other in memory as maps do."""
            return x.reshape(-1, rows, *x.shape[2:])

        keys = None if k is None else strips(k)
        operands = strips(scaled(q, scale)), keys, strips(v), tables
        return attention(*operands, **options, interpret=interpret).reshape(v.shape)

    return _by_images(local, q, k, v, tables)


def _on_vector_unit(
    q: Array, k: Array | None, v: Array, tables: tuple[Array, ...], **options: Any
) -> Array:
    """`local_attention` by the kernels for TPUs, each device its own images."""
    return _by_images(functools.partial(window_attention, **options), q, k, v, tables)


def _by_images(
    function: Callable[..., Array],
    q: Array,
    k: Array | None,
    v: Array,
    tables: tuple[Array, ...],
) -> Array:
    """function(q, k, v, tables) on each device's own images; k may be None."""
    keys = () if k is None else (k,)

    def local(q: Array, v: Array, *rest: Array) -> Array:
        return function(q, rest[0] if keys else None, v, rest[len(keys) :])

    return batch_local(local)(q, v, *keys, replicated=tables)


def projections_are_packed(
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    window: int,
    *,
    channels: int,
    keys: bool,
    position: bool,
) -> bool:
    """Whether `projected_local_attention` has kernels for heads of this shape [B, H, W, N, d] of a
    map of so many channels on the device traced for.
    """
    heads = jax.ShapeDtypeStruct(shape, dtype)
    if kernel_mode() is None or not batch_is_local():
        return False
    k = heads if keys else None
    return takes(heads, k, heads, window, position=position, channels=channels)


def projected_local_attention(
    x: Array,
    kernels: Sequence[Array],
    tables: tuple[Array, ...],
    *,
    heads: int,
    window: int,
    mask_border: bool = False,
) -> Array:
    """`local_attention` with a scale of 1 of what a map is projected to, by kernels that write the
    projections as those of the attention read them; see `projections_are_packed`.

    Args:
      x: [B, H, W, C].
      kernels: [C, N d] of queries, keys (or none of them) and values, in the type of x.
      tables: [window, d // 2] and [window, d - d // 2], or none.
      heads: N.
      window: odd K.
      mask_border: as of `local_attention`.

    Returns:
      [B, H, W, N d] in the type of x.
    """
    from vitattn.kernels.tpu.window.maps import projected_window_attention

    options: dict[str, Any] = {"heads": heads, "window": window, "mask_border": mask_border}
    interpret, count = kernel_mode() == "interpret", len(kernels)

    def local(x: Array, *rest: Array) -> Array:
        return projected_window_attention(
            x, rest[:count], rest[count:], scale=1.0, **options, interpret=interpret
        )

    return batch_local(local)(x, replicated=(*kernels, *tables))


def projected_by_rows(
    x: Array, kernel: Array, tables: tuple[Array, ...], *, heads: int, depth: int, window: int
) -> Array | None:
    """`local_attention` with a scale of 1 of what a large map is projected to, in its plain form
    and some rows of the map at a time: projections are made again in the backward pass, and what
    blocks hold of keys and values, several times the map, is there for these rows alone.

    Args:
      x: [B, H, W, C].
      kernel: [C, 2 N d or 3 N d]: queries, keys unless there are none, values.
      tables: [window, d // 2] and [window, d - d // 2], or none.
      heads: N.
      depth: d.
      window: odd K.

    Returns:
      [B, H, W, N d] in the type of x; None for a map that is not large.
    """
    size = _rows_at_a_time(x.shape, heads, window)
    if size is None:
        return None
    block, width = _block(*x.shape[1:3]), x.shape[2]
    bands = _axis(x.shape[1], size, window // 2, window, False)
    rows = _axis(size, block[0], window // 2, window, False)
    cols = _axis(width, block[1], window // 2, window, False)

    def local(x: Array, kernel: Array, *tables: Array) -> Array:
        gathered = [t[a.index] for t, a in zip(tables, (rows, cols), strict=False)]
        tiles = plan(1, rows.blocks * cols.blocks * heads, 1, rows.mask.size * cols.mask.size * 4)

        def band(inputs: tuple[Array]) -> Array:
            projected = jnp.einsum("byxc,cf->byxf", inputs[0], kernel)
            projected = projected.reshape(*projected.shape[:3], -1, heads, depth)
            q, v = projected[:, rows.halo : rows.halo + size, :, 0], projected[:, :, :, -1]
            k = projected[:, :, :, 1] if projected.shape[3] == 3 else None
            return _attended(q, k, v, gathered, rows, cols, tiles)

        parts = _bands(x, 1, bands)  # [B, n, h + 2 R, W, C]
        out = map_images(band, (parts.reshape(-1, *parts.shape[2:]),), Tiles(1, 1, 1))
        return out.reshape(x.shape[0], -1, width, heads * depth)[:, : x.shape[1]]

    return batch_local(local)(x, replicated=(kernel, *tables))


def _rows_at_a_time(shape: Sequence[int], heads: int, window: int) -> int | None:
    """Rows of a large map [B, H, W, C] whose blocks fill two tiles or more; None for all."""
    known = all(isinstance(size, int) for size in shape)
    if not known or shape[1] * shape[2] <= LARGE_MAP:
        return None
    block, reach = _block(*shape[1:3]), window // 2
    blocks = [-(-size // side) for size, side in zip(shape[1:3], block, strict=True)]
    logits = math.prod(side * (side + 2 * reach) for side in block)  # of a block and head
    # Fewer than four rows of blocks would read most of their keys twice.
    some = max(4, -(-2 * tile_bytes() // (blocks[1] * heads * logits * 4)))
    return some * block[0] if some < blocks[0] else None


def _checked(q: Array, row: Table, col: Table, offsets: int) -> tuple[Array, ...]:
    half = q.shape[-1] // 2
    return checked_tables(row, col, (offsets, offsets), (half, q.shape[-1] - half))


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
    q: Array,
    k: Array | None,
    v: Array,
    tables: tuple[Array, ...],
    rows: _Axis,
    cols: _Axis,
    scale: float | None,
    border: Sequence[np.ndarray] | None = None,
) -> Array:
    """Attention of each block to its square of keys, [B, H, W, N, d] -> [B, H, W, N, e]; `border`
    are rows and columns of keys outside the map that count and have no place (`beside`).
    """

    def local(q: Array, k: Array | None, v: Array, tables: tuple[Array, ...]) -> Array:
        keys = () if k is None else (k,)
        axes = (rows, cols)[: len(tables)]
        # [b, M, d // 2] and [b, M, d - d // 2]
        gathered = [t[a.index] for t, a in zip(tables, axes, strict=True)]
        groups = rows.blocks * cols.blocks * q.shape[3]  # R C N
        tiles = plan(q.shape[0], groups, 1, rows.mask[0].size * cols.mask[0].size * 4)

        def chunk(inputs: tuple[Array, ...]) -> Array:
            q, v, *k = inputs  # [I, H, W, N, .] of I images
            q, outer = scaled(q, scale), None
            if border:
                outer = beside(_cut(q, rows, cols, halo=False), tables, *border)
            keys = k[0] if k else None
            return _attended(q, keys, v, gathered, rows, cols, tiles, outer)

        return map_images(chunk, (q, v, *keys), tiles)

    return _by_images(local, q, k, v, tables)


def _attended(
    q: Array,
    k: Array | None,
    v: Array,
    gathered: Sequence[Array],
    rows: _Axis,
    cols: _Axis,
    tiles: Tiles,
    outer: Array | None = None,
) -> Array:
    """Attention of some images: scaled queries [I, H, W, N, d], keys and values [I, H, W, N, .] or
    with the rows of a halo around them -> [I, H, W, N, e]. `gathered` are tables as for `_bias`.
    """
    queries = _cut(q, rows, cols, halo=False)  # [I, N, C, R, b, b, d]
    values = _cut(v, rows, cols)  # [I, N, C, R, M, M, e]
    bias = _bias(queries, gathered, rows.mask, cols.mask)  # [I, N, C, R, M, b, b] twice
    # Without keys the content term is an inner product of width 0.
    keys = values[..., :0] if k is None else _cut(k, rows, cols)
    queries = queries[..., :0] if k is None else queries
    terms = tuple(_flat(term, 1) for term in bias)  # [I N C R, M, b b]
    if outer is not None:
        terms = (*terms, _flat(outer[..., None, :, :], 1))
    q, k, v = (_flat(x, 2) for x in (queries, keys, values))  # [I N C R, b b or M M, .]
    out = attend_tiled(q, k, v, terms, tiles, rows.block * cols.block)
    return _join(out.reshape(*queries.shape[:-1], -1), rows.size, cols.size)


def _cut(x: Array, rows: _Axis, cols: _Axis, *, halo: bool = True) -> Array:
    """[I, H, W, N, c] -> overlapping rectangles [I, N, C, R, Y, X, c] of a zero-padded map."""
    x = _bands(x.transpose(0, 3, 2, 1, 4), 2, cols, halo=halo)
    return _bands(x.swapaxes(3, 4), 3, rows, halo=halo)


def _bands(x: Array, at: int, axis: _Axis, *, halo: bool = True) -> Array:
    """Cuts the axis `at` into blocks with a halo, [.., H, ..] -> [.., R, M, ..]; H may be with the
    halo around the map.

    A band is a block of the padded map and what it takes of the blocks after it: two or three
    slices of all blocks at once. The transpose adds as few pieces, with neither a scatter nor one
    pass over the map for each block.
    """
    if halo and axis.starts:
        length, along = axis.mask.shape[-1], jax.lax.slice_in_dim
        return jnp.stack([along(x, n, n + length, axis=at) for n in axis.starts], at)
    margin = axis.halo if halo else 0
    block, length = axis.block, axis.block + 2 * margin
    pieces = -(-length // block)
    total = axis.blocks + pieces - 1
    pads = [(0, 0)] * x.ndim
    before = margin if x.shape[at] == axis.size else 0
    pads[at] = (before, total * block - x.shape[at] - before)
    x = jnp.pad(x, pads)
    x = x.reshape(*x.shape[:at], total, block, *x.shape[at + 1 :])  # [.., R + pieces - 1, b, ..]
    parts = []
    for shift in range(pieces):
        part = jax.lax.slice_in_dim(x, shift, shift + axis.blocks, axis=at)  # [.., R, b, ..]
        width = min(block, length - shift * block)
        parts.append(jax.lax.slice_in_dim(part, 0, width, axis=at + 1))
    return jnp.concatenate(parts, at + 1)


def _join(x: Array, height: int, width: int) -> Array:
    """Rectangles of queries [I, N, C, R, y, x, c] -> [I, H, W, N, c]."""
    x = x.transpose(0, 3, 4, 2, 5, 1, 6)  # [I, R, y, C, x, N, c]
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
        Those of a small map have the blocks of their axis before them.
      row_mask: [R or 1, y, M].
      col_mask: [C or 1, x, M'].
    """
    row_mask = row_mask.swapaxes(1, 2)[:, :, :, None]  # [R or 1, M, y, 1]
    col_mask = col_mask.swapaxes(1, 2)[:, None, :, None, :]  # [C or 1, 1, M', 1, x]
    if not tables:
        shapes = [
            (*q.shape[:4], keys, *q.shape[4:6]) for keys in (row_mask.shape[1], col_mask.shape[2])
        ]
        return jnp.broadcast_to(row_mask, shapes[0]), jnp.broadcast_to(col_mask, shapes[1])
    half = tables[0].shape[-1]
    by_row, by_col = ("r", "c") if tables[0].ndim == 4 else ("", "")
    row, col = (table.astype(q.dtype) for table in tables)
    row = jnp.einsum(f"incryxd,{by_row}yYd->incrYyx", q[..., :half], row)
    col = jnp.einsum(f"incryxd,{by_col}xXd->incrXyx", q[..., half:], col)
    return row + row_mask.astype(q.dtype), col + col_mask.astype(q.dtype)
