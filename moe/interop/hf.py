"""Hugging Face names: T5 v1.1 (`T5ForConditionalGeneration`) and Switch Transformers.

PyTorch stores matrices [out, in], ours are [in, out]: all but the tables are transposed. Theirs has
one tensor for each layer and expert, ours one stack for each kind of block.

Where Switch differs there: capacity is a number of tokens of one sequence (`expert_capacity`), the
same in both stacks and in training and evaluation; a router sees padding, which stands behind
the real tokens and so takes no capacity from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe.interop import hf_config
from moe.interop.hf_config import from_config, sparse_step, to_config
from moe.models.architecture import Architecture, is_sparse
from trainlib.errors import CheckpointError, shown
from trainlib.formats.layout import TRANSPOSED, Entry, Layout, prefix_before, strip_advice
from trainlib.formats.safetensors import Reader
from trainlib.keys import brief

__all__ = ["from_config", "layout", "obstacles", "tensors", "to_config"]

TABLE, HEAD = "shared.weight", "lm_head.weight"
_EMBEDDED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}

# Some published files hold a bias that no model reads.
IGNORED = (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)


def blocks(model: Architecture, stack: str) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """(number, tree, index into the tree's stacked weights) of each block of a stack, in order."""
    numbered = (
        (int(number), tree, index)
        for tree, numbers in model.trees(stack).items()
        for index, number in np.ndenumerate(numbers)
    )
    yield from sorted(numbered)


def same_experts(model: Architecture) -> list[tuple[bool, str]]:
    """Whether experts are as wide as dense layers and chosen by the softmax of their logits alone,
    as in the models of others, and what says otherwise.
    """
    routing = model.routing
    if routing is None:
        return []
    return [
        (model.expert_width == model.d_ff, f"model.expert_d_ff={model.expert_d_ff}"),
        (not model.shared_experts, f"model.shared_experts={model.shared_experts}"),
        (routing.scores == "softmax", f"routing.scores={routing.scores}"),
        (routing.gate_scale == 1, f"routing.gate_scale={routing.gate_scale}"),
        (not routing.balance_bias, "routing.balance_bias=True"),
        (routing.expert_groups == 1, f"routing.expert_groups={routing.expert_groups}"),
    ]


def listed_extra(model: Architecture) -> list[tuple[bool, str]]:
    """Whether a key lists no extra dense layers, for which models of others have no place, and what
    it says.
    """
    keys = ("extra_ffn_blocks", "decoder_extra_ffn_blocks")
    return [(not (places := getattr(model, key)), f"model.{key}={brief(places)}") for key in keys]


def obstacles(model: Architecture) -> list[str]:
    """What keeps a model from being written in these names; empty when nothing does."""
    asked: list[tuple[bool, str]] = [
        (model.kind == "encoder_decoder", f"model.kind={model.kind}, not encoder_decoder"),
        (model.norm_scale, "model.norm_scale=False"),
        (model.residual_scale == 1, f"model.residual_scale={model.residual_scale}"),
        *listed_extra(model),
    ]
    routing = model.routing
    if routing is not None:
        placed = all(sparse_step(model, stack) is not None for stack in model.stacks)
        asked += [
            (model.activation == "relu", f"model.activation={model.activation}, not relu"),
            (model.extra_ffn == "none", f"model.extra_ffn={model.extra_ffn}, not none"),
            (model.expert_bias == "none", f"model.expert_bias={model.expert_bias}"),
            (model.router_input == "hidden", f"model.router_input={model.router_input}"),
            *same_experts(model),
            (not model.router_history, "model.router_history=True"),
            (not model.expert_embedding, "model.expert_embedding=True"),
            (routing.top_k == 1, f"routing.top_k={routing.top_k}, not 1"),
            (routing.router == "tokens_choose", f"routing.router={routing.router}"),
            (not routing.batch_prioritized, "routing.batch_prioritized=True"),
            (not routing.logit_clip, f"routing.logit_clip={routing.logit_clip}"),
            (routing.router_dtype == "float32", f"routing.router_dtype={routing.router_dtype}"),
            (placed, f"model.sparse_offset={model.sparse_offset}, not 1"),
        ]
    return [text for fine, text in asked if not fine]


def layout(
    model: Architecture, *, dtype: str = "float32", lengths: Mapping[str, int] | None = None
) -> Layout:
    """The table of a model without `obstacles`.

    Args:
      model: the architecture.
      dtype: of the exported weights, for config.json.
      lengths: tokens of a sequence of each stack, from which Switch's capacity follows.
    """
    switch = model.routing is not None
    entries = [Entry(TABLE, "embedding.table")]
    # transformers ties Switch's tables to `shared` only where it ties the output too.
    repeated = switch and not model.tie_word_embeddings
    for stack in model.stacks:
        table = f"{stack}.embed_tokens.weight"
        entries.append(Entry(table, "embedding.table", copy=True, written=repeated))
        entries.append(
            Entry(
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{stack}.bias.table",
            )
        )
        for number, tree, index in blocks(model, stack):
            entries += _block(model, stack, number, tree, index)
        entries.append(Entry(f"{stack}.final_layer_norm.weight", f"{stack}.norm.scale"))
    if model.tie_word_embeddings:
        entries.append(Entry(HEAD, "embedding.table", copy=True, written=False))
    else:
        entries.append(Entry(HEAD, "output.kernel", (), TRANSPOSED))
    config = to_config(model, dtype, lengths or {})
    notes = hf_config.capacity_notes(model, lengths or {}) if switch else ()
    files = {"config.json": json.dumps(config, indent=2) + "\n"}
    title = f"Hugging Face {'Switch Transformers' if switch else 'T5 v1.1'}"
    return Layout(title, tuple(entries), files, IGNORED, notes, "hf")


def _block(
    model: Architecture, stack: str, number: int, tree: str, index: tuple[int, ...]
) -> list[Entry]:
    """The entries of one block."""
    theirs, ours = f"{stack}.block.{number}.layer", f"{stack}.{tree}"
    entries = []

    def norm(layer: int, name: str) -> None:
        entries.append(Entry(f"{theirs}.{layer}.layer_norm.weight", f"{ours}.{name}.scale", index))

    def matrix(path: str, leaf: str, more: tuple[int, ...] = ()) -> None:
        entries.append(Entry(f"{theirs}.{path}.weight", f"{ours}.{leaf}", index + more, TRANSPOSED))

    norm(0, "attention_norm")
    for leaf, short in _ATTENTION.items():
        matrix(f"0.SelfAttention.{short}", f"attention.{leaf}")
    last = 1
    if stack == "decoder":
        norm(1, "cross_norm")
        for leaf, short in _ATTENTION.items():
            matrix(f"1.EncDecAttention.{short}", f"cross_attention.{leaf}")
        last = 2
    gated = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    matrices = gated if model.activation == "geglu" else {"up": "wi", "down": "wo"}
    if is_sparse(tree):
        assert model.routing is not None
        norm(last, "experts_norm")
        matrix(f"{last}.mlp.router.classifier", "experts.router")
        for leaf, short in matrices.items():
            for expert in range(model.routing.num_experts):
                path = f"{last}.mlp.experts.expert_{expert}.{short}"
                matrix(path, f"experts.{leaf}", (expert,))
    else:
        norm(last, "ffn_norm")
        inner = "mlp" if model.routing is not None else "DenseReluDense"
        for leaf, short in matrices.items():
            matrix(f"{last}.{inner}.{short}", f"ffn.{leaf}")
    return entries


def tensors(
    config: Mapping[str, Any], path: Path, strip: str = ""
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """What a directory holds, under the names of `layout`: (name -> shape, name -> array).

    A file of a model with shared tensors has one of the names. Where T5 and mT5 use the table as
    output without scaling it, it is a matrix of its own here.

    Raises:
      CheckpointError: it holds an encoder alone, or what `Reader` refuses.
    """
    reader = Reader(path, strip)
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    if shapes and not any(name.startswith("decoder.") for name in shapes):
        prefix = prefix_before(["decoder.final_layer_norm.weight"], shapes)
        if prefix:
            raise CheckpointError(
                f"{shown(path)} holds no names of Hugging Face as they are.{strip_advice(prefix)}"
            )
        raise CheckpointError(
            f"{shown(path)} holds no decoder: an encoder alone (T5EncoderModel) is not read. "
            "Save the whole model, as T5ForConditionalGeneration does."
        )
    scaled = hf_config.scales_output(config)
    names = {}
    if TABLE not in shapes:
        others = (*_EMBEDDED, HEAD) if scaled else _EMBEDDED
        names[TABLE] = next((name for name in others if name in shapes), TABLE)
    if HEAD not in shapes and not scaled and config.get("model_type") != hf_config.SWITCH:
        names[HEAD] = names.get(TABLE, TABLE)
    shapes |= {name: shapes[other] for name, other in names.items() if other in shapes}
    return shapes, lambda name: reader.read(names.get(name, name))
