"""config.json of T5, mT5 and Switch Transformers as `transformers` 5 understands it.

Each field of theirs is in one of three groups. Honoured ones become keys of ours. `FIXED` ones
change what a model computes and have one value here: another is refused by name. `INERT` ones
change no logit and no answer. What a file leaves out has the default of its class. Derived fields
that a file states (`dense_act_fn`, `is_gated_act`, `scale_decoder_outputs`, `*_sparse_step`) count
more than what they are derived from, as they do there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from moe.interop.placement import placement
from moe.models.architecture import MOST_BUCKETS, MOST_DISTANCE, Architecture
from moe.routing.config import capacity
from trainlib.errors import CheckpointError, ConfigError, shown
from trainlib.untrusted_files import integer

T5, MT5, SWITCH = "t5", "mt5", "switch_transformers"
_MOST_EXPERTS = 100_000  # in all layers; Switch-C has 61,440
_NO_CAPACITY = 1e-6  # a factor so small that `min_capacity` alone decides

# Kinds that look alike and compute something else.
_OTHERS = {
    "umt5": "each of its layers has a table of relative positions of its own, and here a stack "
    "shares one",
    "longt5": "its encoder attends to neighbours and to summaries of blocks",
    "t5gemma": "its layers are Gemma's",
    "t5gemma2": "its layers are Gemma's",
    "nllb-moe": "it has absolute positions and biases",
}

# What the classes of transformers assume where a file says nothing.
_COMMON: dict[str, Any] = {
    "d_kv": 64,
    "num_decoder_layers": None,
    "dropout_rate": 0.1,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    T5: _COMMON
    | {"vocab_size": 32128, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    | {"feed_forward_proj": "relu"},
    MT5: _COMMON
    | {"vocab_size": 250112, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
    | {"feed_forward_proj": "gated-gelu"},
    SWITCH: _COMMON
    | {"vocab_size": 32128, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
    | {"num_decoder_layers": 12, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3}
    | {"num_experts": 8, "expert_capacity": 64, "dense_act_fn": "relu"}
    | {"router_jitter_noise": 0.01, "router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001},
}
_ALIASES = {
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
}
_T5_ALIASES = _ALIASES | {"d_kv": "head_dim"}

# Field -> (what is computed here, the first as it is written; what the field is about).
_IDS = "ids of padding, end and start are 0, 1 and 0 in every vocabulary here"
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "layer_norm_epsilon": ((1e-6,), "it is added to every mean square"),
    "is_encoder_decoder": ((True,), "an encoder alone has no logits"),
    "pad_token_id": ((0,), _IDS),
    "eos_token_id": ((1, [1]), _IDS),
    "decoder_start_token_id": ((0, None), _IDS),
    "tie_encoder_decoder": ((False, None), "the stacks have weights of their own"),
    "pruned_heads": (({}, None), "all heads of all layers are computed"),
    "quantization_config": ((None,), "weights are read as float numbers"),
    "auto_map": ((None, {}), "a model that brings its own code is not run"),
}
FIXED_IN_SWITCH: dict[str, tuple[tuple[Any, ...], str]] = {
    "router_bias": ((False,), "routers have a matrix alone"),
    "router_dtype": (("float32",), "routers compute in it"),
    "dense_act_fn": (("relu",), "experts have the activation of the published models"),
}
HONOURED = frozenset(
    {
        *(key for defaults in _DEFAULTS.values() for key in defaults),
        "model_type",
        "tie_word_embeddings",
        "scale_decoder_outputs",
        "dense_act_fn",
        "is_gated_act",
        "encoder_sparse_step",
        "decoder_sparse_step",
        *_T5_ALIASES.values(),
    }
)
INERT = frozenset(
    {
        # Of every class: names, labels, forms of what is returned.
        "transformers_version",
        "architectures",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "dtype",
        "torch_dtype",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "_name_or_path",
        # How weights begin, the dropout of another head, whether keys and values are kept.
        "initializer_factor",
        "classifier_dropout",
        "use_cache",
        # Set by their model for each of its stacks, whatever the file says.
        "is_decoder",
        "add_cross_attention",
        # No text begins with one; the router's padding is masked in no version.
        "bos_token_id",
        "router_ignore_padding_tokens",
        "add_router_probs",
    }
)


def from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their config.json -> the sections `model` and `routing` of ours, as far as it decides them.

    Raises:
      CheckpointError: another kind of model, or values that cannot be or are not computed here.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise CheckpointError(_unknown(kind))
    _fixed(config, FIXED | (FIXED_IN_SWITCH if kind == SWITCH else {}))
    values = _DEFAULTS[kind] | _without_aliases(config, _ALIASES if kind == SWITCH else _T5_ALIASES)
    # Theirs follows from `num_layers` before its second name is looked at.
    values["layers_before"] = config.get("num_layers", _DEFAULTS[kind]["num_layers"])
    if values["num_decoder_layers"] is None:
        values["num_decoder_layers"] = values["layers_before"]

    def whole(key: str, high: int, low: int = 1) -> int:
        return integer(values[key], f"config.json: {key}", low, high)

    buckets = whole("relative_attention_num_buckets", MOST_BUCKETS, 4)
    key = "relative_attention_max_distance"
    model = {
        "vocab_size": whole("vocab_size", 2**24),
        "d_model": whole("d_model", 2**20),
        "d_ff": whole("d_ff", 2**24),
        "num_heads": whole("num_heads", 2**14),
        "head_dim": whole("d_kv", 2**16),
        "encoder_blocks": whole("num_layers", 1024),
        "decoder_blocks": whole("num_decoder_layers", 1024),
        "relative_attention_num_buckets": buckets,
        key: whole(key, MOST_DISTANCE, buckets // 2 + 1),
        "tie_word_embeddings": scales_output(config),
        "dropout": _number(values, "dropout_rate", 0.99),
    }
    if kind == SWITCH:
        return _switch(values, model)
    return model | {"activation": _activation(values)}, {"num_experts": 0}


def _unknown(kind: Any) -> str:
    """Why a kind of model is not read, and what is."""
    reason = f"config.json: model_type={shown(repr(kind), 60)} is not read"
    if isinstance(kind, str) and kind in _OTHERS:
        return (
            f"{reason}: {_OTHERS[kind]}. Read are {', '.join(_DEFAULTS)}; ByT5, Flan-T5 and T5 1.0 "
            f"are {T5}. Take a checkpoint of one of these."
        )
    return (
        f"{reason}; {', '.join(_DEFAULTS)} are. A model that is one of these under another name "
        f'(as ByT5 and Flan-T5 are {T5}) is read when its file says so: "model_type": "{T5}".'
    )


def _fixed(config: Mapping[str, Any], fields: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Refuses fields whose value is not the one that is computed here."""
    for key, (allowed, about) in fields.items():
        value = config.get(key, allowed[0])
        # 1 == True in Python, and not in a configuration.
        if any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed):
            continue
        only = allowed[0]
        plain = only is None or only == {}
        way = f"remove {key} from" if plain else f'write "{key}": {json.dumps(only)} in'
        computed = "not set" if plain else json.dumps(only)
        raise CheckpointError(
            f"config.json: {key}={shown(json.dumps(value), 60)} is not read. Here it is "
            f"{computed}: {about}. Where that is right for this model, {way} its config.json; "
            "otherwise it cannot be held."
        )


