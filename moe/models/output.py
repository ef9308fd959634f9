"""What a model gives for a batch: logits, the losses of its routers, the reports of its blocks.

Letters: B batch, L length, V vocabulary, P sparse blocks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moe.layers.sparse import SparseOutput
from moe.models.architecture import is_sparse
from moe.models.block import Aux
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss

Reports = dict[str, dict[str, Aux]]  # stack -> tree -> what its blocks report


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """What `Transformer` returns.

    Attributes:
      logits: float32 [B, L, V].
      auxiliary_loss: float32 scalar to add to the cross-entropy: the load-balance and z-losses of
        all routers, with the weights of the model's `RoutingConfig`. It is 0 in a dense model, and
        NaN if router logits are not finite.
      routers: stack ("encoder", "decoder") -> losses and metrics of its sparse blocks, name ->
        (totals [P, ..], counts [P]) in the order of the blocks; see `moe.SparseOutput`. For example
        `total, count = out.routers["encoder"].metrics["dropped_tokens"]` and `total / count`.
    """

    logits: jax.Array
    auxiliary_loss: jax.Array
    routers: dict[str, SparseOutput]


def router_outputs(reports: Reports) -> dict[str, SparseOutput]:
    """Stack -> what the routers of its sparse blocks report, in the order of the blocks."""
    outputs = {}
    for stack, trees in reports.items():
        routers = [report["router"] for tree, report in trees.items() if is_sparse(tree)]
        if routers:
            outputs[stack] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *routers)
    return outputs


def router_loss(routers: dict[str, SparseOutput], routing: RoutingConfig | None) -> jax.Array:
    """The weighted losses of all sparse blocks of all stacks, one float32 scalar; 0 without any."""
    if routing is None or not routers:
        return jnp.zeros((), jnp.float32)
    losses = [router.losses for router in routers.values()]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *losses)
    return auxiliary_loss(joined, routing)
