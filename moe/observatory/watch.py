"""Watches the routers of a run: takes a sample of their figures every few steps, and raises alerts.

A sample is a record of kind "router" in metrics.jsonl, and holds all that the next one needs to
know. What a run that resumes knows of the steps before it reads there.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.models.architecture import Architecture
from moe.observatory import figures
from moe.observatory.alerts import LOSS, WINDOW, Alert, Cause, Layer, Record, held, spiked
from moe.observatory.options import RouterOptions
from moe.observatory.words import describe
from trainlib import config as settings
from trainlib.run.metric_writers import read
from trainlib.run.recorder import Note, Watch, no_watch


class Observatory:
    """What is known of the routers of a run, a step after the other.

    Args:
      options: of the run.
      layers: its sparse blocks.
      values: the configuration, dotted key -> value, for advice that fits it.
      past: records of kind "router" until now.
    """

    def __init__(
        self,
        options: RouterOptions,
        layers: Sequence[Layer],
        values: Mapping[str, Any],
        past: Iterable[Record] = (),
    ):
        self._options, self._layers, self._values = options, layers, values
        self._records: deque[Record] = deque(maxlen=WINDOW + 1)
        self._held: deque[frozenset[Cause]] = deque(maxlen=WINDOW)
        for record in past:
            self._take(record)

    def look(self, number: int, values: Mapping[str, float]) -> list[Note]:
        """The records of a step: a sample every `log_every` steps and where the loss begins to
        spike, and the alerts that it raises.

        Args:
          number: of the step.
          values: its figures, by the names of metrics.jsonl.
        """
        due = number % self._options.log_every == 0
        if not (due or self._begins_to_spike(values["loss"])):
            return []
        sample = self._sample(number, values)
        notes = [Note("router", {k: v for k, v in sample.items() if k != "step"})]
        alerts = self._take(sample)
        if self._options.alerts:
            notes += [Note("alert", alert.record(), _line(alert)) for alert in alerts]
        return notes

    def _begins_to_spike(self, loss: float) -> bool:
        already = self._held and any(cause.alert == "loss_spike" for cause in self._held[-1])
        return not already and spiked(loss, list(self._records), self._options)

    def _sample(self, number: int, values: Mapping[str, float]) -> Record:
        last = self._records[-1] if self._records else None
        sample: dict[str, float] = {"step": number, LOSS: values["loss"]}
        for layer in self._layers:
            load, experts = layer.load(values), range(layer.routing.num_experts)
            idle = np.zeros(len(load))
            if last is not None:
                idle = np.array([last[layer.key(f"idle_{expert}")] for expert in experts])
            steps = number - (int(last["step"]) if last is not None else number - 1)
            idle = figures.idle_for(load, idle, steps)
            derived = {
                **figures.uneven(load),
                "idle": float(np.sum(idle > 0)),
                **{f"idle_{expert}": float(idle[expert]) for expert in experts},
            }
            sample |= {layer.key(name): value for name, value in derived.items()}
        own = tuple(f"{layer.key('')}" for layer in self._layers)
        return sample | {n: float(v) for n, v in values.items() if n.startswith(own)}

    def _take(self, sample: Record) -> list[Alert]:
        """Adds a sample; returns the alerts of what holds there and at none of the last ones."""
        self._records.append(sample)
        records = list(self._records)
        now = held(records, self._layers, self._options)
        lately = frozenset(itertools.chain.from_iterable(self._held))
        self._held.append(frozenset(now))
        new = {cause: value for cause, value in now.items() if cause not in lately}
        return describe(new, records, self._layers, self._options, self._values)


def watched(config: ConfigDict, model: Architecture) -> bool:
    """Whether a run raises alerts about its routers."""
    return bool(config.router.alerts and config.router.log_every and layers_of(model))


def routers(config: ConfigDict, model: Architecture, workdir: Path, start: int) -> Watch:
    """What a session asks at each step for samples and alerts; see `Observatory.look`.

    Args:
      config: of the run.
      model: what it trains.
      workdir: whose metrics.jsonl has been cut after the step that the run starts from.
      start: this step.
    """
    options, layers = RouterOptions(**dict(config.router.items())), layers_of(model)
    if not (options.log_every and layers):
        return no_watch
    past = samples(workdir) if start else ()
    return Observatory(options, layers, settings.flatten(config), past).look


def layers_of(model: Architecture) -> list[Layer]:
    """The sparse blocks of a model, in their order."""
    layers = []
    for stack, blocks in model.all_sparse_blocks.items():
        routing = model.stack_routing(stack)
        layers += [Layer(f"{stack}.{block}", routing) for block in blocks if routing is not None]
    return layers


def samples(workdir: Path) -> list[Record]:
    """The last samples in metrics.jsonl: as many as what holds now can depend on."""
    last: deque[Record] = deque(maxlen=2 * WINDOW + 1)
    for record in _records(workdir, "router"):
        if LOSS in record:  # and not the churn of a checkpoint
            last.append({k: v for k, v in record.items() if k != "kind"})
    return list(last)


def alerts(workdir: Path) -> list[dict[str, Any]]:
    """All alerts of a run, as its metrics.jsonl holds them."""
    return list(_records(workdir, "alert"))


def _records(workdir: Path, kind: str) -> Iterable[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    return (r for r in read(path) if r.get("kind") == kind) if path.exists() else ()


def rows(raised: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The alerts of a run as rows of its summary."""
    if not raised:
        return {"router alerts": "none"}
    told = "; ".join(f"{_named(alert)} at step {alert['step']}" for alert in raised[:5])
    more = f"; and {len(raised) - 5} more" if len(raised) > 5 else ""
    return {"router alerts": f"{told}{more}: metrics.jsonl says what to do"}


def _named(alert: Mapping[str, Any]) -> str:
    words = str(alert["alert"]).replace("_", " ")
    return f"{words} in {alert['where']}" if alert["where"] else words


def _line(alert: Alert) -> str:
    return f"alert at step {alert.step}: {alert.text} {alert.advice}"
