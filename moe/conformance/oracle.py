"""The rules of routing written out token by token in NumPy: what a router is compared with.

It shares no line with `moe.routing`, is not vectorised over tokens and computes in the type of the
logits it is given: float64 for reference values, float32 to compare float32 to the last tie.

Letters: S tokens of a group, E experts, K choices of a token, C capacity (slots of one expert).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from moe.routing.config import RoutingConfig

Place = tuple[int, int] | str  # (expert, position in it), "dropped" or "unsent"
Sum = tuple[float | np.ndarray, float]  # (total, count); a value is total / count
_GATE_EPSILON = 1e-9  # of Mesh TensorFlow, in the sum that gates are divided by


class Routed(NamedTuple):
    """What became of one group.

    Attributes:
      assignment: [S][K], where each choice went: (expert, position), "dropped" (the expert was
        full) or "unsent" (padding, or by the second-choice policy).
      gates: [S, K], the weight of each choice, 0 where it has no position.
      losses: "balance", "z" and "entropy" -> (total, count).
      metrics: name -> (total, count), names of `moe.routing.metrics.METRICS`.
    """

    assignment: list[list[Place]]
    gates: np.ndarray
    losses: dict[str, Sum]
    metrics: dict[str, Sum]


def softmax(x: np.ndarray) -> np.ndarray:
    """Of a vector, in its own type."""
    e = np.exp(x - x.max())
    return e / e.sum()


def log_sum_exp(x: np.ndarray) -> float:
    """Of a vector, in its own type."""
    return x.max() + np.log(np.exp(x - x.max()).sum())


def capacity(config: RoutingConfig, size: int, train: bool) -> int:
    """C of a group of `size` tokens: CF * S / E, times K if the options say so.

    Rounding "ceil", which other code bases know, is no option of ours.
    """
    factor = config.capacity_factor if train else config.capacity_factor_eval
    exact = factor * size / config.num_experts * (config.top_k if config.capacity_per_choice else 1)
    rows = {
        "floor": math.floor(exact + 1e-9),
        "round": round(exact),
        "ceil": math.ceil(exact - 1e-9),
    }[config.capacity_rounding]
    return max(min(size, rows), config.min_capacity)


def clipped(logits: np.ndarray, config: RoutingConfig) -> np.ndarray:
    """Logits [..., E] within +-logit_clip, where the options have one."""
    limit = config.logit_clip
    return np.clip(logits, -limit, limit) if limit else logits


def best_experts(scores: np.ndarray, count: int) -> list[int]:
    """The `count` experts of the largest scores [E], equal ones by index."""
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:count]


def scores_of(x: np.ndarray, config: RoutingConfig) -> tuple[np.ndarray, np.ndarray]:
    """(scores, of which gates are made; shares, which add up to 1) of clipped logits [E]."""
    if config.scores == "softmax":
        return softmax(x), softmax(x)
    logarithm = -np.logaddexp(x.dtype.type(0), -x)
    return np.exp(logarithm), softmax(logarithm)


def chosen_experts(
    x: np.ndarray, scores: np.ndarray, config: RoutingConfig, bias: np.ndarray | None
) -> list[int]:
    """The experts that a token takes, best first, equal ones by index.

    Args:
      x: [E], clipped logits.
      scores: [E].
      config: K and the groups of experts.
      bias: [E], the balance bias, or None.
    """
    groups = config.expert_groups
    if bias is None and groups == 1:
        return best_experts(x, config.top_k)
    affinity = scores if bias is None else scores + bias.astype(scores.dtype)
    each, count = len(x) // groups, {"top2": 2, "best": 1}[config.expert_group_score]
    worth = [sum(sorted(part, reverse=True)[:count]) for part in affinity.reshape(groups, each)]
    taken = best_experts(np.asarray(worth), config.groups_per_token)
    return [e for e in best_experts(affinity, len(x)) if e // each in taken][: config.top_k]


def moved_bias(bias: np.ndarray, load: np.ndarray, rate: float) -> np.ndarray:
    """The balance bias [E] after a step that sent `load` [E] choices to each expert."""
    mean = sum(load) / len(load)
    signs = [int(mean > count) - int(mean < count) for count in load]
    return np.array([b + rate * sign for b, sign in zip(bias, signs, strict=True)])


def is_sent(rule: str, gate: float, draw: float, config: RoutingConfig) -> bool:
    """Whether a choice beyond the first is sent, for its normalised gate and a uniform draw."""
    likely = {"all": 1.0, "none": 0.0, "threshold": float(gate > config.second_threshold)}
    return bool(draw < likely.get(rule, gate / config.second_threshold))


def policy_name(config: RoutingConfig, train: bool) -> str:
    """The second-choice policy."""
    return config.second_policy if train else config.second_policy_eval


def route_group(
    logits: np.ndarray,
    mask: np.ndarray,
    draws: np.ndarray,
    config: RoutingConfig,
    train: bool,
    bias: np.ndarray | None = None,
    *,
    token_major: bool = False,
    alive: Sequence[bool] | None = None,
) -> Routed:
    """Routes one group, tokens choosing their experts.

    Args:
      logits: [S, E], float32 or float64.
      mask: bool [S], False for padding.
      draws: [S, K - 1], uniform in [0, 1), for the policy "random".
      config: the options, or anything with the same attributes.
      train: training or evaluation (capacity factor, second-choice policy).
      bias: [E], the balance bias, where the options ask for one.
      token_major: all choices of a token take positions before those of the next (MaxText), in
        place of all first choices before all second ones.
      alive: [E], False for an expert whose output is dropped in this step, or None.

    The balance loss is that of the group, whatever `config.balance_over` says; see `balance`.
    """
    size, choices = len(logits), config.top_k
    valid = mask & np.isfinite(logits).all(-1)
    rule = policy_name(config, train)
    gates, sent = np.zeros((size, choices), logits.dtype), np.zeros((size, choices), bool)
    best: dict[int, list[int]] = {}
    probs: dict[int, np.ndarray] = {}
    scores: dict[int, np.ndarray] = {}
    for s in np.flatnonzero(valid).tolist():
        x = clipped(logits[s], config)
        scores[s], probs[s] = scores_of(x, config)
        best[s] = chosen_experts(x, scores[s], config, bias)
        raw = np.array([scores[s][e] for e in best[s]])
        normal = raw / (raw.sum() + logits.dtype.type(_GATE_EPSILON))
        alone = choices == 1 or rule == "if_dropped" or not config.normalize_gates
        gates[s] = raw if alone else normal
        for k in range(choices):
            sent[s, k] = k == 0 or is_sent(rule, normal[k], draws[s][k - 1], config)
    order = list(probs)
    if config.batch_prioritized:
        order.sort(key=lambda s: -scores[s][best[s][0]])
    rows = capacity(config, size, train) if config.dispatch == "index" else size
    visits = [(s, k) for k in range(choices) for s in order]
    if token_major:
        visits = [(s, k) for s in order for k in range(choices)]
    assignment = _fill(best, sent, visits, rows, config.num_experts, rule == "if_dropped")
    for s in range(size):
        for k in range(choices):
            gates[s, k] *= isinstance(assignment[s][k], tuple) * config.gate_scale
            if alive is not None and s in best:
                gates[s, k] *= alive[best[s][k]] / (1.0 - config.whole_expert_dropout)
    losses = _losses(logits, probs, best, config)
    metrics = _metrics(logits, mask, probs, best, assignment, sent, config)
    metrics |= {"z": losses["z"], "gate_mass": (float(gates.sum()), len(probs))}
    return Routed(assignment, gates, losses, metrics)


def experts_choose(
    logits: np.ndarray, mask: np.ndarray, config: RoutingConfig, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """(slot int, gate), [S, E] both, of one group in which each expert takes its `rows` likeliest
    tokens, equal ones from left to right (arXiv 2202.09368); slot -1 and gate 0: not taken.
    """
    slots, gates = np.full(logits.shape, -1), np.zeros(logits.shape, logits.dtype)
    tokens = np.flatnonzero(mask & np.isfinite(logits).all(-1)).tolist()
    scores = {s: scores_of(clipped(logits[s], config), config)[0] for s in tokens}
    for e in range(logits.shape[1]):
        likeliest = sorted(tokens, key=lambda s: (-scores[s][e], s))
        for slot, s in enumerate(likeliest[:rows]):
            slots[s, e], gates[s, e] = slot, scores[s][e] * config.gate_scale
    return slots, gates


def _fill(
    best: Mapping[int, Sequence[int]],
    sent: np.ndarray,
    visits: Sequence[tuple[int, int]],
    rows: int,
    experts: int,
    only_if_dropped: bool,
) -> list[list[Place]]:
    """[S][K]: where each choice goes; they take positions in the order of `visits`.

    Args:
      best: token -> its experts, best first.
      sent: bool [S, K], which choices are sent; with `only_if_dropped` it is written.
      visits: (token, choice), in the order in which they take positions.
      rows: C.
      experts: E.
      only_if_dropped: a choice is sent when all before it of the same token found no position.
    """
    size, choices = sent.shape
    used = [0] * experts
    assignment: list[list[Place]] = [["unsent"] * choices for _ in range(size)]
    for s, k in visits:
        if only_if_dropped:
            sent[s, k] = not any(isinstance(place, tuple) for place in assignment[s])
        if sent[s, k]:
            expert = best[s][k]
            taken = used[expert] < rows
            assignment[s][k] = (expert, used[expert]) if taken else "dropped"
            used[expert] += taken
    return assignment


def balance(
    logits: np.ndarray,
    mask: np.ndarray,
    config: RoutingConfig,
    bias: np.ndarray | None = None,
    length: int = 0,
) -> Sum:
    """(sum, number) of the balance losses of a batch, of groups, sequences or all of it.

    Args:
      logits: [G, S, E]; the tokens of all groups follow one another.
      mask: bool [G, S], False for padding.
      config: the options.
      bias: see `route_group`.
      length: tokens of a sequence; 0: S.
    """
    groups, size, experts = logits.shape
    tokens = {"group": size, "sequence": length or size, "batch": groups * size}
    total = count = 0.0
    for x, real in zip(
        logits.reshape(-1, tokens[config.balance_over], experts),
        mask.reshape(-1, tokens[config.balance_over]),
        strict=True,
    ):
        best, shares = {}, {}
        for s in np.flatnonzero(real & np.isfinite(x).all(-1)).tolist():
            scores, shares[s] = scores_of(clipped(x[s], config), config)
            best[s] = chosen_experts(clipped(x[s], config), scores, config, bias)
        loss, some = _losses(x, shares, best, config)["balance"]
        total, count = total + float(loss), count + some
    return total, count


def _losses(
    logits: np.ndarray,
    probs: Mapping[int, np.ndarray],
    best: Mapping[int, Sequence[int]],
    config: RoutingConfig,
) -> dict[str, Sum]:
    """The balance loss, the sum of squared log-sum-exps, and that of ln E less the entropy."""
    experts, tokens = logits.shape[1], sorted(probs)
    counted = 1 if config.balance_choices == "first" else config.top_k
    balance = _imbalance({s: best[s][:counted] for s in tokens}, probs, experts)
    later_weight = getattr(config, "later_balance_weight", 0.0)  # settings of cases have none
    for k in range(1, config.top_k if later_weight else 0):
        left = {s: _without(probs[s], best[s][:k]) for s in tokens}
        balance += later_weight * _imbalance({s: best[s][k : k + 1] for s in tokens}, left, experts)
    z = sum(log_sum_exp(clipped(logits[s], config).astype(float)) ** 2 for s in tokens)
    sharp = sum(math.log(experts) - entropy(probs[s]) for s in tokens)
    count = len(tokens)
    return {"balance": (balance, float(count > 0)), "z": (z, count), "entropy": (sharp, count)}


def _imbalance(
    counted: Mapping[int, Sequence[int]], probs: Mapping[int, np.ndarray], experts: int
) -> float:
    """E * sum_i f_i P_i: f_i is how many of the counted choices are expert i, by token, and P_i the
    mean probability.
    """
    count = max(len(counted), 1)
    share = np.bincount([e for chosen in counted.values() for e in chosen], minlength=experts)
    mean = sum((probs[s] for s in counted), np.zeros(experts)) / count
    return experts * float(share / count @ mean)


def _without(probs: np.ndarray, taken: Sequence[int]) -> np.ndarray:
    """Probabilities [E] among the experts that are not taken, 0 for those that are."""
    left = probs.copy()
    left[list(taken)] = 0
    return left / (left.sum() + probs.dtype.type(_GATE_EPSILON))


def entropy(probs: np.ndarray) -> float:
    """Of probabilities [E], in nats."""
    return -sum(p * np.log(p) for p in probs if p > 0)


def _metrics(
    logits: np.ndarray,
    mask: np.ndarray,
    probs: Mapping[int, np.ndarray],
    best: Mapping[int, Sequence[int]],
    assignment: Sequence[Sequence[Place]],
    sent: np.ndarray,
    config: RoutingConfig,
) -> dict[str, Sum]:
    """What is reported of the group, by its name."""
    experts, tokens = logits.shape[1], sorted(probs)
    count = len(tokens)
    flat = [(s, k) for s in tokens for k in range(config.top_k) if sent[s, k]]
    largest = max((np.abs(clipped(logits[s], config)).max() for s in tokens), default=0.0)
    lost = [s for s in tokens if not any(isinstance(place, tuple) for place in assignment[s])]
    broken = mask & ~np.isfinite(logits).all(-1)
    return {
        "load": (np.bincount([best[s][k] for s, k in flat], minlength=experts), len(flat)),
        "dropped_choices": (sum(assignment[s][k] == "dropped" for s, k in flat), len(flat)),
        "dropped_tokens": (len(lost), count),
        "entropy": (sum(entropy(probs[s]) for s in tokens), count),
        "max_logit": (largest, float(count > 0)),
        "second_rate": (sum(k > 0 for _, k in flat), count),
        "nonfinite": (int(broken.sum()), int(mask.sum())),
    }
