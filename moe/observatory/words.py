"""Alerts in words: what happened, in one sentence, and what to do about it, with the setting that a
user can paste behind the command.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moe.observatory.alerts import LOSS, WINDOW, Alert, Cause, Layer, Record, least_spread
from moe.observatory.options import RouterOptions
from moe.observatory.spikes import Mover, first_mover, loss_bound
from moe.routing import effects
from moe.routing.config import RoutingConfig
from trainlib.errors import ConfigError

Settings = Mapping[str, Any]  # dotted key -> value of the configuration

# Figures in which a router that goes wrong shows it.
MOVING = ("grad_norm", "max_logit", "entropy", "spread", "dropped_tokens", "nonfinite")
BALANCE, Z = 0.01, 1e-3  # coefficients of ST-MoE (arXiv 2202.08906, sections 3.3 and appendix A)
RATE = 0.001  # of the balance bias (arXiv 2408.15664)
_LARGEST_Z = 1e-2  # more drives the term to 0 (appendix B)


def describe(
    causes: Mapping[Cause, float],
    records: Sequence[Record],
    layers: Sequence[Layer],
    options: RouterOptions,
    settings: Settings,
) -> list[Alert]:
    """One alert for each kind and layer of new causes.

    Args:
      causes: that did not hold before, see `held`.
      records: the last ones; of the last they hold.
      layers: all sparse blocks.
      options: of the run.
      settings: the configuration, for advice that fits it.
    """
    together: dict[tuple[str, str], dict[int, float]] = {}
    for cause, value in causes.items():
        together.setdefault((cause.alert, cause.where), {})[cause.expert] = value
    by_name = {layer.name: layer for layer in layers}
    alerts = []
    for (alert, where), values in together.items():
        if alert == "loss_spike":
            alerts.append(_loss_spike(records, layers, options, settings))
            continue
        bound, text = _HAPPENED[alert](values, by_name[where], records, options)
        step, value = int(records[-1]["step"]), max(values.values())
        learns = by_name[where].key("grad_norm") in records[-1]
        advice = _ADVICE[alert](settings) if learns or alert == "dropped" else _frozen(settings)
        alerts.append(Alert(step, alert, where, value, bound, text, advice))
    return alerts


Happened = tuple[float, str]  # the bound, and the sentence


def _collapse(
    values: Mapping[int, float], layer: Layer, records: Sequence[Record], options: RouterOptions
) -> Happened:
    load = layer.load(records[-1])
    busiest = int(load.argmax())
    return least_spread(layer, options), (
        f"{layer.name} sends nearly everything to few experts: its load is spread over "
        f"{values[-1]:.1f} of {len(load)}, and expert {busiest} gets {100 * load[busiest]:.0f} % "
        "of the choices."
    )


def _dead(
    values: Mapping[int, float], layer: Layer, records: Sequence[Record], options: RouterOptions
) -> Happened:
    experts = sorted(values)
    named = ", ".join(map(str, experts[:8])) + (", .." if len(experts) > 8 else "")
    one = len(experts) == 1
    return options.dead_after, (
        f"{'Expert' if one else 'Experts'} {named} of {layer.name} "
        f"{'has' if one else 'have'} been sent less than 1 % of an even share for "
        f"{max(values.values()):.0f} steps, and {'does' if one else 'do'} not learn."
    )


def _logits(
    values: Mapping[int, float], layer: Layer, records: Sequence[Record], options: RouterOptions
) -> Happened:
    now = values[-1]
    spacing = 2.0 ** (math.floor(math.log2(now)) - 7)  # bfloat16 has 8 significant bits
    went = "is" if now > options.max_logit else f"was {records[0][layer.key('max_logit')]:.3g} "
    if now <= options.max_logit:
        went += f"{WINDOW} records ago and is"
    return options.max_logit, (
        f"The largest router logit of {layer.name} {went} {now:.3g}, where bfloat16 counts in "
        f"steps of {spacing:g}: experts whose logits differ by less are told apart by rounding."
    )


def _dropped(
    values: Mapping[int, float], layer: Layer, records: Sequence[Record], options: RouterOptions
) -> Happened:
    busiest = records[-1][layer.key("violation_max")] + 1
    return options.max_dropped, (
        f"{100 * values[-1]:.0f} % of the tokens of {layer.name} find no expert with room; its "
        f"busiest expert is sent {busiest:.1f} times an even share."
    )


_HAPPENED: Mapping[str, Callable[..., Happened]] = {
    "collapse": _collapse,
    "dead_expert": _dead,
    "logits": _logits,
    "dropped": _dropped,
}


def _balance_more(settings: Settings) -> str:
    # A bias balances what a loss does not: with one, a balance loss is small and meant to be.
    name, usual = "balance_loss_weight", BALANCE
    if settings["routing.balance_bias"]:
        name, usual = "bias_update_rate", RATE
    now = settings[f"routing.{name}"]
    wanted = usual if now < usual else 10 * now
    return (
        f"Stop the run and go on with --config.routing.{name}={wanted:g} (now {now:g}), from a "
        "checkpoint before it if the experts do not come back."
    )


def _frozen(settings: Settings) -> str:
    """Of a router whose weights do not learn: no loss reaches it."""
    subset = settings["finetune.train"]
    if subset == "all":
        return (
            "This router does not learn, by optimizer.frozen, so that no loss of routers reaches "
            "it: let it learn in a new run, or start from other weights."
        )
    return (
        f"This router does not learn, by finetune.train={subset}, so that no loss of routers "
        "reaches it: let it learn in a new run, with --config.finetune.train=all."
    )


def _smaller_logits(settings: Settings) -> str:
    if settings["routing.router_dtype"] != "float32":
        return "Stop the run and go on with --config.routing.router_dtype=float32."
    now = settings["routing.z_loss_weight"]
    if now >= _LARGEST_Z:
        return (
            f"Stop the run and go on with {_slower(settings)}: the router z-loss, "
            f"{now:g}, is as large as it can be."
        )
    wanted = Z if now < Z else _LARGEST_Z
    return (
        f"Stop the run and go on with --config.routing.z_loss_weight={wanted:g} (now {now:g}), and "
        "keep the router in float32."
    )


def _more_room(settings: Settings) -> str:
    now = settings["routing.capacity_factor"]
    wanted = next((factor for factor in (1.25, 2.0) if factor > now), 2 * now)
    flags = _without_capacity(settings)
    other = (
        f", or with {flags}, which drops nothing and takes as long as the busiest expert does"
        if flags
        else ""
    )
    return (
        f"Stop the run and go on with --config.routing.capacity_factor={wanted:g} (now {now:g})"
        f"{other}."
    )


def _without_capacity(settings: Settings) -> str:
    """The flags of a run without capacity, with those of options that would do nothing there; ""
    where the others do not go with it.
    """
    options = {name: settings[f"routing.{name}"] for name in effects.NEEDS}
    try:
        asked = RoutingConfig(**options | {"dispatch": "dropless", "exchange_chunks": 0})
    except ConfigError:
        return ""
    changes: dict[str, Any] = {"dispatch": "dropless"}
    if options["exchange_chunks"] > 1:
        changes["exchange_chunks"] = 0
    changes |= {
        option: effects.DEFAULTS[option]
        for option in effects.NEEDS
        if effects.lacking(option, asked, [asked])
    }
    return " ".join(f"--config.routing.{name}={value}" for name, value in changes.items())


_ADVICE: Mapping[str, Callable[[Settings], str]] = {
    "collapse": _balance_more,
    "dead_expert": _balance_more,
    "logits": _smaller_logits,
    "dropped": _more_room,
}


def _slower(settings: Settings) -> str:
    now = settings["schedule.learning_rate"]
    return f"--config.schedule.learning_rate={now / 4:g} (now {now:g})"


def _last_good(records: Sequence[Record], mover: Mover | None) -> int:
    """The newest step whose weights showed no sign of the spike. The loss of a step is that of the
    weights after one update less, and it is looked at in every step; routers are in samples alone.
    """
    step = int(records[-1]["step"])
    first = step if mover is None else int(records[mover.record]["step"])
    if mover is None or first == step:
        return step - 2
    return min(int(records[mover.record - 1]["step"]), first - 2)


def _from_before(good: int, settings: Settings) -> str:
    """How to go on from the last checkpoint of a step up to `good`."""
    every, keep = settings["checkpoint.every"], settings["checkpoint.keep"]
    advice = "If the loss does not come back in some hundred steps, "
    if not (step := good // every * every):
        return f"{advice}start again with {_slower(settings)}."
    return (
        f"{advice}remove the checkpoints after step {step} (the newest {keep} are kept: copy it "
        f"if it will be older) and go on from it with {_slower(settings)}."
    )


def _loss_spike(
    records: Sequence[Record],
    layers: Sequence[Layer],
    options: RouterOptions,
    settings: Settings,
) -> Alert:
    step, loss = int(records[-1]["step"]), records[-1][LOSS]
    before = [record[LOSS] for record in records[-WINDOW - 1 : -1]]
    names = {layer.name: {figure: layer.key(figure) for figure in MOVING} for layer in layers}
    mover = first_mover(records, names)
    rose = "The loss is no finite number"
    if math.isfinite(loss):
        middle = statistics.median(value for value in before if math.isfinite(value))
        rose = f"The loss rose to {loss:.3g} from about {middle:.3g}"
    if mover is None:
        moved = "no router had moved before it"
    else:
        since = int(records[mover.record]["step"])
        when = "at the same step" if since == step else f"already at step {since}"
        moved = (
            f"of the routers that of {mover.where} moved first, {when}: its {mover.figure} went "
            f"from {mover.before:.3g} to {mover.now:.3g}"
        )
    advice = _from_before(_last_good(records, mover), settings)
    where, bound = mover.where if mover else "", loss_bound(before, options.max_spike)
    return Alert(step, "loss_spike", where, loss, bound, f"{rose}; {moved}.", advice)
