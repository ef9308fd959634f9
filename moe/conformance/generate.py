"""Makes the files of the cases: `python -m moe.conformance.generate [FOLDER]`.

Logits are multiples of 1/8 below 32, so that bfloat16, float16 and float32 hold them exactly. A
case in which rounding could turn a decision (two experts, tokens or draws too close to each other)
is drawn again, except where ties are what is asked about.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe.conformance import cases, oracle, reference
from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.settings import Settings, rules

Shape = tuple[int, int, int]  # B, L, E
Setting = tuple[Shape, dict[str, Any]]
PER_THEME = 20
APART = 1e-3  # least difference of two gates or draws that decide something

# Theme -> (shape, settings); seeds go round.
PLAIN: dict[str, tuple[Setting, ...]] = {
    "top1": (
        ((2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
        ((2, 6, 4), {"top_k": 1, "capacity_factor": 0.5}),
    ),
    "top2": (
        ((2, 6, 4), {"capacity_factor": 1.25}),
        ((2, 6, 4), {"capacity_factor": 2.0}),
    ),
    "top3": (
        ((1, 10, 5), {"top_k": 3, "capacity_factor": 1.5}),
        ((1, 10, 5), {"top_k": 4, "capacity_factor": 2.5}),
    ),
    "raw_gates": (
        ((2, 6, 4), {"normalize_gates": False, "capacity_factor": 1.25}),
        ((1, 10, 5), {"normalize_gates": False, "top_k": 3, "balance_choices": "all"}),
    ),
    "capacity_times_k": (
        ((2, 6, 4), {"capacity_per_choice": True, "capacity_factor": 1.0}),
        ((1, 10, 5), {"capacity_per_choice": True, "capacity_factor": 0.7, "top_k": 3}),
    ),
    "policies": (
        ((2, 6, 4), {"second_policy": "threshold", "capacity_factor": 1.5}),
        ((2, 6, 4), {"second_policy": "none", "capacity_factor": 1.0}),
        ((2, 6, 4), {"second_policy": "if_dropped", "capacity_factor": 1.0}),
    ),
    "random": (
        ((2, 6, 4), {"second_policy": "random", "capacity_factor": 2.0}),
        ((2, 6, 4), {"second_policy": "random", "second_threshold": 0.5}),
    ),
    "prioritised": (
        ((2, 6, 4), {"batch_prioritized": True, "top_k": 1, "capacity_factor": 0.5}),
        ((2, 6, 4), {"batch_prioritized": True, "capacity_factor": 1.0}),
    ),
    "padding": (
        ((2, 6, 4), {"capacity_factor": 1.25}),
        ((2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
    ),
    "ties": (
        ((2, 6, 4), {"capacity_factor": 1.25}),
        ((2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
    ),
    "groups": (
        ((4, 3, 4), {"group_sequences": 4, "capacity_factor": 1.0}),
        ((4, 3, 4), {"group_sequences": 2, "capacity_factor": 1.0, "top_k": 1}),
        ((4, 3, 4), {"group_sequences": 4, "balance_over": "sequence"}),
        ((4, 3, 4), {"group_sequences": 2, "balance_over": "batch"}),
    ),
    "dropless": (
        ((2, 6, 4), {"dispatch": "dropless", "group_sequences": 2, "balance_choices": "all"}),
        ((1, 10, 5), {"dispatch": "dropless", "top_k": 1}),
    ),
    "layers": (
        ((2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
        ((2, 6, 4), {"dispatch": "dropless", "balance_choices": "all", "group_sequences": 2}),
    ),
    "sigmoid": (
        ((2, 6, 4), {"scores": "sigmoid", "dispatch": "dropless", "balance_choices": "all"}),
        ((2, 6, 4), {"scores": "sigmoid", "capacity_factor": 1.25}),
    ),
    "bias": (
        ((2, 6, 4), {"balance_bias": True, "scores": "sigmoid", "capacity_factor": 1.25}),
        ((2, 6, 4), {"balance_bias": True, "balance_choices": "all", "dispatch": "dropless"}),
        ((2, 6, 4), {"balance_bias": True, "top_k": 1, "capacity_factor": 1.0}),
        # All of DeepSeek-V3.
        (
            (1, 8, 8),
            {"balance_bias": True, "scores": "sigmoid", "top_k": 3, "dispatch": "dropless"}
            | {"expert_groups": 4, "groups_per_token": 2, "gate_scale": 2.5},
        ),
    ),
    "expert_groups": (
        ((2, 6, 8), {"expert_groups": 4, "groups_per_token": 2, "capacity_factor": 1.25}),
        (
            (2, 6, 6),
            {"expert_groups": 2, "expert_group_score": "best", "dispatch": "dropless"},
        ),
        (
            (1, 8, 8),
            {"expert_groups": 4, "groups_per_token": 2, "expert_group_score": "best"}
            | {"top_k": 3, "normalize_gates": False, "gate_scale": 16.0, "dispatch": "dropless"},
        ),
    ),
    "experts_choose": (
        ((2, 6, 4), {"router": "experts_choose", "capacity_factor": 2.0}),
        ((4, 3, 4), {"router": "experts_choose", "capacity_factor": 1.0, "group_sequences": 2}),
        ((2, 6, 4), {"router": "experts_choose", "scores": "sigmoid", "capacity_factor": 1.25}),
    ),
}

# Each of these is one case, or two with other numbers.
EDGES: tuple[tuple[str, Shape, dict[str, Any]], ...] = (
    ("one expert", (2, 4, 1), {"top_k": 1}),
    ("one token", (1, 1, 4), {}),
    ("huge", (2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
    ("fewer tokens than experts", (1, 3, 8), {"capacity_factor": 4.0}),
    ("fewer tokens than experts", (1, 3, 8), {"top_k": 1, "capacity_factor": 4.0}),
    ("every expert chosen", (2, 6, 4), {"top_k": 4, "capacity_factor": 1.0}),
    ("every expert chosen", (2, 6, 4), {"top_k": 4, "normalize_gates": False}),
    ("room for more than all", (2, 6, 4), {"capacity_factor": 100.0}),
    ("least capacity", (2, 6, 4), {"capacity_factor": 0.25, "min_capacity": 4}),
    ("least capacity", (2, 6, 4), {"top_k": 1, "capacity_factor": 0.01, "min_capacity": 1}),
    ("rounded", (1, 10, 5), {"capacity_rounding": "round", "capacity_factor": 1.3}),
    ("rounded", (1, 10, 5), {"capacity_rounding": "floor", "capacity_factor": 1.3}),
    ("clipped", (2, 6, 4), {"logit_clip": 1.0, "top_k": 1}),
    ("collapsed", (2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
    ("collapsed", (2, 6, 4), {"capacity_factor": 1.0}),
    ("large", (2, 6, 4), {"capacity_factor": 1.25}),
    ("tiny", (2, 6, 4), {"capacity_factor": 1.25}),
    ("only padding", (2, 6, 4), {}),
    ("not a number", (2, 6, 4), {"capacity_factor": 1.25}),
    ("infinite", (2, 6, 4), {"top_k": 1, "capacity_factor": 1.0}),
)


def main(argv: list[str]) -> int:
    """Writes all files into a folder, by default that of the package."""
    cases.write(everything(), Path(argv[0]) if argv else cases.FOLDER)
    return 0


def everything() -> Iterator[Case]:
    """All cases."""
    for theme in PLAIN:
        for number in range(PER_THEME):
            yield make(theme, number)
    for number in range(len(EDGES)):
        yield make("edges", number)


def make(theme: str, number: int) -> Case:
    """One case; the same whenever it is asked for."""
    what, shape, options = _setting(theme, number)
    settings = Settings(shape[-1], **options)
    place = ["edges", *PLAIN].index(theme)
    bias = np.zeros(settings.num_experts, np.float32)
    for attempt in range(1000):
        random = np.random.default_rng([place, number, attempt])
        draws = random.integers(0, 64, (*shape[:2], settings.top_k - 1)) / np.float32(64)
        count = (3, *shape) if theme == "layers" else shape
        logits = _logits(theme, what, count, random).astype(np.float32)
        mask = _mask(theme, what, shape, random)
        if settings.balance_bias:
            bias = random.integers(-24, 25, settings.num_experts).astype(np.float32) / 64
        case = Case(f"{theme}/{number:02d}", settings, logits, mask, draws, bias, None, Answer())
        if theme == "ties" or (_decided(logits, mask, draws, settings) and _apart(case)):
            return _answered(case)
    raise ValueError(f"no case {theme}/{number} without close decisions")


def _setting(theme: str, number: int) -> tuple[str, Shape, dict[str, Any]]:
    """(kind of edge, shape, options) of a case."""
    if theme == "edges":
        return EDGES[number]
    shape, options = PLAIN[theme][number % len(PLAIN[theme])]
    return "", shape, options


def _logits(
    theme: str, what: str, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Different multiples of 1/8 for each token, more of them for some experts than for others."""
    experts = shape[-1]
    numbers = np.arange(-24, 25)
    tokens = [
        random.choice(numbers, experts, replace=False) for _ in range(int(np.prod(shape[:-1])))
    ]
    likes = random.integers(-12, 13, (*shape[:-3], 1, 1, experts))
    logits = (np.array(tokens).reshape(shape) + likes) / 8
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ties": lambda x: np.round(x / 2),
        "clipped": lambda x: x / 4,
        "collapsed": lambda x: x + 16 * (np.arange(experts) == 2),
        "huge": lambda x: x * 1024,  # float32 has no second probability
        "large": lambda x: x * 8,
        "tiny": lambda x: x / 1024,
        "not a number": lambda x: _broken(x, np.nan),
        "infinite": lambda x: _broken(x, np.inf),
    }
    if theme == "sigmoid" and random.random() < 0.5:
        # As a router can learn to: all sigmoids of many tokens below 1e-20.
        logits[:, ::2] -= 56
    return changes.get(what or theme, lambda x: x)(logits)


