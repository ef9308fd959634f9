"""The loss of tokens from the last hidden states, as one function with its own gradient.

Letters: B batch, L length, D model width, V vocabulary.

On a mesh every device takes its own sequences and its own part of the words: hidden states are
gathered over the axis `model` once, a few numbers a token are exchanged, and gradients of hidden
states are scattered back. Only the gradient of the matrix crosses the other axes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe.kernels.cross_entropy import TokenValues, token_values
from moe.layers.product import axes_of, gathered, whole_gradient
from trainlib.sharding.constrain import active

Gradients = tuple[jax.Array, jax.Array]  # of x and of the matrix


class _Static(NamedTuple):
    axes: tuple[str, ...]  # logical, of the matrix [D, V]
    reduce: str
    z_loss: float


def token_loss(
    x: jax.Array,
    weight: nnx.Param,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    reduce: str = "float32",
    transposed: bool = False,
) -> tuple[jax.Array, TokenValues]:
    """sum(weights * (cross_entropy + z_loss * logsumexp(logits)^2)) of logits = x times a matrix.

    Weights that add up to 1 make it a mean, and its gradient is ready after the forward pass.

    Args:
      x: [B, L, D] of the residual stream.
      weight: the matrix [D, V].
      targets: int32 [B, L]; what stands where the weight is 0 does not matter.
      weights: float32 [B, L]; nothing of a token of weight 0 counts, be it NaN.
      z_loss: coefficient of the squared logsumexp.
      reduce: see `moe.layers.product.product`.
      transposed: the matrix is stored as [V, D].

    Returns:
      (float32 scalar, what was measured of each token, which has no gradient).
    """
    axes, matrix = axes_of(weight), weight[...]
    if transposed:
        axes, matrix = axes[::-1], matrix.T
    static = _Static(axes, reduce, z_loss)
    loss, values = cast(Any, _loss(static, x, matrix, targets, weights))
    return loss, jax.lax.stop_gradient(values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    static: _Static, x: jax.Array, matrix: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, TokenValues]:
    values, _ = _on_mesh(static, x, matrix, targets, weights, gradients=False)
    return jnp.sum(weights * _each(values, static.z_loss)), values


def _loss_forward(
    static: _Static, x: jax.Array, matrix: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, TokenValues], tuple[jax.Array, ...]]:
    values, gradients = _on_mesh(static, x, matrix, targets, weights, gradients=True)
    assert gradients is not None
    dx, dmatrix = gradients
    each = _each(values, static.z_loss)
    return (jnp.sum(weights * each), values), (dx, dmatrix.astype(matrix.dtype), each)


def _loss_backward(
    _static: _Static, residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, TokenValues]
) -> tuple[jax.Array | None, ...]:
    dx, dmatrix, each = residuals
    dloss = cotangents[0]
    return (
        (dx * dloss).astype(dx.dtype),
        (dmatrix * dloss).astype(dmatrix.dtype),
        None,
        each * dloss,
    )


_loss.defvjp(_loss_forward, _loss_backward)


def _each(values: TokenValues, z_loss: float) -> jax.Array:
    """The loss of each token, float32 [B, L]."""
    return values.cross_entropy + z_loss * jnp.square(values.normaliser)


def _on_mesh(
    static: _Static,
    x: jax.Array,
    matrix: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    gradients: bool,
) -> tuple[TokenValues, Gradients | None]:
    """`token_values` on each device's own sequences and words; gradients of the whole."""
    matrix = gathered(matrix, static.axes, x.dtype)
    ambient = active()
    if ambient is None or ambient[0].size == 1:
        return token_values(x, matrix, targets, weights, static.z_loss, gradients=gradients)
    mesh, rules = ambient
    columns = "model" if mesh.shape.get("model", 1) > 1 else None
    batch, own = P(rules["batch"]), P(rules["layer_batch"])
    made = (batch, P(rules["layer_batch"], None, columns)) if gradients else None
    values, made = jax.shard_map(
        functools.partial(_local, static, columns, gradients),
        mesh=mesh,
        in_specs=(batch, P(None, columns), own, own),
        out_specs=(own, made),
        check_vma=False,
    )(x, matrix, targets, weights)
    if made is None:
        return values, None
    dx, dmatrix = made
    return values, (dx, whole_gradient(jnp.sum(dmatrix, axis=0), static.axes))


def _local(
    static: _Static,
    columns: str | None,
    gradients: bool,
    x: jax.Array,
    matrix: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[TokenValues, Gradients | None]:
    """What one device does; x is [B / devices, L, D], the gradient of its words [1, D, V / n]."""
    if columns is not None:
        x = jax.lax.all_gather(x, columns, axis=0, tiled=True)
    values, made = token_values(
        x, matrix, targets, weights, static.z_loss, gradients=gradients, columns=columns
    )
    if made is None:
        return values, None
    dx, dmatrix = made
    if columns is not None:
        # Scattered along a dimension in front: along another one it becomes a sum of the whole.
        parts = dx.reshape(jax.lax.axis_size(columns), -1, *dx.shape[1:])
        dx = jax.lax.psum_scatter(parts, columns, scatter_dimension=0)
    return values, (dx, dmatrix.astype(static.reduce)[None])
