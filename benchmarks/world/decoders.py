"""The layers of decoders as MaxText trains them, in plain JAX: Llama2-70B and Mixtral-8x7B.

B sequences of L tokens, D model, N query heads and K key heads of H, F hidden, E experts with C
slots a sequence. All layers are one scan; weights are float32 (or bfloat16), split over `data`,
cast and gathered where they are used. The attention kernel is left out of the program and priced
apart (`attention_flops`). Input table, output matrix and optimiser, about a hundredth of the work,
are left out, of the program and of its FLOPs.

What MaxText computes is taken from its public sources: the dropping sparse layer is two einsums
with a one-hot mask [B, L, E, C] (its `dense_matmul`); the dropless one sorts tokens by expert and
multiplies groups of rows (`megablox`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder and how it is trained.

    Attributes:
      experts: 0 for a dense model.
      capacity_factor: of the dropping sparse layer; 0 for the dropless one.
      batch: sequences on one device.
      saved: names of values that are kept for the backward pass, all others are recomputed.
      weights: what weights are stored in.
      unmasked: share of the blocks of the attention kernel that are computed.
    """

    layers: int
    d_model: int
    d_ff: int
    heads: int
    key_heads: int
    batch: int
    length: int = 4096
    head_dim: int = 128
    experts: int = 0
    choices: int = 2
    capacity_factor: float = 0.0
    saved: tuple[str, ...] = ()
    weights: str = "float32"
    unmasked: float = 0.75

    @property
    def tokens(self) -> int:
        """On one device in a step."""
        return self.batch * self.length

    @property
    def weights_used(self) -> int:
        """Weights that a token is multiplied with in the layers, as MaxText counts them."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.key_heads)
        ffn = 3 * self.d_model * self.d_ff * (self.choices if self.experts else 1)
        return self.layers * (attention + ffn + self.d_model * self.experts)

    @property
    def model_flops(self) -> float:
        """Of a step on one device, as MaxText reports them: attention without its causal half,
        recomputation not counted.
        """
        attention = 12 * self.batch * self.length**2 * self.heads * self.head_dim * self.layers
        return 6.0 * self.weights_used * self.tokens + attention

    @property
    def attention_flops(self) -> float:
        """Of the kernels of a step on one device that blocks of a causal mask leave to do.

        JAX's splash attention runs 2 products in its forward pass, which recomputation repeats, and
        3 + 4 in the two kernels of its backward pass. Of 4096 x 4096, blocks of 512 x 512, its
        default, leave 9 of 16 that are not masked whole, of 2048 queries and 512 keys 3 of 4.
        """
        product = 2.0 * self.batch * self.length**2 * self.heads * self.head_dim * self.layers
        return product * (2 + 2 + 3 + 4) * self.unmasked


def shapes(config: Decoder, mesh: Mesh) -> tuple[Params, jax.ShapeDtypeStruct]:
    """(weights, x [B, L, D]) as shapes with shardings; every matrix is split over `data`."""
    d, f, heads = config.d_model, config.d_ff, config.heads * config.head_dim
    keys, layers, experts = config.key_heads * config.head_dim, config.layers, config.experts
    ffn = (experts,) if experts else ()

    def weight(shape: tuple[int, ...], split: int) -> jax.ShapeDtypeStruct:
        spec: list[str | None] = [None] * len(shape)
        spec[split] = "data"
        sharding = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(config.weights), sharding=sharding)

    stack = {
        "norm1": weight((layers, d), 1),
        "norm2": weight((layers, d), 1),
        "query": weight((layers, d, heads), 1),
        "key": weight((layers, d, keys), 1),
        "value": weight((layers, d, keys), 1),
        "out": weight((layers, heads, d), 2),
        "gate": weight((layers, *ffn, d, f), 1 + len(ffn)),
        "up": weight((layers, *ffn, d, f), 1 + len(ffn)),
        "down": weight((layers, *ffn, f, d), 2 + len(ffn)),
    }
    if experts:
        stack["router"] = weight((layers, d, experts), 1)
    size = config.batch * mesh.size, config.length, d
    sharding = NamedSharding(mesh, P("data"))
    return stack, jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=sharding)


def gradients(config: Decoder, mesh: Mesh) -> Callable[..., Any]:
    """A jitted function: (weights, x, cotangent) -> gradients of the weights and of x."""
    weights, x = shapes(config, mesh)
    out = jax.tree.map(lambda one: one.sharding, (weights, x))

    def step(weights: Params, x: jax.Array, cotangent: jax.Array) -> Any:
        _, pull = jax.vjp(lambda w, x: _stack(w, x, config, mesh), weights, x)
        return pull(cotangent)

    return jax.jit(step, out_shardings=out)


def arguments(config: Decoder, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes that `gradients` takes."""
    weights, x = shapes(config, mesh)
    return weights, x, x


