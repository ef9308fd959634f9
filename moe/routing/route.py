"""Routing of tokens to experts: from logits to integer maps and gates (arXiv 2202.08906).

Letters: G groups, S tokens of a group, E experts, K choices of a token, C capacity (slots of one
expert for one group). Everything here is a pure function; `route` makes no array of the shape
[S, E, C].

The order of events follows Mesh TensorFlow, the code base of the paper:
  1. softmax (or sigmoids) of float32 logits; the K best experts of a token (`moe.routing.choice`);
     gates divided by their sum.
  2. The second-choice policy decides which choices beyond the first are sent at all.
  3. Each expert takes the first C of what is sent to it: all first choices in order, then all
     second choices, and so on. The rest is dropped: its gate is 0, other gates stay as they are.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from moe.routing.choice import choose, scores_of
from moe.routing.config import RoutingConfig, capacity, check_routing, policy
from moe.routing.losses import EPSILON, balance_loss
from moe.routing.metrics import Sums, entropy, routing_metrics
from moe.routing.policies import Choices, Policy
from moe.routing.slots import assign_slots
from trainlib.errors import ConfigError
from trainlib.model.inputs import check_array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Where tokens go, as integer maps and gates.

    Gradients flow through `gates` and `losses` alone. `moe.dispatch(x, slot, source)` copies tokens
    to slots and `moe.combine(buffer, gates, slot, source)` adds up what the experts made of them.
    Below is the same in the form of the papers (`dispatch_tensor` and `combine_tensor` of Mesh
    TensorFlow).

    Example:
      >>> buffer = jnp.einsum("gsec,gsd->egcd", routing.dispatch_mask().astype(x.dtype), x)
      >>> y = jnp.einsum("gsec,egcd->gsd", routing.combine_weights(), experts(buffer))
      >>> expert, position = routing.expert_and_position()

    Attributes:
      slot: int32 [G, S, K]; choice k of token s has slot c of expert e, as e * C + c; E * C: none.
      source: int32 [E, G, C]; the choice in that slot, as k * S + s; K * S: it is empty.
      gates: float32 [G, S, K], weight of each choice, 0 where it was not sent or was dropped.
      expert: int32 [G, S, K], the expert of each choice that was sent; E: not sent.
      valid: bool [G, S], the tokens that were routed: no padding, and their logits are finite.
      losses: name -> (total [G], count [G]), float32: "balance" (count 1 for a group with
        tokens; of sequences or of the batch as `RoutingConfig.balance_over` says), "z" and
        "entropy" (count: tokens; ln E less the entropy) and "nonfinite" (tokens whose logits were
        not finite).
      metrics: name -> (total [G, ...], count [G]), float32; see `moe.routing.metrics.METRICS`.
    """

    slot: jax.Array
    source: jax.Array
    gates: jax.Array
    expert: jax.Array
    valid: jax.Array
    losses: Sums
    metrics: Sums

    @property
    def num_experts(self) -> int:
        """E."""
        return self.source.shape[0]

    @property
    def capacity(self) -> int:
        """C, slots of one expert for one group."""
        return self.source.shape[2]

    @property
    def placed(self) -> jax.Array:
        """bool [G, S, K]: which choices found a slot."""
        return self.slot < self.num_experts * self.capacity

    def expert_and_position(self) -> tuple[jax.Array, jax.Array]:
        """(expert, position) of each choice, int32 [G, S, K] both.

        The expert is that which the choice was sent to, -1 if it was not sent (padding, or by the
        second-choice policy). The position is its slot among the C of that expert, -1 if it was not
        sent or was dropped because the expert was full: a dropped choice has an expert and no
        position. With a router of kind "experts_choose", K is E and choice k is expert k.
        """
        expert = jnp.where(self.expert < self.num_experts, self.expert, -1)
        return expert, jnp.where(self.placed, self.slot % self.capacity, -1)

    def dispatch_mask(self) -> jax.Array:
        """bool [G, S, E, C]: whether token s has slot c of expert e (`dispatch_tensor`).

        It has S * E * C entries a group, which `moe.dispatch` does without.
        """
        return jnp.any(self._in_slots(), axis=2)

    def combine_weights(self) -> jax.Array:
        """float32 [G, S, E, C]: the gate of token s in slot c of expert e, 0 elsewhere
        (`combine_tensor`). Gradients flow to the gates; the size is that of `dispatch_mask`.
        """
        return jnp.sum(jnp.where(self._in_slots(), self.gates[..., None, None], 0.0), axis=2)

    def _in_slots(self) -> jax.Array:
        """bool [G, S, K, E, C]: which slot each choice has; the compiler never stores it whole."""
        experts, capacity = self.num_experts, self.capacity
        slots = jnp.arange(experts * capacity, dtype=jnp.int32).reshape(experts, capacity)
        return self.slot[..., None, None] == slots


