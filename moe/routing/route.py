"""Routing of tokens to experts: from logits to integer maps and gates (arXiv 2202.08906).

Letters: G groups, S tokens of a group, E experts, K choices of a token, C capacity (rows of one
expert for one group). Everything here is a pure function; no array has the shape [S, E, C].

The order of events follows Mesh TensorFlow, the code base of the paper:
  1. softmax of float32 logits; the K best experts of a token; gates divided by their sum.
  2. The second-choice policy decides which choices beyond the first are sent at all.
  3. Each expert takes the first C of what is sent to it: all first choices in order, then all
     second choices, and so on. The rest is dropped: its gate is 0, other gates stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from moe.routing.config import RoutingConfig, capacity, policy
from moe.routing.dispatch import sort_by_expert

_GATE_EPSILON = 1e-9

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, count); a value is total / count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Where tokens go. The maps are integers, so gradients flow through `gates` and `losses` only.

    Attributes:
      slot: int32 [G, S, K]; choice k of token s has row c of expert e, as e * C + c; E * C: none.
      source: int32 [E, G, C]; the choice in that row, as k * S + s; K * S: the row is empty.
      gates: float32 [G, S, K], weight of each choice, 0 where it was not sent or was dropped.
      expert: int32 [G, S, K], the expert of each choice that was sent; E: not sent.
      losses: name -> (total [G], count [G]): "balance" (count 1 for a group with tokens), "z"
        (count: tokens) and "nonfinite" (tokens whose logits were not finite).
      metrics: name -> (total [G, ...], count [G]), see `METRICS`.
    """

    slot: jax.Array
    source: jax.Array
    gates: jax.Array
    expert: jax.Array
    losses: Sums
    metrics: Sums


METRICS: Mapping[str, str] = {
    "load": "[E]: share of the choices sent that each expert was sent, before capacity",
    "dropped_choices": "share of the choices sent that found no row",
    "dropped_tokens": "share of the tokens that no expert took",
    "entropy": "mean entropy of the router probabilities, nats; ln E is uniform",
    "max_logit": "largest |logit| of a group, mean over groups",
    "second_rate": "choices beyond the first that were sent, per token",
    "nonfinite": "tokens whose logits were not finite; they are routed nowhere",
}


def route(
    logits: jax.Array,
    mask: jax.Array | None,
    draws: jax.Array | None,
    config: RoutingConfig,
    *,
    train: bool,
    gumbel: jax.Array | None = None,
) -> Routing:
    """Routes each group of tokens on its own.

    A token whose logits are not all finite is treated as padding and counted in
    `metrics["nonfinite"]`; the other tokens are routed as if it were padding.

    Args:
      logits: [G, S, E], any float type; computed on in float32.
      mask: bool [G, S], False for padding, which is neither routed nor counted; None: no padding.
      draws: float32 [G, S, K - 1] uniform in [0, 1), used by the policy "random" only. They are an
        argument, not drawn here, so that results do not depend on how groups lie over devices.
      config: see RoutingConfig; with a dropless dispatch C is S.
      train: chooses the capacity factor and the second-choice policy.
      gumbel: float32 [G, S, E], standard Gumbel noise for `sample_temperature`, or None.

    Raises:
      ConfigError: capacity below 1, or a group too large for 32-bit positions.
      ValueError: draws are needed and missing.
    """
    groups, size, experts = logits.shape
    logits = logits.astype(jnp.float32)
    mask = jnp.ones((groups, size), bool) if mask is None else mask
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    valid = mask & finite
    logits = jnp.where(valid[..., None], logits, 0.0)
    if config.logit_clip:
        logits = jnp.clip(logits, -config.logit_clip, config.logit_clip)
    probs, normalizer = _softmax(logits)
    rows = size if config.dropless else capacity(config, size, train=train)
    if config.router == "experts_choose":
        slot, source, gates, expert = _experts_choose(probs, valid, rows)
        balance = jnp.zeros((groups,), jnp.float32)
    else:
        scores = jax.lax.stop_gradient(logits)
        if gumbel is not None:
            scores = scores / config.sample_temperature + gumbel
        best = _best(scores, config.top_k)
        rule = policy(config, train=train)
        slot, source, gates, expert = _tokens_choose(best, probs, valid, draws, config, rule, rows)
        balance = _balance(probs, best, valid, config)
    tokens, seen, broken = (
        jnp.sum(which, axis=-1).astype(jnp.float32) for which in (valid, mask, mask & ~finite)
    )
    z = jnp.sum(jnp.where(valid, jnp.square(normalizer), 0.0), axis=-1)
    losses = {"balance": (balance, jnp.minimum(tokens, 1.0)), "z": (z, tokens)}
    metrics = _metrics(logits, probs, valid, slot < experts * rows, expert)
    losses["nonfinite"] = metrics["nonfinite"] = (broken, seen)
    return Routing(slot, source, gates, expert, losses, metrics)