def _broken(logits: np.ndarray, value: float) -> np.ndarray:
    logits[0, 2, 1] = value
    logits[-1, 4, 3] = -value
    return logits


def _mask(theme: str, what: str, shape: Shape, random: np.random.Generator) -> np.ndarray:
    mask = np.ones(shape[:2], bool)
    if theme == "padding":  # on the right, on the left, and in between
        length = random.integers(2, shape[1], (shape[0], 1))
        mask = np.arange(shape[1]) < length
        if random.random() < 0.3:
            mask = mask[:, ::-1].copy()
        elif random.random() < 0.3:
            mask = random.random(shape[:2]) < 0.6
    return mask & (what != "only padding")


def _decided(logits: np.ndarray, mask: np.ndarray, draws: np.ndarray, settings: Settings) -> bool:
    """Whether no decision hangs on the last digits."""
    for layer in logits if logits.ndim == 4 else [logits]:
        firsts = []
        for at in np.argwhere(mask & np.isfinite(layer).all(-1)):
            x = oracle.clipped(layer[tuple(at)].astype(float), settings)  # pyright: ignore[reportArgumentType]
            if len(set(x)) < len(x):
                return False
            p = oracle.softmax(x)
            best = np.sort(p)[::-1][: settings.top_k]
            firsts.append(best[0])
            gates = best[1:] / best.sum()
            if np.any(np.abs(gates - settings.second_threshold) < APART):
                return False
            if np.any(np.abs(draws[tuple(at)] - gates / settings.second_threshold) < APART):
                return False
        gaps = np.diff(np.sort(np.array(firsts, np.float64)))
        close = bool((gaps < APART / 10).any())
        if settings.batch_prioritized and close:
            return False
    return True