def route(
    logits: jax.Array,
    config: RoutingConfig,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
    draws: jax.Array | None = None,
    gumbel: jax.Array | None = None,
    bias: jax.Array | None = None,
    length: int = 0,
    axes: tuple[str, ...] = (),
    alive: jax.Array | None = None,
) -> Routing:
    """Routes each group of tokens on its own (ST-MoE, arXiv 2202.08906, section 2 and appendix C).

    Example:
      >>> logits = jnp.einsum("gsd,de->gse", x, router)
      >>> routing = moe.route(logits, moe.RoutingConfig(num_experts=8, top_k=2))
      >>> loss = cross_entropy + moe.auxiliary_loss(routing.losses, config)

    A token whose logits are not all finite is treated as padding and counted in
    `metrics["nonfinite"]`; the other tokens are routed as if it were padding.

    Args:
      logits: [G, S, E], any float type; computed on in float32.
      config: see RoutingConfig; with a dropless dispatch C is S.
      train: chooses the capacity factor and the second-choice policy.
      mask: bool [G, S], False for padding, which is neither routed nor counted; None: no padding.
      draws: float32 [G, S, K - 1] uniform in [0, 1), such as
        `jax.random.uniform(key, (G, S, K - 1))`, for a random policy; the default policy of
        training is one. They are an argument, not drawn here, so that results do not depend on how
        groups lie over devices.
      gumbel: float32 [G, S, E], standard Gumbel noise (`jax.random.gumbel`) for
        `sample_temperature`, or None.
      bias: float32 [E], of a router with `balance_bias`; `moe.routing.choice.BiasStep` moves it.
      length: tokens of a sequence, of which `balance_over="sequence"` takes each on its own, the
        tokens of all groups in their order; 0: a group is a sequence.
      axes: mesh axes of a shard_map over which the tokens of a batch lie, for
        `balance_over="batch"`.
      alive: bool [E], False for the experts that `whole_expert_dropout` leaves out, or None. Tokens
        are sent there as ever, and have a gate of 0.

    Raises:
      ConfigError: capacity below 1, a group too large for 32-bit positions, a bias that is
        missing or of no use, or a length that does not divide the tokens.
      InputError: logits or a mask of another shape.
      ValueError: draws are needed and missing.
    """
    check_routing("route", config)
    check_array("moe.route", logits, "groups tokens experts", experts=config.num_experts)
    groups, size, experts = logits.shape
    if config.balance_over == "sequence" and length and groups * size % length:
        raise ConfigError(
            f"route was given length={length}, the tokens of a sequence, which does not divide the "
            f"{groups} x {size} tokens of the logits. Give whole sequences, or 0."
        )
    logits = logits.astype(jnp.float32)
    mask = jnp.ones((groups, size), bool) if mask is None else mask
    check_array("The mask of moe.route", mask, "groups tokens", groups=groups, tokens=size)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)  # [G, S]
    valid = mask & finite
    logits = jnp.where(valid[..., None], logits, 0.0)
    if config.logit_clip:
        logits = jnp.clip(logits, -config.logit_clip, config.logit_clip)
    scores, shares, log_normaliser = scores_of(logits, config.scores)  # [G, S, E] twice, [G, S]
    slots = size if config.dropless else capacity(config, size, train=train)  # C
    if config.router == "experts_choose":
        slot, source, gates, expert = _experts_choose(scores, valid, slots)
        balance = jnp.zeros((groups,), jnp.float32), jnp.any(valid, axis=-1).astype(jnp.float32)
    else:
        best = choose(logits, scores, config, bias, gumbel)  # [G, S, K]
        chosen = policy(config, train=train)
        slot, source, gates, expert = _tokens_choose(
            best, scores, valid, draws, config, chosen, slots
        )
        balance = balance_loss(shares, best, valid, config, length=length, axes=axes)
    if config.gate_scale != 1:
        gates = gates * config.gate_scale
    if alive is not None:
        scale = jnp.pad(alive / (1.0 - config.whole_expert_dropout), (0, 1))  # of E, not sent, 0
        gates = gates * scale[expert]
    tokens, seen, broken = (  # all [G]
        jnp.sum(which, axis=-1).astype(jnp.float32) for which in (valid, mask, mask & ~finite)
    )
    z = jnp.sum(jnp.where(valid, jnp.square(log_normaliser), 0.0), axis=-1)
    # A loss that has no weight has no gradient: its forward pass is that of the metric.
    spread = shares if config.entropy_loss_weight else jax.lax.stop_gradient(shares)
    sharp = jnp.sum(jnp.where(valid, math.log(experts) - entropy(spread), 0.0), axis=-1)
    losses = {"balance": balance, "z": (z, tokens), "entropy": (sharp, tokens)}
    metrics = routing_metrics(logits, shares, gates, valid, slot < experts * slots, expert)
    metrics["z"] = jax.lax.stop_gradient((z, tokens))
    losses["nonfinite"] = metrics["nonfinite"] = (broken, seen)
    return Routing(slot, source, gates, expert, valid, losses, metrics)