def auxiliary_loss(losses: Sums, config: RoutingConfig) -> jax.Array:
    """The weighted router losses as one scalar, to be added to the cross-entropy.

    Args:
      losses: name -> (total, count), one entry of any leading shape for each sparse layer.
      config: the weights, and "sum" or "mean" over layers.

    Returns:
      float32 scalar; NaN when a layer met logits that were not finite, so that the train step
      skips its update and counts it.
    """
    weights = {"balance": config.balance_loss_weight, "z": config.z_loss_weight}
    total = jnp.zeros((), jnp.float32)
    for name, weight in weights.items():
        value, count = losses[name]
        each = value / jnp.maximum(count, 1.0)
        total += weight * (jnp.sum(each) if config.loss_reduction == "sum" else jnp.mean(each))
    broken = jnp.sum(losses["nonfinite"][0])
    return jnp.where(broken > 0, jnp.nan, total)


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities [..., E] and the logarithm of their normaliser [...], from one exponential."""
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    unnormalized = jnp.exp(logits - largest)
    total = jnp.sum(unnormalized, axis=-1, keepdims=True)
    return unnormalized / total, (largest + jnp.log(total))[..., 0]


def _best(logits: jax.Array, count: int) -> jax.Array:
    """int32 [..., count]: the experts of the largest logits, equal ones by index.

    One arg-max after another: the automatic partitioner splits it over groups, where it would
    gather the operand of a sort (`lax.top_k`).
    """
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    chosen = []
    for _ in range(count):
        largest = jnp.max(logits, axis=-1, keepdims=True)
        best = jnp.min(jnp.where(logits == largest, index, logits.shape[-1]), axis=-1)
        chosen.append(best)
        logits = jnp.where(index == best[..., None], -jnp.inf, logits)
    return jnp.stack(chosen, axis=-1)


def _tokens_choose(
    best: jax.Array,
    probs: jax.Array,
    valid: jax.Array,
    draws: jax.Array | None,
    config: RoutingConfig,
    rule: str,
    rows: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Slot, source, gates and expert from the K best experts of each token."""
    experts = probs.shape[-1]
    priority = _priority(best, probs) if config.batch_prioritized else None
    wanted = jnp.where(valid[..., None], best, experts)
    gates = _gates(best, probs)
    if rule == "if_dropped":
        expert = _sent_in_turn(wanted, priority, experts, rows)
    else:
        normalized = gates / (jnp.sum(gates, axis=-1, keepdims=True) + _GATE_EPSILON)
        sent = _sent(jax.lax.stop_gradient(normalized), draws, config, rule)
        expert = jnp.where(sent, wanted, experts)
        gates = normalized if config.normalize_gates and config.top_k > 1 else gates
    slot, source = slots(expert, priority, experts, rows)
    return slot, source, jnp.where(slot < experts * rows, gates, 0.0), expert


def _gates(best: jax.Array, probs: jax.Array) -> jax.Array:
    """float32 [G, S, K]: the probabilities of the chosen experts."""
    # Contractions with one-hot rows in place of a gather: their gradient is no scatter.
    index = jnp.arange(probs.shape[-1], dtype=jnp.int32)
    chosen = [index == best[..., k, None] for k in range(best.shape[-1])]
    return jnp.stack([jnp.sum(jnp.where(hit, probs, 0.0), axis=-1) for hit in chosen], axis=-1)


def _sent(gates: jax.Array, draws: jax.Array | None, config: RoutingConfig, rule: str) -> jax.Array:
    """bool [G, S, K]: which choices are sent; the first always is (ST-MoE, appendix G)."""
    later = gates[..., 1:]
    if rule == "all":
        keep = jnp.ones(later.shape, bool)
    elif rule == "none":
        keep = jnp.zeros(later.shape, bool)
    elif rule == "threshold":
        keep = later > config.second_threshold
    elif draws is None:
        raise ValueError("The second-choice policy 'random' needs draws [G, S, K - 1].")
    else:
        keep = draws < later / config.second_threshold
    return jnp.concatenate([jnp.ones((*gates.shape[:-1], 1), bool), keep], axis=-1)


def _sent_in_turn(
    best: jax.Array, priority: jax.Array | None, experts: int, rows: int
) -> jax.Array:
    """int32 [G, S, K]: each choice if all before it found no row, else E.

    Later choices sort after earlier ones, so they never take a row that was given.
    """
    expert = best[..., :1]
    for k in range(1, best.shape[-1]):
        slot, _ = slots(expert, priority, experts, rows)
        lost = jnp.all(slot == experts * rows, axis=-1)
        again = jnp.where(lost, best[..., k], experts)
        expert = jnp.concatenate([expert, again[..., None]], axis=-1)
    return expert


def _priority(best: jax.Array, probs: jax.Array) -> jax.Array:
    """int32 [G, S]: tokens by descending first-choice probability, equal ones left to right."""
    first = jnp.take_along_axis(jax.lax.stop_gradient(probs), best[..., :1], axis=-1)[..., 0]
    return jnp.argsort(-first, axis=-1, stable=True).astype(jnp.int32)


