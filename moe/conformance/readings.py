"""The ways in which routers differ: conventions, on which good code bases differ, and bugs, which
somebody has shipped.

A verdict holds what a router answered against `moe.conformance.reference` under these changes of
the rules. Each belongs to one part of the answer: the routing (weights and slots), the balance loss
or the z-loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe.conformance.settings import Settings

CONVENTION, BUG = "convention", "bug"


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One way to read the settings otherwise; there is one object of each.

    Attributes:
      name: what is printed.
      kind: "convention" or "bug".
      part: "routing", "balance" or "z".
      changes: of the rules.
      where: code that does it, or the issue in which it was found.
    """

    name: str
    kind: str
    part: str
    changes: Mapping[str, Any]
    where: str

    def applies(self, settings: Settings, layers: int) -> bool:
        """Whether it changes anything about a case with these settings."""
        several = layers > 1 or not {"layers_pooled", "layers_mean"} & set(self.changes)
        return several and any(
            getattr(settings, name, None) != value for name, value in self.changes.items()
        )


def _routing(name: str, where: str, kind: str = CONVENTION, **changes: Any) -> Reading:
    return Reading(name, kind, "routing", changes, where)


def _balance(name: str, where: str, kind: str = CONVENTION, **changes: Any) -> Reading:
    return Reading(name, kind, "balance", changes, where)


def _z(name: str, where: str, kind: str = CONVENTION, **changes: Any) -> Reading:
    return Reading(name, kind, "z", changes, where)


_HF = "transformers"
READINGS: tuple[Reading, ...] = (
    _routing("capacity by sequence", f"{_HF} Switch, st-moe-pytorch", group_sequences=1),
    _routing("capacity of the whole batch", "Megatron-LM", group_sequences=10**6),
    _routing("capacity times k", "V-MoE, MaxText", capacity_per_choice=True),
    _routing("capacity not times k", "Mesh TensorFlow, flaxformer", capacity_per_choice=False),
    _routing("at least four slots", "Mesh TensorFlow, flaxformer", min_capacity=4),
    _routing("capacity rounded", "flaxformer", capacity_rounding="round"),
    _routing("capacity rounded down", "Mesh TensorFlow", capacity_rounding="floor"),
    _routing("capacity rounded up", "Megatron-LM, Tutel, DeepSpeed", capacity_rounding="ceil"),
    _routing("raw gates", "flaxformer", normalize_gates=False),
    _routing(
        "gates over their sum, which is top-k before softmax",
        "Mesh TensorFlow, Megatron-LM",
        normalize_gates=True,
    ),
    _routing(
        "top-k before softmax makes a single gate 1",
        "NVIDIA/Megatron-LM#894",
        normalize_one=True,
    ),
    _routing("gates over the sum of those placed", "GShard in DeepSpeed", renormalize=True),
    _routing("token by token", "MaxText", token_major=True),
    _routing("likeliest tokens first", "V-MoE, Megatron-LM", batch_prioritized=True),
    _routing("left to right", "Mesh TensorFlow", batch_prioritized=False),
    _routing("padding takes slots", "flaxformer, transformers", padding_routed=True),
    _routing("every choice is sent", "flaxformer", second_policy="all"),
    _routing("no capacity", f"{_HF} Mixtral, MegaBlocks", dispatch="dropless"),
    _routing(
        "tokens without a slot keep their input",
        "huggingface/transformers#37017",
        BUG,
        pass_through=True,
    ),
    _routing("gates without a gradient", "NVIDIA/Megatron-LM#894", BUG, constant_gates=True),
    _balance("balance over a sequence", "DeepSeek-V3", balance_over="sequence"),
    _balance("balance over the batch", f"{_HF} Mixtral, arXiv 2501.11873", balance_over="batch"),
    _balance("balance of all choices", "flaxformer, transformers Mixtral", balance_choices="all"),
    _balance("balance of first choices", "Mesh TensorFlow", balance_choices="first"),
    _balance(
        "balance of all choices, divided by k",
        "Megatron-LM, MegaBlocks",
        balance_choices="all",
        share_over_choices=True,
    ),
    _balance("padding counts in the balance loss", "flaxformer", padding_counted=True),
    _balance("mean of the layers' balance losses", "T5X", layers_mean=True),
    _balance(
        "layers are pooled before they are balanced",
        "huggingface/transformers#29503",
        BUG,
        layers_pooled=True,
    ),
    _balance(
        "probabilities went through a softmax again",
        "huggingface/transformers#45120",
        BUG,
        shares_again=True,
    ),
    _balance(
        "an epsilon outweighs small sigmoids",
        "NVIDIA/Megatron-LM#1545",
        BUG,
        share_epsilon=1e-20,
    ),
    _balance(
        "slots filled up to capacity are counted as tokens",
        "NVIDIA/Megatron-LM#1617",
        BUG,
        counted_full=True,
    ),
    _balance(
        "choices that were dropped are not counted",
        "st-moe-pytorch 0.1.8",
        BUG,
        counted_when_placed=True,
    ),
    _balance(
        "balance loss without a gradient",
        "NVIDIA-NeMo/Automodel#1408",
        BUG,
        constant_balance=True,
    ),
    _z("padding counts in the z-loss", "flaxformer", padding_counted=True),
    _z("mean of the layers' z-losses", "T5X", layers_mean=True),
    _z("z-loss of probabilities", "huggingface/transformers#48293", BUG, z_of="probabilities"),
    _z(
        "z-loss of the largest probability",
        "huggingface/transformers#48293",
        BUG,
        z_of="largest",
    ),
    _z("z-loss is not squared", "no code known", BUG, z_squared=False),
)
IGNORED = Reading(
    "capacity is ignored",
    BUG,
    "routing",
    {"dispatch": "dropless"},
    "huggingface/transformers#48293",
)
NO_CAPACITY = "no capacity"
TIES = Reading("ties go to another expert", CONVENTION, "routing", {}, "torch.topk names no order")
NOT_FINITE = Reading(
    "logits that are no numbers spread", CONVENTION, "routing", {}, "most code does not look"
)
NO_TOKENS = Reading(
    "a batch of padding alone gives no number",
    BUG,
    "balance",
    {},
    "transformers Mixtral, found with this kit",
)
UNEXPLAINED = Reading("unexplained", BUG, "routing", {}, "")


def named(name: str) -> Reading:
    """The reading of that name.

    Raises:
      KeyError: there is none.
    """
    return {reading.name: reading for reading in READINGS}[name]
