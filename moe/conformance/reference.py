"""Values and gradients that a router should have, in float64: the oracle over a whole batch, and
derivatives written out by hand.

Letters: N layers, B sequences, L tokens of a sequence, S tokens of a group, E experts, K choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from moe.conformance import oracle
from moe.conformance.settings import Rules

_GATE_EPSILON = 1e-9  # of Mesh TensorFlow
PARTS = ("routing", "balance", "z")
GRADIENTS = ("combine", "balance", "z")


@dataclasses.dataclass
class Answer:
    """What a router did with a case; None where it does not tell.

    Attributes:
      combine: [B, L, E], the weight of each expert in the output of each token: what a layer
        returns whose expert e answers every token with the e-th unit vector.
      position: int [B, L, E], the slot of a token in the expert, -1 where it has none.
      balance: the balance loss without its coefficient, a mean over groups; summed over layers.
      z: the router z-loss without its coefficient, a mean over tokens; summed over layers.
      choice: int [B, L, K], the experts that a token prefers, best first. It says which of equal
        experts were taken, and is needed for nothing else.
      gradients: of `sum(cotangent * combine)`, of `balance` and of `z` by the logits, [B, L, E],
        by the names of `GRADIENTS`; any may be missing.
    """

    combine: np.ndarray | None = None
    position: np.ndarray | None = None
    balance: float | None = None
    z: float | None = None
    choice: np.ndarray | None = None
    gradients: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What became of each choice; -1 where there is none.

    Attributes:
      expert: int [B, L, K], the expert it was sent to; -1: it was not sent.
      position: int [B, L, K], its slot there; -1: it was dropped or not sent.
      gate: [B, L, K].
    """

    expert: np.ndarray
    position: np.ndarray
    gate: np.ndarray


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """[B, L, E]: the weights of `combine` of which gradients are taken, whole numbers -5 to 5."""
    b, l, e = np.indices(shape)
    return ((7 * b + 5 * l + 3 * e) % 11 - 5).astype(float)


def answer(
    logits: np.ndarray,
    mask: np.ndarray,
    draws: np.ndarray,
    rules: Rules,
    parts: Sequence[str] = PARTS,
    bias: np.ndarray | None = None,
) -> Answer:
    """The figures of one layer.

    Args:
      logits: [B, L, E].
      mask: bool [B, L], False for padding.
      draws: [B, L, K - 1].
      rules: the settings, and how they are read.
      parts: those of `PARTS` that are wanted.
      bias: [E], where the settings have one.
    """
    bias = bias if rules.balance_bias else None
    logits, finite = _finite(logits)
    counted = finite & (mask | rules.padding_counted)
    found = Answer()
    if "z" in parts:
        found.z, by_z = _z([logits], counted, rules)
        found.gradients["z"] = by_z[0]
    if not set(parts) & {"routing", "balance"}:
        return found
    # The balance loss seldom hangs on what became of the choices.
    needed = "routing" in parts or rules.counted_when_placed
    choices = choose(logits, mask & finite, draws, rules, bias) if needed else None
    if "balance" in parts and not rules.experts_choose:
        found.balance, by_balance = _balance([logits], [choices], counted, rules, bias)
        found.gradients["balance"] = by_balance[0]
    if "routing" in parts and choices is not None:
        found.combine, found.gradients["combine"] = _combine(logits, choices, rules, bias)
        found.position = _positions(choices, rules.num_experts)
        if rules.pass_through:
            found.combine = _pass_through(logits, found.combine, choices, rules)
    return found


def answer_of_layers(
    layers: np.ndarray, mask: np.ndarray, draws: np.ndarray, rules: Rules
) -> Answer:
    """The losses of logits [N, B, L, E], of all layers together."""
    found = [_finite(logits) for logits in layers]
    finite = np.all([ok for _, ok in found], axis=0)
    logits = [values for values, _ in found]
    needed = rules.counted_when_placed
    choices = [choose(x, mask & finite, draws, rules) if needed else None for x in logits]
    counted = finite & (mask | rules.padding_counted)
    return Answer(
        balance=_balance(logits, choices, counted, rules)[0], z=_z(logits, counted, rules)[0]
    )


