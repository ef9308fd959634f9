"""What an attention layer and its configuration offer to a network and to whoever looks at it.

Letters: B batch, H W map of the input, N heads, F_in F_out channels, H' W' map that attention runs
on.

A network knows only `AttentionConfig`: it asks `config.layer(...)` for a layer where a convolution
would stand. Analysis knows only `AttentionLayer`: it sets `watcher` on the layers of a model and
asks them for `query_map`. So a new attention layer is one file with both, and its configuration in
the union of the models that may use it (`vitattn.models.resnet.config`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Protocol

import jax
from flax import nnx

from trainlib.keys import choice, many, number, whole
from trainlib.model.layer import Layer

Pair = tuple[int, int]  # row, column

# What fields of several configurations take. A network has stages conv2_x .. conv5_x at 1/4 .. 1/32
# of the image; 1 runs at half of it.
Heads = Annotated[int, whole(1, 2**16)]
Fraction = Annotated[float, number(above=0, high=1e3)]  # depth of keys or values, over a width
Stages = Annotated[tuple[int, ...], many(whole(1, 5), most=5)]
Position = Annotated[str, choice("relative", "none", "sine")]
AnyPosition = Annotated[str, choice("relative", "none", "sine", "coord")]


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a layer stands in a network: stage, stride, and the size of the map that it makes."""

    stage: int
    stride: int
    height: int
    width: int


class AttentionLayer(Layer):
    """A layer [B, H, W, F_in] -> [B, ., ., F_out] whose attention can be looked at.

    Attributes:
      num_heads: N.
      is_stem: whether it stands for the first convolution of a network.
      watcher: called as `watcher(layer, x)` whenever the layer runs. It is None in every model that
        nobody watches, where it costs nothing: the program that is compiled is the same.
    """

    is_stem: ClassVar[bool] = False

    num_heads: int
    watcher: Callable[[AttentionLayer, jax.Array], None] | None = None

    def offer(self, x: jax.Array) -> None:
        """Shows the input to the watcher, if there is one; each layer calls it first."""
        if self.watcher is not None:
            self.watcher(self, x)

    def map_size(self, x: jax.Array) -> Pair:
        """H', W' for the input x [B, H, W, F_in]."""
        return x.shape[1], x.shape[2]

    def query_map(self, x: jax.Array, query: Pair) -> jax.Array:
        """Attention of one query, for pictures.

        Args:
          x: [B, H, W, F_in], the input of the layer.
          query: row and column of the map H', W'.

        Returns:
          f32 [B, N, H', W']: the probability of each key. Keys beyond the border, where a layer
          attends to them, are not in the map: it sums to less than one then.
        """
        raise NotImplementedError


class AttentionConfig(Protocol):
    """A frozen dataclass that says where a network attends and builds the layer for it.

    Attributes:
      kind: its name in configuration files.
      every_layer: whether all spatial convolutions of a block become attention, or the first only.
      stages: where it attends, N of conv`N`_x.
    """

    kind: ClassVar[str]
    every_layer: ClassVar[bool]

    @property
    def stages(self) -> tuple[int, ...]: ...

    def layer(
        self,
        in_channels: int,
        out_channels: int,
        site: Site,
        *,
        kernel_size: int = 3,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
    ) -> nnx.Module:
        """The layer in place of a convolution.

        Args:
          in_channels: F_in.
          out_channels: F_out.
          site: where the layer stands; its map is that of the output.
          kernel_size: of the convolution that it replaces.
          dtype: compute type.
          rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
        """
        ...
