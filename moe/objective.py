"""Pre-training as pure functions of weights and a batch: the loss that is trained, the metrics that
are measured.

Letters: B sequences of a batch, L length, V vocabulary, P sparse blocks of a stack, E experts.

    loss = cross-entropy + z_loss * mean(logsumexp(logits)^2) + router losses (ST-MoE equation 6)

Cross-entropy is the mean over the real target tokens of the batch, so the router's losses, which
are means over tokens as well, keep their weight whatever the batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from moe.data.sources.packing import batch_fields
from moe.eval.measured import ROUTER
from moe.models.architecture import Architecture, is_sparse
from moe.models.output import Reports, router_loss, router_outputs
from moe.models.transformer import Transformer
from moe.observatory.options import PROBE_TOKENS
from moe.routing.choice import BiasStep
from moe.routing.config import RoutingConfig
from trainlib.errors import ConfigError
from trainlib.keys import number
from trainlib.model.weights import Abstract, Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, LossOutput, Sums, Tally

ATTENTION = ("attention_z", "cross_attention_z")
# Sums, and stack -> int32 [P, rows, L, choices], the experts of tokens (`TokenChoices.expert`).
Evaluated = tuple[Sums, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of what is added to the cross-entropy, the router's own apart.

    Attributes:
      z_loss: coefficient of the mean squared logsumexp of the output logits.
      attention_z_loss: coefficient of the same on attention logits, summed over layers.
    """

    z_loss: Annotated[float, number(0)] = 1e-4
    attention_z_loss: Annotated[float, number(0)] = 0.0


def fields(plan: Plan[Architecture]) -> tuple[str, ...]:
    """Names of the arrays of a batch that the loss reads."""
    return batch_fields(plan.model.kind)


def check_objective(kind: str, objective: str) -> None:
    """Raises ConfigError where a kind of model does not learn `data.objective`: a decoder alone
    would see targets without the text that they belong to.
    """
    causal = kind == "decoder"
    if (objective == "language_model") != causal:
        wanted = "language_model" if causal else "span_corruption"
        raise ConfigError(
            f"model.kind={kind!r} and data.objective={objective!r} do not fit: a decoder alone "
            "learns a language model, an encoder-decoder span corruption, a prefix language model, "
            f"UL2 or pairs. Set --config.data.objective={wanted}, or another model.kind."
        )


def token_loss(
    model: Transformer, batch: Batch, hidden: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array, Sums]:
    """The loss of the output, and what is measured of it.

    Args:
      model: bound to its weights.
      batch: `decoder_targets` int32 [B, L], `decoder_weights` float32 [B, L]: 0 at padding, which
        adds nothing even where its logits are NaN.
      hidden: [B, L, D].
      z_loss: see `Objective`.

    Returns:
      (mean of cross-entropy and z-loss over the tokens, sum of their weights, "cross_entropy" and
      "accuracy" as sums of weighted values and weights).
    """
    weights = batch["decoder_weights"]
    count = jnp.sum(weights)
    # As shares of the whole, so that the gradient of the mean needs no further pass.
    shares = weights / jnp.where(count > 0, count, 1.0)
    loss, values = model.token_loss(hidden, batch["decoder_targets"], shares, z_loss=z_loss)
    sums = {
        "cross_entropy": (jnp.sum(weights * values.cross_entropy), count),
        "accuracy": (jnp.sum(weights * values.right), count),
    }
    return loss, count, sums


def router_metrics(reports: Reports) -> Sums:
    """The metrics of every sparse block, `router/STACK/NAME` -> (totals [P, ..], counts [P])."""
    return {
        f"{ROUTER}{stack}/{name}": pair
        for stack, router in router_outputs(reports).items()
        for name, pair in router.metrics.items()
    }


def bias_tallies(model: Architecture, reports: Reports) -> dict[str, Tally]:
    """Name of each balance bias -> what its routers sent to the experts, [P, E], and the rule that
    moves it; empty without `routing.balance_bias`.
    """
    return {
        f"{stack}.{tree}.experts.balance_bias": Tally(
            report["router"].metrics["load"][0], BiasStep(routing.bias_update_rate)
        )
        for stack, trees in reports.items()
        if (routing := model.stack_routing(stack)) and routing.balance_bias
        for tree, report in trees.items()
        if is_sparse(tree)
    }


def _attention_z(reports: Reports) -> jax.Array:
    sums = [
        jnp.sum(report[name])
        for trees in reports.values()
        for report in trees.values()
        for name in ATTENTION
        if name in report
    ]
    return jnp.sum(jnp.stack(sums))


def _bound(abstract: Abstract, params: Arrays, model_state: Arrays) -> Transformer:
    model = abstract.bind(params, model_state)
    assert isinstance(model, Transformer)
    return model


def make_loss(plan: Plan[Architecture]) -> LossFn:
    """The training loss of a run; see `loss_function`."""
    objective = Objective(**dict(plan.config.objective.items()))
    watched = plan.config.router.log_every > 0
    return loss_function(plan.abstract, plan.model.routing, objective, routers=watched)


def make_evaluate(plan: Plan[Architecture]) -> Callable[[Arrays, Arrays, Batch], Evaluated]:
    """The metrics of a run; see `evaluate_function`."""
    rows = plan.config.router.probe_rows if plan.config.router.log_every else 0
    return evaluate_function(plan.abstract, rows)


def loss_function(
    abstract: Abstract,
    routing: RoutingConfig | None,
    objective: Objective,
    *,
    routers: bool = True,
) -> LossFn:
    """The training loss of a batch; metrics: cross-entropy, accuracy, and, with `routers`, what
    each router did, which is otherwise not computed.
    """

    def loss_fn(
        params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        model = _bound(abstract, params, model_state)
        hidden, reports = model.hidden(batch, train=True, key=key)
        with jax.named_scope("loss"):
            loss, weight, sums = token_loss(model, batch, hidden, objective.z_loss)
        if objective.attention_z_loss:
            loss += objective.attention_z_loss * _attention_z(reports)
        if routing is not None:
            auxiliary = router_loss(router_outputs(reports), routing)
            loss += auxiliary
            sums["router_loss"] = (auxiliary, jnp.ones(()))
        if routers:
            sums |= router_metrics(reports)
        tallies = bias_tallies(model.config, reports)
        return loss, LossOutput(weight, model_state, sums, tallies=tallies)

    return loss_fn


def evaluate_function(
    abstract: Abstract, probe_rows: int = 0
) -> Callable[[Arrays, Arrays, Batch], Evaluated]:
    """(sums over the real target tokens, experts [P, R, l, K] that tokens of the first R rows were
    sent to), at evaluation capacity, without dropout or noise.

    Args:
      abstract: the model.
      probe_rows: R; of more tokens than `PROBE_TOKENS` the first l of each row are taken.
    """
    rows = min(probe_rows, PROBE_TOKENS)
    region = (rows, PROBE_TOKENS // rows) if rows else False

    def evaluate(params: Arrays, model_state: Arrays, batch: Batch) -> Evaluated:
        model = _bound(abstract, params, model_state)
        hidden, reports = model.hidden(batch, train=False, trace=region)
        _, _, sums = token_loss(model, batch, hidden)
        chosen = {
            stack: router.choices.expert
            for stack, router in router_outputs(reports).items()
            if router.choices is not None
        }
        return sums | router_metrics(reports), chosen

    return evaluate