def slots(
    expert: jax.Array, priority: jax.Array | None, experts: int, rows: int
) -> tuple[jax.Array, jax.Array]:
    """Gives the choices their rows: a choice-major stable sort by expert, cut at the capacity.

    Args:
      expert: int32 [G, S, K], E for a choice that is not sent: it sorts last and takes no row.
      priority: int32 [G, S], a permutation of the tokens that replaces left to right; or None.
      experts: E.
      rows: C.

    Returns:
      slot [G, S, K] and source [E, G, C], see `Routing`.
    """
    _, size, choices = expert.shape
    count = choices * size

    def one_group(expert: jax.Array, priority: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        ordered = expert if priority is None else expert[priority]
        flat = ordered.T.reshape(count)
        order, rank, starts = sort_by_expert(flat, experts)
        position = rank - starts[flat]
        kept = (flat < experts) & (position < rows)
        slot = jnp.where(kept, flat * rows + position, experts * rows).reshape(choices, size).T
        row = starts[:-1, None] + jnp.arange(rows, dtype=jnp.int32)
        filled = row < starts[1:, None]
        source = order[jnp.where(filled, row, 0)]
        if priority is not None:
            source = source // size * size + priority[source % size]
            slot = jnp.zeros_like(slot).at[priority].set(slot, unique_indices=True)
        return slot, jnp.where(filled, source, count)

    return jax.vmap(one_group, in_axes=(0, None if priority is None else 0), out_axes=(0, 1))(
        expert, priority
    )


def _experts_choose(
    probs: jax.Array, valid: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Slot, source, gates and expert when experts choose; "choice" k is expert k, so K = E."""
    _, size, experts = probs.shape
    index = jnp.arange(experts, dtype=jnp.int32)[:, None]
    scores = jnp.where(valid[..., None], jax.lax.stop_gradient(probs), -1.0)

    def one_group(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, token = jax.lax.top_k(scores.T, min(rows, size))
        filled = best >= 0.0
        place = index * rows + jnp.arange(token.shape[1], dtype=jnp.int32)
        slot = jnp.full((experts, size), experts * rows, jnp.int32)
        slot = slot.at[index, token].set(jnp.where(filled, place, experts * rows))
        source = jnp.where(filled, index * size + token, experts * size)
        empty = ((0, 0), (0, rows - token.shape[1]))
        return slot.T, jnp.pad(source, empty, constant_values=experts * size)

    slot, source = jax.vmap(one_group, out_axes=(0, 1))(scores)
    taken = slot < experts * rows
    return slot, source, jnp.where(taken, probs, 0.0), jnp.where(taken, index[:, 0], experts)


def _balance(
    probs: jax.Array, best: jax.Array, valid: jax.Array, config: RoutingConfig
) -> jax.Array:
    """[G]: E * sum_i f_i P_i over the tokens of a group (ST-MoE, appendix A); 0 without tokens.

    f_i is the share of tokens whose first choice (or any choice) is i, P_i the mean probability.
    """
    experts = probs.shape[-1]
    counted = best if config.balance_choices == "all" else best[..., :1]
    hits = jnp.where(valid[..., None], counted, experts)
    index = jnp.arange(experts, dtype=jnp.int32)
    # Integer counts: a float32 sum of ones stops at 2**24.
    share = jnp.sum(hits[..., None] == index, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(valid, axis=-1), 1).astype(jnp.float32)
    mass = jnp.sum(jnp.where(valid[..., None], probs, 0.0), axis=1)
    return experts * jnp.sum(share * mass, axis=-1) / jnp.square(tokens)


def _metrics(
    logits: jax.Array, probs: jax.Array, valid: jax.Array, kept: jax.Array, expert: jax.Array
) -> Sums:
    """The entries of `METRICS` that do not need the raw logits; no gradient."""
    logits, probs = jax.lax.stop_gradient((logits, probs))
    experts = logits.shape[-1]
    sent = expert < experts

    def total(x: jax.Array) -> jax.Array:  # integers are added as integers
        return jnp.sum(x, axis=tuple(range(1, x.ndim))).astype(jnp.float32)

    index = jnp.arange(experts, dtype=jnp.int32)
    load = jnp.sum(expert[..., None] == index, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    surprise = jnp.where(probs > 0, -probs * jnp.log(jnp.where(probs > 0, probs, 1.0)), 0.0)
    tokens, choices = total(valid), total(sent)
    entropy = jnp.where(valid, jnp.sum(surprise, axis=-1), 0.0)
    later = sent[..., 1:]
    return {
        "load": (load, choices),
        "dropped_choices": (total(sent & ~kept), choices),
        "dropped_tokens": (total(valid & ~jnp.any(kept, axis=-1)), tokens),
        "entropy": (total(entropy), tokens),
        "max_logit": (jnp.max(jnp.abs(logits), axis=(1, 2)), jnp.minimum(tokens, 1.0)),
        "second_rate": (total(later), tokens),
    }
