"""The moving average of weights that evaluation may use in their place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def ema_update(ema: Any, new: Any, decay: float, step: jax.typing.ArrayLike | None = None) -> Any:
    """Returns the moving average ema + (1 - d) * (new - ema), leaf by leaf.

    Args:
      ema: the average so far, f32 leaves; they keep their dtypes. Whole numbers, such as those of
        weights that do not learn, are taken as they are.
      new: the weights (and running statistics) after the update, same structure.
      decay: d at the end.
      step: updates made before this one; given, d = min(decay, (1 + step) / (10 + step)), so that
        the first weights are soon forgotten (TensorFlow's ExponentialMovingAverage with
        num_updates). None: d = decay.
    """
    share: Any = 1.0 - decay
    if step is not None:
        # 1 - (1 + t) / (10 + t), without the loss of digits of the difference.
        share = jnp.maximum(share, 9.0 / (10.0 + jnp.asarray(step, jnp.float32)))

    def follow(old: jax.Array, now: jax.Array) -> jax.Array:
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return (old + share * (now - old)).astype(old.dtype)

    return jax.tree.map(follow, ema, new)
