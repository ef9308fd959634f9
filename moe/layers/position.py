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


def relative_bias(
    table: jax.Array,
    queries: int,
    keys: int,
    *,
    bidirectional: bool,
    max_distance: int = MAX_DISTANCE,
    first_query: int = 0,
) -> jax.Array:
    """The bias of all pairs, from the table.

    Args:
      table: float32 [R, N].
      queries: Q, the places first_query to first_query + Q - 1 of an array.
      keys: K, the places 0 to K - 1 of the same array.
      bidirectional: True in an encoder.
      max_distance: see `relative_buckets`.
      first_query: position of the first query in the array of the keys.

    Returns:
      float32 [1, N, Q, K].
    """
    query = np.arange(first_query, first_query + queries)
    return _read(table, _pairs(query, keys, len(table), bidirectional, max_distance))


def _pairs(
    query: np.ndarray, keys: int, buckets: int, bidirectional: bool, max_distance: int
) -> np.ndarray:
    """Bucket of each pair, int32 [Q, K]."""
    offsets = np.arange(keys)[None, :] - query[:, None]
    return relative_buckets(
        offsets, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )


def _read(table: jax.Array, buckets: np.ndarray | jax.Array) -> jax.Array:
    """int32 [Q, K] -> [1, N, Q, K]."""
    # A product with a one-hot matrix: the gradient of a lookup would be a scatter of Q x K rows
    # into R. Full precision, because the matrix units of a TPU would round the table.
    chosen = jax.nn.one_hot(jnp.asarray(buckets), len(table), dtype=jnp.float32)  # [Q, K, R]
    bias = jnp.einsum("qkr,rn->nqk", chosen, table, precision="highest")
    # By heads, as attention reads it: its gradient is then added up over the data axis alone.
    return constrain(bias[None], None, "head", None, None)


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
        return relative_bias(
            self.table[...],
            queries,
            keys,
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
            first_query=first_query,
        )

    def at(self, position: jax.Array, keys: int) -> jax.Array:
        """Bias [1, N, 1, K] of one query at `position`, an int32 scalar that may be traced."""
        every = np.arange(keys)
        pairs = _pairs(every, keys, self.buckets, self.bidirectional, self.max_distance)
        one = jax.lax.dynamic_slice_in_dim(jnp.asarray(pairs), position, 1)  # [1, K]
        return _read(self.table[...], one)
