"""Dispatch and combine as one-hot einsums, which `moe.routing.dispatch` is compared with."""

import jax.numpy as jnp


def one_hot_layer(x, assignment, gates, expert, experts, rows):
    """The one-hot einsum form of dispatch and combine (Mesh TensorFlow), for one group.

    Args:
      x: [S, D].
      assignment: int [S, K] slots e * rows + c, experts * rows where there is none.
      gates: [S, K].
      expert: function [E, C, D] -> [E, C, D].
    """
    slot = assignment[..., None] == jnp.arange(experts * rows)
    dispatch = slot.astype(x.dtype).reshape(*assignment.shape, experts, rows)
    combine = jnp.einsum("skec,sk->sec", dispatch, gates)
    out = expert(jnp.einsum("skec,sd->ecd", dispatch, x))
    return jnp.einsum("sec,ecd->sd", combine, out)
