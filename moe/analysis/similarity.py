"""How alike the experts of a layer are by their weights.

Letters: P sparse blocks of a tree, E experts, D and F widths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe.kernels.int8 import MATRICES, SCALES, in_type
from moe.models.architecture import Architecture, is_sparse
from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import compile_eval


def similarity(plan: Plan[Architecture], weights: Arrays) -> dict[str, dict[int, np.ndarray]]:
    """Cosines between the experts of each sparse layer.

    Experts that began apart, as those of ST-MoE do, are at about 0 by their matrices whatever they
    have learned, because their hidden units stand in no common order; upcycled ones begin at 1. The
    router's vectors have the order of d_model, which all experts share.

    Returns:
      "STACK by router" and "STACK by weights" -> block -> float32 [E, E].
    """

    def cosines(params: Arrays, model_state: Arrays, batch: dict[str, jax.Array]) -> Arrays:
        found = {}
        for stack in plan.model.stacks:
            for tree in filter(is_sparse, plan.model.trees(stack)):
                name = f"{stack}.{tree}.experts"
                router = jnp.swapaxes(params[f"{name}.router"], 1, 2)  # [P, E, D]
                found[f"{stack}.{tree} by router"] = _cosines(_products(router))
                held = params | model_state
                own = {
                    m: held[f"{name}.{m}"] for m in (*MATRICES, *SCALES) if f"{name}.{m}" in held
                }
                parts = in_type(own, jnp.float32).values()
                found[f"{stack}.{tree} by weights"] = _cosines(sum(map(_products, parts)))
        return found

    found = jax.device_get(compile_eval(cosines, plan)(*plan.abstract.split(weights), {}))
    result: dict[str, dict[int, np.ndarray]] = {}
    for name, matrices in found.items():
        (stack, tree), by = name.split(" ", 1)[0].split("."), name.split(" ", 1)[1]
        blocks = plan.model.trees(stack)[tree].tolist()
        result.setdefault(f"{stack} {by}", {}).update(zip(blocks, matrices, strict=True))
    return result


def _products(weights: jax.Array) -> jax.Array:
    """[P, E, ..] -> float32 [P, E, E], scalar products."""
    flat = weights.reshape(*weights.shape[:2], -1).astype(jnp.float32)
    return jnp.einsum("pex,pfx->pef", flat, flat)


def _cosines(products: jax.Array | int) -> jax.Array:
    assert not isinstance(products, int), "an expert has matrices"
    lengths = jnp.sqrt(jnp.diagonal(products, axis1=-2, axis2=-1))  # [P, E]
    return products / jnp.maximum(lengths[..., None] * lengths[..., None, :], 1e-30)
