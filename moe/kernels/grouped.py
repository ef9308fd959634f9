"""Experts on segments of sorted tokens with the grouped matrix products of accelerators.

Letters: E experts, R slots of the buffer of tokens, D model width, F hidden width.

TPU: the Pallas kernel that comes with JAX (megablox). GPU: tokamax, when it is installed. Which one
follows from the platform that the program is for, wherever it is compiled.
`jax.lax.ragged_dot` is not used: on CPU, and on NVIDIA GPUs with the released jaxlib, it multiplies
every token by every expert, E times the work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.kernels.batched import Weights, hidden
from trainlib.errors import ConfigError
from trainlib.model.remat import PRODUCT, keep
from trainlib.sharding.constrain import platform

TILE = 128  # slots of a tile; the number of slots has to be a multiple


def check_platform(name: str) -> None:
    """Raises ConfigError for a platform on which no grouped matrix product is known to be fast."""
    if name == "gpu":
        try:
            import tokamax  # noqa: F401  # pyright: ignore[reportMissingImports] for GPUs alone
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
    """[R, D] times [E, D, F] by segments of `sizes` -> [R, F]; later slots are undefined."""
    if not interpret:
        check_platform(platform())
    if platform() == "gpu":
        import tokamax  # pyright: ignore[reportMissingImports] for GPUs alone

        return tokamax.ragged_dot(x, weight, sizes)
    from jax.experimental.pallas.ops.tpu.megablox.ops import gmm

    return gmm(x, weight, sizes, x.dtype, (TILE, 128, 128), interpret=interpret)


def grouped(
    x: jax.Array, sizes: jax.Array, weights: Weights, bias_form: str, *, interpret: bool = False
) -> jax.Array:
    """Every expert on its own segment; segments follow each other without gaps.

    Args:
      x: [R, D], R a multiple of `TILE`.
      sizes: int32 [E], slots of each segment.
      weights: in the type of x.
      bias_form: see `moe.kernels.batched`.
      interpret: run the TPU kernel step by step on any backend, for tests.

    Returns:
      [R, D] in the type of x; slots after the last segment are zero.
    """
    bounds = jnp.cumsum(sizes)  # [E]
    index = jnp.arange(x.shape[0])
    inside = (index < bounds[-1])[:, None]  # [R, 1]

    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        # What the kernels leave in slots of no segment is undefined, in both directions.
        return jnp.where(inside, _product(jnp.where(inside, x, 0), weight, sizes, interpret), 0)

    names = [name for name in ("gate", "up") if name in weights]
    projected = {name: keep(PRODUCT, product(x, weights[name])) for name in names}  # each [R, F]
    bias = None
    if bias_form != "none":
        owner = jnp.sum(index[:, None] >= bounds, axis=1)  # [R], the expert of each slot
        bias = jnp.take(weights["bias"], owner, axis=0, mode="clip")
    return product(hidden(projected, bias, bias_form), weights["down"])
