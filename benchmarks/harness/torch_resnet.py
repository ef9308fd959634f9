"""The attention networks in PyTorch, for comparison: bottlenecks, and what stands in their middle.

Letters: B batch, H W map, N heads, d e key and value width a head, C channels.

The structure is that of the public layers (timm's ResNet and bottleneck attention), not their code;
`load` gives a network the weights of ours, so that both can be seen to compute the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

conv = functools.partial(nn.Conv2d, bias=False)
Spatial = Callable[[int, int, int, int], nn.Module]  # channels, stage, stride, side of the output


def convolution(channels: int, stage: int, stride: int, side: int) -> nn.Module:
    """The 3x3 convolution of a residual network."""
    return conv(channels, channels, 3, stride, 1)


class Normalised(nn.Module):
    """A convolution and its normalisation."""

    def __init__(self, kernel: nn.Conv2d):
        super().__init__()
        self.conv, self.norm = kernel, nn.BatchNorm2d(kernel.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1 to C, the spatial layer with the stride, 1x1 to 4C."""

    def __init__(self, in_channels: int, channels: int, spatial: nn.Module, stride: int):
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = conv(in_channels, channels, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = spatial
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = Normalised(conv(in_channels, out_channels, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """A residual network of bottlenecks whose middle layers `spatial` makes."""

    def __init__(self, counts: tuple[int, ...], pixels: int, classes: int, spatial: Spatial):
        super().__init__()
        self.stem = Normalised(conv(3, 64, 7, 2, 3))
        in_channels, side, names = 64, pixels // 4, []
        for stage, count in enumerate(counts, 2):
            channels, blocks = 2 ** (stage + 4), []
            for index in range(count):
                stride = 2 if stage > 2 and index == 0 else 1
                side //= stride
                layer = spatial(channels, stage, stride, side)
                blocks.append(Bottleneck(in_channels, channels, layer, stride))
                in_channels = 4 * channels
            names.append(f"conv{stage}_x")
            setattr(self, names[-1], nn.Sequential(*blocks))
        self.stages = names
        self.head = nn.Linear(in_channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(images), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class Augmented(nn.Module):
    """An augmented convolution whose logits are materialised, as timm's bottleneck attention has
    them; `fused` gives the position terms as an additive mask to scaled_dot_product_attention.
    """

    def __init__(self, channels: int, stage: int, stride: int, side: int, *, fused: bool):
        super().__init__()
        self.heads, self.fused = 8, fused
        self.value_depth = int(0.1 * channels / self.heads + 1e-9) * self.heads
        self.key_depth = max(int(0.2 * channels / self.heads + 1e-9), 20) * self.heads
        self.pools = (stride == 2) + (stage == 3)
        self.size = side if stage > 3 else -(-side // 2)
        self.conv = conv(channels, channels - self.value_depth, 3, stride, 1)
        self.qkv = conv(channels, 2 * self.key_depth + self.value_depth, 1)
        self.out = conv(self.value_depth, self.value_depth, 1)
        tables = torch.zeros(2, 2 * self.size - 1, self.key_depth // self.heads)
        self.rel_h, self.rel_w = (nn.Parameter(table) for table in tables)
        offsets = torch.arange(self.size)
        index = offsets[None, :] - offsets[:, None] + self.size - 1
        self.index: torch.Tensor
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        for _ in range(self.pools):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        depths = self.key_depth, self.key_depth, self.value_depth
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # [B, N, HW, .]
            for part in self.qkv(x).split(depths, 1)
        )
        q = q * q.shape[-1] ** -0.5
        bias = self._positions(q)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        else:
            out = (q @ k.transpose(2, 3) + bias).softmax(-1) @ v  # [B, N, HW, e]
        out = out.transpose(2, 3).reshape(len(x), -1, self.size, self.size)
        out = self.out(out)
        if out.shape[2:] != y.shape[2:]:
            out = F.interpolate(out, y.shape[2:], mode="bilinear")
        return torch.cat([y, out], 1)

    def _positions(self, q: torch.Tensor) -> torch.Tensor:
        """Position terms of the logits [B, N, HW, HW] of queries [B, N, HW, d]."""
        grid = q.unflatten(2, (self.size, self.size))
        cols = torch.einsum("bnyxd,xXd->bnyxX", grid, self.rel_w[self.index])
        rows = torch.einsum("bnyxd,yYd->bnyxY", grid, self.rel_h[self.index])
        return (rows[..., None] + cols[..., None, :]).flatten(4).flatten(2, 3)


def augmented(fused: bool) -> Spatial:
    """Augmented convolutions in all stages but the first, as in AA-ResNet-50."""

    def layer(channels: int, stage: int, stride: int, side: int) -> nn.Module:
        kind = convolution if stage == 2 else functools.partial(Augmented, fused=fused)
        return kind(channels, stage, stride, side)

    return layer


def halo(channels: int, stage: int, stride: int, side: int) -> nn.Module:
    """timm's halo attention of 8 heads, in blocks of 7 x 7 pixels with 3 around them."""
    from timm.layers.halo_attn import HaloAttn  # pyright: ignore[reportMissingImports]

    return HaloAttn(channels, stride=stride, num_heads=8, block_size=7, halo_size=3, avg_down=True)


def load(network: nn.Module, params: Mapping[str, np.ndarray]) -> None:
    """Gives a network the weights of ours, name by name.

    Raises:
      KeyError: one of them has a parameter that the other has not.
    """
    ours = {_torch_name(name): _torch_layout(name, value) for name, value in params.items()}
    network.load_state_dict({**network.state_dict(), **ours})
    names = {name for name, _ in network.named_parameters()}
    if names != ours.keys():
        raise KeyError(f"parameters of one network alone: {sorted(names ^ ours.keys())}")


def gradients(network: nn.Module, names: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The gradients that the network has, by our names and in our layout."""
    parameters = dict(network.named_parameters())
    found = {}
    for name in names:
        gradient = parameters[_torch_name(name)].grad
        assert gradient is not None
        found[name] = _our_layout(name, gradient.numpy())
    return found


def _torch_name(name: str) -> str:
    norms = name.replace(".scale", ".weight").replace("kernel", "weight")
    return f"{norms}.weight" if norms.endswith((".qkv", ".out")) else norms


def _torch_layout(name: str, value: np.ndarray) -> torch.Tensor:
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif name.endswith((".qkv", ".out")):
        value = value.T[:, :, None, None]
    elif name == "head.kernel":
        value = value.T
    return torch.tensor(value)


def _our_layout(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith((".qkv", ".out")):
        return value[:, :, 0, 0].T
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if name == "head.kernel" else value
