"""T5's relative position bias (arXiv 1910.10683, section 2.1): one table a stack, shared by its
layers.

Letters: Q queries, K keys, N heads, R buckets. Half of the buckets stand for single distances, the
other half for distances that grow geometrically up to `max_distance`; all farther ones share the
last. An encoder keeps half of all buckets for keys behind the query and half for keys ahead.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.model.layer import Layer
from trainlib.model.weights import Initializer, declare
from trainlib.sharding.constrain import constrain

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
    """
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


@functools.cache
def _table_init(scale: float) -> Initializer:
    return jax.nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


class RelativeBias(Layer):
    """Bias [1, N, Q, K] float32 that is added to attention logits.

    Args:
      num_heads: N.
      bidirectional: True in an encoder.
      init_scale: of the uniform initialiser over the mean of both fans.
      buckets: R.
      max_distance: see `relative_buckets`.
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        bidirectional: bool,
        init_scale: float = 1.0,
        buckets: int = BUCKETS,
        max_distance: int = MAX_DISTANCE,
        rngs: nnx.Rngs | None = None,
    ):
        self.bidirectional, self.buckets, self.max_distance = bidirectional, buckets, max_distance
        init = _table_init(init_scale)
        self.table = declare((buckets, num_heads), ("buckets", "head"), init, rngs)

    def __call__(self, queries: int, keys: int, first_query: int = 0) -> jax.Array:
        """[1, N, Q, K] float32 for the queries first_query to first_query + Q - 1 and the keys 0 to
        K - 1 of one array.

        Positions in the array serve packed sequences too: inside one segment the difference of two
        array positions is that of the segment's own, and other pairs are masked.
        """
        query = np.arange(first_query, first_query + queries)
        return self._read(self._buckets(query, keys))

    def at(self, position: jax.Array, keys: int) -> jax.Array:
        """Bias [1, N, 1, K] of one query at `position`, an int32 scalar that may be traced."""
        buckets = jnp.asarray(self._buckets(np.arange(keys), keys))  # [K, K]
        return self._read(jax.lax.dynamic_slice_in_dim(buckets, position, 1))

    def _buckets(self, query: np.ndarray, keys: int) -> np.ndarray:
        """int32 [Q, K]."""
        offsets = np.arange(keys)[None, :] - query[:, None]
        return relative_buckets(
            offsets,
            bidirectional=self.bidirectional,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )

    def _read(self, buckets: np.ndarray | jax.Array) -> jax.Array:
        """int32 [Q, K] -> [1, N, Q, K]."""
        # A product with a one-hot matrix: the gradient of a lookup would be a scatter of Q x K rows
        # into R. Full precision, because the matrix units of a TPU would round the table.
        chosen = jax.nn.one_hot(jnp.asarray(buckets), self.buckets, dtype=jnp.float32)  # [Q, K, R]
        bias = jnp.einsum("qkr,rn->nqk", chosen, self.table[...], precision="highest")
        # By heads, as attention reads it: its gradient is then added up over the data axis alone.
        return constrain(bias[None], None, "head", None, None)
