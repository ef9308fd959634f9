"""Words to vectors and back: the input table, the output logits.

Letters: B batch, L length, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from moe.layers.init import NORMAL, scaled_fan_in
from moe.layers.product import product
from moe.layers.residual import to_layer
from trainlib.model.layer import Layer, named
from trainlib.model.weights import declare
from trainlib.sharding.constrain import active, constrain, platform


class Embedding(Layer):
    """The input table [V, D], shared by encoder and decoder; D lies over the mesh axis `model`.

    Args:
      vocab_size: V.
      d_model: D.
      reduce: see `product`.
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        reduce: str = "float32",
        *,
        rngs: nnx.Rngs | None = None,
    ):
        self.reduce = reduce
        self.table = declare((vocab_size, d_model), ("tokens", "table"), NORMAL, rngs)

    def __call__(self, tokens: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """int32 [B, L] -> [B, L, D] in `dtype`; see `lookup`."""
        return lookup(self.table[...], tokens, dtype)

    def scaled(self, x: jax.Array) -> jax.Array:
        """[B, L, D] times 1/sqrt(D), as T5 does before a product with the table as output."""
        return x * x.shape[-1] ** -0.5

    @named
    def attend(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> logits [B, L, V] float32 of a tied output."""
        scaled = to_layer(self.scaled(x))
        logits = product(scaled, self.table, self.reduce, out=jnp.float32, transposed=True)
        return constrain(logits, "layer_batch", None, "vocab")


class Output(Layer):
    """The output matrix [D, V] of an untied model; V lies over the mesh axis `model`.

    Args:
      d_model: D.
      vocab_size: V.
      init_scale: see `scaled_fan_in`.
      reduce: see `product`.
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        init_scale: float = 1.0,
        reduce: str = "float32",
        *,
        rngs: nnx.Rngs | None = None,
    ):
        self.reduce = reduce
        init = scaled_fan_in(init_scale)
        self.kernel = declare((d_model, vocab_size), ("embed", "vocab"), init, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> logits [B, L, V] float32."""
        logits = product(to_layer(x), self.kernel, self.reduce, out=jnp.float32)
        return constrain(logits, "layer_batch", None, "vocab")


def lookup(table: jax.Array, tokens: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Vectors [B, L, D] in `dtype` of tokens int32 [B, L] from a table float32 [V, D].

    Gradients of a word are added in float32, whatever `dtype` is. A token that the table does not
    have gives NaN; on a TPU, where that would take a pass over the result, its sequence begins
    with a NaN instead, which every later position sees.

    On a mesh each device looks up its own sequences. Where the mesh axis `model` splits D, it looks
    its part of D up for all sequences of its data index, and one all-to-all turns "all sequences,
    part of D" into "some sequences, all of D". The automatic partitioner would copy the whole
    result to every device.
    """
    rows: Any = _rows if platform() == "tpu" else _plain_rows
    sharding = active()
    if sharding is None or sharding[0].size == 1:
        return rows(table, tokens, dtype)
    mesh, rules = sharding

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        parts = rows(table, tokens, dtype)  # [b, L, D / model]
        if mesh.shape.get("model", 1) == 1:
            return parts
        return jax.lax.all_to_all(parts, "model", split_axis=0, concat_axis=2, tiled=True)

    specs = P(None, rules["table"]), P(rules["layer_batch"])
    gathered = jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=P(rules["batch"]), check_vma=False
    )
    return gathered(table, tokens)


def _plain_rows(table: jax.Array, tokens: jax.Array, dtype: DTypeLike) -> jax.Array:
    return jnp.take(table, tokens, axis=0).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table: jax.Array, tokens: jax.Array, dtype: DTypeLike) -> jax.Array:
    x = jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)
    unknown = jnp.any((tokens < 0) | (tokens >= len(table)), axis=-1)
    return x.at[:, :1, 0].add(jnp.where(unknown, jnp.nan, 0).astype(dtype)[:, None])


def _rows_forward(
    table: jax.Array, tokens: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows(table, tokens, dtype), (table, tokens)


def _rows_backward(
    _dtype: DTypeLike, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, None]:
    # A TPU adds rows in the order of their words. Left to the compiler, it sorts them in float32,
    # twice the bytes.
    table, tokens = residuals
    words = jnp.clip(tokens.reshape(-1), 0, table.shape[0] - 1)
    order = jnp.argsort(words)
    rows = dy.reshape(-1, table.shape[1])[order].astype(table.dtype)
    added = (
        jnp.zeros_like(table)
        .at[words[order]]
        .add(rows, indices_are_sorted=True, mode="promise_in_bounds")
    )
    return added, None


_rows.defvjp(_rows_forward, _rows_backward)
