"""Multi-head attention as in T5 v1.1: no biases, no scaling of the logits.

Letters: B batch, Q queries, K keys, N heads, H width of one head, D model width.

The factor 1/sqrt(H) of the usual attention is in the initialiser of the query matrix instead.
Projections are stored fused, [D, N*H]: the factored optimiser then sees D and N*H, not one head's
small matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe.kernels.attention import fits, flash_attention, relative_vector
from moe.kernels.attention.blocks import MASKED
from moe.kernels.attention.dropout import keep_mask
from moe.kernels.attention.plan import Shaped
from moe.kernels.buckets import MAX_DISTANCE
from moe.layers.attention_bias import AttentionBias, BiasArrays
from moe.layers.dropout import dropout
from moe.layers.init import scaled_fan_in
from moe.layers.product import projected
from moe.layers.residual import to_layer, to_residual
from trainlib.errors import InputError
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.remat import PRODUCT, SCORES, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import active, constrain, platform, with_automatic_axes
from trainlib.sharding.kernels import kernel_mode
from trainlib.sharding.rules import resolve

# Of queries and keys, the fewer and the more of the two, for the kernel: its blocks have 128 rows,
# and shorter lengths are padded to that (benchmarks/results/2026-11-29_t5_layers.md).
LEAST_LENGTHS = 16, 128
_DROPOUT_OF = ("keys", "pairs")
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
    if platform() == "cpu":
        return _mixed_on_cpu(logits, value, drop)
    normaliser = jax.nn.logsumexp(logits, axis=-1)  # [B, N, Q]
    probabilities = jax.nn.softmax(logits, axis=-1).astype(value.dtype)  # [B, N, Q, K]
    if drop is not None:
        probabilities = drop(probabilities)
    mixed = jnp.einsum("bnqk,bknh->bqnh", probabilities, value)
    return keep(SCORES, constrain(mixed, "layer_batch", None, "head", None)), normaliser


def _mixed_on_cpu(
    logits: jax.Array, value: jax.Array, drop: Callable[[jax.Array], jax.Array] | None
) -> tuple[jax.Array, jax.Array]:
    """[B, Q, N, H] and logsumexp [B, N, Q] from logits [B, N, Q, K], as `attend` has them.

    Normalised after the product, which has H columns and not K: of the arrays of pairs the CPU then
    writes the exponentials alone, and in the backward pass the gradient of the logits.
    """
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    weights = exponentials.astype(value.dtype)
    if drop is not None:
        weights = drop(weights)
    # A product by heads; `einsum` would swap the operands and transpose what comes out.
    mixed = jnp.matmul(weights, value.swapaxes(1, 2), preferred_element_type=jnp.float32)
    mixed = keep(SCORES, mixed)  # as the backward pass reads it
    mixed = (mixed / total).astype(value.dtype)  # [B, N, Q, H]
    mixed = constrain(mixed.swapaxes(1, 2), "layer_batch", None, "head", None)
    return mixed, (top + jnp.log(total))[..., 0]


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
    dropout_of: str = "keys",
) -> tuple[jax.Array, jax.Array]:
    """Attention of T5: logits q . k + bias(distance), which are not scaled, and a float32 softmax.

    On a TPU it is a kernel, forward and backward, that holds tiles of logits alone: nothing of it
    is [.., Q, K], and blocks of keys that no query of a block sees are passed over. Elsewhere, for
    few tokens, for types other than bfloat16 or float32 for all three, and with `first_query`, it
    is the plain form. The kernel has no derivatives in forward mode (`jax.jvp`, `jax.hessian`): the
    plain form has, by `moe.layers.use_kernels("plain")`.
    On a mesh heads lie over the axis `model` and sequences over the others.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      value: [B, K, N, H].
      bias_table: float32 [R, N], the bias of each bucket of distances; None: no bias, as in
        cross-attention.
      bidirectional: of the buckets, see `moe.kernels.buckets.relative_buckets`: True in an encoder.
      max_distance: of the buckets; farther keys share the last one.
      query_segments: int32 [B, Q]. A query sees the keys of its own segment, and 0 is padding: what
        a query that sees no key gives is not to be read. None: all tokens are of one segment.
      key_segments: int32 [B, K]; needed with `query_segments`.
      causal: a query sees no key after it, by positions in the array of the keys.
      first_query: position of the first query in that array.
      dropout_rate: share of probabilities that is dropped.
      dropout_key: random key; None switches dropout off.
      dropout_of: "keys" drops a key for all queries of a sequence and head, as T5 does; "pairs"
        draws for each query and key, by `moe.kernels.attention.dropout`. What is dropped depends
        neither on the form that is taken nor on the mesh.

    Returns:
      ([B, Q, N, H] in the type of `value`, logsumexp of the logits float32 [B, N, Q]).

    Raises:
      InputError: arrays of shapes that do not go together, or of whole numbers where floats are
        needed; segments of queries without those of keys, or the reverse; a rate that is no share;
        another `dropout_of`.
    """
    _check(query, key, value, bias_table)
    for what, x, like in (("query", query_segments, query), ("key", key_segments, key)):
        if x is not None:
            sizes = {"B": like.shape[0], what[0].upper(): like.shape[1]}
            check_array(f"{what}_segments of t5_attention", x, " ".join(sizes), "real", **sizes)
    if dropout_of not in _DROPOUT_OF:
        raise InputError(f"dropout_of={dropout_of!r}: it is of {' or '.join(_DROPOUT_OF)}.")
    if not 0 <= dropout_rate < 1:
        raise InputError(f"dropout_rate={dropout_rate}: it is a share, at least 0 and below 1.")
    bias = AttentionBias(
        table=bias_table,
        query_segments=query_segments,
        key_segments=key_segments,
        bidirectional=bidirectional,
        max_distance=max_distance,
        causal=causal,
        first_query=first_query,
    )
    drop = None
    if dropout_key is not None and dropout_rate:
        drop = Drop(dropout_rate, dropout_key, dropout_of)
    return attend_by(query, key, value, bias, drop)


def _check(query: jax.Array, key: jax.Array, value: jax.Array, table: jax.Array | None) -> None:
    """Raises InputError where these are not what `t5_attention` takes: a kernel would pad them, or
    read what is not there.
    """
    check_array("query of t5_attention", query, "B Q N H", "float")
    batch, _, heads, width = query.shape
    sizes = {"B": batch, "N": heads, "H": width}
    check_array("key of t5_attention", key, "B K N H", "float", **sizes)
    sizes["K"] = key.shape[1]
    check_array("value of t5_attention", value, "B K N H", "float", **sizes)
    if table is not None:
        check_array("bias_table of t5_attention", table, "R N", "float", N=heads)


class Drop(NamedTuple):
    """Dropout of attention; see `t5_attention`."""

    rate: float
    key: jax.Array
    of: str = "keys"

    def probabilities(self, x: jax.Array) -> jax.Array:
        """[B, N, Q, K] without what is dropped, the rest scaled up."""
        if self.of == "keys":
            return dropout(x, self.rate, self.key)
        batch, heads, queries, keys = x.shape
        kept = keep_mask(self.seeds(batch, heads), queries, keys, self.rate)
        return jnp.where(kept, x / (1.0 - self.rate), 0).astype(x.dtype)

    def values(self, x: jax.Array) -> jax.Array:
        """[B, K, N, H] without the dropped keys, the rest scaled up: the same as of probabilities,
        where a key is dropped for all queries.
        """
        # In this order the draws are those for probabilities, [B, N, 1, K].
        return dropout(x.transpose(0, 2, 3, 1), self.rate, self.key).transpose(0, 3, 1, 2)

    def seeds(self, batch: int, heads: int) -> jax.Array:
        """uint32 [B, N]."""
        return jax.random.bits(self.key, (batch, heads))


def attend_by(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Bias, drop: Drop | None = None
) -> tuple[jax.Array, jax.Array]:
    """`t5_attention` with what is added to the logits as one object."""
    rules = AttentionBias() if bias is None else bias
    mode = kernel_for(query, key, rules) if value.dtype == query.dtype else None
    if mode and isinstance(rules, AttentionBias):
        return _by_kernel(query, key, value, rules, drop, mode)
    if isinstance(rules, AttentionBias):
        rules = rules.arrays(query.shape[1], key.shape[1])
    if drop is not None and drop.of == "keys" and platform() == "cpu":  # fewer numbers
        value, drop = drop.values(value), None
    dropped = drop and drop.probabilities
    return attend(query, key, value, rules.bias, rules.mask, drop=dropped)


def kernel_for(query: Shaped, key: Shaped, bias: AttentionBias | BiasArrays) -> str | None:
    """How the kernel runs for [B, Q, N, H] and [B, K, N, H] in the program that is being traced:
    see `kernel_mode`; None where it is the plain form.
    """
    mode = kernel_mode()
    if mode is None or isinstance(bias, BiasArrays) or bias.first_query:
        return None
    for segments, of in ((bias.query_segments, query), (bias.key_segments, key)):
        # Of another batch they are one row for all sequences, which a kernel does not read.
        if segments is not None and segments.shape != of.shape[:2]:
            return None
    vector = None
    if bias.table is not None:
        shape = bias.table.shape[1], 2 * bias.max_distance + 1
        vector = jax.ShapeDtypeStruct(shape, bias.table.dtype)
    if not fits(query, key, vector, causal=bias.causal):
        return None
    lengths = query.shape[1], key.shape[1]
    few = min(lengths) < LEAST_LENGTHS[0] or max(lengths) < LEAST_LENGTHS[1]
    return None if few and mode == "compiled" else mode


def shared(bias: AttentionBias, query: Shaped, key: Shaped) -> AttentionBias | BiasArrays:
    """What the layers of a stack are given: arrays, made once for all of them, where they are to
    compute the plain form.

    Args:
      bias: the rules.
      query: anything with the shape [B, Q, N, H] and the type of the queries.
      key: of the keys, [B, K, N, H].
    """
    if kernel_for(query, key, bias):
        return bias
    return bias.arrays(query.shape[1], key.shape[1])


_AXES = {
    **dict.fromkeys(("query", "key", "value"), ("layer_batch", None, "head", None)),
    **dict.fromkeys(("query_segments", "key_segments"), ("layer_batch", None)),
    **{"table": (None, "head"), "seeds": ("layer_batch", "head")},
}


@jax.named_scope("attend")
def _by_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: AttentionBias,
    drop: Drop | None,
    mode: str,
) -> tuple[jax.Array, jax.Array]:
    """The kernel, on any mesh."""
    seeds = None
    if drop is not None and drop.of == "keys":
        value = drop.values(value)
    elif drop is not None:
        seeds = drop.seeds(query.shape[0], query.shape[2])
    given = {
        **{"query": query, "key": key, "value": value, "table": bias.table, "seeds": seeds},
        **{"query_segments": bias.query_segments, "key_segments": bias.key_segments},
    }
    operands = {name: x for name, x in given.items() if x is not None}

    def attention(_: None, operands: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return _on_mesh(functools.partial(_local, bias, drop, mode), operands)

    return with_automatic_axes(attention, lambda batch: (batch, batch), None, operands)


def _local(
    bias: AttentionBias, drop: Drop | None, mode: str, operands: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The kernel on one device; of `bias` and `drop` only what is static is read."""
    vector = None
    if "table" in operands:
        vector = relative_vector(
            operands["table"],
            bidirectional=bias.bidirectional,
            max_distance=bias.max_distance,
            buckets=len(operands["table"]),
        )
    return flash_attention(
        operands["query"],
        operands["key"],
        operands["value"],
        bias=vector,
        query_segments=operands.get("query_segments"),
        key_segments=operands.get("key_segments"),
        causal=bias.causal,
        dropout_rate=drop.rate if drop else 0.0,
        dropout_seeds=operands.get("seeds"),
        interpret=mode == "interpret",
    )


