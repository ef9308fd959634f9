"""The strongest PyTorch structures for the same attention, re-implemented for comparison.

Letters: B batch, N heads, H W map, d e key and value width a head, K window, b block, M = b + 2h.

Each function takes the inputs of our own layer, float32 in our layout, and returns a `Peer` that
computes the same in the layout of the public layer (named at each; its structure, not its code).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F


def prepare() -> None:
    """One thread, as for JAX."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A structure to be timed, and to be compared with our own layer first.

    Attributes:
      forward: the layer, in its own layout.
      convert: inputs in our layout -> in its layout; differentiable.
      inputs: in our layout.
    """

    forward: Callable[..., torch.Tensor]
    convert: Callable[..., Sequence[torch.Tensor]]
    inputs: Sequence[np.ndarray]

    def candidate(self) -> Callable[[], object]:
        """Forward and backward pass for all inputs, for `timing.fastest`."""
        with torch.no_grad():
            own = self.convert(*map(torch.tensor, self.inputs))
        args = [x.contiguous().clone().requires_grad_() for x in own]
        return lambda: torch.autograd.grad((self.forward(*args) ** 2).sum(), args)

    def results(self) -> list[np.ndarray]:
        """The sum of squares of the output and its gradients in our inputs."""
        args = [torch.tensor(x, requires_grad=True) for x in self.inputs]
        loss = (self.forward(*self.convert(*args)) ** 2).sum()
        return [x.detach().numpy() for x in (loss, *torch.autograd.grad(loss, args))]


def _channels_first(*maps: torch.Tensor) -> list[torch.Tensor]:
    """[B, H, W, N, d] -> [B, N*d, H, W]."""
    return [x.permute(0, 3, 4, 1, 2).flatten(1, 2) for x in maps]


def _skew(logits: torch.Tensor, keys: int) -> torch.Tensor:
    """[.., L, 2J-1] by relative offset -> [.., L, J] by absolute key: pad, flatten, cut."""
    *lead, queries, offsets = logits.shape
    flat = F.pad(logits, (0, 1)).flatten(-2)
    flat = F.pad(flat, (0, offsets - queries))
    return flat.reshape(*lead, queries + 1, offsets)[..., :queries, keys - 1 :]


def _relative_grid(q: torch.Tensor, rel: torch.Tensor, keys: int) -> torch.Tensor:
    """q [G, Y, X, d] -> logits of the column offset [G, Y, X, J]."""
    return _skew(q @ rel.T, keys)


def botnet(inputs: Sequence[np.ndarray]) -> Peer:
    """Global attention as in timm's bottleneck attention: skew, expand, materialised [HW, HW]."""
    batch, heads, size, _, d = inputs[0].shape
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

    def convert(*args):
        return *(x.reshape(groups, pixels, -1) for x in args[:3]), *args[3:]

    return Peer(forward, convert, inputs)


def augmented_flash(inputs: Sequence[np.ndarray]) -> Peer:
    """Global attention by the fused kernel on features that carry the position terms.

    q' = [q, column term, row term], k' = [k, one-hot column, one-hot row]; the CPU kernel wants
    values of the same width, so they are filled with zeros.
    """
    batch, heads, size, _, d = inputs[0].shape
    e = inputs[2].shape[-1]
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

    return Peer(forward, lambda *args: (*(x.flatten(2, 3) for x in args[:3]), *args[3:]), inputs)


def halo(inputs: Sequence[np.ndarray]) -> Peer:
    """Block-local attention as in timm's halo attention: block 7, halo 3, all 13 x 13 attended.

    Its tables span the whole depth of a head and every offset within the square of keys, of which
    6 cannot occur.
    """
    batch, size, _, heads, d = inputs[0].shape
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

    def convert(q, k, v, rel_row, rel_col):
        first = window - block
        tables = F.pad(rel_row, (0, d // 2, first, 0)), F.pad(rel_col, (d // 2, 0, first, 0))
        return *_channels_first(q, k, v), *tables

    return Peer(forward, convert, inputs)


def unfolded(inputs: Sequence[np.ndarray]) -> Peer:
    """Local attention exactly as published, over `unfold`'s window * window copies of k and v."""
    batch, size, _, heads, d = inputs[0].shape
    window = len(inputs[3])
    taps = window * window

    def copies(x):
        return F.unfold(x, window, padding=window // 2).reshape(batch, heads, d, taps, size * size)

    def forward(q, k, v, rel_row, rel_col):
        rows = rel_row[:, None].expand(-1, window, -1)
        cols = rel_col[None].expand(window, -1, -1)
        offsets = torch.cat([rows, cols], -1).reshape(taps, d).T[None, None, :, :, None]
        q = q.reshape(batch, heads, d, 1, size * size)
        p = (q * (copies(k) + offsets)).sum(2, keepdim=True).softmax(3)
        return (p * copies(v)).sum(3)

    return Peer(forward, lambda *args: (*_channels_first(*args[:3]), *args[3:]), inputs)
