"""What of a block's forward pass is kept for its backward pass, by name.

Layers name what is worth keeping (`keep`), policies choose among the names. JAX's own policies on
matrix products would not do: those inside a rule of differentiation of our own are hidden from
them, and what the last product of a sublayer leaves is best kept after it was scattered.

From most memory and least arithmetic to the opposite: `none`, `dots`, `minimal`, `exchange`,
`full`. The names none, minimal and full mean what they mean in T5X.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import checkpoint_policies
from jax.ad_checkpoint import checkpoint_name

from trainlib.errors import one_of

T = TypeVar("T")
PRODUCT = "product"  # with a weight
SCORES = "scores"  # products among tokens: logits of attention, and what they mix
EXCHANGED = "exchanged"  # came from other devices

POLICIES = {
    "none": "everything is kept",
    "dots": "matrix products are kept, attention scores among them; the rest is computed again",
    "minimal": "products with weights and what was exchanged between devices are kept",
    "offload": "as minimal, the products in the memory of the host",
    "exchange": "only what was exchanged between devices is kept, and the input of the block",
    "full": "only the input of the block is kept",
}
_KEPT = {
    "dots": (PRODUCT, SCORES, EXCHANGED),
    "minimal": (PRODUCT, EXCHANGED),
    "exchange": (EXCHANGED,),
    "full": (),
}


def keep(name: str, x: T) -> T:
    """`x`, to be kept by the policies that keep PRODUCT, SCORES or EXCHANGED."""
    return checkpoint_name(x, name)


def recomputed(body: Callable, policy: str, *, in_loop: bool) -> Callable:
    """`body` with the policy applied to its backward pass.

    Args:
      body: a block of a model, any signature; names by `keep` what policies may keep.
      policy: one of `POLICIES`.
      in_loop: the body is that of a loop, which already keeps XLA from merging both passes.

    Raises:
      ConfigError: there is no such policy.
    """
    if policy == "none":
        return body
    if policy not in POLICIES:
        raise one_of("remat", policy, POLICIES)
    if policy == "offload":
        chosen = checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[EXCHANGED],
            names_which_can_be_offloaded=[PRODUCT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        chosen = checkpoint_policies.save_only_these_names(*_KEPT[policy])
    return jax.checkpoint(body, prevent_cse=not in_loop, policy=chosen)