def _tokens_choose(
    best: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    draws: jax.Array | None,
    config: RoutingConfig,
    chosen: Policy,
    slots: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Slot, source, gates and expert from the K best experts [G, S, K] of each token."""
    experts = scores.shape[-1]
    priority = _priority(best, scores) if config.batch_prioritized else None
    wanted = jnp.where(valid[..., None], best, experts)  # [G, S, K]
    gates = _gates(best, scores)  # [G, S, K]
    normalized = gates / (jnp.sum(gates, axis=-1, keepdims=True) + EPSILON)
    expert = chosen.send(
        Choices(
            expert=wanted,
            gates=jax.lax.stop_gradient(normalized),
            draws=draws,
            threshold=config.second_threshold,
            priority=priority,
            experts=experts,
            capacity=slots,
        )
    )
    if config.normalize_gates and config.top_k > 1 and not chosen.raw_gates:
        gates = normalized
    slot, source = assign_slots(expert, priority, experts, slots)
    # Where all tokens of a group fit into one expert, gates wait for no slots.
    sent = expert < experts if slots >= best.shape[1] else slot < experts * slots
    return slot, source, jnp.where(sent, gates, 0.0), expert


def _gates(best: jax.Array, scores: jax.Array) -> jax.Array:
    """float32 [G, S, K]: the scores of the chosen experts."""
    # Contractions with one-hot vectors in place of a gather: their gradient is no scatter.
    index = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    chosen = [index == best[..., k, None] for k in range(best.shape[-1])]
    return jnp.stack([jnp.sum(jnp.where(hit, scores, 0.0), axis=-1) for hit in chosen], axis=-1)


def _priority(best: jax.Array, scores: jax.Array) -> jax.Array:
    """int32 [G, S]: tokens by descending first-choice score, equal ones left to right."""
    first = jnp.take_along_axis(jax.lax.stop_gradient(scores), best[..., :1], axis=-1)[..., 0]
    return jnp.argsort(-first, axis=-1, stable=True).astype(jnp.int32)


def _experts_choose(
    scores: jax.Array, valid: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Slot, source, gates and expert when experts choose; "choice" k is expert k, so K = E."""
    _, size, experts = scores.shape
    index = jnp.arange(experts, dtype=jnp.int32)[:, None]  # [E, 1]
    # The order alone has no gradient: gates are the scores themselves.
    order = jnp.where(valid[..., None], jax.lax.stop_gradient(scores), -1.0)
    none = experts * slots

    def one_group(order: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, token = jax.lax.top_k(order.T, min(slots, size))  # both [E, min(C, S)]
        filled = best >= 0.0
        taken = index * slots + jnp.arange(token.shape[1], dtype=jnp.int32)
        slot = jnp.full((experts, size), none, jnp.int32)  # [E, S]
        slot = slot.at[index, token].set(jnp.where(filled, taken, none))
        source = jnp.where(filled, index * size + token, experts * size)
        empty = ((0, 0), (0, slots - token.shape[1]))
        return slot.T, jnp.pad(source, empty, constant_values=experts * size)

    slot, source = jax.vmap(one_group, out_axes=(0, 1))(order)  # [G, S, E], [E, G, C]
    sent = slot < none
    return slot, source, jnp.where(sent, scores, 0.0), jnp.where(sent, index[:, 0], experts)
