"""A product with a matrix of weights, and how its gradient is added up over devices; and what an
adapter beside the matrix adds to it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from trainlib.sharding.constrain import constrain, platform

REDUCE = ("float32", "bfloat16")
A, B = "_lora_a", "_lora_b"  # the adapter of the matrix `key` is `key_lora_a` and `key_lora_b`


def product(
    x: jax.Array,
    weight: nnx.Param,
    reduce: str = "float32",
    out: DTypeLike | None = None,
    *,
    transposed: bool = False,
) -> jax.Array:
    """x [..., in] times a matrix [in, out] -> [..., out]; computed in the type of x.

    Args:
      x: any leading dimensions.
      weight: [in, out] of a layer that is not stacked, or one slice of a stack.
      reduce: type in which the matrix's gradient is added up over the devices of the mesh. The
        paper asks for float32 (section 3.4); bfloat16 halves the traffic of the gradients.
      out: type of the result; None: that of x.
      transposed: the matrix is stored as [out, in].
    """
    dtype = jnp.dtype(out or x.dtype)
    axes, value = axes_of(weight), weight[...]
    if transposed:
        axes, value = axes[::-1], value.T
    if reduce == "float32":
        return _product(axes, dtype, x, value)
    return jnp.matmul(x, gathered(value, axes, x.dtype), preferred_element_type=dtype)


def projected(layer: Any, name: str, x: jax.Array) -> jax.Array:
    """x [..., in] times the matrix `name` of a layer [in, out] -> [..., out], in the type of x.

    Where there is an adapter of rank R beside it, [in, R] and [R, out], its product is added, times
    the layer's `lora_scale` (`moe.models.tuned`).

    Args:
      layer: a module that says with `reduce` how gradients are added up, see `product`.
      name: of the matrix.
      x: any leading dimensions.
    """
    y = product(x, getattr(layer, name), layer.reduce)
    if not hasattr(layer, name + A):
        return y
    inner = product(x, getattr(layer, name + A), layer.reduce)
    return y + layer.lora_scale * product(inner, getattr(layer, name + B), layer.reduce)


def axes_of(weight: nnx.Param) -> tuple[str, ...]:
    """Logical axes of what the module sees: the slice of a stack has lost the stack's."""
    return weight.get_metadata()["axes"][-weight[...].ndim :]


def gathered(value: jax.Array, axes: tuple[str, ...], dtype: DTypeLike) -> jax.Array:
    """The matrix in the compute type, whole along `embed`."""
    # Under FSDP `embed` is split over the data axis. Pinning the cast weight first as it is stored
    # and then whole makes the gather move half the bytes.
    return _pin_whole(constrain(value.astype(dtype), *axes), axes)


def _pin_whole(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return constrain(value, *(None if axis == "embed" else axis for axis in axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(axes: tuple[str, ...], dtype: DTypeLike, x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, gathered(weight, axes, x.dtype), preferred_element_type=dtype)


def _product_forward(
    axes: tuple[str, ...], dtype: DTypeLike, x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(axes, dtype, x, weight), (x, weight)


def _product_backward(
    axes: tuple[str, ...],
    _dtype: DTypeLike,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, weight = residuals
    dx = jnp.matmul(dy, gathered(weight, axes, x.dtype).T).astype(x.dtype)  # [..., in]
    return dx, whole_gradient(_outer(x, dy), axes).astype(weight.dtype)


def _outer(x: jax.Array, dy: jax.Array) -> jax.Array:
    """float32 [in, out], the sum over tokens of x [..., in] times dy [..., out]."""
    if platform() == "cpu":
        # With one dimension of tokens the product reads x as it lies; with more of them the
        # compiler writes x out transposed first, which takes as long as the product.
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)
    return jnp.einsum("...i,...o->io", x, dy, preferred_element_type=jnp.float32)


def whole_gradient(dw: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The gradient of a matrix, a sum over the batch that crosses devices here, split as the matrix
    is stored.
    """
    # First whole, as a sum over the batch: pinned at once as it is stored, the partitioner would
    # split dy along the same dimension and move the activations instead.
    return constrain(_pin_whole(dw, axes), *axes)


_product.defvjp(_product_forward, _product_backward)
