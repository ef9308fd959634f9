"""What is added to the logits of attention: T5's relative position bias, and a mask of segments and
causality.

Letters: B batch, Q queries, K keys, N heads, R buckets.

As rules (`AttentionBias`) it is a table and two rows of segments, and an attention that makes each
tile of logits on its own never has an array of pairs. As arrays (`BiasArrays`) it is what plain
attention adds; the layers of a stack share them, as they share the table (arXiv 1910.10683, section
2.1).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.kernels.buckets import BUCKETS, MAX_DISTANCE, relative_buckets
from trainlib.errors import InputError
from trainlib.model.layer import Layer
from trainlib.model.weights import Initializer, declare
from trainlib.sharding.constrain import constrain


def segment_mask(
    queries: jax.Array, keys: jax.Array, *, causal: bool = False, first_query: int = 0
) -> jax.Array:
    """Which keys a query may see: those of its own segment, and with `causal` none after it.

    Args:
      queries: int32 [B, Q] segment numbers; 0 is padding.
      keys: int32 [B, K].
      causal: compares positions in the array.
      first_query: position of the first query in the array of the keys.

    Returns:
      bool [B, 1, Q, K].
    """
    mask = (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]  # [B, Q, K]
    if causal:
        mask &= _causal_mask(queries.shape[1], keys.shape[1], first_query)
    return mask[:, None]


def _causal_mask(queries: int, keys: int, first_query: int) -> jax.Array:
    """bool [Q, K]."""
    positions = first_query + jnp.arange(queries)
    return positions[:, None] >= jnp.arange(keys)[None, :]


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

    def of_distances(self, distances: np.ndarray) -> jax.Array:
        """Bias float32 [N, M] of keys that lie int [M] places after their query."""
        buckets = relative_buckets(
            distances,
            bidirectional=self.bidirectional,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )
        return _read(self.table[...], buckets[None])[0, :, 0]


class BiasArrays(NamedTuple):
    """float32 [1 or B, N, Q, K] and bool [B or 1, 1, Q, K], False where a query does not see a key;
    None where there is nothing to add.
    """

    bias: jax.Array | None = None
    mask: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionBias:
    """The same as rules.

    Attributes:
      table: float32 [R, N], the bias of each bucket of distances; None: no bias.
      query_segments: int32 [B, Q]; a query sees the keys of its own segment, and 0 is padding. Both
        None: it sees all keys.
      key_segments: int32 [B, K].
      bidirectional: of the buckets; see `moe.kernels.buckets.relative_buckets`.
      max_distance: of the buckets.
      causal: a query sees no key after it.
      first_query: position of the first query in the array of the keys.
    """

    table: jax.Array | None = None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    bidirectional: bool = dataclasses.field(default=True, metadata={"static": True})
    max_distance: int = dataclasses.field(default=MAX_DISTANCE, metadata={"static": True})
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    first_query: int = dataclasses.field(default=0, metadata={"static": True})

    def __post_init__(self):
        if (self.query_segments is None) != (self.key_segments is None):
            raise InputError("Segments are those of queries and keys: both are needed, or neither.")

    @classmethod
    def of(
        cls,
        relative: RelativeBias | None = None,
        query_segments: jax.Array | None = None,
        key_segments: jax.Array | None = None,
        *,
        causal: bool = False,
    ) -> AttentionBias:
        """That of a layer which holds the table.

        Args:
          relative: the layer; None: no bias.
          query_segments: int32 [B, Q], or None.
          key_segments: int32 [B, K]; None: the queries are the keys.
          causal: a query sees no key after it.
        """
        rules = cls(
            query_segments=query_segments,
            key_segments=query_segments if key_segments is None else key_segments,
            causal=causal,
        )
        if relative is None:
            return rules
        return dataclasses.replace(
            rules,
            table=relative.table[...],
            bidirectional=relative.bidirectional,
            max_distance=relative.max_distance,
        )

    def arrays(self, queries: int, keys: int) -> BiasArrays:
        """Bias and mask of Q queries and K keys."""
        bias = mask = None
        if self.table is not None:
            bias = relative_bias(
                self.table,
                queries,
                keys,
                bidirectional=self.bidirectional,
                max_distance=self.max_distance,
                first_query=self.first_query,
            )
        if self.query_segments is not None and self.key_segments is not None:
            segments = self.query_segments, self.key_segments
            mask = segment_mask(*segments, causal=self.causal, first_query=self.first_query)
        elif self.causal:
            mask = _causal_mask(queries, keys, self.first_query)[None, None]
        return BiasArrays(bias, mask)
