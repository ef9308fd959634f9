"""What of a block's forward pass is kept for its backward pass, by name.

From most memory and least arithmetic to the opposite: `none`, `dots`, `minimal`, `offload`,
`exchange`, `full`. The names none, minimal and full mean what they mean in T5X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jax import checkpoint_policies as keep

from trainlib.errors import one_of

POLICIES = {
    "none": "everything is kept",
    "dots": "matrix products are kept, attention scores among them; the rest is computed again",
    "minimal": "products with weights and what was exchanged between devices are kept",
    "offload": "products with weights are kept, in the memory of the host",
    "exchange": "only what was exchanged between devices is kept, and the input of the block",
    "full": "only the input of the block is kept",
}


def recomputed(body: Callable, policy: str, *, exchanged: Sequence[str], in_loop: bool) -> Callable:
    """`body` with the policy applied to its backward pass.

    Args:
      body: a block of a model, any signature.
      policy: one of `POLICIES`.
      exchanged: names (`jax.ad_checkpoint.checkpoint_name`) of what came from other devices.
      in_loop: the body is that of a loop, which already keeps XLA from merging both passes.

    Raises:
      ConfigError: there is no such policy.
    """
    if policy == "none":
        return body
    if policy not in POLICIES:
        raise one_of("remat", policy, POLICIES)
    named = keep.save_only_these_names(*exchanged)
    chosen = {
        "dots": keep.save_from_both_policies(keep.dots_saveable, named),
        "minimal": keep.save_from_both_policies(keep.dots_with_no_batch_dims_saveable, named),
        "offload": keep.offload_dot_with_no_batch_dims("device", "pinned_host"),
        "exchange": named,
        "full": None,
    }
    return jax.checkpoint(body, prevent_cse=not in_loop, policy=chosen[policy])
