"""Multi-head attention as in T5 v1.1: no biases, no scaling of the logits.

Letters: B batch, Q queries, K keys, N heads, H width of one head, D model width.

The factor 1/sqrt(H) of the usual attention is in the initialiser of the query matrix instead.
Projections are stored fused, [D, N*H]: the factored optimiser then sees D and N*H, not one head's
small matrix.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.weights import dropout, product, scaled_fan_in, to_batch, to_rows
from trainlib.model.remat import PRODUCT, SCORES, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import constrain

MASKED = -1e9  # finite, so that a query without any key gets an even mixture and no NaN


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
    mask = (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]
    if causal:
        places = first_query + jnp.arange(queries.shape[1])
        mask &= places[:, None] >= jnp.arange(keys.shape[1])[None, :]
    return mask[:, None]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array,
    *,
    drop: functools.partial | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention with float32 logits and softmax.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      value: [B, K, N, H].
      bias: float32 [1 or B, N, Q, K], or None.
      mask: bool [B, 1, Q, K].
      drop: applied to the probabilities.

    Returns:
      ([B, Q, N, H] in the type of `value`, logsumexp of the logits float32 [B, N, Q]).
    """
    logits = jnp.einsum("bqnh,bknh->bnqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    # Here and below: without it the backward pass splits the scores by batch, not by heads, and
    # gathers whole projections for that.
    logits = constrain(jnp.where(mask, logits, MASKED), "rows", "head", None, None)
    logits = keep(SCORES, logits)
    total = jax.nn.logsumexp(logits, axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if drop is not None:
        weights = drop(weights)
    mixed = jnp.einsum("bnqk,bknh->bqnh", weights, value)
    return keep(SCORES, constrain(mixed, "rows", None, "head", None)), total


class Attention(nnx.Module):
    """Self- or cross-attention, [B, Q, D] -> [B, Q, D]; heads lie over the mesh columns.

    Args:
      d_model: D.
      num_heads: N.
      head_dim: H.
      init_scale: see `scaled_fan_in`.
      dropout_rate: of the attention probabilities.
      reduce: see `product`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_dim: int,
        *,
        init_scale: float = 1.0,
        dropout_rate: float = 0.0,
        reduce: str = "float32",
    ):
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout_rate, self.reduce = dropout_rate, reduce
        inner = num_heads * head_dim
        init = scaled_fan_in(init_scale)
        query_init = scaled_fan_in(init_scale / head_dim)
        self.query = declare((d_model, inner), ("embed", "heads"), query_init)
        self.key = declare((d_model, inner), ("embed", "heads"), init)
        self.value = declare((d_model, inner), ("embed", "heads"), init)
        self.out = declare((inner, d_model), ("heads", "embed"), init)

    def _project(self, x: jax.Array, weight: nnx.Param) -> jax.Array:
        y = product(x, weight, self.reduce)
        y = y.reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return keep(PRODUCT, constrain(y, "rows", None, "head", None))

    def __call__(
        self,
        x: jax.Array,
        source: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Attends from `x` [B, Q, D] to `source` [B, K, D] (x itself in self-attention).

        Returns:
          ([B, Q, D], logsumexp of the logits float32 [B, N, Q], for the z-loss on attention).
        """
        own = source is x
        x = to_rows(x)
        keys, values = self.keys_values(x if own else to_rows(source))
        return self.read(x, keys, values, bias, mask, key)

    def keys_values(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, N, H] of a source [B, K, D]."""
        return self._project(source, self.key), self._project(source, self.value)

    def read(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Attends from `x` to ready keys and values; for the arguments see `__call__`."""
        query = self._project(x, self.query)
        drop = None
        if key is not None and self.dropout_rate:
            drop = functools.partial(dropout, rate=self.dropout_rate, key=key)
        mixed, total = attend(query, keys, values, bias, mask, drop=drop)
        mixed = mixed.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return keep(PRODUCT, to_batch(product(mixed, self.out, self.reduce))), total
