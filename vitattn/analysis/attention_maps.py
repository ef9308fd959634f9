"""Which pixels a query attends to, for any attention layer of a model as it stands.

Dimension letters: B batch, H W map, N heads, d key width a head, S side of the square of keys.

Layers and models know nothing of this: in a model that has been bound inside a traced function,
`observe` puts a function in the place of each chosen layer, which sees the input and calls the
layer. Stand-alone attention is computed for one query alone, from the definition in
`vitattn.layers.local` and without its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.errors import ConfigError, nearest
from trainlib.model.weights import Abstract
from vitattn.layers.attend import MASKED
from vitattn.layers.attention_stem import AttentionStem
from vitattn.layers.augmented import AugmentedConv
from vitattn.layers.conv import pointwise
from vitattn.layers.local import LocalAttention
from vitattn.layers.position import sine_positions

Array = jax.Array
Pair = tuple[int, int]  # row, column
Layer = AugmentedConv | LocalAttention | AttentionStem
See = Callable[[str, Layer, Array], None]  # name, layer, its input

ALL = "all"


class LayerFacts(NamedTuple):
    """What can be asked of a layer: its heads, the size of the map that it attends in."""

    heads: int
    size: Pair
    stem: bool


def _find(model: nnx.Module, name: str) -> Any:
    for part in filter(None, name.split(".")):
        model = model[int(part)] if part.isdecimal() else getattr(model, part)
    return model


def layer_names(abstract: Abstract, model: nnx.Module) -> list[str]:
    """Dotted names of the attention layers of a bound model, in no particular order."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in abstract.params)
    return [name for name in owners if isinstance(_find(model, name), Layer)]


def observe(model: nnx.Module, names: Iterable[str], see: See) -> None:
    """Has `see(name, layer, input)` called whenever one of the named layers of `model` runs."""

    def observed(name: str, layer: Layer) -> Callable[[Array], Array]:
        def call(x: Array) -> Array:
            see(name, layer, x)
            return layer(x)

        return call

    for name in names:
        owner, _, attribute = name.rpartition(".")
        parent = _find(model, owner)
        setattr(parent, attribute, observed(name, getattr(parent, attribute)))


