"""Which options of a router do something beside the others, and which could as well not be set.

An option that does nothing is a mistake of whoever set it: they believe to measure something that
the run does not do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from moe.routing.config import RoutingConfig
from moe.routing.policies import POLICIES


class Need(NamedTuple):
    """What an option needs.

    Attributes:
      key: another key of the configuration.
      value: which it takes, in words.
      holds: whether it is so.
    """

    key: str
    value: str
    holds: Callable[[RoutingConfig], bool]


def _is_drawn(policy: str) -> bool:
    """Whether a policy looks at `second_threshold`; one's own may."""
    return policy in ("random", "threshold") or policy not in POLICIES


_TOKENS = Need("routing.router", "'tokens_choose'", lambda r: r.router == "tokens_choose")
_SEVERAL = Need("routing.top_k", "2 or more", lambda r: r.top_k > 1)
_CAPACITY = Need("routing.dispatch", "'index'", lambda r: not r.dropless)
_BALANCE = Need("routing.balance_loss_weight", "0.01, say", lambda r: r.balance_loss_weight > 0)
_BIAS = Need("routing.balance_bias", "True", lambda r: r.balance_bias)
_GROUPS = Need("routing.expert_groups", "2 or more", lambda r: r.expert_groups > 1)
_FEWER = Need(
    "routing.groups_per_token",
    "fewer than all groups",
    lambda r: r.expert_groups == 1 or r.groups_per_token < r.expert_groups,
)
_NORMAL = Need(
    "routing.second_policy",
    "another than 'if_dropped'",
    lambda r: {r.second_policy, r.second_policy_eval} != {"if_dropped"},
)
_THRESHOLD = Need(
    "routing.second_policy",
    "'random' or 'threshold'",
    lambda r: any(map(_is_drawn, (r.second_policy, r.second_policy_eval))),
)
_LOSSES = Need(
    "routing.balance_loss_weight",
    "0.01, say",
    lambda r: r.balance_loss_weight + r.z_loss_weight + r.entropy_loss_weight > 0,
)

# Of every option all that has to hold for it to do something; () always does. What `RoutingConfig`
# itself refuses beside others is not said again.
NEEDS: Mapping[str, tuple[Need, ...]] = {
    "num_experts": (),
    # Experts that choose take as many tokens as there is capacity for, which may be counted by K.
    "top_k": (
        Need(
            "routing.router",
            "'tokens_choose'",
            lambda r: r.router == "tokens_choose" or r.capacity_per_choice,
        ),
    ),
    "router": (),
    "scores": (),
    "gate_scale": (),
    "balance_bias": (_TOKENS,),
    "bias_update_rate": (_BIAS,),
    "expert_groups": (_TOKENS, _FEWER),
    "groups_per_token": (_GROUPS,),
    "expert_group_score": (
        _GROUPS,
        _FEWER,
        Need(
            "routing.expert_groups",
            "fewer than routing.num_experts",
            lambda r: r.expert_groups < r.num_experts,
        ),
    ),
    "capacity_factor": (_CAPACITY,),
    "capacity_factor_eval": (_CAPACITY,),
    "capacity_per_choice": (_CAPACITY, _SEVERAL),
    "capacity_rounding": (_CAPACITY,),
    "min_capacity": (_CAPACITY,),
    # Groups are what is measured and balanced even where nothing has a capacity.
    "group_size": (),
    "group_sequences": (),
    "max_group_size": (
        Need("routing.group_size", "0", lambda r: not r.group_size),
        Need("routing.group_sequences", "0", lambda r: not r.group_sequences),
    ),
    "normalize_gates": (_TOKENS, _SEVERAL, _NORMAL),
    "second_policy": (_TOKENS, _SEVERAL),
    "second_policy_eval": (_TOKENS, _SEVERAL),
    "second_threshold": (_TOKENS, _SEVERAL, _THRESHOLD),
    "batch_prioritized": (_TOKENS, _CAPACITY),
    "sample_temperature": (_TOKENS,),
    "jitter": (),
    "router_dropout": (),
    "logit_clip": (),
    "router_dtype": (),
    "balance_choices": (_TOKENS, _SEVERAL, _BALANCE),
    "balance_over": (_TOKENS, _BALANCE),
    "balance_loss_weight": (_TOKENS,),
    "z_loss_weight": (),
    "later_balance_weight": (_TOKENS, _SEVERAL, _BALANCE),
    "entropy_loss_weight": (),
    "whole_expert_dropout": (),
    "loss_reduction": (_LOSSES,),
    "dispatch": (),
    # These two move the same rows in another way; what they cannot do `RoutingConfig` refuses.
    "dropless_room": (Need("routing.dispatch", "'dropless' or 'grouped'", lambda r: r.dropless),),
    "exchange_chunks": (),
    "partitioner": (),
}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(RoutingConfig)}
_ENCODER = Need("model.sparse_stacks", "'all' or 'encoder'", lambda r: False)


def is_set(option: str, value: object) -> bool:
    """Whether an option has another value than its default, and is no weight of 0."""
    return value != DEFAULTS[option] and bool(value or not option.endswith("_weight"))


def lacking(option: str, asked: RoutingConfig, routers: Sequence[RoutingConfig]) -> Need | None:
    """What an option lacks to do something in any of the routers of a model; None where it does, or
    is not set.

    Args:
      option: the name.
      asked: the options as they were given.
      routers: of each stack with experts, which differ from them in what a causal stack cannot do.
    """
    value = getattr(asked, option)
    if not is_set(option, value):
        return None
    lacks = [
        next((need for need in NEEDS[option] if not need.holds(routing)), None)
        if getattr(routing, option) == value
        else _ENCODER
        for routing in routers
    ]
    return lacks[0] if all(lacks) else None