def _apart(case: Case) -> bool:
    """Whether that by which experts, their groups or tokens are compared is apart, where it is more
    than logits.
    """
    settings = case.settings
    if not settings.extensions:
        return True
    x = case.logits.astype(float)
    scores = np.array([[oracle.scores_of(t, settings)[0] for t in row] for row in x])  # pyright: ignore[reportArgumentType]
    if settings.experts_choose:
        scores = scores.reshape(-1, case.group_size, x.shape[-1])
        return _is_apart(np.moveaxis(scores, 1, -1))
    affinity = np.sort((scores + case.bias).reshape(*x.shape[:2], settings.expert_groups, -1))
    count = {"top2": 2, "best": 1}[settings.expert_group_score]
    worth = affinity[..., -count:].sum(-1)
    return _is_apart(worth) and _is_apart(scores + case.bias)


def _is_apart(values: np.ndarray) -> bool:
    """Whether no two along the last axis are close."""
    return bool((np.diff(np.sort(values, axis=-1), axis=-1) > APART / 10).all())


def _answered(case: Case) -> Case:
    """With its answer."""
    logits, mask, draws, asked = case.logits, case.mask, case.draws, rules(case.settings)
    if logits.ndim == 4:
        answer = reference.answer_of_layers(logits, mask, draws, asked)
        return dataclasses.replace(case, expected=answer)
    answer = reference.answer(logits, mask, draws, asked, bias=case.bias)
    finite = np.asarray(np.isfinite(logits).all(-1))
    usable = np.where(finite[..., None], logits, 0.0).astype(float)
    bias = case.bias if case.settings.balance_bias else None
    choices = reference.choose(usable, mask & finite, draws, asked, bias)
    assert answer.combine is not None
    gate = np.zeros(choices.expert.shape)
    for b, l, k in np.argwhere(choices.position >= 0):
        gate[b, l, k] = answer.combine[b, l, choices.expert[b, l, k]]
    choices = dataclasses.replace(choices, gate=gate)
    return dataclasses.replace(case, choices=choices, expected=answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
