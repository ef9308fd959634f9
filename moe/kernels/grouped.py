"""Experts on segments of sorted rows with the grouped matrix products of accelerators.

Letters: E experts, R rows, D model width, F hidden width.

TPU: the Pallas kernel that comes with JAX (megablox). GPU: tokamax, when it is installed. Which one
follows from the platform that the program is for, wherever it is compiled.
`jax.lax.ragged_dot` is not used: on CPU, and on NVIDIA GPUs with the released jaxlib, it multiplies
every row by every expert, E times the work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.kernels.batched import Weights, hidden
from trainlib.errors import ConfigError
from trainlib.model.remat import PRODUCT, keep
from trainlib.sharding.constrain import platform

ROWS = 128  # rows of a tile; the number of rows has to be a multiple


def check_platform(name: str) -> None:
    """Raises ConfigError for a platform on which no grouped matrix product is known to be fast."""
    if name == "gpu":
        try:
            import tokamax  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "routing.dispatch='grouped' on a GPU needs the package tokamax, which is not "
                "installed. Install it, or use routing.dispatch='index' (fast everywhere) or "
                "'dropless'."
            ) from error
    elif name != "tpu":
        raise ConfigError(
            f"routing.dispatch='grouped' runs on TPU and GPU, and this is for {name}. Use "
            "routing.dispatch='index' (capacity) or 'dropless' (no capacity)."
        )


def _product(x: jax.Array, weight: jax.Array, sizes: jax.Array, interpret: bool) -> jax.Array:
    """[R, D] times [E, D, F] by segments of `sizes` rows -> [R, F]; later rows are undefined."""
    if not interpret:
        check_platform(platform())
    if platform() == "gpu":
        import tokamax

        return tokamax.ragged_dot(x, weight, sizes)
    from jax.experimental.pallas.ops.tpu.megablox.ops import gmm

    return gmm(x, weight, sizes, x.dtype, (ROWS, 128, 128), interpret=interpret)


def grouped(
    rows: jax.Array, sizes: jax.Array, weights: Weights, form: str, *, interpret: bool = False
) -> jax.Array:
    """Every expert on its own segment; segments follow each other without gaps.

    Args:
      rows: [R, D], R a multiple of `ROWS`.
      sizes: int32 [E], rows of each segment.
      weights: in the type of rows.
      form: of the bias, see `moe.kernels.batched`.
      interpret: run the TPU kernel step by step on any backend, for tests.

    Returns:
      [R, D]; rows after the last segment are zero.
    """
    bounds = jnp.cumsum(sizes)
    index = jnp.arange(rows.shape[0])
    inside = (index < bounds[-1])[:, None]

    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        # What the kernels leave in rows of no segment is undefined, in both directions.
        return jnp.where(inside, _product(jnp.where(inside, x, 0), weight, sizes, interpret), 0)

    names = [name for name in ("gate", "up") if name in weights]
    pre = {name: keep(PRODUCT, product(rows, weights[name])) for name in names}
    bias = None
    if form != "none":
        owner = jnp.sum(index[:, None] >= bounds, axis=1)
        bias = jnp.take(weights["bias"], owner, axis=0, mode="clip")
    return product(hidden(pre, bias, form), weights["down"])
