"""The observatory over made-up steps: samples, alerts once each, and a resume that changes none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from moe.config import default_config
from moe.models import architecture
from moe.observatory import watch
from moe.observatory.alerts import LOSS, WINDOW, Layer
from moe.observatory.options import RouterOptions
from moe.observatory.watch import Observatory
from moe.routing.config import RoutingConfig
from trainlib import config as config_lib
from trainlib.run.metric_writers import JsonLines

E = 4
LAYERS = [Layer(name, RoutingConfig(E, 1)) for name in ("encoder.3", "decoder.3")]
FIGURES = {"max_logit": 2.0, "entropy": 1.2, "dropped_tokens": 0.0, "grad_norm": 0.1}
SETTINGS = config_lib.flatten(default_config())


def step(loss=2.0, loads=None, **changes):
    """Values of a step; `decoder.3/max_logit` and such replace quiet ones."""
    values = {"loss": loss}
    for layer in LAYERS:
        load = (loads or {}).get(layer.name, [0.25] * E)
        values |= {layer.key(f"load_{e}"): share for e, share in enumerate(load)}
        values |= {layer.key(figure): value for figure, value in FIGURES.items()}
    return values | {f"router/{name}": value for name, value in changes.items()}


def alerts_of(steps, layers=LAYERS, settings=SETTINGS, **options):
    """(step, alert, where) of every alert over steps 1, 2, ..., and their records."""
    observatory = Observatory(RouterOptions(log_every=1, **options), layers, settings)
    notes = [
        note
        for number, values in enumerate(steps, 1)
        for note in _look(observatory, number, values)
    ]
    records = [note for note in notes if note.kind == "alert"]
    return [(n.number, n.values["alert"], n.values["where"]) for n in records], records


def _look(observatory, number, values):
    notes = observatory.look(number, values)
    for note in notes:
        object.__setattr__(note, "number", number)
    return notes


def test_a_sample_every_few_steps_holds_all_figures_of_the_routers():
    observatory = Observatory(RouterOptions(log_every=5), LAYERS, SETTINGS)
    taken = {number: observatory.look(number, step()) for number in range(1, 11)}
    assert [number for number, notes in taken.items() if notes] == [5, 10]
    (note,) = taken[10]
    assert note.kind == "router"
    assert not note.line
    assert note.values[LOSS] == 2.0
    assert "loss" not in note.values
    for layer in LAYERS:
        for name in (*FIGURES, "violation_max", "violation_mean", "spread", "idle", "load_3"):
            assert layer.key(name) in note.values
    assert note.values["router/encoder.3/spread"] == pytest.approx(4)


def test_quiet_routers_raise_nothing():
    rng = np.random.default_rng(0)
    steps = []
    for number in range(200):
        loads = {layer.name: rng.dirichlet([20] * E) for layer in LAYERS}
        steps.append(step(5 * math.exp(-number / 50) + 0.05 * rng.normal(), loads))
    assert alerts_of(steps)[0] == []


def test_a_collapsed_layer_is_named_once_its_load_has_stayed_so():
    collapsed = {"decoder.3": [0.99, 0.01, 0.0, 0.0]}
    steps = [step(), step(loads=collapsed), step(), *[step(loads=collapsed)] * 50]
    found, records = alerts_of(steps, dead_after=0)
    assert found == [(6, "collapse", "decoder.3")]
    values = records[0].values
    assert values["value"] == pytest.approx(1.057, abs=1e-3)
    assert values["bound"] == 1.1
    assert "expert 0 gets 99 %" in values["text"]
    # It is over for as long as alerts look back, and comes again.
    again = [*steps, *[step()] * (WINDOW + 2), *[step(loads=collapsed)] * 5]
    assert len(alerts_of(again, dead_after=0)[0]) == 2


@pytest.mark.parametrize(
    ("routing", "load", "raised"),
    [
        (RoutingConfig(4, 2), [0.5, 0.5, 0.0, 0.0], True),  # top-2 cannot be less spread than this
        (RoutingConfig(2, 2), [0.5, 0.5], False),  # both experts of every token: nothing to choose
        (RoutingConfig(1, 1), [1.0], False),
        (RoutingConfig(12, 11), [0.08] * 11 + [0.12], False),  # of a spread from 11 to 12, 11.9
        (RoutingConfig(4, 1, router="experts_choose"), [1.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_only_a_router_that_can_choose_collapses_or_lets_experts_die(routing, load, raised):
    layer = Layer("encoder.3", routing)
    values = step() | {layer.key(f"load_{e}"): share for e, share in enumerate(load)}
    found = alerts_of([values] * 9, [layer], dead_after=9)[0]
    assert found == ([(3, "collapse", layer.name), (9, "dead_expert", layer.name)] * raised)


def test_experts_that_die_together_are_one_alert_and_later_ones_another():
    two, three = [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    steps = [step(loads={"decoder.3": load}) for load in [[0.25] * E] + [two] * 5 + [three] * 20]
    found, records = alerts_of(steps, dead_after=10, min_spread=0)
    assert [(n, where) for n, _, where in found] == [(11, "decoder.3"), (16, "decoder.3")]
    assert "Experts 2, 3 of decoder.3 have been sent" in records[0].values["text"]
    assert "Expert 1 of decoder.3 has been sent" in records[1].values["text"]
    assert records[0].values["value"] == 10


def test_dropped_tokens_and_large_or_growing_logits():
    dropping = step(**{"encoder.3/dropped_tokens": 0.4})
    assert alerts_of([dropping] * 5)[0] == [(3, "dropped", "encoder.3")]
    assert alerts_of([dropping] * 5, max_dropped=0.5)[0] == []
    growing = [step(**{"decoder.3/max_logit": 2.0 + 2 * number}) for number in range(40)]
    found, records = alerts_of(growing)
    # 40 more in 20 records: first foreseen at 24 or more once so many records are there.
    assert found == [(21, "logits", "decoder.3")]
    assert "was 2 20 records ago and is 42" in records[0].values["text"]
    assert alerts_of(growing, max_logit=0)[0] == []
    assert alerts_of([step(**{"decoder.3/max_logit": 65.0})])[0] == [(1, "logits", "decoder.3")]


def test_a_spike_is_seen_between_samples_and_names_the_router_that_moved_first():
    observatory = Observatory(RouterOptions(log_every=10), LAYERS, SETTINGS)
    for number in range(1, 191):
        moved = {"decoder.3/grad_norm": 3.0} if number >= 175 else {}
        observatory.look(number, step(2.0, **moved))
    spiking = step(4.0, **{"decoder.3/grad_norm": 9.0, "encoder.3/grad_norm": 99.0})
    sample, alert = observatory.look(193, spiking)
    assert sample.kind == "router"
    assert sample.values[LOSS] == 4.0
    assert (alert.values["alert"], alert.values["where"]) == ("loss_spike", "decoder.3")
    assert "already at step 180" in alert.values["text"]
    assert alert.line.startswith("alert at step 193: The loss rose to 4 from about 2;")
    assert observatory.look(194, spiking) == []  # it was said, and the next sample is due at 200


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_spike(loss):
    broken = step(loss, **{"encoder.3/nonfinite": 0.5, "encoder.3/entropy": math.nan})
    found, records = alerts_of([step(**{"encoder.3/nonfinite": 0.0})] * 12 + [broken])
    assert found == [(13, "loss_spike", "encoder.3")]
    assert "no finite number" in records[0].values["text"]
    assert alerts_of([broken], max_spike=0)[0] == []


def troubled(number):
    """A step of a run with all kinds of trouble, some of it coming and going."""
    rng = np.random.default_rng(number)
    loads = {"encoder.3": [0.6, 0.4, 0.0, 0.0] if number % 70 < 35 else [0.25] * E}
    loads["decoder.3"] = [1.0, 0.0, 0.0, 0.0] if number > 60 else list(rng.dirichlet([5] * E))
    changes = {
        "encoder.3/max_logit": number / 2,
        "decoder.3/dropped_tokens": float(number % 50 > 30),
        "decoder.3/grad_norm": float(rng.exponential()),
    }
    return step(8.0 if number % 31 == 0 else 2 + 0.1 * rng.normal(), loads, **changes)


def test_a_run_that_resumes_writes_what_an_unbroken_one_does(tmp_path):
    """Stopped after every step in turn; what it knows it reads in its metrics."""
    config = default_config()
    config.router.update(log_every=3, dead_after=30)
    model = architecture(
        {"sparse_period": 1, "encoder_blocks": 1, "decoder_blocks": 1},
        {"num_experts": E, "top_k": 1},
    )
    names = {"encoder.3": "encoder.0", "decoder.3": "decoder.0"}

    def values(number):
        return {
            name.replace("encoder.3", names["encoder.3"]).replace(
                "decoder.3", names["decoder.3"]
            ): value
            for name, value in troubled(number).items()
        }

    def run(workdir, starts):
        workdir.mkdir()
        for start, end in zip(starts, [*starts[1:], 120], strict=True):
            file = JsonLines(workdir / "metrics.jsonl", start)
            look = watch.routers(config, model, workdir, start)
            for number in range(start + 1, end + 1):
                for note in look(number, values(number)):
                    file.write(number, note.kind, note.values)
            file.close()
        return (workdir / "metrics.jsonl").read_text()

    whole = run(tmp_path / "whole", [0])
    kinds = {json.loads(line).get("alert") for line in whole.splitlines()}
    assert kinds == {None, "collapse", "dead_expert", "logits", "dropped", "loss_spike"}
    assert run(tmp_path / "broken", list(range(0, 120, 7))) == whole


def test_what_needs_no_watching_is_not_watched(tmp_path):
    config = default_config()
    dense = architecture(config.model, {"num_experts": 0})
    sparse = architecture(config.model, {"num_experts": E})
    assert not list(watch.routers(config, dense, tmp_path, 0)(10, {"loss": math.nan}))
    assert not watch.watched(config, dense)
    assert watch.watched(config, sparse)
    config.router.log_every = 0
    assert not list(watch.routers(config, sparse, tmp_path, 0)(10, {"loss": math.nan}))
    assert not watch.watched(config, sparse)


def test_samples_without_alerts():
    steps = [step(math.nan)] * 3
    assert alerts_of(steps, alerts=False)[0] == []


def test_the_summary_names_the_first_alerts():
    assert watch.rows([]) == {"router alerts": "none"}
    dead = {"step": 40, "alert": "dead_expert", "where": "decoder.3"}
    (text,) = watch.rows([{"step": 7, "alert": "loss_spike", "where": ""}, *[dead] * 6]).values()
    assert text.startswith("loss spike at step 7; dead expert in decoder.3 at step 40;")
    assert "and 2 more" in text