def _finite(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64 with zeros in tokens that have others than finite ones; and which have
    none.
    """
    finite = np.asarray(np.isfinite(logits).all(-1))
    return np.where(finite[..., None], logits, 0.0).astype(float), finite


def _groups(rules: Rules, shape: tuple[int, ...]) -> Iterator[slice]:
    """The sequences of each group of [B, L, ..]."""
    for first in range(0, shape[0], rules.group_sequences):
        yield slice(first, first + rules.group_sequences)


def choose(
    logits: np.ndarray,
    valid: np.ndarray,
    draws: np.ndarray,
    rules: Rules,
    bias: np.ndarray | None = None,
) -> Choices:
    """What becomes of each choice of logits [B, L, E], group by group."""
    routed = np.ones_like(valid) if rules.padding_routed else valid
    shape = (*valid.shape, rules.width)
    expert, position, gate = np.full(shape, -1), np.full(shape, -1), np.zeros(shape)
    for rows in _groups(rules, logits.shape):
        flat = logits[rows].reshape(-1, rules.num_experts)
        size, length = len(flat), logits.shape[1]
        if rules.experts_choose:
            rows_of = rules.capacity(size)
            taken = oracle.experts_choose(flat, routed[rows].reshape(size), rules, rows_of)  # pyright: ignore[reportArgumentType]
            position[rows], gate[rows] = (v.reshape(gate[rows].shape) for v in taken)
            index = np.arange(rules.num_experts)
            expert[rows] = np.where(position[rows] >= 0, index, -1)
            continue
        result = oracle.route_group(
            flat,
            routed[rows].reshape(size),
            draws[rows].reshape(size, -1),
            rules,  # pyright: ignore[reportArgumentType]
            True,
            bias,
            token_major=rules.token_major,
        )
        for s, places in enumerate(result.assignment):
            best = _chosen(flat[s], rules, bias)
            at = (rows.start + s // length, s % length)
            for k, place in enumerate(places):
                if place != "unsent":
                    expert[at][k] = best[k]
                if isinstance(place, tuple):
                    position[at][k] = place[1]
        gate[rows] = result.gates.reshape(gate[rows].shape)
    return Choices(expert, position, gate)


def _chosen(logits: np.ndarray, rules: Rules, bias: np.ndarray | None) -> list[int]:
    """The experts that a token with logits [E] takes, best first."""
    x = oracle.clipped(logits, rules)  # pyright: ignore[reportArgumentType]
    return oracle.chosen_experts(x, _scores(x, rules), rules, bias)  # pyright: ignore[reportArgumentType]


def _best(x: np.ndarray, rules: Rules, bias: np.ndarray | None) -> np.ndarray:
    """int [B, L, K]: the same of all tokens."""
    if bias is None and rules.expert_groups == 1:
        return np.argsort(-x, axis=-1, kind="stable")[..., : rules.top_k]
    return np.array([[_chosen(token, rules, bias) for token in row] for row in x])


def _positions(choices: Choices, experts: int) -> np.ndarray:
    """int [B, L, E]."""
    position = np.full((*choices.expert.shape[:2], experts), -1)
    for b, l, k in np.argwhere(choices.position >= 0):
        position[b, l, choices.expert[b, l, k]] = choices.position[b, l, k]
    return position


# ------------------------------------------------------------------------------------- scores
def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_back(p: np.ndarray, dp: np.ndarray) -> np.ndarray:
    """The gradient by x of p = softmax(x)."""
    return p * (dp - np.sum(p * dp, axis=-1, keepdims=True))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _clipped(logits: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Clipped logits, and where the clip lets gradients through."""
    limit = rules.logit_clip or np.inf
    return np.clip(logits, -limit, limit), np.abs(logits) <= limit


def _scores(x: np.ndarray, rules: Rules) -> np.ndarray:
    return _softmax(x) if rules.scores == "softmax" else _sigmoid(x)


def _scores_back(x: np.ndarray, ds: np.ndarray, rules: Rules) -> np.ndarray:
    s = _scores(x, rules)
    return _softmax_back(s, ds) if rules.scores == "softmax" else s * (1 - s) * ds


# -------------------------------------------------------------------------------------- gates
def _combine(
    logits: np.ndarray, choices: Choices, rules: Rules, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Combine weights [B, L, E], and the gradient of their product with the cotangent."""
    x, passes = _clipped(logits, rules)
    scores = _scores(x, rules)
    best = _best(x, rules, bias)
    if rules.experts_choose:  # choice e is expert e, and a gate is the score
        best = np.broadcast_to(np.arange(rules.num_experts), x.shape)
    raw, weight = (np.take_along_axis(v, best, axis=-1) for v in (scores, cotangent(x.shape)))
    placed = rules.gate_scale * (choices.position >= 0)
    over = (choices.position >= 0) if rules.renormalize else np.ones(raw.shape)
    total = np.sum(over * raw, axis=-1, keepdims=True) + _GATE_EPSILON
    if not _normalizes(rules):
        total, over = np.ones_like(total), np.zeros(raw.shape)
    # d(raw_k / total) = d raw_k / total - raw_k * d total / total ** 2
    cost = placed * weight
    by_raw = cost / total - over * np.sum(cost * raw, axis=-1, keepdims=True) / total**2
    combine, ds = np.zeros_like(x), np.zeros_like(x)
    np.put_along_axis(combine, best, placed * raw / total, axis=-1)
    np.put_along_axis(ds, best, by_raw, axis=-1)
    gradient = passes * _scores_back(x, ds, rules)
    return combine, np.zeros_like(gradient) if rules.constant_gates else gradient


def _normalizes(rules: Rules) -> bool:
    if rules.experts_choose:
        return False
    if rules.normalize_one and rules.top_k == 1:
        return True
    several = rules.top_k > 1 and rules.second_policy != "if_dropped"
    return rules.renormalize or (rules.normalize_gates and several)


def _pass_through(
    logits: np.ndarray, combine: np.ndarray, choices: Choices, rules: Rules
) -> np.ndarray:
    """Output of a layer in which tokens without a slot keep their input, times the first gate."""
    lost = np.all(choices.position < 0, axis=-1, keepdims=True)
    kept = logits * _scores(logits, rules).max(-1, keepdims=True)
    return np.where(lost, kept, combine)


# ------------------------------------------------------------------------------------- losses
def _balance(
    layers: list[np.ndarray],
    choices: list[Choices | None],
    counted: np.ndarray,
    rules: Rules,
    bias: np.ndarray | None = None,
) -> tuple[float, list[np.ndarray]]:
    """E * sum_i f_i P_i, a mean over groups; its gradient by the logits of each layer."""
    inputs = [_clipped(logits, rules) for logits in layers]
    shares = [_shares(x, rules) for x, _ in inputs]
    hits = [_hits(x, found, rules, bias) for (x, _), found in zip(inputs, choices, strict=True)]
    back = [np.zeros_like(x) for x, _ in inputs]
    values = []
    units = [[n] for n in range(len(layers))]
    for unit in [[*range(len(layers))]] if rules.layers_pooled else units:
        sets = list(_sets(rules, counted))
        for tokens in sets:
            n = tokens.sum() * len(unit)
            f = sum(hits[layer][tokens].sum(0) for layer in unit) / n
            mean = sum(shares[layer][tokens].sum(0) for layer in unit) / n
            values.append(rules.num_experts * float(f @ mean) / len(sets))
            for layer in unit:
                back[layer][tokens] += rules.num_experts * f / n / len(sets)
    parts = len(layers) if rules.layers_mean and not rules.layers_pooled else 1
    constant = 0.0 if rules.constant_balance or rules.counted_full else 1.0
    gradients = [
        constant * passes * _shares_back(x, dp, rules) / parts
        for (x, passes), dp in zip(inputs, back, strict=True)
    ]
    return sum(values) / parts, gradients


def _sets(rules: Rules, counted: np.ndarray) -> Iterator[np.ndarray]:
    """Masks [B, L] of the tokens of each balance loss; those without tokens are left out."""
    whole = {"batch": len(counted), "sequence": 1, "group": rules.group_sequences}
    step = whole[rules.balance_over]
    for first in range(0, len(counted), step):
        tokens = np.zeros_like(counted)
        tokens[first : first + step] = counted[first : first + step]
        if tokens.any():
            yield tokens


def _shares(x: np.ndarray, rules: Rules) -> np.ndarray:
    """Probabilities [B, L, E] of the balance loss."""
    if rules.scores == "softmax":
        p = _softmax(x)
        return _softmax(p) if rules.shares_again else p
    if rules.share_epsilon:
        s = _sigmoid(x)
        return s / (s.sum(-1, keepdims=True) + rules.share_epsilon)
    return _softmax(-np.logaddexp(0.0, -x))  # sigmoids over their sum, whatever their size


def _shares_back(x: np.ndarray, dp: np.ndarray, rules: Rules) -> np.ndarray:
    """The gradient by x of `_shares`."""
    p = _shares(x, rules)
    if rules.scores == "softmax":
        if rules.shares_again:
            return _softmax_back(_softmax(x), _softmax_back(p, dp))
        return _softmax_back(p, dp)
    slope = 1 - _sigmoid(x)  # of log(sigmoid)
    return slope * _softmax_back(p, dp)


def _hits(
    x: np.ndarray, choices: Choices | None, rules: Rules, bias: np.ndarray | None
) -> np.ndarray:
    """[B, L, E], how often a token counts for an expert in the balance loss."""
    hits = np.zeros(x.shape)
    if rules.counted_full:
        size = rules.group_sequences * x.shape[1]
        return hits + rules.capacity(size) / size
    count = 1 if rules.balance_choices == "first" else rules.top_k
    best = _best(x, rules, bias)[..., :count]
    counts = np.ones(best.shape)
    if rules.counted_when_placed and choices is not None:
        counts = choices.position[..., :count] >= 0
    for k in range(count):
        np.put_along_axis(hits, best[..., k : k + 1], counts[..., k : k + 1], axis=-1)
    return hits / (rules.top_k if rules.share_over_choices and count > 1 else 1)


def _z(
    layers: list[np.ndarray], counted: np.ndarray, rules: Rules
) -> tuple[float, list[np.ndarray]]:
    """The mean over tokens of squared log-sum-exps, and its gradients."""
    n = max(int(counted.sum()), 1)
    total, gradients = 0.0, []
    parts = len(layers) if rules.layers_mean or rules.layers_pooled else 1
    for logits in layers:
        x, passes = _clipped(logits, rules)
        p = _softmax(x)
        seen = {"logits": x, "probabilities": p, "largest": p.max(-1, keepdims=True)}[rules.z_of]
        largest = seen.max(-1)
        log_sum = largest + np.log(np.exp(seen - largest[..., None]).sum(-1))
        value = log_sum**2 if rules.z_squared else log_sum
        total += float(value[counted].sum()) / n / parts
        slope = (2 * log_sum if rules.z_squared else 1.0) * counted / n / parts
        by_seen = slope[..., None] * _softmax(seen)
        if rules.z_of == "largest":
            by_seen = by_seen * (p == seen)
        gradients.append(
            passes * (by_seen if rules.z_of == "logits" else _softmax_back(p, by_seen))
        )
    return total, gradients
