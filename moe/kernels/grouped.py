"""Experts on segments of sorted tokens with the grouped matrix products of accelerators.

Letters: E experts, R slots of the buffer of tokens, D model width, F hidden width.

TPU: the Pallas kernel that comes with JAX (megablox). GPU: tokamax, when it is installed. Which one
follows from the platform that the program is for, wherever it is compiled; the tiles of the TPU's
kernels follow from its chip and from the shapes (`moe.kernels.grouped_tiles`), for the product and
for each of its gradients.
`jax.lax.ragged_dot` is not used: on CPU, and on NVIDIA GPUs with the released jaxlib, it multiplies
every token by every expert, E times the work.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from moe.kernels.batched import Weights, hidden
from moe.kernels.grouped_tiles import Tilings, tilings
from trainlib.chips import chip_of
from trainlib.errors import ConfigError
from trainlib.model.remat import PRODUCT, keep
from trainlib.sharding.constrain import device_kind, platform

TILE = 128  # slots of the smallest tile; the number of slots has to be a multiple


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
    return tiled(x, weight, sizes, _tilings(x, weight), interpret)


def _tilings(x: jax.Array, weight: jax.Array) -> Tilings:
    """For the chip that is traced for."""
    chip = chip_of(device_kind())
    experts, depth, columns = weight.shape
    return tilings(x.shape[0], depth, columns, experts, x.dtype.itemsize, chip.name if chip else "")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def tiled(
    x: jax.Array, weight: jax.Array, sizes: jax.Array, tiles: Tilings, interpret: bool
) -> jax.Array:
    """The TPU kernel: [R, D] times [E, D, F] by segments -> [R, F] in the type of x.

    Args:
      x: [R, D]; rows after the last segment are not read, and their results are undefined, also
        those of the gradient.
      weight: [E, D, F] in the type of x.
      sizes: int32 [E], rows of each segment.
      tiles: of the product and of its gradients; their rows divide R.
      interpret: see `grouped`.
    """
    # Their own gradient takes the tiles of the forward product for all three.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    return gmm(x, weight, sizes, x.dtype, tiles.forward, interpret=interpret)


def _tiled_forward(
    x: jax.Array, weight: jax.Array, sizes: jax.Array, tiles: Tilings, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return tiled(x, weight, sizes, tiles, interpret), (x, weight, sizes)


def _tiled_backward(
    tiles: Tilings,
    interpret: bool,
    saved: tuple[jax.Array, jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

    x, weight, sizes = saved
    dx = gmm(dy, weight, sizes, x.dtype, tiles.inputs, transpose_rhs=True, interpret=interpret)
    dw = tgmm(x.swapaxes(0, 1), dy, sizes, weight.dtype, tiles.weights, interpret=interpret)
    return dx, dw, None


tiled.defvjp(_tiled_forward, _tiled_backward)


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
