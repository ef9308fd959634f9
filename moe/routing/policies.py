"""When choices of a token beyond its first expert are sent: one function for each policy.

Letters: G groups, S tokens of a group, E experts, K choices of a token, C capacity.

A new policy is a function here and an entry of `POLICIES`; its name is then a value of
`routing.second_policy` and `routing.second_policy_eval`. A `Policy` in a module of one's own is
named there as MODULE:NAME.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.routing.slots import assign_slots


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a policy decides from.

    Attributes:
      expert: int32 [G, S, K], the best experts of each token, best first; E at padding.
      gates: float32 [G, S, K], their scores divided by their sum; no gradient. A balance bias is in
        the order of experts and not in gates, which then need not descend.
      draws: float32 [G, S, K - 1], uniform in [0, 1), where the policy needs them.
      threshold: `routing.second_threshold`.
      priority: int32 [G, S], the order in which tokens take slots; None: left to right.
      experts: E.
      capacity: C.
    """

    expert: jax.Array
    gates: jax.Array
    draws: jax.Array | None
    threshold: float
    priority: jax.Array | None
    experts: int
    capacity: int


@dataclasses.dataclass(frozen=True)
class Policy:
    """One policy.

    Attributes:
      send: choices -> int32 [G, S, K], the expert that each choice is sent to; E: not sent. The
        first choice always is (ST-MoE, appendix G).
      needs_draws: whether it is random.
      raw_gates: the gate of a choice is its probability, whatever `routing.normalize_gates` says.
    """

    send: Callable[[Choices], jax.Array]
    needs_draws: bool = False
    raw_gates: bool = False


def send_where(later: jax.Array, choices: Choices) -> jax.Array:
    """Sends the first choice, and those beyond it where `later` bool [G, S, K - 1] says so."""
    first = jnp.ones((*later.shape[:-1], 1), bool)
    sent = jnp.concatenate([first, later], axis=-1)  # [G, S, K]
    return jnp.where(sent, choices.expert, choices.experts)


def _all(choices: Choices) -> jax.Array:
    return send_where(jnp.ones(choices.gates[..., 1:].shape, bool), choices)


def _none(choices: Choices) -> jax.Array:
    return send_where(jnp.zeros(choices.gates[..., 1:].shape, bool), choices)


def _threshold(choices: Choices) -> jax.Array:
    return send_where(choices.gates[..., 1:] > choices.threshold, choices)


def _random(choices: Choices) -> jax.Array:
    if choices.draws is None:
        raise ValueError(
            "The second-choice policy 'random' needs draws [G, S, K - 1], for example "
            "jax.random.uniform(key, (G, S, K - 1))."
        )
    return send_where(choices.draws < choices.gates[..., 1:] / choices.threshold, choices)


def _if_dropped(choices: Choices) -> jax.Array:
    """Each choice if all before it found no slot. Later choices sort after earlier ones, so they
    never take a slot that was given.
    """
    best, experts, capacity = choices.expert, choices.experts, choices.capacity
    expert = best[..., :1]
    for k in range(1, best.shape[-1]):
        slot, _ = assign_slots(expert, choices.priority, experts, capacity)  # [G, S, k]
        lost = jnp.all(slot == experts * capacity, axis=-1)
        again = jnp.where(lost, best[..., k], experts)
        expert = jnp.concatenate([expert, again[..., None]], axis=-1)
    return expert


POLICIES = {
    "all": Policy(_all),
    "none": Policy(_none),
    "threshold": Policy(_threshold),
    "random": Policy(_random, needs_draws=True),
    "if_dropped": Policy(_if_dropped, raw_gates=True),
}
