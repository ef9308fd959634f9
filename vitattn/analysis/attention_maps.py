"""Which pixels a query attends to, for any attention layer of a model as it stands.

Letters: B batch, H W map, N heads.

Every attention layer is an `AttentionLayer`: it shows its input to a watcher, where one is set, and
it computes the map of one query by itself. So this file knows no kind of attention: `watch` sets
the watcher of the chosen layers of a model that has been bound inside a traced function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, nearest
from trainlib.model.weights import Abstract
from vitattn.layers.attention import AttentionLayer, Pair

Array = jax.Array
See = Callable[[str, AttentionLayer, Array], None]  # name, layer, its input

ALL = "all"


class LayerFacts(NamedTuple):
    """What can be asked of a layer: its heads, the size of the map that it attends in."""

    heads: int
    size: Pair
    stem: bool


def _find(model: nnx.Module, name: str) -> Any:
    module: Any = model
    for part in filter(None, name.split(".")):
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module


def layer_names(abstract: Abstract, model: nnx.Module) -> list[str]:
    """Dotted names of the attention layers of a bound model, in no particular order."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in abstract.params)
    return [name for name in owners if isinstance(_find(model, name), AttentionLayer)]


def watch(model: nnx.Module, names: Iterable[str], see: See) -> None:
    """Has `see(name, layer, input)` called whenever one of the named layers of `model` runs."""
    for name in names:
        layer = _find(model, name)
        layer.watcher = functools.partial(see, name)


def survey(abstract: Abstract, size: Pair) -> dict[str, LayerFacts]:
    """Attention layers by name, in the order in which they run on images of `size` pixels.

    A layer that runs on several maps, as those of a detector's heads do, is taken as on the first,
    the finest. The model is traced, not compiled.
    """
    layers: dict[str, LayerFacts] = {}

    def see(name: str, layer: AttentionLayer, x: Array) -> None:
        layers.setdefault(name, LayerFacts(layer.num_heads, layer.map_size(x), layer.is_stem))

    def forward(params, model_state, images):
        model = abstract.bind(params, model_state)
        watch(model, layer_names(abstract, model), see)
        return model(images, train=False)

    structs = (
        {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in specs.items()}
        for specs in (abstract.params, abstract.model_state)
    )
    jax.eval_shape(forward, *structs, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    return layers


def choose_layers(layers: dict[str, LayerFacts], words: Sequence[str]) -> list[str]:
    """The layers that `words` name: whole names, parts that hold layers (`conv4_x`), or "all".

    Without a word it is the last layer of the highest resolution, leaving out a stem: its blocks of
    4 x 4 pixels show little.

    Raises:
      ConfigError: the model has no attention, or a word names none of its layers.
    """
    if not layers:
        raise ConfigError(
            "There are no attention maps: no layer of this model attends. Leave --attention out, "
            "or give the --workdir of a model with attention."
        )
    if not words:
        usual = {n: f for n, f in layers.items() if not f.stem} or layers
        largest = max(facts.size for facts in usual.values())
        return [name for name, facts in usual.items() if facts.size == largest][-1:]
    chosen = set()
    for word in words:
        matches = [n for n in layers if word in (ALL, n) or n.startswith(f"{word}.")]
        if not matches:
            parts = {n.split(".")[0] for n in layers}
            raise ConfigError(
                f"--layers={word}: no attention layer has this name. "
                f"{nearest(word, [*layers, *parts])}Allowed: {', '.join(layers)}; a part such as "
                f"{min(parts)} for all its layers; or {ALL}."
            )
        chosen.update(matches)
    return [name for name in layers if name in chosen]


def choose_heads(
    layers: dict[str, LayerFacts], names: Sequence[str], heads: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Layer -> heads that are shown of it; all where `heads` is empty.

    Raises:
      ConfigError: a layer lacks one of the heads.
    """
    for name in names:
        count = layers[name].heads
        wrong = [head for head in heads if not 0 <= head < count]
        if wrong:
            raise ConfigError(
                f"--heads={','.join(map(str, heads))}: {name} has no head {wrong[0]}. Its "
                f"{count} heads are numbered 0 to {count - 1}."
            )
    return {name: tuple(heads) or tuple(range(layers[name].heads)) for name in names}


def cell(query: Pair, image_size: Pair, map_size: Pair) -> Pair:
    """The cell of a map in which a pixel of the image lies."""
    y, x = (at * cells // size for at, size, cells in zip(query, image_size, map_size, strict=True))
    return y, x


def query_map(layer: AttentionLayer, x: Array, query: Pair, image_size: Pair) -> Array:
    """Probabilities f32 [B, N, H, W] over the layer's map, of the cell that holds pixel `query`.

    Keys beyond the border, where a layer attends to them, are not in the map: it sums to less than
    one then.
    """
    return layer.query_map(x, cell(query, image_size, layer.map_size(x)))
