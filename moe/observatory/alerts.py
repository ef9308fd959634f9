"""When the routers of a run need a person, and what that person can do.

Whether an alert holds is a function of the last records alone, so that a run that resumes raises
the alerts of one that was never stopped.

Letters: E experts, K choices of a token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe.observatory.options import RouterOptions
from moe.observatory.spikes import loss_bound
from moe.routing.config import RoutingConfig

WINDOW = 20  # records that alerts look back over
LOSS = "watched_loss"  # of records of kind "router"; `loss` is of kind "train"
STEADY = 3  # records in a row that show an uneven or dropping router

Record = Mapping[str, float]  # of kind "router": name -> value, with "step"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A sparse block.

    Attributes:
      name: STACK.BLOCK, as in the names of figures.
      routing: of its stack.
    """

    name: str
    routing: RoutingConfig

    def key(self, figure: str) -> str:
        """The name of a figure in records."""
        return f"router/{self.name}/{figure}"

    def load(self, record: Record) -> np.ndarray:
        """float64 [E]."""
        names = (self.key(f"load_{expert}") for expert in range(self.routing.num_experts))
        return np.array([record[name] for name in names])

    @property
    def balances(self) -> bool:
        """Whether its router can send more to one expert than to another."""
        routing = self.routing
        return routing.router == "tokens_choose" and routing.num_experts > routing.top_k


class Cause(NamedTuple):
    """What holds: an alert, where, and of which expert, where it is about one."""

    alert: str
    where: str
    expert: int = -1


@dataclasses.dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
      step: at which it was raised.
      alert: "collapse", "dead_expert", "logits", "dropped" or "loss_spike".
      where: STACK.BLOCK; "" for a loss spike before which no router had moved.
      value: of the figure that passed its bound.
      bound: see `RouterOptions`.
      text: one sentence on what happened.
      advice: one sentence on what to do about it.
    """

    step: int
    alert: str
    where: str
    value: float
    bound: float
    text: str
    advice: str

    def record(self) -> dict[str, Any]:
        """As a record of kind "alert" holds it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "step"}


def held(
    records: Sequence[Record], layers: Sequence[Layer], options: RouterOptions
) -> dict[Cause, float]:
    """What holds at the last of some records: cause -> the value that passed its bound."""
    found: dict[Cause, float] = {}
    for layer in layers:
        for alert, rule in RULES.items():
            values = rule(records, layer, options)
            found |= {Cause(alert, layer.name, expert): value for expert, value in values.items()}
    loss = records[-1][LOSS]
    if spiked(loss, records[:-1], options):
        found[Cause("loss_spike", "")] = loss
    return found


def spiked(loss: float, before: Sequence[Record], options: RouterOptions) -> bool:
    """Whether a loss is a spike after some records; one that is not finite always is."""
    if not options.max_spike:
        return False
    bound = loss_bound([record[LOSS] for record in before[-WINDOW:]], options.max_spike)
    return not math.isfinite(loss) or loss > bound


Values = dict[int, float]  # expert, or -1 for the layer -> value


def _steady(
    records: Sequence[Record], layer: Layer, figure: str, choose: Callable[..., float]
) -> float:
    """The least telling of the last values of a figure; NaN before there are enough of them."""
    values = [record[layer.key(figure)] for record in records[-STEADY:]]
    return choose(values) if len(values) == STEADY else math.nan


def least_spread(layer: Layer, options: RouterOptions) -> float:
    """Over how many experts the load has to be spread. The K choices of a token go to different
    experts, so that a router that sends all tokens to the same ones spreads it over K, and one that
    sends them everywhere over E, which is little more where K is nearly E.
    """
    experts, choices = layer.routing.num_experts, layer.routing.top_k
    collapsed = min(1.1 * choices, (choices + experts) / 2)
    return max(options.min_spread * experts, collapsed)


def _collapse(records: Sequence[Record], layer: Layer, options: RouterOptions) -> Values:
    spread = _steady(records, layer, "spread", max)
    bad = layer.balances and options.min_spread and spread < least_spread(layer, options)
    return {-1: spread} if bad else {}


def _dead(records: Sequence[Record], layer: Layer, options: RouterOptions) -> Values:
    if not (layer.balances and options.dead_after):
        return {}
    idle = {
        expert: records[-1][layer.key(f"idle_{expert}")]
        for expert in range(layer.routing.num_experts)
    }
    return {expert: steps for expert, steps in idle.items() if steps >= options.dead_after}


def _dropped(records: Sequence[Record], layer: Layer, options: RouterOptions) -> Values:
    share = _steady(records, layer, "dropped_tokens", min)
    # Where experts choose, tokens that none takes are how it works.
    chosen = layer.routing.router == "tokens_choose"
    return {-1: share} if chosen and options.max_dropped and share > options.max_dropped else {}


def _logits(records: Sequence[Record], layer: Layer, options: RouterOptions) -> Values:
    """The largest logit is above its bound, or is large and will be there in as many records."""
    bound, key = options.max_logit, layer.key("max_logit")
    now = records[-1][key]
    growth = now - records[0][key] if len(records) > WINDOW else 0.0
    grows = now > bound / 4 and now + growth > bound
    return {-1: now} if bound and layer.routing.num_experts > 1 and (now > bound or grows) else {}


RULES: Mapping[str, Callable[[Sequence[Record], Layer, RouterOptions], Values]] = {
    "collapse": _collapse,
    "dead_expert": _dead,
    "logits": _logits,
    "dropped": _dropped,
}
