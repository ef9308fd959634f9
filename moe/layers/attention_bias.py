"""What is added to the logits of attention: a relative bias, and a mask of segments and causality.

Letters: B batch, Q queries, K keys, N heads, R buckets.

As rules (`AttentionBias`) it is a table and two rows of segments, and an attention that makes each
tile of logits on its own never has an array of pairs. As arrays (`BiasArrays`) it is what plain
attention adds; the layers of a stack share them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.layers.position import MAX_DISTANCE, RelativeBias, relative_bias


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
      bidirectional: of the buckets; see `moe.layers.position.relative_buckets`.
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
            raise ValueError("Segments are those of queries and keys: both are needed, or neither.")

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
