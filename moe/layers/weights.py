"""How the layers of this family initialise, read and stack their weights.

Letters: D model width, F output width of a matrix. Matrices are stored [.., in, out], so the fan-in
is always the second dimension from the end and dimensions in front of it (layers of a stack,
experts) do not count.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.model.weights import Initializer, declare
from trainlib.sharding.constrain import constrain

ONES = jax.nn.initializers.ones
NORMAL = jax.nn.initializers.normal(1.0)  # embedding tables


@functools.cache
def scaled_fan_in(scale: float) -> Initializer:
    """Truncated normal with standard deviation sqrt(scale / fan-in), cut at two of them.

    Switch Transformer (arXiv 2101.03961, section 2.4) and ST-MoE use scale 0.1; the deviation is
    that of the normal before it is cut, as in the paper's words. The same scale gives the same
    function object: `trainlib.model.weights.initialise` compiles each initialiser once.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        deviation = (scale / shape[-2]) ** 0.5
        return deviation * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


@functools.cache
def _each(init: Initializer, depth: int) -> Initializer:
    """`init` for every member of a stack of `depth` leading dimensions, each with its own key."""

    def stacked_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        make = jax.vmap(lambda one: init(one, shape[depth:], dtype))
        return make(jax.random.split(key, math.prod(shape[:depth]))).reshape(shape)

    return stacked_init


def stack(module: nnx.Module, sizes: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Module:
    """Turns a freshly built module into a stack of such modules: its weights gain leading
    dimensions.

    Args:
      module: holds abstract weights only; changed in place. It can be called again when it is
        merged with one member's weights (see `moe.models.stack`).
      sizes: the leading dimensions, for example (6, 3) for 6 periods of 3 layers.
      axes: their logical names.
    """
    for name, value in list(vars(module).items()):
        if isinstance(value, nnx.Param):
            struct, meta = value.get_value(), value.get_metadata()
            init = _each(meta["init"], len(sizes))
            weight = declare(
                (*sizes, *struct.shape), (*axes, *meta["axes"]), init, dtype=struct.dtype
            )
            setattr(module, name, weight)
        elif isinstance(value, nnx.Module):
            stack(value, sizes, axes)
    return module


REDUCE = ("float32", "bfloat16")


def product(
    x: jax.Array, weight: nnx.Param, reduce: str = "float32", out=None, *, transposed: bool = False
) -> jax.Array:
    """x [.., in] times a matrix [in, out] in the type of x.

    Args:
      x: any leading dimensions.
      weight: of a layer that is not stacked, or one slice of a stack.
      reduce: type in which the matrix's gradient is added up over the devices of the mesh. The
        paper asks for float32 (section 3.4); bfloat16 halves the traffic of the gradients.
      out: type of the result; None: that of x.
      transposed: the matrix is stored as [out, in].
    """
    out = jnp.dtype(out or x.dtype)
    axes, value = _axes(weight), weight[...]
    if transposed:
        axes, value = axes[::-1], value.T
    if reduce == "float32":
        return _product(axes, out, x, value)
    return jnp.matmul(x, _whole(value, axes, x.dtype), preferred_element_type=out)


def _axes(weight: nnx.Param) -> tuple[str, ...]:
    """Logical axes of what the module sees: the slice of a stack has lost the stack's."""
    return weight.get_metadata()["axes"][-weight[...].ndim :]


def _whole(value: jax.Array, axes: tuple[str, ...], dtype) -> jax.Array:
    # Under FSDP `embed` is split over rows. Pinning the cast weight first as it is stored and then
    # whole makes the gather move half the bytes.
    return _pin_whole(constrain(value.astype(dtype), *axes), axes)


def _pin_whole(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return constrain(value, *(None if axis == "embed" else axis for axis in axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(axes: tuple[str, ...], out, x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, _whole(weight, axes, x.dtype), preferred_element_type=out)


def _product_backward(axes: tuple[str, ...], out, kept, dy: jax.Array):
    del out
    x, weight = kept
    dx = jnp.matmul(dy, _whole(weight, axes, x.dtype).T).astype(x.dtype)
    dw = jnp.einsum("...i,...o->io", x, dy, preferred_element_type=jnp.float32)
    # First whole, as a sum over rows: pinned at once as it is stored, the partitioner would split
    # dy along the same dimension and move the activations instead.
    return dx, constrain(_pin_whole(dw, axes), *axes).astype(weight.dtype)


_product.defvjp(
    lambda axes, out, x, weight: (_product(axes, out, x, weight), (x, weight)), _product_backward
)


@jax.custom_vjp
def to_rows(x: jax.Array) -> jax.Array:
    """[B, ...] from the residual stream (batch over rows and columns) to a layer (over rows only).

    A sharding constraint is its own transpose: left alone, it would hold the cotangent gathered as
    well, and the backward pass would all-reduce where it can reduce-scatter. So the backward pass
    asks for the split form; `to_batch` is the mirror image.
    """
    return _over_rows(x)


@jax.custom_vjp
def to_batch(x: jax.Array) -> jax.Array:
    """[B, ...] back to the residual stream: batch over rows and columns."""
    return _over_batch(x)


def _over_rows(x: jax.Array) -> jax.Array:
    return constrain(x, "rows", *(None,) * (x.ndim - 1))


def _over_batch(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


to_rows.defvjp(lambda x: (_over_rows(x), None), lambda _, dy: (_over_batch(dy),))
to_batch.defvjp(lambda x: (_over_batch(x), None), lambda _, dy: (_over_rows(dy),))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout, one draw for all positions of a sequence as in T5.

    Args:
      x: [B, ..., L, D].
      rate: share of (sequence, feature) pairs that are zeroed.
      key: None (evaluation) leaves x as it is.
    """
    if key is None or not rate:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1])
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Keys for `count` parts of a layer; all None in evaluation."""
    return [None] * count if key is None else list(jax.random.split(key, count))
