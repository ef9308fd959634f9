"""What a case asks of a router, and the ways in which routers are known to read it otherwise.

Letters: B sequences, L tokens of a sequence, S tokens of a group, E experts, K choices of a token,
C capacity (slots of one expert for one group).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from moe.conformance import oracle


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a case asks for. All of it is about training, and names and meanings are those of
    `moe.RoutingConfig`.

    Attributes:
      num_experts: E.
      top_k: K.
      group_sequences: sequences of a group, within which capacity is counted.
      capacity_factor: C = capacity_factor * S / E, times K with `capacity_per_choice`.
      capacity_per_choice: see there.
      capacity_rounding: "floor" or "round".
      min_capacity: least C.
      normalize_gates: gates of a token with K > 1 are divided by their sum.
      second_policy: "all", "none", "threshold", "random" (with the draws of the case) or
        "if_dropped": when choices beyond the first are sent.
      second_threshold: of "threshold" and "random".
      batch_prioritized: slots fill by descending first-choice score, not from left to right.
      balance_choices: the balance loss counts "first" choices or "all".
      balance_over: tokens of one balance loss: "group", "sequence" or "batch".
      logit_clip: bound of logits, 0: none.
      dispatch: "index", or "dropless": there is no capacity.
      scores: "softmax" or "sigmoid".
    """

    num_experts: int
    top_k: int = 2
    group_sequences: int = 1
    capacity_factor: float = 1.25
    capacity_per_choice: bool = False
    capacity_rounding: str = "floor"
    min_capacity: int = 1
    normalize_gates: bool = True
    second_policy: str = "all"
    second_threshold: float = 0.2
    batch_prioritized: bool = False
    balance_choices: str = "first"
    balance_over: str = "group"
    logit_clip: float = 0.0
    dispatch: str = "index"
    scores: str = "softmax"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """From the settings of a file, which leaves out what is as above."""
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """What a file says: all that is not as above."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def capacity(self, tokens: int) -> int:
        """C of a group of so many tokens; without a capacity, a slot for each."""
        return oracle.capacity(self, tokens, True) if self.dispatch == "index" else tokens  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Rules(Settings):
    """Settings as a router may read them: `moe.conformance.readings` says which readings there are.

    Attributes:
      normalize_one: a single gate is divided by itself too, and is 1 (a softmax of the K best).
      renormalize: the gates that found a slot are divided by their sum.
      token_major: all choices of a token take slots before the next token's.
      padding_routed: padding takes slots as words do.
      padding_counted: padding counts in the losses.
      pass_through: a token without a slot has its input times its probability as output.
      constant_gates: gates have no gradient.
      share_over_choices: the counts of all choices are divided by K.
      counted_when_placed: the balance loss counts choices that found a slot.
      counted_full: it counts every slot of every expert as filled.
      shares_again: its probabilities are a softmax of the probabilities.
      share_epsilon: beside the sum that sigmoids are divided by.
      layers_pooled: the tokens of all layers are those of one.
      layers_mean: the losses of layers are averaged and not added up.
      constant_balance: the balance loss has no gradient.
      z_of: "logits", "probabilities" (of them all) or "largest" (of the largest alone).
      z_squared: it is the mean of squares.
    """

    # Options of `moe.RoutingConfig` that no case asks for.
    expert_groups: ClassVar[int] = 1
    gate_scale: ClassVar[float] = 1.0

    normalize_one: bool = False
    renormalize: bool = False
    token_major: bool = False
    padding_routed: bool = False
    padding_counted: bool = False
    pass_through: bool = False
    constant_gates: bool = False
    share_over_choices: bool = False
    counted_when_placed: bool = False
    counted_full: bool = False
    shares_again: bool = False
    share_epsilon: float = 0.0
    layers_pooled: bool = False
    layers_mean: bool = False
    constant_balance: bool = False
    z_of: str = "logits"
    z_squared: bool = True


def rules(settings: Settings, **changes: Any) -> Rules:
    """The settings, read as they are but for the changes."""
    return Rules(**{**dataclasses.asdict(settings), **changes})
