"""What a router makes of its logits, and the experts that a token chooses by it.

Letters: G groups of tokens, S tokens of a group, E experts, K choices of a token, N groups of
experts, M experts of one of them (E = N * M).

A token chooses by its logits or, where something is added to them or compared between groups of
experts, by its scores:

    balance bias    the K best of score_e + bias_e; the gate of e is score_e (arXiv 2408.15664)
    expert groups   the K best of the experts in the best groups; a group is as good as its best
                    expert (DeepSeek-V2, arXiv 2405.04434) or as the sum of its two best
                    (DeepSeek-V3, arXiv 2412.19437), biases included
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing.config import RoutingConfig
from trainlib.errors import ConfigError


class Scores(NamedTuple):
    """What follows from the logits of a token alone.

    Attributes:
      scores: float32 [.., E], of which gates are made; see `RoutingConfig.scores`.
      shares: float32 [.., E], the same divided by their sum: probabilities.
      log_normaliser: float32 [..], logarithm of the sum of exp(logits), of the z-loss.
    """

    scores: jax.Array
    shares: jax.Array
    log_normaliser: jax.Array


def scores_of(logits: jax.Array, kind: str) -> Scores:
    """The scores of float32 logits [.., E], "softmax" or "sigmoid"."""
    shares, log_normaliser = _softmax(logits)
    if kind == "softmax":
        return Scores(shares, shares, log_normaliser)
    # Sigmoids over their sum, as a softmax of their logarithms: no sum of them is ever 0.
    shares, _ = _softmax(jax.nn.log_sigmoid(logits))
    return Scores(jax.nn.sigmoid(logits), shares, log_normaliser)


def choose(
    logits: jax.Array,
    scores: jax.Array,
    config: RoutingConfig,
    bias: jax.Array | None = None,
    gumbel: jax.Array | None = None,
) -> jax.Array:
    """The K experts of each token, best first; equal ones by index.

    Args:
      logits: float32 [G, S, E].
      scores: float32 [G, S, E], see `Scores`.
      config: K, groups of experts, temperature of sampling.
      bias: float32 [E], where `config.balance_bias` asks for one.
      gumbel: float32 [G, S, E], see `moe.routing.route.route`.

    Returns:
      int32 [G, S, K]; no gradient.

    Raises:
      ConfigError: the configuration asks for a bias and there is none, or the other way round.
    """
    if config.balance_bias != (bias is not None):
        missing = "needs the bias [E] of the experts, and none was given"
        raise ConfigError(
            f"routing.balance_bias={config.balance_bias} "
            f"{missing if bias is None else 'chooses without a bias, and one was given'}. Give "
            "route(..., bias=bias) where balance_bias is True, and only there."
        )
    logits, scores = jax.lax.stop_gradient((logits, scores))
    if gumbel is not None:
        return _best(logits / config.sample_temperature + gumbel, config.top_k)
    if bias is None and config.expert_groups == 1:
        return _best(logits, config.top_k)
    affinity = scores if bias is None else scores + jax.lax.stop_gradient(bias)
    if config.expert_groups > 1:
        affinity = _within_groups(affinity, config)
    return _best(affinity, config.top_k)


def _within_groups(affinity: jax.Array, config: RoutingConfig) -> jax.Array:
    """[G, S, E] with -inf outside of the best groups of experts of each token."""
    *tokens, experts = affinity.shape
    groups = config.expert_groups
    apart = affinity.reshape(*tokens, groups, experts // groups)  # [G, S, N, M]
    score = jnp.max(apart, axis=-1)  # [G, S, N]
    if config.expert_group_score == "top2" and experts > groups:
        index = jnp.arange(experts // groups, dtype=jnp.int32)
        best = _best(apart, 1)  # [G, S, N, 1]
        score += jnp.max(jnp.where(index == best, -jnp.inf, apart), axis=-1)
    chosen = _best(score, config.groups_per_token)  # [G, S, groups_per_token]
    index = jnp.arange(groups, dtype=jnp.int32)
    allowed = jnp.any(chosen[..., None] == index, axis=-2)  # [G, S, N]
    return jnp.where(allowed[..., None], apart, -jnp.inf).reshape(affinity.shape)


@dataclasses.dataclass(frozen=True)
class BiasStep:
    """How a step moves the balance bias: b_e + rate * sign(mean load - load_e), the rule of arXiv
    2408.15664.

    Attributes:
      rate: `RoutingConfig.bias_update_rate`.
    """

    rate: float

    def __call__(self, bias: jax.Array, load: jax.Array) -> jax.Array:
        """Bias float32 [.., E] after a batch that sent `load` [.., E] choices to each expert."""
        even = jnp.mean(load, axis=-1, keepdims=True)
        return bias + self.rate * jnp.sign(even - load)


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities [..., E] and the logarithm of their normaliser [...], from one exponential."""
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    unnormalized = jnp.exp(logits - largest)
    total = jnp.sum(unnormalized, axis=-1, keepdims=True)
    return unnormalized / total, (largest + jnp.log(total))[..., 0]


def _best(logits: jax.Array, count: int) -> jax.Array:
    """int32 [..., count]: the indices of the largest numbers, equal ones by index.

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
