"""The sparse feed-forward layer: router, experts, and where both live on a mesh.

Letters: B sequences, L length, D model width, F hidden width of an expert, E experts, K choices,
G groups, S tokens of a group, C rows of one expert for one group, M mesh columns.

On a mesh the layer is one shard_map. The batch lies over replicas, rows and columns; each device
routes its own tokens, so groups never cross devices. Experts lie over rows ("expert"), their hidden
width over columns ("expert_mlp"):

    route, dispatch [E, G, C, D] -> all-to-all over rows -> gather over columns -> experts
      -> reduce-scatter over columns -> all-to-all over rows -> combine

Experts are never gathered over rows. The logical axes that sharding rules must name: "expert",
"expert_embed", "expert_mlp", "router", and "batch".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe.kernels.batched import BIASES, Weights, batched
from moe.kernels.blocked import ALIGN, blocked
from moe.kernels.grouped import ROWS, grouped
from moe.layers.ffn import ACTIVATIONS
from moe.layers.weights import scaled_fan_in
from moe.routing import dispatch as moving
from moe.routing.config import RoutingConfig, capacity, policy, tokens_per_group
from moe.routing.route import Routing, Sums, route
from trainlib.errors import ConfigError, one_of
from trainlib.model.remat import EXCHANGED, PRODUCT, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import active, constrain
from trainlib.sharding.rules import Rules

_EVALUATION_SEED = 22_02_08906  # of draws in evaluation, which are the same every time
ONES, ZEROS = jax.nn.initializers.ones, jax.nn.initializers.zeros


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseOutput:
    """What a sparse layer reports beside its output, summed over all groups and devices.

    Attributes:
      losses: name -> (total, count) float32 scalars (stacked over layers or not), the argument of
        `moe.routing.route.auxiliary_loss`.
      metrics: name -> (total, count), see `moe.routing.route.METRICS`; "load" has total [E].
    """

    losses: Sums
    metrics: Sums


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh axes of the layer; on one device there is no mesh and all are empty.

    Attributes:
      mesh: the mesh.
      batch: axes that the batch is split over.
      rows: axis of the experts; "" when every device holds all of them.
      columns: axis of the experts' hidden width; "" when it is whole.
      automatic: leave the partition to the compiler, by constraints, with no shard_map.
    """

    mesh: Mesh | None = None
    batch: tuple[str, ...] = ()
    rows: str = ""
    columns: str = ""
    automatic: bool = False

    def size(self, *axes: str) -> int:
        """Number of parts over some axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes if axis) if self.mesh else 1

    @property
    def devices(self) -> int:
        """Number of parts of the batch."""
        return self.size(*self.batch)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Batch axes over which whole sets of experts are repeated."""
        return tuple(axis for axis in self.batch if axis not in (self.rows, self.columns))

    @property
    def by_group(self) -> P:
        """[E, G, C, D] as tokens lie."""
        return P(None, self.batch)

    @property
    def by_expert(self) -> P:
        """[E, G, C, D] as experts lie."""
        return P(self.rows or None, self.replicas)

    @property
    def by_hidden(self) -> P:
        """[E, G, C, F] as experts lie."""
        return P(self.rows or None, self.replicas, None, self.columns or None)

    def constrain(self, x: jax.Array, spec: P) -> jax.Array:
        """Constrains an array to a partition of the mesh."""
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec)) if self.mesh else x

    def specs(self, tokens: dict, router: Any, weights: Weights, hidden_kept: Any) -> tuple:
        """The partitions of the arguments of `_local`."""
        rows, columns = self.rows or None, self.columns or None
        last, middle = P(rows, None, columns), P(rows, columns)
        of_weights = {"gate": last, "up": last, "down": middle, "bias": middle}
        return (
            dict.fromkeys(tokens, P(self.batch)),
            P(),
            {name: of_weights[name] for name in weights},
            self.by_hidden if hidden_kept is not None else None,
        )


