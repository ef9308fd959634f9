"""The strongest PyTorch structures for the same attention, re-implemented for comparison.

Letters: B batch, N heads, H W map, d e key and value width a head, K window, b block, M = b + 2h.

Each function returns a candidate for `timing.fastest`: forward and backward for all inputs, one
thread, float32. They follow what the public layers do (named at each), not their code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def prepare() -> None:
    """One thread, as for JAX."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _candidate(forward: Callable, shapes: list[tuple[int, ...]]) -> Callable[[], object]:
    args = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def run() -> object:
        return torch.autograd.grad((forward(*args) ** 2).sum(), args)

    return run


def _skew(logits: torch.Tensor, keys: int) -> torch.Tensor:
    """[.., L, 2J-1] by relative offset -> [.., L, J] by absolute key: pad, flatten, cut."""
    *lead, queries, offsets = logits.shape
    flat = F.pad(logits, (0, 1)).flatten(-2)
    flat = F.pad(flat, (0, offsets - queries))
    return flat.reshape(*lead, queries + 1, offsets)[..., :queries, keys - 1 :]


def _relative_grid(q: torch.Tensor, rel: torch.Tensor, keys: int) -> torch.Tensor:
    """q [G, Y, X, d] -> logits of the column offset [G, Y, X, J]."""
    return _skew(q @ rel.T, keys)


def botnet(batch: int, heads: int, size: int, d: int, e: int) -> Callable[[], object]:
    """Global attention as in timm's bottleneck attention: skew, expand, materialised [HW, HW]."""
    groups, pixels = batch * heads, size * size

    def forward(q, k, v, rel_h, rel_w):
        grid = q.reshape(groups, size, size, d)
        cols = _relative_grid(grid, rel_w, size)[:, :, None].expand(-1, -1, size, -1, -1)
        rows = _relative_grid(grid.transpose(1, 2), rel_h, size)
        rows = rows[:, :, None].expand(-1, -1, size, -1, -1)
        # cols [G, y, Y, x, X] and rows [G, x, X, y, Y] -> [G, y, x, Y, X]
        bias = cols.permute(0, 1, 3, 2, 4) + rows.permute(0, 3, 1, 4, 2)
        logits = q @ k.transpose(-1, -2) + bias.reshape(groups, pixels, pixels)
        return logits.softmax(-1) @ v

    table = (2 * size - 1, d)
    maps = [(groups, pixels, width) for width in (d, d, e)]
    return _candidate(forward, [*maps, table, table])


def augmented_flash(batch: int, heads: int, size: int, d: int, e: int) -> Callable[[], object]:
    """Global attention by the fused kernel on features that carry the position terms.

    q' = [q, column term, row term], k' = [k, one-hot column, one-hot row]; the CPU kernel wants
    values of the same width, so they are filled with zeros.
    """
    pixels = size * size
    index = torch.arange(size)[None, :] - torch.arange(size)[:, None] + size - 1
    one_hot = torch.cat(
        [torch.eye(size).repeat(size, 1), torch.eye(size).repeat_interleave(size, 0)], -1
    )
    one_hot = one_hot.expand(batch, heads, -1, -1)

    def forward(q, k, v, rel_h, rel_w):
        grid = q.reshape(batch, heads, size, size, d)
        cols = torch.einsum("bnyxd,xXd->bnyxX", grid, rel_w[index]).flatten(2, 3)
        rows = torch.einsum("bnyxd,yYd->bnyxY", grid, rel_h[index]).flatten(2, 3)
        queries, keys = torch.cat([q, cols, rows], -1), torch.cat([k, one_hot], -1)
        values = F.pad(v, (0, queries.shape[-1] - e))
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :e]

    table = (2 * size - 1, d)
    maps = [(batch, heads, pixels, width) for width in (d, d, e)]
    return _candidate(forward, [*maps, table, table])


def halo(batch: int, heads: int, size: int, d: int) -> Callable[[], object]:
    """Block-local attention as in timm's halo attention: block 7, halo 3, all 13 x 13 attended."""
    block, margin = 7, 3
    window, blocks = block + 2 * margin, size // block
    groups, channels = batch * heads, heads * d

    def squares(x):
        x = F.pad(x, (margin,) * 4)
        x = x.unfold(2, window, block).unfold(3, window, block)
        x = x.reshape(groups, d, blocks * blocks, window * window)
        return x.permute(0, 2, 3, 1)

    def forward(q, k, v, rel_h, rel_w):
        q = q.reshape(groups, d, blocks, block, blocks, block).permute(0, 2, 4, 3, 5, 1)
        grid = q.reshape(-1, block, block, d)
        cols = _relative_grid(grid, rel_w, window)[:, :, None].expand(-1, -1, window, -1, -1)
        rows = _relative_grid(grid.transpose(1, 2), rel_h, window)
        rows = rows[:, :, None].expand(-1, -1, window, -1, -1)
        bias = cols.permute(0, 1, 3, 2, 4) + rows.permute(0, 3, 1, 4, 2)
        q = q.reshape(groups, blocks * blocks, block * block, d)
        logits = q @ squares(k).transpose(-1, -2) + bias.reshape(*q.shape[:3], window * window)
        out = (logits.softmax(-1) @ squares(v)).reshape(groups, blocks, blocks, block, block, d)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, size, size)

    table = (2 * window - 1, d)
    return _candidate(forward, [(batch, channels, size, size)] * 3 + [table, table])


def unfolded(batch: int, heads: int, size: int, d: int, window: int = 7) -> Callable[[], object]:
    """Local attention exactly as published, over `unfold`'s window * window copies of k and v."""
    channels, taps = heads * d, window * window

    def copies(x):
        return F.unfold(x, window, padding=window // 2).reshape(batch, heads, d, taps, size * size)

    def forward(q, k, v, rel_row, rel_col):
        rows = rel_row[:, None].expand(-1, window, -1)
        cols = rel_col[None].expand(window, -1, -1)
        place = torch.cat([rows, cols], -1).reshape(taps, d).T[None, None, :, :, None]
        q = q.reshape(batch, heads, d, 1, size * size)
        p = (q * (copies(k) + place)).sum(2, keepdim=True).softmax(3)
        return (p * copies(v)).sum(3)

    table = (window, d // 2)
    return _candidate(forward, [(batch, channels, size, size)] * 3 + [table, table])