def survey(abstract: Abstract, size: Pair) -> dict[str, LayerFacts]:
    """Attention layers by name, in the order in which they run on images of `size` pixels.

    The model is traced, not compiled.
    """
    found = {}

    def see(name: str, layer: Layer, x: Array) -> None:
        found[name] = LayerFacts(
            layer.num_heads, _map_size(layer, x), isinstance(layer, AttentionStem)
        )

    def forward(params, model_state, images):
        model = abstract.bind(params, model_state)
        observe(model, layer_names(abstract, model), see)
        return model(images, train=False)

    structs = (
        {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in specs.items()}
        for specs in (abstract.params, abstract.model_state)
    )
    jax.eval_shape(forward, *structs, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    return found


def choose_layers(found: dict[str, LayerFacts], words: Sequence[str]) -> list[str]:
    """The layers that `words` name: whole names, parts that hold layers (`conv4_x`), or "all".

    Without a word it is the last layer of the highest resolution, leaving out a stem: its blocks of
    4 x 4 pixels show little.

    Raises:
      ConfigError: the model has no attention, or a word names none of its layers.
    """
    if not found:
        raise ConfigError(
            "There are no attention maps: no layer of this model attends. Leave --attention out, "
            "or give the --workdir of a model with attention."
        )
    if not words:
        usual = {n: f for n, f in found.items() if not f.stem} or found
        largest = max(facts.size for facts in usual.values())
        return [name for name, facts in usual.items() if facts.size == largest][-1:]
    chosen = set()
    for word in words:
        here = [n for n in found if word in (ALL, n) or n.startswith(f"{word}.")]
        if not here:
            parts = {n.split(".")[0] for n in found}
            raise ConfigError(
                f"--layers={word}: no attention layer has this name. "
                f"{nearest(word, [*found, *parts])}Allowed: {', '.join(found)}; a part such as "
                f"{min(parts)} for all its layers; or {ALL}."
            )
        chosen.update(here)
    return [name for name in found if name in chosen]


def choose_heads(
    found: dict[str, LayerFacts], layers: Sequence[str], heads: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Layer -> heads that are shown of it; all where `heads` is empty.

    Raises:
      ConfigError: a layer lacks one of the heads.
    """
    for name in layers:
        count = found[name].heads
        wrong = [head for head in heads if not 0 <= head < count]
        if wrong:
            raise ConfigError(
                f"--heads={','.join(map(str, heads))}: {name} has no head {wrong[0]}. Its "
                f"{count} heads are numbered 0 to {count - 1}."
            )
    return {name: tuple(heads) or tuple(range(found[name].heads)) for name in layers}


def cell(query: Pair, image_size: Pair, map_size: Pair) -> Pair:
    """The cell of a map in which a pixel of the image lies."""
    y, x = (at * cells // size for at, size, cells in zip(query, image_size, map_size, strict=True))
    return y, x


def query_map(layer: Layer, x: Array, query: Pair, image_size: Pair) -> Array:
    """Probabilities f32 [B, N, H, W] over the layer's map, of the cell that holds pixel `query`.

    Keys beyond the border, where a layer attends to them, are not in the map: it sums to less than
    one then.
    """
    at = cell(query, image_size, _map_size(layer, x))
    if isinstance(layer, AugmentedConv):
        return layer.attention_maps(x)[:, :, at[0], at[1]].astype(jnp.float32)
    return _square_map(layer, x.astype(layer.dtype), at)


def _map_size(layer: Layer, x: Array) -> Pair:
    return layer.attention_size if isinstance(layer, AugmentedConv) else x.shape[1:3]


def _square_map(layer: LocalAttention | AttentionStem, x: Array, at: Pair) -> Array:
    """The map of one query whose keys are a square: a window around it, or its block and halo."""
    q, k, tables = _projected(layer, x)
    q = q[:, at[0], at[1]]
    rows, cols = (_axis(layer, place, size) for place, size in zip(at, x.shape[1:3], strict=True))
    inside = rows.inside[:, None] & cols.inside[None, :]
    logits = jnp.zeros((*q.shape[:2], *inside.shape), jnp.float32)
    if k is not None:
        keys = k[:, rows.keys][:, :, cols.keys] * inside[..., None, None].astype(k.dtype)
        logits += jnp.einsum("bnd,byxnd->bnyx", q, keys, preferred_element_type=jnp.float32)
    if tables:
        half = tables[0].shape[-1]
        row_table, col_table = tables[0][rows.offsets], tables[1][cols.offsets]
        logits += jnp.einsum("bnd,yd->bny", q[..., :half], row_table.astype(q.dtype))[..., None]
        logits += jnp.einsum("bnd,xd->bnx", q[..., half:], col_table.astype(q.dtype))[:, :, None]
    if isinstance(layer, AttentionStem) or layer.mask_border:
        logits = jnp.where(inside, logits, MASKED)
    square = jax.nn.softmax(logits, axis=(-2, -1)) * inside
    whole = jnp.zeros((*q.shape[:2], *x.shape[1:3]), jnp.float32)
    return whole.at[:, :, rows.keys[:, None], cols.keys[None, :]].add(square)


def _projected(
    layer: LocalAttention | AttentionStem, x: Array
) -> tuple[Array, Array | None, tuple[Array, ...]]:
    """Queries and keys [B, H, W, N, d] (None without keys) and the row and column tables."""
    stem = isinstance(layer, AttentionStem)
    if not stem and layer.position == "sine":
        x = x + sine_positions(*x.shape[1:]).astype(x.dtype)
    kernel = (layer.qk if stem else layer.qkv)[...].astype(x.dtype)
    parts = pointwise(x, kernel).reshape(
        *x.shape[:3], -1, layer.num_heads, layer.out_channels // layer.num_heads
    )
    keys = None if not stem and layer.position_only else parts[:, :, :, 1]
    relative = layer.relative if stem else layer.position == "relative"
    return parts[:, :, :, 0], keys, (layer.rel_row[...], layer.rel_col[...]) if relative else ()


class _Axis(NamedTuple):
    """The S keys of a query along one axis.

    Attributes:
      keys: their places in the map; some place of the map for those outside.
      inside: whether they lie in it.
      offsets: rows of the relative table.
    """

    keys: np.ndarray
    inside: np.ndarray
    offsets: np.ndarray


def _axis(layer: LocalAttention | AttentionStem, at: int, size: int) -> _Axis:
    halo = 0 if isinstance(layer, AttentionStem) else layer.window // 2
    if isinstance(layer, LocalAttention) and layer.kind == "local":
        offsets = np.arange(layer.window)
        keys = at - halo + offsets
    else:
        keys = at // layer.block * layer.block - halo + np.arange(layer.block + 2 * halo)
        # Offset 0 of the table is that of the last query of a block from the first of its keys.
        offsets = keys - at + halo + layer.block - 1
    inside = (keys >= 0) & (keys < size)
    return _Axis(np.clip(keys, 0, size - 1), inside, offsets)
