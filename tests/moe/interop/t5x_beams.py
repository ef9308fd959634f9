"""T5X's beam search, written once more in plain NumPy from its published rule, to compare with.

Rule: `t5x.decoding.beam_search` and `brevity_penalty` (github.com/google-research/t5x). What this
keeps of T5X: the order of beams (the best is the last), which settles ties; the end of the search,
with a penalty of L + 1 tokens; answers without a length penalty where no hypothesis has ended.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 over the last axis."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def penalty(tokens: int, alpha: float) -> float:
    return ((5 + tokens) / 6) ** alpha


def search(
    logits_of: Callable[[list[tuple[int, ...]]], np.ndarray],
    beams: int,
    alpha: float,
    length: int,
    forbidden: Callable[[int], set[int]] = lambda position: set(),
    end: int = 1,
) -> list[tuple[float, float, tuple[int, ...]]]:
    """The answers to one input, best first: (score of T5X, log-probability, words).

    Args:
      logits_of: [V] after each of some prefixes, all of one size.
      beams: K.
      alpha: of the penalty.
      length: L.
      forbidden: words that are no continuations at a position.
      end: EOS.
    """
    live = [(0.0, ())]
    done: list[tuple[float, float, tuple[int, ...]]] = []
    for size in range(1, length + 1):
        shares = log_softmax(logits_of([words for _, words in live]))
        every = [
            (total + shares[beam, word], (*words, word))
            for beam, (total, words) in enumerate(live)
            for word in range(shares.shape[-1])
            if word not in forbidden(size - 1)
        ]
        likeliest = sorted(every, key=lambda found: -found[0])[: 2 * beams]  # stable
        done += [
            (total / penalty(size, alpha), total, words)
            for total, words in likeliest
            if words[-1] == end
        ]
        done = sorted(done, key=lambda found: -found[0])[:beams][::-1]
        going_on = [found for found in likeliest if found[1][-1] != end][:beams]
        live = going_on[::-1]
        best = live[-1][0] / penalty(length + 1, alpha)
        if len(done) == beams and done[0][0] > best:
            break
    return (done or [(total, total, words) for total, words in live])[::-1]
