"""Hugging Face names: T5 v1.1 (`T5ForConditionalGeneration`) and Switch Transformers.

PyTorch stores matrices [out, in], ours are [in, out]: all but the tables are transposed. Theirs has
one tensor for each layer and expert, ours one stack for each kind of block.

Where Switch differs there: capacity is a number of tokens of one sequence (`expert_capacity`), the
same in both stacks and in training and evaluation; a router sees padding, which stands behind
the real tokens and so takes no place from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from moe.layers.position import BUCKETS, MAX_DISTANCE
from moe.models.architecture import Architecture
from moe.models.stack import TREES
from moe.routing_config import RoutingConfig, capacity
from trainlib.errors import CheckpointError
from trainlib.interchange import TRANSPOSED, Entry, Layout
from trainlib.untrusted import integer

T5, SWITCH = "t5", "switch_transformers"
HEAD = "lm_head.weight"
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MOST_EXPERTS = 100_000  # in all layers; Switch-C has 61,440
_NO_CAPACITY = 1e-6  # a factor so small that `min_capacity` alone decides

# Some published files hold a bias that no model reads.
IGNORED = (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)


def blocks(model: Architecture, stack: str) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """(number, tree, index into the tree's stacked weights) of each block of a stack, in order."""
    periods, *counts = model.periods(stack)
    number = 0
    for period in range(periods):
        for tree, count in zip(TREES, counts, strict=True):
            for place in range(count):
                yield number, tree, (period,) if tree == "sparse" else (period, place)
                number += 1


def obstacles(model: Architecture) -> list[str]:
    """What keeps a model from being written in these names; empty when nothing does."""
    asked: list[tuple[bool, str]] = [
        (model.kind == "encoder_decoder", f"model.kind={model.kind}, not encoder_decoder"),
        (model.norm_scale, "model.norm_scale=False"),
        (model.residual_scale == 1, f"model.residual_scale={model.residual_scale}"),
    ]
    routing = model.routing
    if routing is not None:
        gap = model.sparse_period
        placed = gap == 1 or model.sparse_offset % gap == 1
        asked += [
            (model.activation == "relu", f"model.activation={model.activation}, not relu"),
            (model.extra_ffn == "none", f"model.extra_ffn={model.extra_ffn}, not none"),
            (model.expert_bias == "none", f"model.expert_bias={model.expert_bias}"),
            (model.router_input == "hidden", f"model.router_input={model.router_input}"),
            (routing.top_k == 1, f"routing.top_k={routing.top_k}, not 1"),
            (routing.router == "tokens_choose", f"routing.router={routing.router}"),
            (not routing.batch_prioritized, "routing.batch_prioritized=True"),
            (not routing.logit_clip, f"routing.logit_clip={routing.logit_clip}"),
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
    entries = [Entry("shared.weight", "embedding.table")]
    # transformers ties Switch's tables to `shared` only where it ties the output too.
    repeated = switch and not model.tied_output
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
    if model.tied_output:
        entries.append(Entry(HEAD, "embedding.table", copy=True, written=False))
    else:
        entries.append(Entry(HEAD, "output.kernel", (), TRANSPOSED))
    config = to_config(model, dtype, lengths or {})
    notes = []
    if switch:
        notes.append(
            f"transformers counts capacity by sequence: expert_capacity={config['expert_capacity']}"
            " tokens of one expert, in both stacks, in training and evaluation"
        )
    files = {"config.json": json.dumps(config, indent=2) + "\n"}
    title = f"Hugging Face {'Switch Transformers' if switch else 'T5 v1.1'}"
    return Layout(title, tuple(entries), files, IGNORED, tuple(notes))


def _block(
    model: Architecture, stack: str, number: int, tree: str, index: tuple[int, ...]
) -> list[Entry]:
    """The entries of one block."""
    theirs, ours = f"{stack}.block.{number}.layer", f"{stack}.{tree}"
    found = []

    def norm(layer: int, name: str) -> None:
        found.append(Entry(f"{theirs}.{layer}.layer_norm.weight", f"{ours}.{name}.scale", index))

    def matrix(path: str, leaf: str, more: tuple[int, ...] = ()) -> None:
        found.append(Entry(f"{theirs}.{path}.weight", f"{ours}.{leaf}", index + more, TRANSPOSED))

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
    if tree == "sparse":
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
    return found


def _rows_of_a_sequence(routing: RoutingConfig, lengths: Mapping[str, int]) -> int:
    """The capacity of one expert in evaluation for one sequence; the larger of both stacks."""
    rows = []
    for length in lengths.values():
        if routing.dropless:
            rows.append(length)
            continue
        size = routing.group_size or (routing.group_sequences or 1) * length
        rows.append(math.ceil(capacity(routing, size, train=False) * length / size))
    return max(rows, default=64)


def to_config(model: Architecture, dtype: str, lengths: Mapping[str, int]) -> dict[str, Any]:
    """The content of their config.json."""
    config: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "d_ff": model.hidden,
        "d_kv": model.head_width,
        "num_heads": model.heads,
        "num_layers": model.encoder_blocks,
        "num_decoder_layers": model.decoder_blocks,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": model.dropout,
        "tie_word_embeddings": model.tied_output,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": dtype,
    }
    routing = model.routing
    if routing is None:
        gated = model.activation == "geglu"
        own = {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": T5,
            "feed_forward_proj": "gated-gelu" if gated else "relu",
        }
        return own | config
    own = {
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "model_type": SWITCH,
        "dense_act_fn": "relu",
        "num_experts": routing.num_experts,
        "num_sparse_encoder_layers": model.encoder_blocks // model.sparse_period,
        "num_sparse_decoder_layers": model.decoder_blocks // model.sparse_period,
        "expert_capacity": _rows_of_a_sequence(routing, lengths),
        "router_bias": False,
        "router_dtype": routing.router_dtype,
        "router_jitter_noise": routing.jitter,
        "router_ignore_padding_tokens": False,
        "router_z_loss_coef": routing.z_weight,
        "router_aux_loss_coef": routing.balance_weight,
        "add_router_probs": False,
    }
    return own | config


def _number(config: Mapping[str, Any], key: str, default: float, high: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise CheckpointError(f"config.json: {key}={str(value)[:40]} is outside 0 to {high:g}.")
    return float(value)


def scales_output(config: Mapping[str, Any]) -> bool:
    """Whether the output is the table, scaled by d_model^-1/2, as in T5 1.0 and Switch.

    transformers 5 saves T5 v1.1 with tie_word_embeddings=true and scale_decoder_outputs=false.
    """
    tied = config.get("tie_word_embeddings", True) is not False
    return tied and config.get("scale_decoder_outputs", True) is not False


def from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their config.json -> the sections `model` and `routing` of ours, as far as it decides them.

    Raises:
      CheckpointError: another kind of model, or values that cannot be.
    """
    kind = config.get("model_type")
    if kind not in (T5, SWITCH):
        raise CheckpointError(
            f"config.json: model_type={str(kind)[:40]!r} is not read; {T5} and {SWITCH} are."
        )

    def whole(key: str, default: int | None, high: int) -> int:
        return integer(config.get(key, default), f"config.json: {key}", 1, high)

    encoder = whole("num_layers", None, 1024)
    decoder_blocks = config.get("num_decoder_layers")
    model = {
        "vocab_size": whole("vocab_size", None, 2**24),
        "width": whole("d_model", None, 2**20),
        "hidden": whole("d_ff", None, 2**24),
        "heads": whole("num_heads", None, 2**14),
        "head_width": whole("d_kv", 64, 2**16),
        "encoder_blocks": encoder,
        "decoder_blocks": encoder
        if decoder_blocks is None
        else whole("num_decoder_layers", None, 1024),
        "tied_output": scales_output(config),
        "dropout": _number(config, "dropout_rate", 0.1, 0.99),
    }
    for key, value in (
        ("relative_attention_num_buckets", BUCKETS),
        ("relative_attention_max_distance", MAX_DISTANCE),
        ("layer_norm_epsilon", 1e-6),
    ):
        if config.get(key, value) != value:
            raise CheckpointError(
                f"config.json: {key}={str(config[key])[:40]} is not read; this framework has the "
                f"{value} of the published models."
            )
    if kind == T5:
        activations = {"gated-gelu": "geglu", "relu": "relu"}
        found = activations.get(str(config.get("feed_forward_proj", "relu")))
        if found is None:
            raise CheckpointError(
                f"config.json: feed_forward_proj={str(config['feed_forward_proj'])[:40]!r} is not "
                "read; gated-gelu (T5 v1.1) and relu are."
            )
        return model | {"activation": found}, {"num_experts": 0}
    return _switch_sections(config, model)


def _switch_sections(
    config: Mapping[str, Any], model: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    steps = set()
    for stack in ("encoder", "decoder"):
        count = model[f"{stack}_blocks"]
        key = f"num_sparse_{stack}_layers"
        sparse = integer(config.get(key, 3), f"config.json: {key}", 1, count)
        steps.add(count // sparse)
    if len(steps) > 1 or config.get("router_bias"):
        raise CheckpointError(
            "config.json: sparse layers every "
            f"{' or '.join(map(str, sorted(steps)))} layers, router_bias="
            f"{bool(config.get('router_bias'))}: read are models with the same distance in both "
            "stacks and no bias."
        )
    (period,) = steps
    experts = integer(config.get("num_experts", 8), "config.json: num_experts", 1, 2**16)
    layers = model["encoder_blocks"] + model["decoder_blocks"]
    if layers * experts > _MOST_EXPERTS:
        raise CheckpointError(
            f"config.json: {experts:,} experts in {layers:,} layers are more than any model has."
        )
    rows = integer(config.get("expert_capacity", 64), "config.json: expert_capacity", 1, 2**20)
    model |= {
        "activation": "relu",
        "extra_ffn": "none",
        "sparse_period": period,
        "sparse_offset": min(1, period - 1),
    }
    routing = {
        "num_experts": experts,
        "top_k": 1,
        "group_sequences": 1,
        "capacity_factor": _NO_CAPACITY,
        "capacity_factor_eval": _NO_CAPACITY,
        "min_capacity": rows,
        "normalize_gates": False,
        "jitter": _number(config, "router_jitter_noise", 0.01, 1),
        "z_weight": _number(config, "router_z_loss_coef", 0.001, 1e6),
        "balance_weight": _number(config, "router_aux_loss_coef", 0.001, 1e6),
    }
    return model, routing