# -------------------------------------------------------------------------------------- the model
def _stack(weights: Params, x: jax.Array, config: Decoder, mesh: Mesh) -> jax.Array:
    kept = jax.checkpoint_policies.save_only_these_names(*config.saved)

    def layer(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        return _layer(_split(x, mesh), weights, config, mesh), None

    return jax.lax.scan(jax.checkpoint(layer, policy=kept, prevent_cse=False), x, weights)[0]


def _layer(x: jax.Array, weights: Params, config: Decoder, mesh: Mesh) -> jax.Array:
    b, length, _ = x.shape
    h = _rms_norm(x, weights["norm1"])
    query, key, value = (
        checkpoint_name(h @ _whole(weights[name], mesh), f"{name}_proj").reshape(
            b, length, -1, config.head_dim
        )
        for name in ("query", "key", "value")
    )
    context = _attend(_rotated(query), _rotated(key), value)
    context = checkpoint_name(context, "context").reshape(b, length, -1)
    x = x + checkpoint_name(context @ _whole(weights["out"], mesh), "out_proj")
    h = _rms_norm(x, weights["norm2"])
    if not config.experts:
        return x + _gated(h, weights, mesh)
    return x + (_dropping if config.capacity_factor else _dropless)(h, weights, config, mesh)


def _gated(h: jax.Array, weights: Params, mesh: Mesh) -> jax.Array:
    gate = checkpoint_name(h @ _whole(weights["gate"], mesh), "mlpwi_0")
    up = checkpoint_name(h @ _whole(weights["up"], mesh), "mlpwi_1")
    return checkpoint_name((jax.nn.silu(gate) * up) @ _whole(weights["down"], mesh), "mlpwo")


def _dropping(h: jax.Array, weights: Params, config: Decoder, mesh: Mesh) -> jax.Array:
    """One-hot dispatch into C slots an expert and sequence, products, combination."""
    experts, length = config.experts, h.shape[1]
    slots = int(length * config.choices / experts * config.capacity_factor)
    logits = (h @ _whole(weights["router"], mesh)).astype(jnp.float32)
    top, chosen = jax.lax.top_k(logits, config.choices)  # [B, L, k]
    gates = jax.nn.softmax(top, -1).astype(h.dtype)
    picked = jax.nn.one_hot(chosen, experts, dtype=jnp.int32)  # [B, L, k, E]
    flat = picked.reshape(h.shape[0], -1, experts)
    place = (jnp.cumsum(flat, 1) * flat).reshape(picked.shape)
    # [B, L, k, E, C] summed over the choices: 1 where a token has a slot.
    slot = jax.nn.one_hot(place - 1, slots, dtype=h.dtype)
    dispatch, combine = slot.sum(2), jnp.einsum("blkec,blk->blec", slot, gates)
    rows = jnp.einsum("bld,blec->ebcd", h, dispatch)
    gate, up = (
        jnp.einsum("ebcd,edf->ebcf", rows, _whole(weights[name], mesh)) for name in ("gate", "up")
    )
    gate, up = checkpoint_name(gate, "mlpwi_0"), checkpoint_name(up, "mlpwi_1")
    y = jnp.einsum("ebcf,efd->ebcd", jax.nn.silu(gate) * up, _whole(weights["down"], mesh))
    return jnp.einsum("ebcd,blec->bld", checkpoint_name(y, "mlpwo"), combine)


def _dropless(h: jax.Array, weights: Params, config: Decoder, mesh: Mesh) -> jax.Array:
    """Rows sorted by expert on each device, multiplied in groups."""
    names = ("router", "gate", "up", "down")

    def local(h: jax.Array, router: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array):
        b, length, d = h.shape
        rows = h.reshape(-1, d)
        top, chosen = jax.lax.top_k((rows @ router).astype(jnp.float32), config.choices)
        order = jnp.argsort(chosen.reshape(-1))
        sizes = jnp.bincount(chosen.reshape(-1), length=config.experts).astype(jnp.int32)
        spread = rows[order // config.choices]
        hidden = jax.nn.silu(jax.lax.ragged_dot(spread, gate, sizes))
        hidden = hidden * jax.lax.ragged_dot(spread, up, sizes)
        y = jax.lax.ragged_dot(hidden, down, sizes)
        y = jnp.zeros_like(y).at[order].set(y).reshape(-1, config.choices, d)
        gates = jax.nn.softmax(top, -1).astype(h.dtype)
        return jnp.einsum("tkd,tk->td", y, gates).reshape(b, length, d)

    specs = (P("data"), *(P() for _ in names))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    return mapped(h, *(_whole(weights[name], mesh) for name in names))


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Takes the place of attention: needs and gives the same arrays, and takes no time."""
    return jax.lax.optimization_barrier((query, key, value))[0]


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    return _attend(query, key, value), (query, key, value)


def _attend_backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    grad, _, key, _ = jax.lax.optimization_barrier((grad, *saved))
    heads = key.shape[2]
    return grad, grad[:, :, :heads], grad[:, :, -heads:]


_attend.defvjp(_attend_forward, _attend_backward)


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions of [B, L, N, H]."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / 10_000.0 ** (np.arange(half) / half)
    sine, cosine = (jnp.asarray(f(angles), x.dtype)[:, None] for f in (np.sin, np.cos))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)
    return normal.astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)


def _whole(weight: jax.Array, mesh: Mesh) -> jax.Array:
    """A weight in bfloat16, gathered from all devices."""
    spec = NamedSharding(mesh, P())
    return jax.lax.with_sharding_constraint(weight.astype(jnp.bfloat16), spec)


def _split(x: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data")))
