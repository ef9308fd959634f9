"""What fine-tuning changes in how a model is stored: frozen experts as fewer bits, and adapters.

Adapters are those of LoRA (arXiv 2106.09685): beside a matrix W [I, O] stand A [I, R], random, and
B [R, O], zeros, and x W becomes x W + scale (x A) B. So the first step computes what the base does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from moe.kernels.int8 import LARGEST, MATRICES, scale_of
from moe.layers.attention import Attention
from moe.layers.ffn import FeedForward
from moe.layers.init import ZEROS, scaled_fan_in
from moe.layers.product import A, B
from moe.layers.sparse import SparseFFN
from trainlib.model.weights import Initializer, declare, declare_stat

FROZEN_DTYPES = ("float32", "bfloat16", "int8")
PROJECTIONS = {Attention: ("query", "key", "value", "out"), FeedForward: ("gate", "up", "down")}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """How a fine-tuning run stores a model.

    Attributes:
      experts: type of the experts' matrices, one of `FROZEN_DTYPES`. As int8 each has scales beside
        it, which are kept as running statistics are (`moe.kernels.int8`).
      adapted: names of the matrices that have an adapter.
      rank: R of the adapters.
      scale: factor of what they add.
    """

    experts: str = "float32"
    adapted: tuple[str, ...] = ()
    rank: int = 0
    scale: float = 1.0

    def declare(self, model: nnx.Module, init_scale: float, rngs: nnx.Rngs | None) -> None:
        """Declares the weights of a freshly built model anew, in place.

        Args:
          model: as its architecture alone has it.
          init_scale: of the experts, see `scaled_fan_in`.
          rngs: see `trainlib.model.weights.declare`.
        """
        for path, layer in _layers(model):
            if isinstance(layer, SparseFFN) and self.experts != "float32":
                _store(layer, jnp.dtype(self.experts), init_scale, rngs)
            for name in _projections(layer):
                if f"{path}{name}" in self.adapted:
                    _adapt(layer, name, self.rank, rngs)
            if isinstance(layer, Attention | FeedForward):
                layer.lora_scale = self.scale


def adaptable(model: nnx.Module) -> dict[str, tuple[int, int]]:
    """Names of the matrices that can have an adapter -> (I, O): those of attention, of dense
    feed-forward layers and of shared experts.
    """
    return {
        f"{path}{name}": getattr(layer, name).get_value().shape[-2:]
        for path, layer in _layers(model)
        for name in _projections(layer)
    }


def _layers(module: nnx.Module, path: str = "") -> Iterator[tuple[str, nnx.Module]]:
    """(beginning of the names of its weights, layer) of all layers of a model."""
    yield path, module
    for name, value in list(vars(module).items()):
        if isinstance(value, nnx.Module):
            yield from _layers(value, f"{path}{name}.")


def _projections(layer: nnx.Module) -> list[str]:
    return [n for n in PROJECTIONS.get(type(layer), ()) if hasattr(layer, n)]


def _store(layer: SparseFFN, dtype: jnp.dtype, init_scale: float, rngs: nnx.Rngs | None) -> None:
    """Declares the matrices of experts, stacked or not, in another type."""
    for name in MATRICES:
        if not hasattr(layer, name):  # relu has no gate
            continue
        weight: nnx.Param = getattr(layer, name)
        shape, meta = weight.get_value().shape, weight.get_metadata()
        axes, init = meta["axes"], meta["init"]
        if dtype == jnp.int8:
            # Drawn as ever, and never more than two deviations from 0: a scale that is known.
            scale = 2.0 * (init_scale / shape[-2]) ** 0.5 / LARGEST
            of_channels = (*shape[:-2], shape[-1]), (*axes[:-2], axes[-1])
            declared = declare_stat(*of_channels, jax.nn.initializers.constant(scale), rngs)
            setattr(layer, scale_of(name), declared)
            init = _whole(init, scale)
        setattr(layer, name, declare(shape, axes, init, rngs, dtype=dtype))


@functools.cache
def _whole(init: Initializer, scale: float) -> Initializer:
    """`init` in whole numbers of `scale`."""

    def whole_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.int8) -> jax.Array:
        drawn = jnp.round(init(key, shape, jnp.float32) / scale)
        return jnp.clip(drawn, -LARGEST, LARGEST).astype(dtype)

    return whole_init


def _adapt(layer: nnx.Module, name: str, rank: int, rngs: nnx.Rngs | None) -> None:
    """Declares the adapter of a matrix, stacked or not."""
    weight: nnx.Param = getattr(layer, name)
    (*stacked, inputs, outputs), axes = weight.get_value().shape, weight.get_metadata()["axes"]
    into = (*stacked, inputs, rank), (*axes[:-1], "lora")
    out = (*stacked, rank, outputs), (*axes[:-2], "lora", axes[-1])
    setattr(layer, name + A, declare(*into, scaled_fan_in(1.0), rngs))
    setattr(layer, name + B, declare(*out, ZEROS, rngs))


def merged(w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """The matrix that computes what W [.., I, O] and its adapter do together, in float32."""
    with jax.default_matmul_precision("highest"):
        return w.astype(jnp.float32) + scale * (a @ b)
