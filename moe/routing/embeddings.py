"""Two embeddings of where tokens went, which ST-MoE tried without gain (arXiv 2202.08906, appendix
J): of how often the layers before took a token, seen by the router, and of the expert that it was
sent to, added to the output.

Letters: G groups, S tokens of a group, E experts, K choices of a token, N sparse layers of a stack,
D model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.routing.route import Routing


def history_embedding(times: jax.Array, table: jax.Array) -> jax.Array:
    """Row `times` of a table, for each token.

    Args:
      times: int [G, S], how many of the sparse layers before took the token: an expert had room for
        it. Fewer than N.
      table: [N, D].

    Returns:
      [G, S, D] in the type of the table.
    """
    # A product with one-hot vectors in place of a gather: its gradient is no scatter.
    hit = times[..., None] == jnp.arange(table.shape[0])
    return hit.astype(table.dtype) @ table


def expert_embedding(routed: Routing, table: jax.Array) -> jax.Array:
    """What is added to the output of the experts: row e for expert e, with the gate of the choice
    that e took, and row E for a token that no expert took.

    Each expert so computes E_e(x) + table[e]. Padding gets nothing.

    Args:
      routed: of the tokens.
      table: float32 [E + 1, D].

    Returns:
      float32 [G, S, D].
    """
    index = jnp.arange(routed.num_experts, dtype=jnp.int32)
    hit = routed.expert[..., None] == index  # [G, S, K, E], never stored
    gates = jnp.sum(jnp.where(hit, routed.gates[..., None], 0.0), axis=-2)  # [G, S, E]
    dropped = routed.valid & ~jnp.any(routed.placed, axis=-1)
    weights = jnp.concatenate([gates, dropped[..., None].astype(gates.dtype)], axis=-1)
    return weights @ table