def placement(mesh: Mesh | None, rules: Rules, routing: RoutingConfig) -> Placement:
    """Resolves where experts and tokens lie.

    Raises:
      ConfigError: the experts do not divide over the mesh rows, or the batch is not split over an
        axis that the experts use, so that devices would send the same tokens twice.
    """
    if mesh is None or mesh.size == 1:
        return Placement()
    found = rules["batch"]
    batch = (found,) if isinstance(found, str) else tuple(found or ())
    axes = {name: rules[name] or "" for name in ("expert", "expert_mlp")}
    for name, axis in axes.items():
        if not isinstance(axis, str):
            raise ConfigError(f"The sharding rule '{name}' -> {axis} has to be one mesh axis.")
        if axis and mesh.shape[axis] > 1 and axis not in batch:
            raise ConfigError(
                f"The sharding rule '{name}' -> '{axis}' needs the batch to be split over that "
                f"mesh axis too, and 'batch' -> {batch}. Use 'batch' -> {(*batch, axis)}."
            )
    rows = mesh.shape[axes["expert"]] if axes["expert"] else 1
    if routing.num_experts % rows:
        fits = max(n for n in range(1, rows + 1) if routing.num_experts % n == 0 and rows % n == 0)
        raise ConfigError(
            f"routing.num_experts={routing.num_experts} does not divide over the {rows} rows of "
            f"mesh axis '{axes['expert']}'. Use a multiple of {rows} experts, or mesh.data={fits} "
            f"and mesh.replica={rows // fits} times what it is: the experts are then repeated in "
            "each replica."
        )
    keep = {name: axis if axis and mesh.shape[axis] > 1 else "" for name, axis in axes.items()}
    automatic = routing.partitioner == "automatic"
    if automatic and rows != mesh.size:
        raise ConfigError(
            f"routing.partitioner='automatic' lays experts over rows alone, and the mesh is "
            f"{dict(mesh.shape)}. Use mesh.replica=1 and mesh.model=1, or 'shard_map'."
        )
    return Placement(mesh, batch, keep["expert"], keep["expert_mlp"], automatic)


