"""What follows from the figures of a router: how uneven the load is, which experts lie idle, how
far the routing of a text has moved.

Letters: E experts, K choices of a token, T tokens.
"""

from __future__ import annotations

import math

import numpy as np

IDLE = 0.01  # an expert that is sent less than this part of an even share does not learn


def uneven(load: np.ndarray) -> dict[str, float]:
    """How uneven the load of a layer is; NaN where nothing was sent.

    Args:
      load: float [E], share of the choices sent that each expert got, as of `METRICS`.

    Returns:
      violation_max and violation_mean, the largest and the mean of |E * load - 1| over experts, of
      which the largest is that of the busiest (MaxVio of arXiv 2408.15664: 0 is even, E - 1 is all
      on one); spread, exp of the entropy of the load: over how many experts it is spread, 1 to E.
    """
    relative = load * len(load)
    logs = np.log(load, where=load > 0, out=np.zeros_like(load))
    return {
        "violation_max": float(np.max(relative) - 1),
        "violation_mean": float(np.mean(np.abs(relative - 1))),
        "spread": float(np.exp(-np.sum(load * logs))),
    }


def idle_for(load: np.ndarray, before: np.ndarray, steps: int) -> np.ndarray:
    """For how many steps each expert has been idle, see `IDLE`, from the first record that says so:
    of the steps before that one nothing is known.

    Args:
      load: float [E] at this step; NaN, where nothing was sent, says nothing of any expert.
      before: [E], the same at the record before.
      steps: since then.
    """
    if np.isnan(load).any():
        return before
    longer = np.where(before > 0, before + steps, 1.0)
    return np.where(load * len(load) < IDLE, longer, 0.0)


def sent_to(expert: np.ndarray, experts: int) -> np.ndarray:
    """uint8 [T, ceil(E / 8)]: which experts each token was sent to, as packed bits.

    Args:
      expert: int [.., K], the expert of each choice; E: not sent.
      experts: E.
    """
    flat = expert.reshape(-1, expert.shape[-1])
    sent = np.zeros((len(flat), experts + 1), bool)
    np.put_along_axis(sent, flat, True, axis=-1)
    return np.packbits(sent[:, :experts], axis=-1)


def churn(before: np.ndarray, now: np.ndarray) -> float:
    """1 - cosine of two routings of `sent_to`: 0 where every token goes where it went, 1 where none
    does. With as many choices sent both times it is the share of the choices that moved; NaN where
    nothing was sent.
    """
    both, *alone = (float(np.bitwise_count(bits).sum()) for bits in (before & now, before, now))
    lengths = math.sqrt(alone[0] * alone[1])
    return 1.0 - both / lengths if lengths else math.nan
