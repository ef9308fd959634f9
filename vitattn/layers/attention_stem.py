"""Attention in place of the first convolution (arXiv 1906.05909, section 3.2 and appendix).

Dimension letters: B batch, H W image, C channels of the image, F width, N heads, M mixtures, P side
of a block.

Each pixel attends to the P x P block that it lies in, the blocks that the 4x4 max pool behind the
stem reads. In content alone a pixel says little, so values are mixed by place within the block:

    v[a, c] = sum over m of softmax_m((emb_row[a] + emb_col[c]) . nu[m]) W_V[m] x[a, c]

The mixing is the same for all heads. The paper compares with plain values and with values by a
spatial convolution. Normalisation and max pool belong to the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import declare
from vitattn.layers.conv import HE_NORMAL, pointwise
from vitattn.layers.local import LECUN_NORMAL, halo_attention
from vitattn.layers.position import table_init

Array = jax.Array

VALUES = ("mixed", "plain", "conv")
# Not stated in the paper; 4 x 4 is the size that gives its 7.4 GFLOP.
CONV_SIZE = 4

UNIT_NORMAL = jax.nn.initializers.normal(1.0)
PER_MIXTURE = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)


class AttentionStem(nnx.Module):
    """Image -> first map at full resolution: [B, H, W, C] -> [B, H, W, F], in `dtype`."""

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
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          num_heads: N.
          values: "mixed" by place, "plain" (one projection) or "conv" (a 4x4 convolution).
          mixtures: M.
          relative: adds relative positions within the block to the logits.
          block: P.
          dtype: type of the computation; weights are float32.

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
        depth, place = out_channels // num_heads, ("offset", "head_dim")
        self.qk = declare(
            (in_channels, 2 * out_channels), ("image_channels", "conv_out"), LECUN_NORMAL
        )
        if values == "mixed":
            shape, axes = (
                (mixtures, in_channels, out_channels),
                ("mixtures", "image_channels", "conv_out"),
            )
            self.value = declare(shape, axes, PER_MIXTURE)
            self.emb_row = declare((block, depth), place, table_init)
            self.emb_col = declare((block, depth), place, table_init)
            self.mixture = declare((mixtures, depth), ("mixtures", "head_dim"), UNIT_NORMAL)
        elif values == "plain":
            self.value = declare(
                (in_channels, out_channels), ("image_channels", "conv_out"), LECUN_NORMAL
            )
        else:
            shape = (CONV_SIZE, CONV_SIZE, in_channels, out_channels)
            axes = ("height", "width", "image_channels", "conv_out")
            self.value = declare(shape, axes, HE_NORMAL)
        if relative:
            self.rel_row = declare((2 * block - 1, depth // 2), place, table_init)
            self.rel_col = declare((2 * block - 1, depth - depth // 2), place, table_init)

    def __call__(self, x: Array) -> Array:
        """Any image size; blocks at the lower and right edge may be cut off."""
        x = x.astype(self.dtype)
        heads = (*x.shape[:3], self.num_heads, self.out_channels // self.num_heads)
        q, k = jnp.split(pointwise(x, self.qk[...].astype(self.dtype)), 2, axis=-1)
        tables = (self.rel_row[...], self.rel_col[...]) if self.relative else ()
        out = halo_attention(
            *(part.reshape(heads) for part in (q, k, self._values(x))),
            *tables,
            block=self.block,
            halo=0,
            mask_border=True,
        )
        return out.reshape(*x.shape[:3], self.out_channels)

    def _values(self, x: Array) -> Array:
        kernel = self.value[...].astype(self.dtype)
        if self.values == "plain":
            return pointwise(x, kernel)
        if self.values == "conv":
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return place_mixed_values(
            x, kernel, self.emb_row[...], self.emb_col[...], self.mixture[...]
        )


def place_mixed_values(
    x: Array, kernels: Array, emb_row: Array, emb_col: Array, mixture: Array
) -> Array:
    """Values [B, H, W, F] of x [B, H, W, C], by one matrix for each of the P x P places of a block.

    Args:
      x: the image.
      kernels: [M, C, F].
      emb_row: [P, D].
      emb_col: [P, D].
      mixture: [M, D].
    """
    block = emb_row.shape[0]
    place = emb_row[:, None] + emb_col[None, :]
    share = jax.nn.softmax(jnp.einsum("acd,md->acm", place, mixture), axis=-1)
    # Mixing the matrices, not M products, keeps M activations of the full image out of memory.
    matrices = jnp.einsum("acm,mif->acif", share.astype(kernels.dtype), kernels)
    batch, height, width, channels = x.shape
    rows, cols = -(-height // block), -(-width // block)
    x = jnp.pad(x, ((0, 0), (0, rows * block - height), (0, cols * block - width), (0, 0))).reshape(
        batch, rows, block, cols, block, channels
    )
    v = jnp.einsum("brascx,acxf->brascf", x, matrices)
    return v.reshape(batch, rows * block, cols * block, -1)[:, :height, :width]
