"""The sparse feed-forward layer: router, experts, and where both live on a mesh.

Letters: B sequences, L length, D model width, F hidden width of an expert, E experts, K choices,
G groups, S tokens of a group, C capacity (slots of one expert for one group).

On a mesh the layer is one shard_map. The batch lies over the axes `replica`, `data` and `model`;
each device routes its own tokens, so groups never cross devices. Experts lie over `data` (logical
axis "expert"), their hidden width over `model` ("expert_mlp"):

    route, dispatch [E, G, C, D] -> all-to-all over data -> gather over model -> experts
      -> reduce-scatter over model -> all-to-all over data -> combine

Experts are never gathered over `data`. The logical axes that sharding rules must name: "expert",
"expert_embed", "expert_mlp", "router", and "batch".
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe.exchange.capacity import with_capacity
from moe.exchange.chosen import chosen, pays
from moe.exchange.dropless import dropless
from moe.exchange.filled import placed, skips_empty_slots
from moe.kernels.activation import ACTIVATIONS
from moe.kernels.batched import BIASES, Weights
from moe.kernels.int8 import MATRICES, SCALES
from moe.layers.ffn import FeedForward
from moe.layers.init import ONES, ZEROS, scaled_fan_in
from moe.routing.choice import BiasStep, scores_of
from moe.routing.config import RoutingConfig, capacity, check_routing, policy
from moe.routing.embeddings import expert_embedding, history_embedding
from moe.routing.logits import router_logits
from moe.routing.metrics import Sums
from moe.routing.placement import Placement, group_tokens, resolve_placement
from moe.routing.route import Routing, route
from trainlib.errors import ConfigError, one_of
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.remat import PRODUCT, keep
from trainlib.model.weights import declare, declare_stat
from trainlib.sharding.constrain import active, automatic_axes, constrain

# What every device has whole.
_ROUTER = ("router", "router_history", "expert_embedding", "balance_bias")
_EVALUATION_SEED = 22_02_08906  # of draws in evaluation, which are the same every time
Trace = bool | tuple[int, int]  # of all tokens, or of the first (rows, tokens of a row)
# What has a dimension E of experts; scales are those of int8 matrices.
EXPERT_WEIGHTS = (*MATRICES, *SCALES, "bias")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenChoices:
    """What a router did with each token; a layer or a model gives it with `trace=True`.

    Attributes:
      expert: int32 [B, L, K], the expert that each choice was sent to; E: it was not sent, as at
        padding, at tokens whose logits are not finite, or by the second-choice policy. With
        experts_choose K is E, and choice k is expert k.
      gate: float32 [B, L, K], its weight in the output; 0 where it was not sent or was dropped.
      placed: bool [B, L, K], whether it found a slot: what was sent and not placed was dropped.
      entropy: float32 [B, L], of the router's probabilities in nats, 0 where nothing is routed.
    """

    expert: jax.Array
    gate: jax.Array
    placed: jax.Array
    entropy: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseOutput:
    """What a sparse layer reports beside its output, summed over all groups and devices.

    A figure is its total divided by its count, such as the share of tokens that found no expert.

    Example:
      >>> y, out = layer(x)
      >>> total, count = out.metrics["dropped_tokens"]
      >>> float(total / count)
      0.03

    Attributes:
      losses: name -> (total, count) float32 scalars (stacked over layers or not), the argument of
        `moe.routing.losses.auxiliary_loss`.
      metrics: name -> (total, count), see `moe.routing.metrics.METRICS`; "load" has total [E].
      choices: of every token, where `trace` asked for them; else None.
      taken: bool [B, L], which tokens an expert had room for; of a layer with `router_history`.
    """

    losses: Sums
    metrics: Sums
    choices: TokenChoices | None = None
    taken: jax.Array | None = None


class SparseFFN(Layer):
    """A sparse feed-forward layer: a router and experts, in place of the feed-forward layer of a
    transformer (ST-MoE, arXiv 2202.08906, section 2; Switch, 2101.03961).

    It maps x [B, L, D] to ([B, L, D], SparseOutput); the norm before it and the residual around it
    are the caller's. Weights are float32: `router` [D, E], `up` and (with "geglu") `gate`
    [E, D, F], `down` [E, F, D]; experts compute in the type of x, the router in float32. With
    `routing.balance_bias` there is the state `balance_bias` [E], which no gradient changes: after a
    step of a training loop of your own, `layer.rebalance(out)` moves it.

    On one device it needs nothing else. Under `jax.set_mesh(mesh)` tokens are split over the mesh
    axes `replica`, `data` and `model`, experts over `data` and their hidden width over `model`, as
    far as the mesh has them; `moe.shard_module` moves the weights there.

    Example:
      >>> layer = moe.SparseFFN(512, 2048, moe.RoutingConfig(num_experts=8), rngs=nnx.Rngs(0))
      >>> y, out = layer(norm(x), train=True, key=jax.random.key(1))
      >>> loss = cross_entropy(x + y) + moe.auxiliary_loss(out.losses, layer.routing)

    Args:
      d_model: D.
      d_ff: F, hidden width of one expert.
      shared_experts: experts that every token goes to beside those that it is routed to
        (DeepSeekMoE, arXiv 2401.06066), as one dense layer of so many times F hidden units,
        without expert bias; what it gives is added.
      routing: how tokens are routed and moved.
      activation: "geglu" or "relu".
      expert_bias: "none", "additive" or "multiplicative": [E, F] after the activation.
      init_scale: s of the experts' initialiser, a normal of standard deviation sqrt(s / fan-in)
        that is cut at two of them; 0.1 is that of ST-MoE, 1.0 the usual one.
      router_init_scale: of the router; None: as the experts.
      expert_dropout: of the experts' hidden vectors.
      reduce: type in which gradients of shared experts are added up over devices, see
        `moe.layers.product`.
      router_history: N, sparse layers of the stack: `router_history` [N, D], which begins at 0, is
        added to what the router sees, the row of how many layers before took the token; 0: not.
      expert_embedding: `expert_embedding` [E + 1, D], which begins at 0, is added to the output:
        the row of each expert that took a token, by its gate, and the last of a dropped token.
      causal: the layer is in a decoder: options that look at later tokens are refused.
      rngs: keys of the weights, which are then arrays; None leaves them abstract (see
        `trainlib.model.weights.declare`).

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
        shared_experts: int = 0,
        reduce: str = "float32",
        router_history: int = 0,
        expert_embedding: bool = False,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        check_routing("SparseFFN", routing)
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
        self.router = declare((d_model, experts), ("expert_embed", "router"), router_init, rngs)
        if router_history:
            shape, axes = (router_history, d_model), ("router", "expert_embed")
            self.router_history = declare(shape, axes, ZEROS, rngs)
        if expert_embedding:
            shape, axes = (experts + 1, d_model), ("router", "expert_embed")
            self.expert_embedding = declare(shape, axes, ZEROS, rngs)
        if activation == "geglu":
            self.gate = declare((experts, d_model, d_ff), into, init, rngs)
        self.up = declare((experts, d_model, d_ff), into, init, rngs)
        self.down = declare((experts, d_ff, d_model), out, init, rngs)
        if expert_bias != "none":
            fill = ONES if expert_bias == "multiplicative" else ZEROS
            self.bias = declare((experts, d_ff), ("expert", "expert_mlp"), fill, rngs)
        if routing.balance_bias:
            self.balance_bias = declare_stat((experts,), ("router",), ZEROS, rngs)
        self.shared_experts = shared_experts
        if shared_experts:
            self.shared = FeedForward(
                d_model,
                shared_experts * d_ff,
                activation=activation,
                init_scale=init_scale,
                dropout_rate=expert_dropout,
                reduce=reduce,
                rngs=rngs,
            )

    @automatic_axes(lambda batch: (batch, P()))
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
        *,
        train: bool = False,
        router_input: jax.Array | None = None,
        times: jax.Array | None = None,
        period: int | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, SparseOutput]:
        """Applies the layer.

        Args:
          x: [B, L, D] in the compute type.
          mask: bool [B, L], False for padding (routed nowhere; output 0, or that of the shared
            experts); None: no padding.
          key: a random key, needed in training if the second-choice policy is random, as it is by
            default, or if there is jitter, sampling or dropout.
          train: training or evaluation (capacity factor, policy, noise).
          router_input: [B, L, D] that the router sees in place of x (routing by word embedding).
          times: int32 [B, L], how many sparse layers before took a token, for `router_history`;
            None: this is the first.
          period: in decoding: `gate`, `up`, `down` and `bias` are those of all periods of a stack,
            [P, E, ..], and those of this one are meant. Of a few tokens, whose experts lie on one
            device and drop none, only the experts are read that a token chose.
          trace: in evaluation, report where each token went as well: `SparseOutput.choices`; of
            (rows, tokens) the first rows and the first tokens of them, which is all that is kept.

        Returns:
          [B, L, D] in the type of x, and the losses and metrics.

        Raises:
          ConfigError: see `resolve_placement`, `group_tokens` and `moe.routing.config.capacity`.
          InputError: x has another shape or whole numbers, or the mask another shape.
          ValueError: a key is needed and missing, or training is to be traced.
        """
        if trace and train:
            raise ValueError("trace=True is for evaluation: call the layer with train=False.")
        width = self.router.shape[0]
        check_array("SparseFFN", x, "batch length d_model", "float", d_model=width)
        batch, length, _ = x.shape
        if mask is not None:
            what = "The mask of SparseFFN"
            check_array(what, mask, "batch length", batch=batch, length=length)
        if train and key is None and (why := _draws_for(self)):
            raise ValueError(
                f"SparseFFN needs `key` in training, such as key=jax.random.key(0): {why} draws "
                "random numbers. Give another key in every step."
            )
        sharding = active()
        placement = resolve_placement(*sharding, self.routing) if sharding else Placement()
        size = group_tokens(self.routing, batch, length, placement)  # S
        tokens = self._tokens(x, mask, key, router_input, times, train=train)
        hidden_scale = self._hidden_scale(key, x, size, placement, train=train)
        weights = {n: getattr(self, n)[...] for n in EXPERT_WEIGHTS if hasattr(self, n)}
        router = {n: getattr(self, n)[...] for n in _ROUTER if hasattr(self, n)}
        if train and (rate := self.routing.whole_expert_dropout):
            shape = (self.routing.num_experts,)
            router["alive"] = jax.random.bernoulli(_key_of(key, 6), 1.0 - rate, shape)
        if period is not None and not self._only_chosen(x, size, placement):
            weights, period = {n: stack[period] for n, stack in weights.items()}, None
        local = functools.partial(
            _local,
            routing=self.routing,
            bias_form=self.expert_bias,
            size=size,
            placement=placement,
            train=train,
            period=period,
            trace=bool(trace),
        )
        if placement.mesh is not None and not placement.automatic:
            local = jax.shard_map(
                local,
                mesh=placement.mesh,
                in_specs=(
                    dict.fromkeys(tokens, P(placement.batch)),
                    P(),
                    {n: P() if period is not None else placement.weight_spec(n) for n in weights},
                    placement.by_hidden if hidden_scale is not None else None,
                ),
                out_specs=P(placement.batch),
                check_vma=False,
            )
        y, routed, taken = local(tokens, router, weights, hidden_scale)
        *sums, choices = routed
        if isinstance(trace, tuple):
            choices = jax.tree.map(lambda of_tokens: of_tokens[: trace[0], : trace[1]], choices)
        losses, metrics = jax.tree.map(lambda total: jnp.sum(total, axis=0), sums)
        if self.shared_experts:
            drops = train and self.expert_dropout
            y = y + self.shared(x, _key_of(key, 5) if drops else None)
        return y, SparseOutput(losses, metrics, choices, taken)

    def rebalance(self, report: SparseOutput) -> None:
        """Moves the balance bias by what one training step sent to the experts; without
        `routing.balance_bias` it does nothing.

        A step of `launch.train` does this by itself. In a loop of your own, call it once a step,
        after the gradients, with what the layer returned.

        Args:
          report: of this layer, for the whole batch.
        """
        if self.routing.balance_bias:
            move = BiasStep(self.routing.bias_update_rate)
            self.balance_bias[...] = move(self.balance_bias[...], report.metrics["load"][0])

    def _tokens(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        key: jax.Array | None,
        router_input: jax.Array | None,
        times: jax.Array | None,
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
        if hasattr(self, "router_history"):
            tokens["times"] = jnp.zeros(x.shape[:2], jnp.int32) if times is None else times
        if policy(config, train=train).needs_draws:
            shape = (*x.shape[:2], config.top_k - 1)
            tokens["draws"] = jax.random.uniform(_key_of(key, 0), shape)
        if train and config.sample_temperature:
            shape = (*x.shape[:2], config.num_experts)
            tokens["gumbel"] = jax.random.gumbel(_key_of(key, 4), shape)
        noise = jnp.ones((), jnp.float32)
        if train and config.jitter:
            low, high = 1.0 - config.jitter, 1.0 + config.jitter
            noise = jax.random.uniform(_key_of(key, 1), x.shape, minval=low, maxval=high)
        if train and config.router_dropout:
            share = 1.0 - config.router_dropout
            noise = noise * jax.random.bernoulli(_key_of(key, 2), share, x.shape) / share
        if noise.ndim:
            tokens["noise"] = noise
        return {
            name: constrain(value, "batch", *(None,) * (value.ndim - 1))
            for name, value in tokens.items()
        }

    def _only_chosen(self, x: jax.Array, size: int, placement: Placement) -> bool:
        """Whether experts are read only where a token of x [B, L, D] chose them, in groups of
        `size`: where they lie whole on a device, and none can be full.
        """
        routing, tokens = self.routing, x.shape[0] * x.shape[1] // placement.devices
        split = placement.expert_axis or placement.mlp_axis or placement.automatic
        if split or routing.router != "tokens_choose":
            return False
        room = size if routing.dropless else capacity(routing, size, train=False)
        return room >= size and pays(tokens * routing.top_k, routing.num_experts)

    def _hidden_scale(
        self, key: jax.Array | None, x: jax.Array, size: int, placement: Placement, *, train: bool
    ) -> jax.Array | None:
        """[E, G, C, F] factor of the hidden vectors (inverted dropout), or None."""
        if not (train and self.expert_dropout):
            return None
        config, groups = self.routing, x.shape[0] * x.shape[1] // size
        slots, share = capacity(config, size, train=True), 1.0 - self.expert_dropout
        shape = (config.num_experts, groups, slots, self.up.shape[-1])
        scale = jax.random.bernoulli(_key_of(key, 3), share, shape) / share
        return placement.constrain(scale.astype(x.dtype), placement.by_hidden)


def evaluation_key(routing: RoutingConfig | None, *numbers: jax.Array | int) -> jax.Array | None:
    """The key of a layer in evaluation, where only a random second-choice policy draws.

    Args:
      routing: of the layer; None for a dense one.
      *numbers: what sets its draws apart from others: its block, a position in decoding.

    Returns:
      None when the layer draws nothing.
    """
    if routing is None or not policy(routing, train=False).needs_draws:
        return None
    return functools.reduce(jax.random.fold_in, numbers, jax.random.key(_EVALUATION_SEED))


def _draws_for(layer: SparseFFN) -> str:
    """The first option of a layer for which training draws random numbers; "" if none does."""
    routing = layer.routing
    if policy(routing, train=True).needs_draws:
        return f"second_policy={routing.second_policy!r} of its routing"
    for name in ("sample_temperature", "jitter", "router_dropout", "whole_expert_dropout"):
        if getattr(routing, name):
            return f"{name}={getattr(routing, name)} of its routing"
    return f"expert_dropout={layer.expert_dropout}" if layer.expert_dropout else ""


def _key_of(key: jax.Array | None, role: int) -> jax.Array:
    if key is None:
        raise ValueError("SparseFFN needs a key: a random policy, jitter or dropout is on.")
    return jax.random.fold_in(key, role)


def _local(
    tokens: dict[str, jax.Array],
    router: dict[str, jax.Array],
    weights: Weights,
    hidden_scale: jax.Array | None,
    *,
    routing: RoutingConfig,
    bias_form: str,
    size: int,
    placement: Placement,
    train: bool,
    period: int | None,
    trace: bool,
) -> tuple[jax.Array, tuple[Sums, Sums, TokenChoices | None], jax.Array | None]:
    """The layer on the tokens of one device (or of all, under the automatic partitioner).

    Args:
      tokens: "x" [b, L, D], and as far as there are any "mask" [b, L], "router_input" [b, L, D],
        "times" [b, L], "draws" [b, L, K - 1], "gumbel" [b, L, E], "noise" [b, L, D].
      router: "router" float32 [D, E], and as far as there are any "router_history" [N, D],
        "expert_embedding" [E + 1, D], "balance_bias" float32 [E], "alive" bool [E].
      weights: of this device's experts.
      hidden_scale: see `with_capacity`.
      routing: options of the router.
      bias_form: see `moe.kernels.batched`.
      size: S.
      placement: the mesh axes.
      train: training or evaluation.
      period: see `moe.exchange.chosen`; None: the weights are of one.
      trace: see `SparseFFN.__call__`.

    Returns:
      [b, L, D]; losses and metrics with a leading dimension of groups, and what is traced; and with
      "times" which tokens an expert had room for, bool [b, L].
    """
    grouped = {name: v.reshape(-1, size, *v.shape[2:]) for name, v in tokens.items()}  # [G, S, ..]
    x = grouped["x"]
    with jax.named_scope("router"):
        seen = grouped.get("router_input", x).astype(routing.router_dtype)
        if "times" in tokens:
            table = router["router_history"].astype(seen.dtype)
            seen = seen + history_embedding(grouped["times"], table)
        if "noise" in tokens:
            seen = seen * grouped["noise"].astype(seen.dtype)
        logits = keep(PRODUCT, router_logits(seen, router["router"].astype(seen.dtype)))
    # The experts round the weights to the type of x: after the shard_map, whose transpose adds
    # gradients up over replicas in the type of what it was given, float32 (ST-MoE, section 3.4).
    mask, draws, gumbel = (grouped.get(name) for name in ("mask", "draws", "gumbel"))
    with jax.named_scope("route"):
        routed = route(
            logits,
            routing,
            train=train,
            mask=mask,
            draws=draws,
            gumbel=gumbel,
            bias=router.get("balance_bias"),
            length=tokens["x"].shape[1],
            axes=() if placement.automatic else placement.batch,
            alive=router.get("alive"),
        )
    if period is not None:
        y = chosen(x, routed, weights, period, bias_form)
    elif routing.dropless:
        y = dropless(x, routed, weights, routing, bias_form, placement)
    elif skips_empty_slots(routed, weights["up"].shape, hidden_scale, placement):
        filled = dataclasses.replace(routing, dispatch="dropless")
        y = dropless(x, placed(routed), weights, filled, bias_form, placement)
    else:
        asked = routing.exchange_chunks
        y = with_capacity(x, routed, weights, bias_form, hidden_scale, placement, asked)
    if "expert_embedding" in router:
        y = y + expert_embedding(routed, router["expert_embedding"]).astype(y.dtype)
    taken = None
    if "times" in tokens:
        taken = jnp.any(routed.placed, axis=-1).reshape(tokens["times"].shape)
    choices = _traced(logits, routed, routing, tokens["x"].shape[:2]) if trace else None
    return y.reshape(tokens["x"].shape), (routed.losses, routed.metrics, choices), taken


def _traced(
    logits: jax.Array, routed: Routing, routing: RoutingConfig, shape: tuple[int, ...]
) -> TokenChoices:
    """What became of the tokens of groups [G, S, ..], as they lie in sequences [b, L, ..]."""
    logits = logits.astype(jnp.float32)
    if routing.logit_clip:
        logits = jnp.clip(logits, -routing.logit_clip, routing.logit_clip)
    shares = scores_of(logits, routing.scores).shares
    entropy = -jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1)
    sent = jnp.any(routed.expert < routed.num_experts, axis=-1)
    return TokenChoices(
        routed.expert.reshape(*shape, -1),
        routed.gates.reshape(*shape, -1),
        routed.placed.reshape(*shape, -1),
        jnp.where(sent, entropy, 0.0).reshape(shape),
    )
