"""T5X names: T5 1.1 (one tensor a layer), scalable T5 (scanned), flaxformer's mixtures (both).

Letters: D model width, H heads, h head width, F hidden width, E experts, L layers of a scan, R
buckets. Matrices are [in, out] as ours. A scan puts its layers on axis 1. Scalable T5 splits heads
([D, L, H, h]); the others have them joined. A scanned model keeps a table of relative positions for
each layer, ours one a stack: it is repeated on export, and on import all must be equal.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moe.interop.hf import blocks, listed_extra, same_experts
from moe.interop.placement import placement
from moe.kernels.buckets import MAX_DISTANCE
from moe.models.architecture import Architecture, is_sparse
from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats.layout import SAME, TRANSPOSED, Entry, Layout, Transform

NAMES = ("t5", "scalable", "flaxformer", "flaxformer_scan")
_ATTENTION = ("query", "key", "value", "out")
_MOST_LAYERS = 1024

# Ours has the layers first; a scan has them second.
SECOND = Transform(lambda x: x.swapaxes(0, 1), lambda x: x.swapaxes(0, 1))


@functools.lru_cache
def _split_in(heads: int) -> Transform:
    """[L, D, H * h] <-> [D, L, H, h]."""
    return Transform(
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], x.shape[0], heads, -1),
        lambda x: x.reshape(*x.shape[:2], -1).swapaxes(0, 1),
    )


@functools.lru_cache
def _split_out(heads: int) -> Transform:
    """[L, H * h, D] <-> [H, L, h, D]."""
    return Transform(
        lambda x: x.reshape(x.shape[0], heads, -1, x.shape[-1]).swapaxes(0, 1),
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1]),
    )


@functools.lru_cache
def _repeated(layers: int) -> Transform:
    """[R, H] <-> [H, L, R], all layers equal."""

    def back(x: np.ndarray) -> np.ndarray:
        if not np.array_equal(x, np.repeat(x[:, :1], layers, axis=1), equal_nan=True):
            raise CheckpointError(
                "The layers of this scanned model have relative positions of their own; here a "
                "stack shares one table, so the checkpoint cannot be held."
            )
        return x[:, 0].T

    return Transform(lambda x: x.T[:, None].repeat(layers, axis=1), back)


def default_names(model: Architecture) -> str:
    """The names for a model when none are asked for."""
    return "t5" if model.routing is None else "flaxformer"


def _after(model: Architecture, stack: str) -> int:
    """Dense blocks that follow the sparse one of a period."""
    return model.periods(stack)[3]


def obstacles(model: Architecture, names: str) -> list[str]:
    """What keeps a model from being written in these names."""
    scanned = names in ("scalable", "flaxformer_scan")
    asked = [
        (model.kind == "encoder_decoder", f"model.kind={model.kind}, not encoder_decoder"),
        (model.norm_scale, "model.norm_scale=False"),
        (model.residual_scale == 1, f"model.residual_scale={model.residual_scale}"),
        (model.router_input == "hidden", f"model.router_input={model.router_input}"),
        (not model.router_history, "model.router_history=True"),
        (not model.expert_embedding, "model.expert_embedding=True"),
        (
            model.routing is None or not model.routing.logit_clip,
            f"routing.logit_clip={model.routing.logit_clip if model.routing else 0}",
        ),
        (model.expert_bias == "none", f"model.expert_bias={model.expert_bias}"),
        *same_experts(model),
        (model.extra_ffn != "before" or model.routing is None, "model.extra_ffn=before"),
        *listed_extra(model),
        (
            names.startswith("flaxformer") or model.routing is None,
            f"routing.num_experts > 0, which {names} has not",
        ),
        (
            not scanned or not any(_after(model, stack) for stack in model.stacks),
            f"model.sparse_offset={model.sparse_offset}: a scan has the sparse layer last",
        ),
        (
            not scanned or all(len(model.sections(stack)) == 1 for stack in model.stacks),
            "model.partial_period=True: a scan has whole periods",
        ),
    ]
    return [text for fine, text in asked if not fine]


def layout(model: Architecture, names: str) -> Layout:
    """The table of a model without `obstacles`; names are paths joined by '/'."""
    scanned = names in ("scalable", "flaxformer_scan")
    entries = [Entry("token_embedder/embedding", "embedding.table")]
    for stack in model.stacks:
        entries += _scanned(model, stack, names) if scanned else _unscanned(model, stack)
        entries.append(Entry(f"{stack}/{stack}_norm/scale", f"{stack}.norm.scale"))
    if not model.tie_word_embeddings:
        entries.append(Entry("decoder/logits_dense/kernel", "output.kernel"))
    return Layout(f"T5X, {names} names", tuple(entries), notes=_notes(model), form="t5x")


def _notes(model: Architecture) -> tuple[str, ...]:
    """What its gin file must say, since a checkpoint does not."""
    key = "relative_attention_max_distance"
    distance = getattr(model, key)
    if distance == MAX_DISTANCE:
        return ()
    return (
        f"max_distance={distance} of relative positions is not in a T5X checkpoint: say it in the "
        f"model's gin file, and by --config.model.{key}={distance} where it is imported again",
    )


def _unscanned(model: Architecture, stack: str) -> list[Entry]:
    table = Entry(f"{stack}/relpos_bias/rel_embedding", f"{stack}.bias.table", (), TRANSPOSED)
    entries = [table]
    for number, tree, index in blocks(model, stack):
        add = functools.partial(
            _pair, entries, f"{stack}/layers_{number}", f"{stack}.{tree}", index
        )
        _layer(model, stack, tree, add)
    return entries


def _scanned(model: Architecture, stack: str, names: str) -> list[Entry]:
    periods, *counts = model.periods(stack)
    entries: list[Entry] = []
    outer = f"{stack}/{stack}"
    if model.stack_routing(stack) is None:
        # One tree of [1, L, ..]: the layers are the second stacked dimension.
        parts: list[tuple[str, str, tuple, int]] = [("", "dense", (0,), counts[0])]
        if names == "flaxformer_scan":
            parts = [("/subblock_0", *parts[0][1:])]
    else:
        dense = [("dense", (slice(None), i)) for i in range(counts[0])]
        trees = [*dense, ("sparse", ())]
        parts = [(f"/subblock_{j}", *tree, periods) for j, tree in enumerate(trees)]
    for number, (name, tree, index, layers) in enumerate(parts):
        table = f"{outer}{name}/relpos_bias/rel_embedding"
        entries.append(Entry(table, f"{stack}.bias.table", (), _repeated(layers), copy=number > 0))
        add = functools.partial(_pair, entries, f"{outer}{name}", f"{stack}.{tree}", index)
        _layer(model, stack, tree, _in_scan(add, model.num_heads if names == "scalable" else 0))
    return entries


def _pair(
    entries: list[Entry],
    outer: str,
    tree: str,
    index: tuple,
    theirs: str,
    ours: str,
    transform: Transform = SAME,
) -> None:
    entries.append(Entry(f"{outer}/{theirs}", f"{tree}.{ours}", index, transform))


def _in_scan(add: Callable[..., None], heads: int) -> Callable[[str, str], None]:
    """`add` with the form of a scan; `heads` > 0 splits the heads of attention."""

    def scanned(theirs: str, ours: str) -> None:
        transform = SECOND
        if heads and "attention/" in theirs and theirs.endswith("/kernel"):
            transform = _split_out(heads) if "/out/" in theirs else _split_in(heads)
        add(theirs, ours, transform)

    return scanned


def _layer(model: Architecture, stack: str, tree: str, add: Callable[[str, str], None]) -> None:
    """Calls `add(their name, our name)` for each weight of a layer."""
    kinds = {"attention": ("attention", "attention_norm")}
    if stack == "decoder":
        kinds = {
            "self_attention": ("attention", "attention_norm"),
            "encoder_decoder_attention": ("cross_attention", "cross_norm"),
        }
    norms = {"encoder_decoder_attention": "cross_attention"}
    for theirs, (ours, norm) in kinds.items():
        add(f"pre_{norms.get(theirs, theirs)}_layer_norm/scale", f"{norm}.scale")
        for leaf in _ATTENTION:
            add(f"{theirs}/{leaf}/kernel", f"{ours}.{leaf}")
    gated = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    matrices = gated if model.activation == "geglu" else {"up": "wi", "down": "wo"}
    dense = {leaf: f"mlp/{short}" for leaf, short in matrices.items()}
    if is_sparse(tree):
        add("pre_mlp_layer_norm/scale", "experts_norm.scale")
        add("mlp/router/router_weights/w/kernel", "experts.router")
        for leaf, short in matrices.items():
            add(f"mlp/expert/{short}/kernel", f"experts.{leaf}")
        if model.extra_ffn == "none":
            return
        add("pre_extra_mlp_layer_norm/scale", "ffn_norm.scale")
        dense = {leaf: f"extra_mlp/{short}" for leaf, short in matrices.items()}
    else:
        add("pre_mlp_layer_norm/scale", "ffn_norm.scale")
    for leaf, theirs in dense.items():
        add(f"{theirs}/kernel", f"ffn.{leaf}")


@dataclasses.dataclass(frozen=True)
class Guess:
    """What the names and shapes of a checkpoint say about its model.

    Attributes:
      names: one of `NAMES`.
      model: values of the section `model`.
      routing: values of the section `routing`.
    """

    names: str
    model: dict[str, Any]
    routing: dict[str, Any]


def guess(shapes: Mapping[str, tuple[int, ...]]) -> Guess:
    """Reads the model off a checkpoint, which says nothing about it but names and shapes.

    Raises:
      CheckpointError: no encoder-decoder with such names.
    """
    scanned = any(name.startswith("encoder/encoder/") for name in shapes)
    sparse = any("/mlp/expert/" in name for name in shapes)
    subblocks = any("/subblock_" in name for name in shapes)
    names = ("flaxformer" if sparse else "t5") if not scanned else ""
    if scanned:
        names = "flaxformer_scan" if subblocks else "scalable"
    try:
        vocabulary, width = shapes["token_embedder/embedding"]
        model, routing = _guess_scanned(shapes, names) if scanned else _guess_unscanned(shapes)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"The names of this checkpoint are not those of a T5 1.1 or flaxformer mixture ({error}"
            " is missing or has another form)."
        ) from None
    model |= {
        "vocab_size": vocabulary,
        "d_model": width,
        "tie_word_embeddings": "decoder/logits_dense/kernel" not in shapes,
        "activation": "geglu" if any("/wi_0/" in name for name in shapes) else "relu",
        "extra_ffn": "after" if any("/extra_mlp/" in name for name in shapes) else "none",
    }
    if not sparse:
        return Guess(names, model, {"num_experts": 0})
    # flaxformer: probabilities as they are, rounded capacity; ST-MoE (with the extra layer) sends a
    # token to two experts, Switch to one.
    routing |= {
        "top_k": 2 if model["extra_ffn"] == "after" else 1,
        "normalize_gates": False,
        "capacity_rounding": "round",
        "balance_choices": "all",
        "second_policy": "all",
    }
    return Guess(names, model, routing)


def _guess_unscanned(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    counts, sparse = {}, {}
    for stack in ("encoder", "decoder"):
        pattern = re.compile(rf"{stack}/layers_(\d{{1,4}})/")
        layers = {int(match[1]) for name in shapes if (match := pattern.match(name))}
        counts[stack] = count = len(layers)
        if not 0 < count <= _MOST_LAYERS or layers != set(range(count)):
            raise ValueError(f"{stack}/layers_0 to layers_{count}")
        experts = (f"{stack}/layers_{n}/mlp/expert/wo/kernel" in shapes for n in range(count))
        sparse[stack] = tuple(n for n, there in enumerate(experts) if there)
    heads, buckets = shapes["encoder/relpos_bias/rel_embedding"]
    dense = [n for n in range(counts["encoder"]) if n not in sparse["encoder"]]
    if dense:
        hidden = shapes[f"encoder/layers_{dense[0]}/mlp/wo/kernel"][0]
    else:
        hidden = shapes["encoder/layers_0/mlp/expert/wo/kernel"][1]
    inner = shapes["encoder/layers_0/attention/query/kernel"][1]
    model = _sizes(counts, hidden, heads, inner, buckets)
    if not any(sparse.values()):
        return model, {}
    stack, (first, *_) = next((stack, at) for stack, at in sparse.items() if at)
    experts = shapes[f"{stack}/layers_{first}/mlp/expert/wo/kernel"][0]
    return model | _placed(sparse, counts), {"num_experts": experts}


def _placed(sparse: Mapping[str, tuple[int, ...]], counts: Mapping[str, int]) -> dict[str, Any]:
    try:
        return placement(sparse, counts)
    except ConfigError as error:
        raise CheckpointError(f"In this checkpoint {error}") from None


def _guess_scanned(
    shapes: Mapping[str, tuple[int, ...]], names: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    block = "/subblock_0" if names == "flaxformer_scan" else ""
    first, counts, sparse, experts = f"encoder/encoder{block}", {}, {}, {}
    for stack in ("encoder", "decoder"):
        heads, layers, buckets = shapes[f"{stack}/{stack}{block}/relpos_bias/rel_embedding"]
        pattern = rf"^{stack}/{stack}/subblock_(\d{{1,4}})/"
        period = max(1, len({n for name in shapes for n in re.findall(pattern, name)}))
        counts[stack] = layers * period
        if not 0 < counts[stack] <= _MOST_LAYERS:
            raise ValueError(f"a scan over {layers} layers")
        last = shapes.get(f"{stack}/{stack}/subblock_{period - 1}/mlp/expert/wo/kernel")
        sparse[stack] = tuple(range(period - 1, counts[stack], period)) if last else ()
        experts |= {stack: last} if last else {}
    query = shapes[f"{first}/attention/query/kernel"]
    inner = query[2] * (query[3] if names == "scalable" else 1)
    dense = f"{first}/mlp/wo/kernel"
    hidden = shapes[dense][0] if dense in shapes else experts["encoder"][2]
    model = _sizes(counts, hidden, heads, inner, buckets)
    if not experts:
        return model, {}
    (number, *_), *_ = experts.values()
    return model | _placed(sparse, counts), {"num_experts": number}


def _sizes(
    counts: Mapping[str, int], hidden: int, heads: int, inner: int, buckets: int
) -> dict[str, Any]:
    if heads < 1 or inner % heads:
        raise ValueError(f"{inner} columns for {heads} heads")
    return {
        "encoder_blocks": counts["encoder"],
        "decoder_blocks": counts["decoder"],
        "d_ff": hidden,
        "num_heads": heads,
        "head_dim": inner // heads,
        "relative_attention_num_buckets": buckets,
    }


def check_names(names: str, model: Architecture) -> None:
    """Refuses names that a model cannot be written in.

    Raises:
      ConfigError: with what stands in the way.
    """
    wrong = obstacles(model, names)
    if wrong:
        raise ConfigError(f"T5X's {names} names have no place for {'; '.join(wrong)}.")
