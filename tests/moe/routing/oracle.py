"""The rules of routing and the sparse layer written out token by token in NumPy: what tests compare
with. Nothing here is shared with the product, and nothing is vectorised over tokens.
"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_sum_exp(x):
    return x.max() + np.log(np.exp(x - x.max()).sum())


def capacity(config, size, train):
    factor = config.capacity_factor if train else config.capacity_factor_eval
    exact = factor * size / config.num_experts * (config.top_k if config.capacity_per_choice else 1)
    rows = math.floor(exact + 1e-9) if config.capacity_rounding == "floor" else round(exact)
    return max(min(size, rows), config.min_capacity)


def is_sent(rule, gate, draw, config):
    likely = {"all": 1.0, "none": 0.0, "threshold": float(gate > config.second_threshold)}
    return draw < likely.get(rule, gate / config.second_threshold)


def route_group(logits, mask, draws, config, train):
    """One group. logits [S, E] float32, mask [S], draws [S, K-1].

    Returns (assignment, gates, losses, metrics): assignment[s][k] is (expert, row), "dropped" or
    "unsent".
    """
    size, experts = logits.shape
    choices, rows = config.top_k, capacity(config, size, train)
    if config.dispatch != "index":
        rows = size
    finite = np.isfinite(logits).all(-1)
    valid = mask & finite
    rule = config.second_policy if train else config.second_policy_eval
    best, gates, sent, probs = {}, np.zeros((size, choices)), np.zeros((size, choices), bool), {}
    for s in range(size):
        if not valid[s]:
            continue
        x = logits[s].astype(np.float32)
        if config.logit_clip:
            x = np.clip(x, -config.logit_clip, config.logit_clip)
        probs[s] = softmax(x)
        best[s] = sorted(range(experts), key=lambda e: (-x[e], e))[:choices]
        raw = np.array([probs[s][e] for e in best[s]])
        normal = raw / (raw.sum() + np.float32(1e-9))
        alone = choices == 1 or rule == "if_dropped" or not config.normalize_gates
        gates[s] = raw if alone else normal
        for k in range(choices):
            sent[s, k] = k == 0 or is_sent(rule, normal[k], draws[s][k - 1], config)
    order = [s for s in range(size) if valid[s]]
    if config.batch_prioritized:
        order.sort(key=lambda s: -probs[s][best[s][0]])
    used = np.zeros(experts, int)
    assignment = [["unsent"] * choices for _ in range(size)]
    for k in range(choices):
        for s in order:
            if rule == "if_dropped":
                sent[s, k] = not any(isinstance(place, tuple) for place in assignment[s])
            if sent[s, k]:
                expert = best[s][k]
                taken = used[expert] < rows
                assignment[s][k] = (expert, used[expert]) if taken else "dropped"
                used[expert] += taken
    for s in range(size):
        for k in range(choices):
            gates[s, k] *= isinstance(assignment[s][k], tuple)
    return assignment, gates, *_report(logits, mask, probs, best, assignment, sent, config)


def _report(logits, mask, probs, best, assignment, sent, config):
    experts = logits.shape[1]
    tokens = sorted(probs)
    count = len(tokens)
    chosen = [
        e for s in tokens for e in best[s][: 1 if config.balance_choices == "first" else None]
    ]
    share = np.bincount(chosen, minlength=experts) / max(count, 1)
    mean = sum((probs[s] for s in tokens), np.zeros(experts)) / max(count, 1)
    clip = config.logit_clip or np.inf
    z = sum(log_sum_exp(np.clip(logits[s], -clip, clip).astype(float)) ** 2 for s in tokens)
    flat = [(s, k) for s in tokens for k in range(config.top_k) if sent[s, k]]
    losses = {"balance": (experts * float(share @ mean), float(count > 0)), "z": (z, count)}
    entropy = sum(-sum(p * np.log(p) for p in probs[s] if p > 0) for s in tokens)
    largest = max((np.abs(np.clip(logits[s], -clip, clip)).max() for s in tokens), default=0.0)
    lost = [s for s in tokens if not any(isinstance(a, tuple) for a in assignment[s])]
    metrics = {
        "load": (np.bincount([best[s][k] for s, k in flat], minlength=experts), len(flat)),
        "dropped_choices": (sum(assignment[s][k] == "dropped" for s, k in flat), len(flat)),
        "dropped_tokens": (len(lost), count),
        "entropy": (entropy, count),
        "max_logit": (largest, float(count > 0)),
        "second_rate": (sum(k > 0 for _, k in flat), count),
        "nonfinite": (int((mask & ~np.isfinite(logits).all(-1)).sum()), int(mask.sum())),
    }
    return losses, metrics


def one_hot_layer(x, assignment, gates, expert, experts, rows):
    """The one-hot einsum form of dispatch and combine (Mesh TensorFlow), for one group.

    Args:
      x: [S, D].
      assignment: int [S, K] slots e * rows + c, experts * rows where there is none.
      gates: [S, K].
      expert: function [E, C, D] -> [E, C, D].
    """
    import jax.numpy as jnp

    slot = assignment[..., None] == jnp.arange(experts * rows)
    dispatch = slot.astype(x.dtype).reshape(*assignment.shape, experts, rows)
    combine = jnp.einsum("skec,sk->sec", dispatch, gates)
    out = expert(jnp.einsum("skec,sd->ecd", dispatch, x))
    return jnp.einsum("sec,ecd->sd", combine, out)
