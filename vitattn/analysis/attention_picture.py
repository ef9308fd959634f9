"""The picture that prediction draws of attention: which query, layers and heads it shows, and its
rows.

B images of a batch, N heads, H W image in pixels, h w map of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from trainlib.errors import ConfigError
from trainlib.model.weights import Abstract
from vitattn.analysis import attention_maps, plots
from vitattn.images.decode import Rgb
from vitattn.layers.attention import AttentionLayer


@dataclasses.dataclass(frozen=True)
class Maps:
    """Which maps of attention are asked of a model.

    Attributes:
      query: row and column of the pixel of the model's image that attends.
      heads: attention layer -> numbers of its heads.
      size: H, W.
    """

    query: tuple[int, int]
    heads: dict[str, tuple[int, ...]]
    size: tuple[int, int]

    def watch(self, model: nnx.Module, maps: dict[str, jax.Array]) -> None:
        """Makes a bound model write its attention into `maps` when it is called: layer -> f32
        [B, N, h, w], the probabilities of the cell that holds the query in the chosen heads; of a
        layer that runs on several maps, as `attention_maps.survey` takes it."""

        def record(name: str, layer: AttentionLayer, x: jax.Array) -> None:
            if name in maps:
                return
            whole = attention_maps.query_map(layer, x, self.query, self.size)
            maps[name] = whole[:, np.asarray(self.heads[name])]

        attention_maps.watch(model, self.heads, record)


@dataclasses.dataclass(frozen=True)
class Picture(Maps):
    """What a picture of attention shows.

    Attributes:
      path: the file to draw.
    """

    path: Path

    def rows(
        self, pixels: np.ndarray, caption: str, maps: dict[str, np.ndarray], mean: Rgb, std: Rgb
    ) -> list[plots.AttentionRow]:
        """Returns the rows of one image, one for each layer.

        Args:
          pixels: f32 [H, W, 3], normalised, as the model saw it.
          caption: what the image is and was taken for.
          maps: layer -> f32 [N, h, w].
          mean: that was subtracted from the pixels.
          std: that they were divided by.
        """
        image = seen(pixels, mean, std)
        return [
            plots.AttentionRow(
                image,
                caption,
                layer,
                heads,
                maps[layer],
                attention_maps.cell(self.query, self.size, maps[layer].shape[1:]),
            )
            for layer, heads in self.heads.items()
        ]

    def draw(self, rows: Sequence[plots.AttentionRow]) -> None:
        """Draws the picture."""
        plots.attention_picture(self.path, rows, self.query)


def seen(pixels: np.ndarray, mean: Rgb, std: Rgb) -> np.ndarray:
    """Returns an image f32 [H, W, 3] in 0..1 of the normalised pixels that a model saw."""
    return np.clip(pixels * np.asarray(std) + np.asarray(mean), 0, 1).astype(np.float32)


def choose(
    path: Path,
    query: tuple[int, int] | None,
    layers: Sequence[str],
    heads: Sequence[int],
    abstract: Abstract,
    size: tuple[int, int],
    images: int,
) -> Picture:
    """Decides what a picture shows.

    Args:
      path: the file to draw.
      query: the pixel that attends; None is the centre.
      layers: attention layers or parts of the network; empty for `choose_layers`' default.
      heads: their numbers; empty for all.
      abstract: the model.
      size: H, W.
      images: how many are drawn.

    Raises:
      ConfigError: the model lacks the layer, head or query, or the picture cannot be drawn.
      StorageError: the directory of the picture does not exist.
    """
    query = choose_query(query, size)
    facts = attention_maps.survey(abstract, size)
    names = attention_maps.choose_layers(facts, layers)
    chosen = attention_maps.choose_heads(facts, names, heads)
    plots.check_picture(path, images * sum(map(len, chosen.values())))
    return Picture(query, chosen, size, path)


def choose_query(query: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the pixel that attends: the one that was asked for, or the centre.

    Raises:
      ConfigError: it lies outside the image.
    """
    y, x = query or (size[0] // 2, size[1] // 2)
    if y >= size[0] or x >= size[1]:
        raise ConfigError(
            f"--query={y},{x} lies outside the image that the model sees, {size[0]} x {size[1]} "
            f"pixels: rows are 0 to {size[0] - 1}, columns 0 to {size[1] - 1}."
        )
    return y, x
