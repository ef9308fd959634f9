"""T5's buckets of relative positions (arXiv 1910.10683, section 2.1).

Half of the buckets stand for single distances, the other half for distances that grow geometrically
up to `max_distance`; all farther ones share the last. An encoder keeps half of all buckets for keys
behind the query and half for keys ahead.
"""

from __future__ import annotations

import math

import numpy as np

from trainlib.errors import InputError

BUCKETS, MAX_DISTANCE = 32, 128  # of all published models


def relative_buckets(
    offsets: np.ndarray,
    *,
    bidirectional: bool,
    buckets: int = BUCKETS,
    max_distance: int = MAX_DISTANCE,
) -> np.ndarray:
    """Bucket of each offset (key position minus query position), int32 in the shape of `offsets`.

    Bucket of a distance n, with H buckets for this direction and E = H / 2 exact ones:
    n for n < E, else min(H - 1, E + floor(log(n / E) / log(max_distance / E) * (H - E))).

    The logarithms are float32 in this order of operations, as in T5: at the seams another order
    falls on the other side.

    Raises:
      InputError: no bucket is exact, or the exact ones reach `max_distance`.
    """
    sides = 2 if bidirectional else 1
    if not 1 <= buckets // sides // 2 < max_distance:
        raise InputError(
            f"{buckets} buckets of relative positions and max_distance={max_distance}: there are "
            f"at least {2 * sides} buckets, and max_distance is more than the exact ones of a "
            f"direction, {buckets // sides // 2}."
        )
    first = np.zeros(offsets.shape, np.int32)
    distance = -offsets
    if bidirectional:
        buckets //= 2
        first = np.where(distance < 0, buckets, 0).astype(np.int32)
        distance = np.abs(distance)
    distance = np.maximum(distance, 0)
    exact = buckets // 2
    far = np.maximum(distance, 1).astype(np.float32) / exact
    steps = np.log(far) / math.log(max_distance / exact) * (buckets - exact)
    far_bucket = np.minimum(exact + steps.astype(np.int32), buckets - 1)
    return (first + np.where(distance < exact, distance, far_bucket)).astype(np.int32)