def group_tokens(routing: RoutingConfig, sequences: int, length: int, place: Placement) -> int:
    """S for a global batch of `sequences` sequences; ConfigError when it cannot be cut so."""
    if sequences % place.devices:
        raise ConfigError(
            f"A batch of {sequences} sequences does not divide over {place.devices} devices (mesh "
            f"axes {', '.join(place.batch)}). Use a multiple of {place.devices} sequences."
        )
    return tokens_per_group(routing, sequences // place.devices, length)


class SparseFFN(nnx.Module):
    """[B, L, D] -> ([B, L, D], SparseOutput); the residual and the norm are the caller's.

    Args:
      d_model: D.
      d_ff: F.
      routing: how tokens are routed and moved.
      activation: "geglu" or "relu".
      expert_bias: "none", "additive" or "multiplicative": [E, F] after the activation.
      init_scale: of the experts, see `scaled_fan_in`.
      router_init_scale: of the router; None: as the experts.
      expert_dropout: of the experts' hidden vectors.
      causal: the layer is in a decoder: options that look at later tokens are refused.

    Raises:
      ConfigError: options that cannot work together.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        routing: RoutingConfig,
        *,
        activation: str = "geglu",
        expert_bias: str = "none",
        init_scale: float = 0.1,
        router_init_scale: float | None = None,
        expert_dropout: float = 0.0,
        causal: bool = False,
    ):
        if activation not in ACTIVATIONS:
            raise one_of("activation", activation, ACTIVATIONS)
        if expert_bias not in BIASES:
            raise one_of("expert_bias", expert_bias, BIASES)
        if causal:
            routing.check_causal()
        if routing.dropless and expert_dropout:
            raise ConfigError(
                f"expert_dropout={expert_dropout} needs routing.dispatch='index'; with "
                f"{routing.dispatch!r} use dropout of the layer's output."
            )
        self.routing, self.expert_bias, self.expert_dropout = routing, expert_bias, expert_dropout
        experts, init = routing.num_experts, scaled_fan_in(init_scale)
        router_init = init if router_init_scale is None else scaled_fan_in(router_init_scale)
        into, out = (
            ("expert", "expert_embed", "expert_mlp"),
            ("expert", "expert_mlp", "expert_embed"),
        )
        self.router = declare((d_model, experts), ("expert_embed", "router"), router_init)
        if activation == "geglu":
            self.gate = declare((experts, d_model, d_ff), into, init)
        self.up = declare((experts, d_model, d_ff), into, init)
        self.down = declare((experts, d_ff, d_model), out, init)
        if expert_bias != "none":
            fill = ONES if expert_bias == "multiplicative" else ZEROS
            self.bias = declare((experts, d_ff), ("expert", "expert_mlp"), fill)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
        *,
        train: bool,
        router_input: jax.Array | None = None,
    ) -> tuple[jax.Array, SparseOutput]:
        """Applies the layer.

        Args:
          x: [B, L, D] in the compute type.
          mask: bool [B, L], False for padding (routed nowhere, output 0); None: no padding.
          key: for the random second-choice policy, jitter and dropouts; None where none is on.
          train: training or evaluation (capacity factor, policy, noise).
          router_input: [B, L, D] that the router sees in place of x (routing by word embedding).

        Returns:
          [B, L, D] in the type of x, and the losses and metrics.

        Raises:
          ConfigError: see `placement`, `group_tokens` and `moe.routing.config.capacity`.
          ValueError: a key is needed and missing.
        """
        sharding = active()
        place = placement(*sharding, self.routing) if sharding else Placement()
        size = group_tokens(self.routing, *x.shape[:2], place)
        tokens = self._tokens(x, mask, key, router_input, train=train)
        hidden_kept = self._hidden_kept(key, x, size, place, train=train)
        names = ("gate", "up", "down", "bias")
        weights = {n: getattr(self, n)[...] for n in names if hasattr(self, n)}
        local = functools.partial(
            _local, routing=self.routing, form=self.expert_bias, size=size, place=place, train=train
        )
        args = (tokens, self.router[...], weights, hidden_kept)
        if place.mesh is not None and not place.automatic:
            local = jax.shard_map(
                local,
                mesh=place.mesh,
                in_specs=place.specs(*args),
                out_specs=P(place.batch),
                check_vma=False,
            )
        y, routed = local(*args)
        losses, metrics = jax.tree.map(lambda total: jnp.sum(total, axis=0), routed)
        return y, SparseOutput(losses, metrics)

    def _tokens(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        key: jax.Array | None,
        router_input: jax.Array | None,
        *,
        train: bool,
    ) -> dict[str, jax.Array]:
        """All that is split by batch. Noise is drawn here for the whole batch, so that it does not
        depend on the mesh.
        """
        config = self.routing
        tokens = {"x": x}
        if mask is not None:
            tokens["mask"] = mask
        if router_input is not None:
            tokens["router_input"] = router_input
        if policy(config, train=train) == "random":
            shape = (*x.shape[:2], config.top_k - 1)
            tokens["draws"] = jax.random.uniform(_part(key, 0), shape)
        if train and config.sample_temperature:
            shape = (*x.shape[:2], config.num_experts)
            tokens["gumbel"] = jax.random.gumbel(_part(key, 4), shape)
        noise = jnp.ones((), jnp.float32)
        if train and config.jitter:
            low, high = 1.0 - config.jitter, 1.0 + config.jitter
            noise = jax.random.uniform(_part(key, 1), x.shape, minval=low, maxval=high)
        if train and config.router_dropout:
            share = 1.0 - config.router_dropout
            noise = noise * jax.random.bernoulli(_part(key, 2), share, x.shape) / share
        if noise.ndim:
            tokens["noise"] = noise
        return {
            name: constrain(value, "batch", *(None,) * (value.ndim - 1))
            for name, value in tokens.items()
        }

    def _hidden_kept(
        self, key: jax.Array | None, x: jax.Array, size: int, place: Placement, *, train: bool
    ) -> jax.Array | None:
        """[E, G, C, F] factor of the hidden vectors (inverted dropout), or None."""
        if not (train and self.expert_dropout):
            return None
        config, groups = self.routing, x.shape[0] * x.shape[1] // size
        rows, share = capacity(config, size, train=True), 1.0 - self.expert_dropout
        shape = (config.num_experts, groups, rows, self.up.shape[-1])
        kept = (jax.random.bernoulli(_part(key, 3), share, shape) / share).astype(x.dtype)
        return place.constrain(kept, place.by_hidden)


def evaluation_key(routing: RoutingConfig | None, *numbers: jax.Array | int) -> jax.Array | None:
    """The key of a layer in evaluation, where only the random second-choice policy draws.

    Args:
      routing: of the layer; None for a dense one.
      *numbers: what sets its draws apart from others: its block, a position in decoding.

    Returns:
      None when the layer draws nothing.
    """
    if routing is None or policy(routing, train=False) != "random":
        return None
    return functools.reduce(jax.random.fold_in, numbers, jax.random.key(_EVALUATION_SEED))


def _part(key: jax.Array | None, role: int) -> jax.Array:
    if key is None:
        raise ValueError("SparseFFN needs a key: a random policy, jitter or dropout is on.")
    return jax.random.fold_in(key, role)


def _local(
    tokens: dict[str, jax.Array],
    router: jax.Array,
    weights: Weights,
    hidden_kept: jax.Array | None,
    *,
    routing: RoutingConfig,
    form: str,
    size: int,
    place: Placement,
    train: bool,
) -> tuple[jax.Array, tuple[Sums, Sums]]:
    """The layer on the tokens of one device (or of all, under the automatic partitioner).

    Returns:
      [b, L, D], and losses and metrics with a leading dimension of groups.
    """
    grouped_tokens = {n: v.reshape(-1, size, *v.shape[2:]) for n, v in tokens.items()}
    x = grouped_tokens["x"]
    seen = grouped_tokens.get("router_input", x).astype(routing.router_dtype)
    if "noise" in tokens:
        seen = seen * grouped_tokens["noise"].astype(seen.dtype)
    # HIGHEST: a TPU would otherwise round the float32 operands to bfloat16.
    logits = jnp.einsum(
        "gsd,de->gse", seen, router.astype(seen.dtype), precision=lax.Precision.HIGHEST
    )
    logits = keep(PRODUCT, logits)
    # Here and not before the shard_map, whose transpose adds gradients up over replicas in the type
    # of what it was given: float32 (ST-MoE, section 3.4).
    weights = {name: value.astype(x.dtype) for name, value in weights.items()}
    mask, draws, gumbel = (grouped_tokens.get(name) for name in ("mask", "draws", "gumbel"))
    routed = route(logits, mask, draws, routing, train=train, gumbel=gumbel)
    if routing.dropless:
        y = _dropless(x, routed, weights, routing, form, place)
    else:
        y = _with_capacity(x, routed, weights, form, hidden_kept, place)
    return y.reshape(tokens["x"].shape), (routed.losses, routed.metrics)


def _with_capacity(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    form: str,
    hidden_kept: jax.Array | None,
    place: Placement,
) -> jax.Array:
    """[G, S, D] -> [G, S, D] through [E, G, C, D]: every expert has C rows for each group."""
    rows = moving.dispatch(x, routed.slot, routed.source)
    arrived = keep(EXCHANGED, _to_experts(rows, place))
    experts, _, _, width = arrived.shape
    ready = arrived.reshape(experts, -1, width)
    if place.columns:
        # Columns lead: scattering over another dimension compiles to a whole all-reduce.
        ready = lax.all_gather(ready, place.columns).swapaxes(0, 1).reshape(experts, -1, width)
    if hidden_kept is not None:
        hidden_kept = _as_arrived(hidden_kept, place)
    out = batched(ready, weights, form, hidden_kept)
    if place.columns:
        parts = out.reshape(experts, place.size(place.columns), -1, width).swapaxes(0, 1)
        out = lax.psum_scatter(parts, place.columns)
    returned = keep(EXCHANGED, _from_experts(out.reshape(arrived.shape), place))
    return moving.combine(returned, routed.gates, routed.slot, routed.source)


def _to_experts(rows: jax.Array, place: Placement) -> jax.Array:
    """Own tokens for all experts [E, G, C, D] -> all tokens for own experts [E/n, G*n, C, D]."""
    if place.automatic:
        return place.constrain(place.constrain(rows, place.by_group), place.by_expert)
    return lax.all_to_all(rows, place.rows, 0, 1, tiled=True) if place.rows else rows


def _from_experts(rows: jax.Array, place: Placement) -> jax.Array:
    """The inverse of `_to_experts`."""
    if place.automatic:
        return place.constrain(place.constrain(rows, place.by_expert), place.by_group)
    return lax.all_to_all(rows, place.rows, 1, 0, tiled=True) if place.rows else rows


def _as_arrived(kept: jax.Array, place: Placement) -> jax.Array:
    """[e, G, C, f] in the order of the global batch -> [e, N, f] in the order of arrival."""
    experts, groups, count, width = kept.shape
    rows, columns = place.size(place.rows), place.size(place.columns)
    kept = kept.reshape(experts, rows, columns, groups // (rows * columns) * count, width)
    return kept.swapaxes(1, 2).reshape(experts, -1, width)


def _dropless(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    routing: RoutingConfig,
    form: str,
    place: Placement,
) -> jax.Array:
    """[G, S, D] -> [G, S, D]; every choice that is sent is computed.

    Over a mesh, each row of devices computes its experts for the tokens of all rows: tokens are
    gathered and results reduce-scattered, since how many go where is not known when compiling.
    Buffers have room for all choices to land on one device.
    """
    axes = tuple(axis for axis in (place.rows, place.columns) if axis)
    parts, experts = place.size(*axes), weights["up"].shape[0]
    tokens = x.reshape(-1, x.shape[-1])
    gates, expert = (v.reshape(len(tokens), -1) for v in (routed.gates, routed.expert))
    if axes:
        tokens, gates, expert = (
            lax.all_gather(value, axes, tiled=True) for value in (tokens, gates, expert)
        )
        own = expert - (lax.axis_index(place.rows) * experts if place.rows else 0)
        expert = jnp.where((own >= 0) & (own < experts), own, experts)
    blocks = routing.dispatch == "dropless"
    layout = moving.segments(
        expert, experts, ALIGN if blocks else 1, multiple=ALIGN if blocks else ROWS
    )
    rows = moving.dispatch(tokens[None], layout.slot, layout.source)[0, 0]
    if blocks:
        rows = blocked(rows, layout.starts, layout.sizes, weights, form)
    else:
        rows = grouped(rows, layout.sizes, weights, form)
    rows = keep(PRODUCT, rows)
    y = moving.combine(rows[None, None], gates[None], layout.slot, layout.source)[0]
    if axes:
        y = keep(EXCHANGED, lax.psum_scatter(y.reshape(parts, -1, y.shape[-1]), axes))
    return y
