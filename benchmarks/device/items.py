"""The programs that `benchmarks.device` measures, the most important first.

Each is made from shapes alone; `benchmarks.device.worker` fills them with numbers. Sizes are those
of the gates of the hot paths; `tiny` ones show on any CPU that every item still runs.

Letters: B batch, C channels of an image or slots of an expert, L length, D model width, F hidden
width, E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BF16 = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Work:
    """A program that can be compiled and run.

    Attributes:
      function: of `arguments`, jitted or not.
      arguments: pytrees of shapes, to be filled with numbers, and of arrays, which stay.
      state: the first argument is a state: it is donated, the first result takes its place.
      devices: that it runs on.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    state: bool = False
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Item:
    """One line of the report.

    Attributes:
      name: of the line.
      seconds: that compiling and measuring it is expected to take on an accelerator.
      make: `(tiny) -> Work`; None where the machine has not what it needs.
      beside: the item whose time this one is divided by in the report.
    """

    name: str
    seconds: float
    make: Callable[[bool], Work | None]
    beside: str = ""


def shape(*sizes: int, dtype: Any = BF16) -> jax.ShapeDtypeStruct:
    """An argument."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def _trained(forward: Callable[..., Any], inputs: int) -> Callable[..., Any]:
    """`forward` and the gradients of its first `inputs` arguments for a cotangent, given last."""

    def run(*arguments: Any) -> Any:
        *given, cotangent = arguments
        value, pull = jax.vjp(lambda *a: forward(*a, *given[inputs:]), *given[:inputs])
        # As in a network, where the cotangent comes after the value.
        value, cotangent = jax.lax.optimization_barrier((value, cotangent))
        return value, pull(cotangent)

    return run


# ------------------------------------------------------------------ known limits
def matmul(tiny: bool) -> Work:
    """A product of two square matrices."""
    x = shape(*[128 if tiny else 8192] * 2)
    return Work(jnp.matmul, (x, x))


def memory_chain(tiny: bool) -> Work:
    """Elementwise operations on one array, which read it once and write it once."""
    size = 2**12 if tiny else 2**28
    return Work(lambda x: jnp.maximum(x * 1.5 + 0.5, 0) * x, (shape(size // 1024, 1024),))


def convolution(tiny: bool) -> Work:
    """A 3x3 convolution of 256 channels, forward and backward."""
    batch, side, channels = (1, 4, 8) if tiny else (256, 14, 256)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = shape(batch, side, side, channels)
    return Work(_trained(convolve, 2), (x, shape(3, 3, channels, channels), x))


def all_reduce(tiny: bool) -> Work | None:
    """A sum over all devices, of 64 Mi numbers on each; None on a single one."""
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from trainlib.sharding.mesh import make_mesh

    mesh = make_mesh()
    if mesh.size == 1:
        return None
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((mesh.size, 2**10 if tiny else 2**26), BF16, sharding=split)
    summed = jax.jit(functools.partial(jnp.sum, axis=0), out_shardings=whole)
    return Work(summed, (x,), devices=mesh.size)


# ------------------------------------------------------------------ networks of images
def train_step(config: str, batch: int, tiny: bool) -> Work:
    """The train step of a configuration on one device, with the recipe of the textbook form."""
    from benchmarks.textbook.networks import RECIPE
    from configs.common import load
    from launch import families
    from trainlib.sharding.mesh import make_mesh
    from trainlib.step.step import compile_train

    values = RECIPE | {"batch_size": "4" if tiny else str(batch)}
    loaded = load.from_flags(f"{config}:digits" if tiny else config, values).config
    family = families.of(loaded)
    plan = family.plan.make(loaded, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    step = compile_train(family.objective.make_loss(plan), plan)
    return Work(step, (plan.abstract_state(), family.plan.abstract_batch(plan)), state=True)


def textbook_step(name: str, tiny: bool) -> Work:
    """The train step of the same network in textbook flax.linen."""
    from benchmarks.textbook import linen_peers
    from benchmarks.textbook.networks import NETWORKS

    size = NETWORKS[name]
    batch, pixels = (2, 32) if tiny else (size.batch, size.pixels)
    step, arguments = linen_peers.train_step(name, batch, pixels)
    return Work(jax.jit(step, donate_argnums=0), arguments, state=True)


# ------------------------------------------------------------------ language
def _sizes(tiny: bool) -> dict[str, Any]:
    """Of a T5 block of size large."""
    if tiny:
        return {"d_model": 32, "d_ff": 64, "num_heads": 2, "head_dim": 16}
    return {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "head_dim": 64}


def t5_block(tiny: bool) -> Work:
    """A dense encoder block on [32, 512, D], forward and backward."""
    from moe.kernels.buckets import BUCKETS
    from moe.layers.attention_bias import AttentionBias
    from moe.models.architecture import Architecture
    from moe.models.block import Block, Context

    size = _sizes(tiny)
    spec = _abstract(Block(Architecture(**size)))
    batch, length = (2, 8) if tiny else (32, 512)

    def forward(weights: Any, x: Any, table: Any, segments: Any) -> Any:
        context = Context(AttentionBias(table, segments, segments), segments > 0)
        return spec.bind(weights, {})(x, context, train=True)[0]

    x, table = shape(batch, length, size["d_model"]), (BUCKETS, size["num_heads"])
    segments = np.ones((batch, length), np.int32)
    arguments = (_weights(spec), x, shape(*table, dtype=jnp.float32), segments, x)
    return Work(_trained(forward, 3), arguments)


def t5_textbook(tiny: bool) -> Work:
    """The same block as T5X writes it."""
    from benchmarks.harness import textbook_t5

    size = _sizes(tiny)
    block = textbook_t5.EncoderBlock(**{n: size[n] for n in ("num_heads", "head_dim", "d_ff")})
    batch, length = (2, 8) if tiny else (32, 512)
    x, bias = shape(batch, length, size["d_model"]), shape(1, size["num_heads"], length, length)
    segments = np.ones((batch, length), np.int32)
    weights = jax.eval_shape(block.init, jax.random.key(0), x, bias, segments)
    return Work(_trained(block.apply, 3), (weights, x, bias, segments, x))


def cross_entropy(whole: bool, tiny: bool) -> Work:
    """Loss of 128 x 128 tokens over 32,128 words from their vectors, and all gradients: by tiles of
    words, or from the `whole` logits.
    """
    from moe.layers.embed import Output
    from moe.layers.token_loss import token_loss
    from trainlib.model.losses import softmax_cross_entropy

    length, d_model, words = (4, 32, 128) if tiny else (128, 1024, 32128)
    spec = _abstract(Output(d_model, words))

    def loss(matrices: Any, x: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        output = spec.bind(matrices, {})
        if whole:
            return softmax_cross_entropy(output(x), targets, weights)[0]
        return token_loss(x, output.kernel, targets, weights)[0]

    targets = shape(length, length, dtype=jnp.int32)
    weights = np.full((length, length), length**-2.0, np.float32)
    x = shape(length, length, d_model)
    return Work(_trained(loss, 2), (_weights(spec), x, targets, weights, np.float32(1)))


# ------------------------------------------------------------------ experts
def _sparse_sizes(experts: int, tiny: bool) -> tuple[int, int, int, int]:
    """E, tokens, D, F."""
    return (experts, 64, 16, 32) if tiny else (experts, 16384, 1024, 2816)


def _routing(experts: int) -> Any:
    from moe.routing.config import RoutingConfig

    return RoutingConfig(
        experts,
        top_k=2,
        capacity_factor=1.25,
        capacity_per_choice=True,
        second_policy="all",
        dispatch="index",
    )


def sparse_layer(experts: int, tiny: bool) -> Work:
    """A sparse layer by index dispatch, top-2, capacity 1.25, forward and backward, bf16."""
    from moe.layers.sparse import SparseFFN
    from moe.routing.losses import auxiliary_loss

    experts, tokens, d_model, d_ff = _sparse_sizes(experts, tiny)
    routing = _routing(experts)
    spec = _abstract(SparseFFN(d_model, d_ff, routing))

    def forward(weights: Any, x: Any) -> Any:
        y, out = spec.bind(weights, {})(x, train=True)
        return y, auxiliary_loss(out.losses, routing)

    x = shape(1, tokens, d_model)
    return Work(_trained(forward, 2), (_weights(spec), x, (x, np.ones((), np.float32))))


def bare_experts(experts: int, tiny: bool) -> Work:
    """The three products of as many rows alone, on a ready [E, C, D], forward and backward."""
    from moe.kernels.batched import batched
    from moe.layers.sparse import SparseFFN
    from moe.routing.config import capacity

    experts, tokens, d_model, d_ff = _sparse_sizes(experts, tiny)
    routing = _routing(experts)
    every = _weights(_abstract(SparseFFN(d_model, d_ff, routing)))
    weights = {n: shape(*every[n].shape) for n in ("gate", "up", "down")}
    x = shape(experts, capacity(routing, tokens, train=True), d_model)
    return Work(_trained(lambda w, x: batched(x, w, "none", None), 2), (weights, x, x))


def grouped_products(tiny: bool) -> Work | None:
    """The experts on sorted tokens by the platform's kernel; None where it has none."""
    from moe.kernels import grouped
    from trainlib.errors import ConfigError
    from trainlib.sharding.constrain import platform

    try:
        grouped.check_platform(platform())
    except ConfigError:
        return None
    experts, tokens, d_model, d_ff = _sparse_sizes(8, tiny)
    weights = {
        "gate": shape(experts, d_model, d_ff),
        "up": shape(experts, d_model, d_ff),
        "down": shape(experts, d_ff, d_model),
    }
    x = shape(2 * tokens, d_model)
    sizes = np.full(experts, 2 * tokens // experts, np.int32)

    def forward(weights: Any, x: Any, sizes: Any) -> Any:
        return grouped.grouped(x, sizes, weights, "none")

    return Work(_trained(forward, 2), (weights, x, sizes, x))


def _abstract(module: Any) -> Any:
    from trainlib.model.weights import abstract

    return abstract(module)


def _weights(spec: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    return {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}


def _sparse(experts: int) -> list[Item]:
    bare = f"bare experts E={experts}"
    return [
        Item(f"sparse layer E={experts}", 30, functools.partial(sparse_layer, experts), bare),
        Item(bare, 20, functools.partial(bare_experts, experts)),
    ]


def _network(name: str, config: str, batch: int) -> list[Item]:
    peer = f"{name}, textbook"
    return [
        Item(f"{name} step", 60, functools.partial(train_step, config, batch), peer),
        Item(peer, 60, functools.partial(textbook_step, config)),
    ]


ITEMS = (
    Item("matrix product 8192", 8, matmul),
    Item("memory chain 512 MiB", 8, memory_chain),
    Item("convolution 3x3 C=256", 12, convolution),
    Item("all-reduce", 10, all_reduce),
    *_network("ResNet-50 b64", "resnet50", 64),
    *_sparse(8),
    Item("T5 block", 25, t5_block, "T5 block, textbook"),
    Item("T5 block, textbook", 20, t5_textbook),
    Item("AA-ResNet-50 b64 step", 80, functools.partial(train_step, "aa_resnet50", 64)),
    Item("grouped products E=8", 25, grouped_products, "bare experts E=8"),
    Item("loss of 32,128 words", 15, functools.partial(cross_entropy, False), "loss, whole logits"),
    Item("loss, whole logits", 15, functools.partial(cross_entropy, True)),
    *_sparse(32),
    *_sparse(64),
    *_network("WRN-28-10 b128", "wrn28_10", 128),
    *_network("MnasNet b64", "mnasnet", 64),
)
