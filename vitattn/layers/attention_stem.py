"""Attention in place of the first convolution (arXiv 1906.05909, section 3.2 and appendix).

Dimension letters: B batch, H W image, C channels of the image, F width, N heads, M mixtures, P side
of a block.

Each pixel attends to the P x P block that it lies in, the blocks that the 4x4 max pool behind the
stem reads. In content alone a pixel says little, so values are mixed by position within the block:

    v[a, c] = sum over m of softmax_m((emb_row[a] + emb_col[c]) . nu[m]) W_V[m] x[a, c]

Blocks do not see each other. An image of many pixels is computed in strips of them, and queries,
keys and values, which hold many times what the image does, are made again in the backward pass.

The mixing is the same for all heads. The paper compares with plain values and with values by a
spatial convolution. Normalisation and max pool belong to the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.model.inputs import check_array
from trainlib.model.weights import declare
from trainlib.sharding.constrain import batch_local
from vitattn.kernels.local import halo_attention
from vitattn.kernels.plain.tiling import Tiles, largest_divisor, map_images
from vitattn.kernels.query_map import block_axis, query_map
from vitattn.layers.attention import AttentionLayer, Pair
from vitattn.layers.conv import pointwise
from vitattn.layers.init import HE_NORMAL, LECUN_NORMAL
from vitattn.layers.position import table_init

Array = jax.Array

VALUES = ("mixed", "plain", "conv")
# Of what is computed at once: 64 channels of them in bfloat16 are 16 MiB, or 32 on a TPU.
STRIP_PIXELS = 1 << 17
# Not stated in the paper; 4 x 4 is the size that gives its 7.4 GFLOP.
CONV_SIZE = 4

UNIT_NORMAL = jax.nn.initializers.normal(1.0)
PER_MIXTURE = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)


class AttentionStem(AttentionLayer):
    """Image -> first map at full resolution: [B, H, W, C] -> [B, H, W, F], in `dtype`."""

    is_stem = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 4,
        values: str = "mixed",
        mixtures: int = 4,
        relative: bool = False,
        block: int = 4,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          num_heads: N.
          values: "mixed" by position, "plain" (one projection) or "conv" (a 4x4 convolution).
          mixtures: M.
          relative: adds relative positions within the block to the logits.
          block: P.
          dtype: type of the computation; weights are float32.
          rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

        Raises:
          ConfigError: an unknown kind of values, or heads that do not divide out_channels.
        """
        if values not in VALUES:
            raise one_of("values of the attention stem", values, VALUES)
        if num_heads < 1 or out_channels % num_heads or out_channels // num_heads < 2:
            raise ConfigError(
                f"num_heads={num_heads} does not divide the {out_channels} channels of the "
                "attention stem into equal parts of at least 2. Change the number of heads or the "
                "width."
            )
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.values, self.relative, self.block, self.dtype = values, relative, block, dtype
        depth, offset_axes = out_channels // num_heads, ("offset", "head_dim")
        axes = ("image_channels", "conv_out")
        self.qk = declare((in_channels, 2 * out_channels), axes, LECUN_NORMAL, rngs)
        shape = (in_channels, out_channels)
        if values == "mixed":
            self.value = declare((mixtures, *shape), ("mixtures", *axes), PER_MIXTURE, rngs)
            self.emb_row = declare((block, depth), offset_axes, table_init, rngs)
            self.emb_col = declare((block, depth), offset_axes, table_init, rngs)
            self.mixture = declare((mixtures, depth), ("mixtures", "head_dim"), UNIT_NORMAL, rngs)
        elif values == "plain":
            self.value = declare(shape, axes, LECUN_NORMAL, rngs)
        else:
            shape, axes = (CONV_SIZE, CONV_SIZE, *shape), ("height", "width", *axes)
            self.value = declare(shape, axes, HE_NORMAL, rngs)
        if relative:
            offsets = 2 * block - 1
            self.rel_row = declare((offsets, depth // 2), offset_axes, table_init, rngs)
            self.rel_col = declare((offsets, depth - depth // 2), offset_axes, table_init, rngs)

    def __call__(self, x: Array) -> Array:
        """Any image size; blocks at the lower and right edge may be cut off."""
        check_array("An attention stem", x, "B H W C", C=self.in_channels)
        self.offer(x)
        x = x.astype(self.dtype)
        strips = None if self.values == "conv" else strips_of(x.shape, self.block)
        if strips is None:
            return self._attended(x, self._weights())
        names = [*self._weights()]

        def local(x: Array, *weights: Array) -> Array:
            named = dict(zip(names, weights, strict=True))
            parts = x.reshape(-1, strips.rows, *x.shape[2:])  # as they follow each other in memory
            tiles = Tiles(largest_divisor(len(parts), strips.together), 1, 1)
            out = map_images(lambda xs: self._attended(xs[0], named), (parts,), tiles)
            return out.reshape(*x.shape[:3], self.out_channels)

        return batch_local(local)(x, replicated=tuple(self._weights().values()))

    def _attended(self, x: Array, weights: Mapping[str, Array]) -> Array:
        """x [B, H, W, C] of whole blocks, or of a whole image -> [B, H, W, F]."""
        q, k = self._queries_and_keys(x, weights)
        v = self._by_head(self._values(x, weights))
        tables = (weights["rel_row"], weights["rel_col"]) if self.relative else ()
        out = halo_attention(
            q, k, v, *tables, block=self.block, halo=0, scale=1.0, mask_border=True
        )  # [B, H, W, N, F / N]
        return out.reshape(*x.shape[:3], self.out_channels)

    def query_map(self, x: Array, query: Pair) -> Array:
        """Probabilities f32 [B, N, H, W] of the keys of one query; see `AttentionLayer`."""
        weights = self._weights()
        q, k = self._queries_and_keys(x.astype(self.dtype), weights)
        size = self.map_size(x)
        rows, cols = (block_axis(at, n, self.block, 0) for at, n in zip(query, size, strict=True))
        q = q[:, query[0], query[1]]  # [B, N, F / N]
        tables = (weights["rel_row"], weights["rel_col"]) if self.relative else ()
        return query_map(q, k, tables, rows, cols, size, mask_border=True)

    def _weights(self) -> dict[str, Array]:
        """All weights by name."""
        names = ["qk", "value"]
        names += ["emb_row", "emb_col", "mixture"] * (self.values == "mixed")
        names += ["rel_row", "rel_col"] * self.relative
        return {name: getattr(self, name)[...] for name in names}

    def _by_head(self, x: Array) -> Array:
        """[B, H, W, F] -> [B, H, W, N, F / N]."""
        return x.reshape(*x.shape[:3], self.num_heads, self.out_channels // self.num_heads)

    def _queries_and_keys(self, x: Array, weights: Mapping[str, Array]) -> tuple[Array, Array]:
        q, k = jnp.split(pointwise(x, weights["qk"].astype(self.dtype)), 2, axis=-1)
        return self._by_head(q), self._by_head(k)

    def _values(self, x: Array, weights: Mapping[str, Array]) -> Array:
        """[B, H, W, C] -> [B, H, W, F]."""
        kernel = weights["value"].astype(self.dtype)
        if self.values == "plain":
            return pointwise(x, kernel)
        if self.values == "conv":
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        mixing = (weights["emb_row"], weights["emb_col"], weights["mixture"])
        return mixed_values(x, kernel, *mixing)


class Strips(NamedTuple):
    """How images are cut into strips of whole blocks.

    Attributes:
      rows: of pixels, of a strip.
      together: strips that are computed at once, at most.
    """

    rows: int
    together: int


def strips_of(shape: Sequence[int], block: int) -> Strips | None:
    """The strips of images [B, H, W, C] for blocks of a side; None where all fits at once, sizes
    are unknown, or the last row of blocks is cut off.
    """
    batch, height, width, _ = shape
    if not all(isinstance(size, int) for size in shape) or height % block:
        return None
    if batch * height * width <= STRIP_PIXELS:
        return None
    rows = block * largest_divisor(height // block, STRIP_PIXELS // (block * width))
    return Strips(rows, max(1, STRIP_PIXELS // (rows * width)))


def mixed_values(x: Array, kernels: Array, emb_row: Array, emb_col: Array, mixture: Array) -> Array:
    """Values [B, H, W, F] of x [B, H, W, C], by one matrix for each position of a block.

    Args:
      x: the image.
      kernels: [M, C, F].
      emb_row: [P, D].
      emb_col: [P, D].
      mixture: [M, D].
    """
    block = emb_row.shape[0]
    position = emb_row[:, None] + emb_col[None, :]  # [P, P, D]
    share = jax.nn.softmax(jnp.einsum("acd,md->acm", position, mixture), axis=-1)  # [P, P, M]
    # Mixing the matrices, not M products, keeps M activations of the full image out of memory.
    matrices = jnp.einsum("acm,mif->acif", share.astype(kernels.dtype), kernels)  # [P, P, C, F]
    batch, height, width, channels = x.shape
    rows, cols = -(-height // block), -(-width // block)
    x = jnp.pad(x, ((0, 0), (0, rows * block - height), (0, cols * block - width), (0, 0)))
    x = x.reshape(batch, rows, block, cols, block, channels)  # [B, rows, P, cols, P, C]
    v = jnp.einsum("brascx,acxf->brascf", x, matrices)  # [B, rows, P, cols, P, F]
    return v.reshape(batch, rows * block, cols * block, -1)[:, :height, :width]