def _on_mesh(
    local: Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]],
    operands: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on each device's own sequences and heads: a kernel is not partitioned."""
    ambient = active()
    if ambient is None or ambient[0].size == 1:
        return local(operands)
    mesh, rules = ambient

    def spec(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> P:
        return resolve(name, shape, axes, rules, mesh).spec

    query = operands["query"]
    batch, queries, heads, _ = query.shape
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=({name: spec(name, x.shape, _AXES[name]) for name, x in operands.items()},),
        out_specs=(
            spec("out", query.shape, _AXES["query"]),
            spec("logsumexp", (batch, heads, queries), ("layer_batch", "head", None)),
        ),
        check_vma=False,
    )(operands)


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

    lora_scale = 1.0  # of adapters, see `moe.layers.product.projected`

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
        return self._project(source, "key"), self._project(source, "value")

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
        query = self._project(x, "query")
        drop = None
        if dropout_key is not None and self.dropout_rate:
            drop = Drop(self.dropout_rate, dropout_key)
        mixed, normaliser = attend_by(query, keys, values, bias, drop)
        mixed = mixed.reshape(*x.shape[:2], self.num_heads * self.head_dim)  # [B, Q, N*H]
        return keep(PRODUCT, to_residual(projected(self, "out", mixed))), normaliser

    def _project(self, x: jax.Array, name: str) -> jax.Array:
        """[B, L, D] -> [B, L, N, H]."""
        y = projected(self, name, x)
        y = y.reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return keep(PRODUCT, constrain(y, "layer_batch", None, "head", None))
