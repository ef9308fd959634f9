"""What a case asks of a router, and the ways in which routers are known to read it otherwise.

Letters: B sequences, L tokens of a sequence, S tokens of a group, E experts, K choices of a token,
C capacity (slots of one expert for one group).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from moe.conformance import oracle
from trainlib import keys
from trainlib.errors import ConfigError, nearest, shown
from trainlib.keys import choice, number, whole

LARGEST = 10**6  # of what is counted in a case
# Settings of today's routers, which adapters have to say that they know: an older one would take a
# case that has them for one without.
EXTENSIONS = ("router", "gate_scale", "balance_bias", "expert_groups")
Count = Annotated[int, whole(1, LARGEST)]


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
      router: "tokens_choose", or "experts_choose": each expert takes its C likeliest tokens, the
        likeliest first; there is no balance loss.
      gate_scale: all gates are multiplied by it.
      balance_bias: the bias of the case is added to the scores by which a token chooses, and is not
        in its gates.
      expert_groups: a token takes its experts from the best of so many groups of neighbours.
      groups_per_token: from how many of them.
      expert_group_score: of a group: "top2", the sum of its two best scores (with their biases), or
        "best".
    """

    num_experts: Count
    top_k: Count = 2
    group_sequences: Count = 1
    capacity_factor: Annotated[float, number(1e-6, 1e6)] = 1.25
    capacity_per_choice: bool = False
    capacity_rounding: Annotated[str, choice("floor", "round")] = "floor"
    min_capacity: Annotated[int, whole(0, LARGEST)] = 1
    normalize_gates: bool = True
    second_policy: Annotated[str, choice("all", "none", "threshold", "random", "if_dropped")] = (
        "all"
    )
    second_threshold: Annotated[float, number(above=0)] = 0.2
    batch_prioritized: bool = False
    balance_choices: Annotated[str, choice("first", "all")] = "first"
    balance_over: Annotated[str, choice("group", "sequence", "batch")] = "group"
    logit_clip: Annotated[float, number(0)] = 0.0
    dispatch: Annotated[str, choice("index", "dropless")] = "index"
    scores: Annotated[str, choice("softmax", "sigmoid")] = "softmax"
    router: Annotated[str, choice("tokens_choose", "experts_choose")] = "tokens_choose"
    gate_scale: Annotated[float, number(above=0)] = 1.0
    balance_bias: bool = False
    expert_groups: Count = 1
    groups_per_token: Count = 1
    expert_group_score: Annotated[str, choice("top2", "best")] = "top2"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """From the settings of a file, which leaves out what is as above.

        Raises:
          ConfigError: a name or a value that is not one of these.
          TypeError: they are no mapping, or without `num_experts`.
        """
        kinds, fitted = keys.of_fields(Settings), {}
        for name, value in dict(values).items():
            if name not in kinds:
                raise ConfigError(
                    f"settings.{shown(name, 60)} is not known. {nearest(name, kinds)}Settings: "
                    f"{', '.join(kinds)}."
                )
            fitted[name] = keys.fit(f"settings.{name}", value, kinds[name])
        made = cls(**fitted)
        if made.top_k > made.num_experts:
            raise ConfigError(
                f"settings.top_k={made.top_k} is more than settings.num_experts={made.num_experts}."
            )
        each, rest = divmod(made.num_experts, made.expert_groups)
        if rest or not made.top_k <= made.groups_per_token * each <= made.num_experts:
            raise ConfigError(
                f"settings.top_k={made.top_k} experts of {made.groups_per_token} of "
                f"{made.expert_groups} groups do not fit settings.num_experts={made.num_experts}."
            )
        if made.experts_choose and (made.balance_bias or made.expert_groups > 1):
            raise ConfigError(
                "settings.router='experts_choose' goes with no bias and no groups of experts, by "
                "which tokens choose."
            )
        return made

    @property
    def experts_choose(self) -> bool:
        """Whether experts choose."""
        return self.router == "experts_choose"

    @property
    def width(self) -> int:
        """Choices of a token: K; E where experts choose, and choice e is expert e."""
        return self.num_experts if self.experts_choose else self.top_k

    @property
    def extensions(self) -> list[str]:
        """Those of `EXTENSIONS` that are asked for."""
        values = self.values()
        return [name for name in EXTENSIONS if name in values]

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