def _without_aliases(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The fields under their own names; transformers reads a second name of some of them."""
    fields = dict(config)
    for key, alias in aliases.items():
        if alias not in config:
            continue
        if config.get(key, config[alias]) != config[alias]:
            raise CheckpointError(
                f"config.json: {key}={shown(repr(config[key]), 40)} and {alias}="
                f"{shown(repr(config[alias]), 40)} are two names of one field. Remove one of them."
            )
        fields[key] = config[alias]
    return fields


def _number(values: Mapping[str, Any], key: str, high: float) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        given = shown(repr(value), 40)
        raise CheckpointError(f"config.json: {key}={given} is outside 0 to {high:g}.")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}={shown(repr(value), 40)} must be true or false.")
    return value


def scales_output(config: Mapping[str, Any]) -> bool:
    """Whether the output is the table, scaled by d_model^-1/2, as in T5 1.0 and Switch.

    T5 v1.1 has tie_word_embeddings=false, and as transformers 5 saves it tie_word_embeddings=true
    and scale_decoder_outputs=false. mT5 never scales, whatever its file says.
    """
    tied = _flag(config, "tie_word_embeddings", True)
    if config.get("model_type") == MT5:
        return False
    if config.get("model_type") == SWITCH:
        return tied
    return _flag(config, "scale_decoder_outputs", tied)


def _activation(values: Mapping[str, Any]) -> str:
    """Ours for what a T5 computes between its feed-forward matrices."""
    form = values["feed_forward_proj"]
    words = str(form).split("-")
    derived = "gelu_new" if form == "gated-gelu" else words[-1]
    name = values.get("dense_act_fn", derived)
    gated = _flag(values, "is_gated_act", words[0] == "gated")
    ours = {(True, "gelu_new"): "geglu", (True, "gelu_pytorch_tanh"): "geglu"}
    ours[False, "relu"] = "relu"
    activation = ours.get((gated, str(name)))
    if activation is None:
        raise CheckpointError(
            f"config.json: feed_forward_proj={shown(repr(form), 40)}, which computes "
            f"{shown(name, 40)} {'with' if gated else 'without'} a gate, is not read; gated-gelu "
            "(T5 v1.1, mT5; the tanh form gelu_new) and relu (T5 1.0) are."
        )
    return activation


# ------------------------------------------------------------------------------ Switch
def sparse_layers(layers: int, step: int) -> tuple[int, ...]:
    """Which of `layers` layers are sparse there: every `step`-th from the second; with 1 all."""
    return tuple(i for i in range(layers) if step == 1 or (step > 0 and i % step == 1))


def sparse_step(model: Architecture, stack: str) -> int | None:
    """Their step for the sparse layers of a stack of ours, 0 for none; None where no step has
    them there.
    """
    layers, sparse = getattr(model, model.stacks[stack]), model.sparse_blocks(stack)
    steps = range(layers + 1)
    return next((step for step in steps if sparse_layers(layers, step) == sparse), None)


def _switch(
    values: Mapping[str, Any], model: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    experts = integer(values["num_experts"], "config.json: num_experts", 1, 2**16)
    layers = model["encoder_blocks"] + model["decoder_blocks"]
    if layers * experts > _MOST_EXPERTS:
        raise CheckpointError(
            f"config.json: {experts:,} experts in {layers:,} layers are more than any model has."
        )
    rows = integer(values["expert_capacity"], "config.json: expert_capacity", 1, 2**20)
    model |= {"activation": "relu", "extra_ffn": "none"} | _placed(values, model)
    routing = {
        "num_experts": experts,
        "top_k": 1,
        "group_sequences": 1,
        "capacity_factor": _NO_CAPACITY,
        "capacity_factor_eval": _NO_CAPACITY,
        "min_capacity": rows,
        "normalize_gates": False,
        "jitter": _number(values, "router_jitter_noise", 1),
        "z_loss_weight": _number(values, "router_z_loss_coef", 1e6),
        "balance_loss_weight": _number(values, "router_aux_loss_coef", 1e6),
    }
    return model, routing


def _placed(values: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys for where the sparse layers of both stacks stand."""
    sparse = {}
    for stack in ("encoder", "decoder"):
        layers, key = model[f"{stack}_blocks"], f"num_sparse_{stack}_layers"
        count = integer(values[key], f"config.json: {key}", 0, 1024)
        # With 0 theirs has one sparse layer, the second: the step is then the whole stack.
        before = {"encoder": values["layers_before"], "decoder": layers}[stack]
        step = values.get(f"{stack}_sparse_step", before // count if count else before)
        step = integer(step, f"config.json: {stack}_sparse_step", 0, 2**16)
        sparse[stack] = sparse_layers(layers, step)
    try:
        return placement(sparse, {s: model[f"{s}_blocks"] for s in sparse})
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None


# ------------------------------------------------------------------------------ written
def _capacities(model: Architecture, lengths: Mapping[str, int]) -> dict[str, int]:
    """Stack -> capacity of one of its experts in evaluation, for one sequence."""
    routing, capacities = model.routing, {}
    for stack, length in lengths.items():
        if routing is None or stack not in model.stacks or not model.sparse_blocks(stack):
            continue
        if routing.dropless:
            capacities[stack] = length
            continue
        size = routing.group_size or (routing.group_sequences or 1) * length
        capacities[stack] = math.ceil(capacity(routing, size, train=False) * length / size)
    return capacities


def capacity_notes(model: Architecture, lengths: Mapping[str, int]) -> tuple[str, ...]:
    """What the one capacity of a Switch model there does not say of ours."""
    capacities, routing = _capacities(model, lengths), model.routing
    largest = _capacity(capacities)
    assert routing is not None
    notes = [
        f"transformers counts capacity by sequence: expert_capacity={largest} tokens of "
        "one expert, in both stacks, in training and evaluation"
    ]
    if len(set(capacities.values())) > 1:
        here = ", ".join(f"{count} in the {stack}" for stack, count in capacities.items())
        notes.append(f"here it is {here}: where experts are full, other tokens are dropped there")
    if routing.dropless:
        notes.append(f"here nothing is dropped; sequences of more than {largest} may be")
    elif routing.group_size or routing.group_sequences != 1:
        notes.append(
            "here a group is not one sequence: where experts are full, other tokens are dropped "
            "there (routing.group_sequences=1 drops the same ones)"
        )
    return tuple(notes)


def _capacity(capacities: Mapping[str, int]) -> int:
    return max(capacities.values(), default=64)


def _steps(model: Architecture, stack: str) -> dict[str, int | None]:
    """Their number of sparse layers of a stack, and the step where it does not follow from it: no
    number makes a stack dense there.
    """
    count, layers = len(model.sparse_blocks(stack)), getattr(model, model.stacks[stack])
    derived = sparse_layers(layers, layers // count if count else layers)
    steps: dict[str, int | None] = {f"num_sparse_{stack}_layers": count}
    if derived != model.sparse_blocks(stack):
        steps[f"{stack}_sparse_step"] = sparse_step(model, stack)
    return steps


def to_config(model: Architecture, dtype: str, lengths: Mapping[str, int]) -> dict[str, Any]:
    """The content of their config.json."""
    config: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "d_ff": model.d_ff,
        "d_kv": model.head_dim,
        "num_heads": model.num_heads,
        "num_layers": model.encoder_blocks,
        "num_decoder_layers": model.decoder_blocks,
        "relative_attention_num_buckets": model.relative_attention_num_buckets,
        "relative_attention_max_distance": model.relative_attention_max_distance,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": model.dropout,
        "tie_word_embeddings": model.tie_word_embeddings,
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
        of_kind = {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": T5,
            "feed_forward_proj": "gated-gelu" if gated else "relu",
        }
        return of_kind | config
    of_kind = {
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "model_type": SWITCH,
        "dense_act_fn": "relu",
        "num_experts": routing.num_experts,
        **{key: value for stack in model.stacks for key, value in _steps(model, stack).items()},
        "expert_capacity": _capacity(_capacities(model, lengths)),
        "router_bias": False,
        "router_dtype": routing.router_dtype,
        "router_jitter_noise": routing.jitter,
        "router_ignore_padding_tokens": False,
        "router_z_loss_coef": routing.z_loss_weight,
        "router_aux_loss_coef": routing.balance_loss_weight,
        "add_router_probs": False,
    }
    return of_kind | config
