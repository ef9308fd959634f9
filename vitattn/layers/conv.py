"""Convolutions in NHWC by XLA's convolution, and in other forms where a platform is faster by them.

Letters: B batch, H W map, C input channels, F output channels, k kernel size.

Padding is symmetric, (k - 1) / 2 on each side whatever the stride, as in the public TPU ResNet:
the output has ceil(H / stride) rows, and a strided window sits alike on even and odd sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.errors import ConfigError
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.weights import Initializer, declare
from trainlib.sharding.constrain import platform
from trainlib.sharding.kernels import kernel_mode
from vitattn.kernels.plain import winograd
from vitattn.layers.init import HE_FAN_IN, HE_NORMAL, ZEROS

CLASSIFIER_NORMAL = jax.nn.initializers.normal(0.01)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_backward(residuals, g):
    x, kernel = residuals
    dx = g @ kernel.T
    if kernel.shape[0] > kernel.shape[1] and platform() == "cpu":
        # The narrow operand is the one to transpose, up to 1.8 times as fast; XLA would undo it.
        return dx, jax.lax.optimization_barrier(g.T @ x).T
    return dx, x.T @ g


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution [.., C] x [C, F] -> [.., F] as one matrix product.

    On CPU a 2-D product is about 1.4 times as fast as a 1x1 convolution, above all in its weight
    gradient; on a TPU `convolve` is the faster one.
    """
    y = _product(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _used_taps(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """First tap, number of taps and outputs along one axis, without taps that only see padding."""
    side, outputs = (kernel - 1) // 2, -(-size // stride)
    first = max(0, side - (outputs - 1) * stride)
    return first, min(kernel, side + size) - first, outputs


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves [B, H, W, C] with [k, k, C, F], or depthwise with [k, k, 1, C], k odd.

    The result is [B, ceil(H / stride), ceil(W / stride), F].

    A TPU lays maps out as its convolutions want them: there 1x1 is one of them too, for a 2-D
    product of a narrow map costs copies. On CPU, XLA's convolution runs in a scalar loop where it
    is depthwise (there a sum of shifted maps is 5 to 50 times as fast) and where maps are smaller
    than the kernel, as the last ones of small images (there one matrix product is up to 50 times as
    fast).
    """
    size = kernel.shape[0]
    if platform() == "tpu":
        return _xla_convolution(x, kernel, stride)
    if kernel.shape[2] == 1 and x.shape[-1] > 1:
        return _depthwise(x, kernel, stride)
    if size == 1:
        return pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    if any(-(-n // stride) < size for n in x.shape[1:3]):
        return _convolve_small(x, kernel, stride)
    if platform() == "cpu" and x.dtype == jnp.float32 and kernel_mode("cpu"):
        return _by_shape(x, kernel, stride)
    return _xla_convolution(x, kernel, stride)


def _xla_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    side = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((side, side), (side, side)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _by_fewer(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether `winograd` is the form of a convolution, and of its gradients."""
    return stride == 1 and kernel.shape[0] == 3 and winograd.pays(x.shape, kernel.shape[3])


def _by_products(g: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether `_spread` is the form of a gradient: XLA's convolution turns the kernel round for it,
    which takes longest where maps are small beside the kernel, and is slow over a stride.
    """
    rows = g.size // g.shape[-1]
    return rows <= (16 if stride > 1 else 2) * kernel.shape[3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_shape(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` in float32, in the form that is the fastest on CPU for these shapes.

    XLA's convolution stays in the traced program beside it (`trainlib.model.flops`).
    """
    return _on_cpu(_forward_form, _xla_convolution, stride, x, kernel)


def _on_cpu(form: Callable, xla: Callable, stride: int, *arrays: jax.Array) -> jax.Array:
    form, xla = (functools.partial(f, stride=stride) for f in (form, xla))
    return jax.lax.platform_dependent(*arrays, cpu=form, default=xla)


@functools.partial(jax.jit, static_argnames="stride")
def _forward_form(x, kernel, stride):
    if _by_fewer(x, kernel, stride):
        return winograd.convolve(x, kernel)
    return _xla_convolution(x, kernel, stride)


@functools.partial(jax.jit, static_argnames="stride")
def _input_form(x, kernel, g, stride):
    if _by_fewer(x, kernel, stride):
        return winograd.input_gradient(g, kernel)
    if _by_products(g, kernel, stride):
        return _spread(g, kernel, stride, x.shape)
    return _xla_input(x, kernel, g, stride)


@functools.partial(jax.jit, static_argnames="stride")
def _kernel_form(x, kernel, g, stride):
    if _by_fewer(x, kernel, stride):
        return winograd.kernel_gradient(x, g)
    return _xla_kernel(x, kernel, g, stride)


def _xla_input(x, kernel, g, stride):
    return jax.vjp(lambda x: _xla_convolution(x, kernel, stride), x)[1](g)[0]


def _xla_kernel(x, kernel, g, stride):
    return jax.vjp(lambda kernel: _xla_convolution(x, kernel, stride), kernel)[1](g)[0]


def _by_shape_backward(stride, residuals, g):
    dx = _on_cpu(_input_form, _xla_input, stride, *residuals, g)
    return dx, _on_cpu(_kernel_form, _xla_kernel, stride, *residuals, g)


_by_shape.defvjp(lambda x, w, stride: (_by_shape(x, w, stride), (x, w)), _by_shape_backward)


def _spread(g: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]) -> jax.Array:
    """The gradient of a convolution in its map of `shape` [B, H, W, C]: one product with all taps,
    each of which is then added where its window lay. Of a stride s, s x s interlaced maps are made.
    """
    size, (batch, height, width, features) = kernel.shape[0], g.shape
    side, channels = (size - 1) // 2, kernel.shape[2]
    taps = g.reshape(-1, features) @ kernel.reshape(-1, features).T
    taps = jax.lax.optimization_barrier(taps).reshape(*g.shape[:3], size, size, channels)
    zero = np.zeros((), g.dtype)

    def interlaced(row: int, col: int) -> jax.Array:
        total = jnp.zeros((batch, height, width, channels), g.dtype)
        for a in range((row + side) % stride, size, stride):
            for b in range((col + side) % stride, size, stride):
                down, right = (a - side - row) // stride, (b - side - col) // stride
                pads = [(0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0)]
                total += jax.lax.pad(taps[:, :, :, a, b], zero, pads)
        return total

    steps = range(stride)
    rows = [jnp.stack([interlaced(row, col) for col in steps], 3) for row in steps]
    dx = jnp.stack(rows, 2).reshape(batch, height * stride, width * stride, channels)
    return dx[:, : shape[1], : shape[2]]


def _windows(x: jax.Array, size: int, stride: int) -> list[tuple[int, int, jax.Array]]:
    """(row, column, shifted and strided map) of each tap that sees the map, not only padding."""
    side = (size - 1) // 2
    axes = [_used_taps(n, size, stride) for n in x.shape[1:3]]
    (top, rows, height), (left, cols, width) = axes
    x = jnp.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    return [
        (a, b, x[:, a::stride, b::stride][:, :height, :width])
        for a in range(top, top + rows)
        for b in range(left, left + cols)
    ]


def _convolve_small(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` as one product of the windows [B, H', W', taps * C] with the kernel."""
    taps = _windows(x, kernel.shape[0], stride)
    (top, left, _), (bottom, right, _) = taps[0], taps[-1]
    matrix = kernel[top : bottom + 1, left : right + 1].reshape(-1, kernel.shape[-1])
    return pointwise(jnp.concatenate([shifted for _, _, shifted in taps], -1), matrix)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Depthwise convolution as a sum of shifted maps."""
    taps = _windows(x, kernel.shape[0], stride)
    return functools.reduce(jnp.add, [shifted * kernel[a, b, 0] for a, b, shifted in taps])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Depthwise, on CPU by taps; there XLA's convolution stays in the traced program, for those who
    count its multiply-adds (`trainlib.model.flops`).
    """
    taps = functools.partial(_depthwise_taps, stride=stride)
    xla = functools.partial(_xla_convolution, stride=stride)
    return jax.lax.platform_dependent(x, kernel, cpu=taps, default=xla)


def _depthwise_forward(x, kernel, stride):
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, residuals, g):
    def pull(convolution):
        return lambda x, w, g: jax.vjp(lambda *a: convolution(*a, stride), x, w)[1](g)

    return jax.lax.platform_dependent(
        *residuals, g, cpu=pull(_depthwise_taps), default=pull(_xla_convolution)
    )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(Layer):
    """k x k convolution [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), F] in `dtype`.

    Args:
      in_channels: C.
      out_channels: F.
      kernel_size: k, odd.
      stride: 1 or more, in both directions.
      depthwise: one filter a channel (F == C).
      in_axis: logical name of the input channels; "image_channels" for the first layer, whose 3
        channels no mesh axis divides.
      init: initialiser of the kernel; None is He normal.
      bias_init: initialiser of a bias [F]; None means that there is no bias (a normalisation
        follows).
      dtype: compute type; weights are stored in float32.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        in_axis: str = "conv_in",
        init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        if kernel_size % 2 == 0:
            raise ConfigError(
                f"A convolution of kernel size {kernel_size} has no centre: use an odd size."
            )
        if depthwise and in_channels != out_channels:
            raise ConfigError(
                f"A depthwise convolution keeps its channels: {in_channels} -> {out_channels}."
            )
        self.in_channels, self.stride = in_channels, stride
        self.dtype = jnp.dtype(dtype)
        filters, axis, default = in_channels, in_axis, HE_NORMAL
        if depthwise:
            filters, axis, default = 1, "unit", HE_FAN_IN
        shape = (kernel_size, kernel_size, filters, out_channels)
        self.kernel = declare(shape, ("height", "width", axis, "conv_out"), init or default, rngs)
        if bias_init is not None:
            self.bias = declare((out_channels,), ("channels",), bias_init, rngs)
        self.has_bias = bias_init is not None

    def __call__(self, x: jax.Array, *, centred: bool = False) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), F], in `dtype`.

        Args:
          x: of any float type.
          centred: the mean of the result is all that is taken away from it next (normalisation by
            statistics of the batch): a bias then has the gradient 0, which is not computed. On a
            TPU that saves 7 % of such a layer, both passes (256 channels of 80 x 80 pixels).
        """
        check_array("A convolution", x, "B H W C", C=self.in_channels)
        y = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride)
        if not self.has_bias:
            return y
        bias = self.bias[...].astype(self.dtype)
        return y + (jax.lax.stop_gradient(bias) if centred else bias)


class Classifier(Layer):
    """Last layer [B, features] -> logits [B, classes], always in float32.

    Args:
      features: of the input.
      classes: logits.
      init: initialiser of the matrix.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        init: Initializer = CLASSIFIER_NORMAL,
        rngs: nnx.Rngs | None = None,
    ):
        self.kernel = declare((features, classes), ("features", "classes"), init, rngs)
        self.bias = declare((classes,), ("classes",), ZEROS, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, features] of any float type -> f32 [B, classes]."""
        check_array("A classifier", x, "B features", features=self.kernel.shape[0])
        return x.astype(jnp.float32) @ self.kernel[...] + self.bias[...]
