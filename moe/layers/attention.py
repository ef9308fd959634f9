"""Multi-head attention as in T5 v1.1: no biases, no scaling of the logits.

Letters: B batch, Q queries, K keys, N heads, H width of one head, D model width.

The factor 1/sqrt(H) of the usual attention is in the initialiser of the query matrix instead.
Projections are stored fused, [D, N*H]: the factored optimiser then sees D and N*H, not one head's
small matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from moe.kernels.buckets import MAX_DISTANCE
from moe.layers.attention_bias import AttentionBias, BiasArrays
from moe.layers.dropout import dropout
from moe.layers.init import scaled_fan_in
from moe.layers.product import product
from moe.layers.residual import to_layer, to_residual
from trainlib.model.layer import Layer
from trainlib.model.remat import PRODUCT, SCORES, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import constrain

# Finite, so that a query without any key gets an even mixture and no NaN: float32 rounds what is
# added to the logit of such a key away.
MASKED = -1e9
Bias = AttentionBias | BiasArrays | None


@jax.named_scope("attend")
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention with float32 logits and softmax.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      value: [B, K, N, H].
      bias: float32 [1 or B, N, Q, K], or None.
      mask: bool [B, 1, Q, K], or None where a query sees all keys.
      drop: applied to the probabilities [B, N, Q, K].

    Returns:
      ([B, Q, N, H] in the type of `value`, logsumexp of the logits float32 [B, N, Q]).
    """
    logits = jnp.einsum("bqnh,bknh->bnqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        # Added, not chosen: XLA for TPUs then takes the maximum of a row with the product, and
        # not in a pass of its own.
        logits = logits + jnp.where(mask, 0.0, MASKED)
    # Here and below: without it the backward pass splits the scores by batch, not by heads, and
    # gathers whole projections for that.
    logits = constrain(logits, "layer_batch", "head", None, None)
    logits = keep(SCORES, logits)
    normaliser = jax.nn.logsumexp(logits, axis=-1)  # [B, N, Q]
    probabilities = jax.nn.softmax(logits, axis=-1).astype(value.dtype)  # [B, N, Q, K]
    if drop is not None:
        probabilities = drop(probabilities)
    mixed = jnp.einsum("bnqk,bknh->bqnh", probabilities, value)
    return keep(SCORES, constrain(mixed, "layer_batch", None, "head", None)), normaliser


def t5_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias_table: jax.Array | None = None,
    bidirectional: bool = True,
    max_distance: int = MAX_DISTANCE,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    causal: bool = False,
    first_query: int = 0,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of T5: logits q . k + bias(distance), which are not scaled, and a float32 softmax.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      value: [B, K, N, H].
      bias_table: float32 [R, N], the bias of each bucket of distances; None: no bias, as in
        cross-attention.
      bidirectional: of the buckets, see `moe.kernels.buckets.relative_buckets`: True in an encoder.
      max_distance: of the buckets; farther keys share the last one.
      query_segments: int32 [B, Q]. A query sees the keys of its own segment, and 0 is padding: what
        such a query gives is not to be read. None: all tokens are of one segment.
      key_segments: int32 [B, K]; needed with `query_segments`.
      causal: a query sees no key after it, by positions in the array of the keys.
      first_query: position of the first query in that array.
      dropout_rate: share of keys that is dropped, one draw for all queries of a sequence and head.
      dropout_key: random key; None switches dropout off.

    Returns:
      ([B, Q, N, H] in the type of `value`, logsumexp of the logits float32 [B, N, Q]).

    Raises:
      ValueError: segments of queries without those of keys, or the reverse.
    """
    if (query_segments is None) != (key_segments is None):
        raise ValueError("Segments of queries and of keys: give both, or neither.")
    bias = AttentionBias(
        table=bias_table,
        query_segments=query_segments,
        key_segments=key_segments,
        bidirectional=bidirectional,
        max_distance=max_distance,
        causal=causal,
        first_query=first_query,
    )
    return attend_by(query, key, value, bias, dropout_rate=dropout_rate, dropout_key=dropout_key)


def attend_by(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: Bias,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same with what is added to the logits as one object; see `t5_attention`."""
    drop = None
    if dropout_key is not None and dropout_rate:
        drop = functools.partial(dropout, rate=dropout_rate, key=dropout_key)
    if isinstance(bias, AttentionBias):
        bias = bias.arrays(query.shape[1], key.shape[1])
    added = bias or BiasArrays()
    return attend(query, key, value, added.bias, added.mask, drop=drop)


class Attention(Layer):
    """Self- or cross-attention, [B, Q, D] -> [B, Q, D]; heads lie over the mesh axis `model`.

    Args:
      d_model: D.
      num_heads: N.
      head_dim: H.
      init_scale: see `scaled_fan_in`.
      dropout_rate: of the attention probabilities.
      reduce: see `product`.
      rngs: see `trainlib.model.weights.declare`.
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
        rngs: nnx.Rngs | None = None,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout_rate, self.reduce = dropout_rate, reduce
        inner = num_heads * head_dim
        init, query_init = scaled_fan_in(init_scale), scaled_fan_in(init_scale / head_dim)
        self.query = declare((d_model, inner), ("embed", "heads"), query_init, rngs)
        self.key = declare((d_model, inner), ("embed", "heads"), init, rngs)
        self.value = declare((d_model, inner), ("embed", "heads"), init, rngs)
        self.out = declare((inner, d_model), ("heads", "embed"), init, rngs)

    def __call__(
        self,
        x: jax.Array,
        source: jax.Array | None = None,
        *,
        bias: Bias = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Attends from `x` to `source`.

        Args:
          x: [B, Q, D].
          source: [B, K, D]; None is self-attention.
          bias: what is added to the logits, as rules or as arrays; None: nothing.
          dropout_key: random key of the dropout; None switches it off.

        Returns:
          ([B, Q, D], logsumexp of the logits float32 [B, N, Q], for the z-loss on attention).
        """
        x = to_layer(x)
        keys, values = self.keys_values(x if source is None else to_layer(source))
        return self.attend_to(x, keys, values, bias=bias, dropout_key=dropout_key)

    def keys_values(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, N, H] of a source [B, K, D]."""
        return self._project(source, self.key), self._project(source, self.value)

    def attend_to(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        *,
        bias: Bias = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Attends from `x` [B, Q, D] to ready keys and values [B, K, N, H]; for the other arguments
        and the result see `__call__`.
        """
        query = self._project(x, self.query)
        mixed, normaliser = attend_by(
            query, keys, values, bias, dropout_rate=self.dropout_rate, dropout_key=dropout_key
        )
        mixed = mixed.reshape(*x.shape[:2], self.num_heads * self.head_dim)  # [B, Q, N*H]
        return keep(PRODUCT, to_residual(product(mixed, self.out, self.reduce))), normaliser

    def _project(self, x: jax.Array, weight: nnx.Param) -> jax.Array:
        """[B, L, D] -> [B, L, N, H]."""
        y = product(x, weight, self.reduce)
        y = y.reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return keep(PRODUCT, constrain(y, "layer_batch", None, "head", None))
