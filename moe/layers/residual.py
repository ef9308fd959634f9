"""How an activation moves between the residual stream and the layers.

The residual stream is split by sequences over all axes of the mesh (logical axis "batch"). Inside a
layer the mesh axis `model` splits heads or hidden units instead, so that the batch is split over
the other axes alone (logical axis "layer_batch").
"""

from __future__ import annotations

import jax

from trainlib.sharding.constrain import constrain


@jax.custom_vjp
def to_layer(x: jax.Array) -> jax.Array:
    """[B, ...] from the residual stream to a layer, in its type.

    A sharding constraint is its own transpose: left alone, it would hold the cotangent gathered as
    well, and the backward pass would all-reduce where it can reduce-scatter. So the backward pass
    asks for the split form; `to_residual` is the mirror image.
    """
    return _split_as_layer(x)


@jax.custom_vjp
def to_residual(x: jax.Array) -> jax.Array:
    """[B, ...] from a layer back to the residual stream, in its type; see `to_layer`."""
    return _split_as_residual(x)


def _split_as_layer(x: jax.Array) -> jax.Array:
    return constrain(x, "layer_batch", *(None,) * (x.ndim - 1))


def _split_as_residual(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


to_layer.defvjp(lambda x: (_split_as_layer(x), None), lambda _, dy: (_split_as_residual(dy),))
to_residual.defvjp(lambda x: (_split_as_residual(x), None), lambda _, dy: (_split_as_layer(dy),))
