"""Maps of the loads of experts, against what was written."""

from __future__ import annotations

import base64

import numpy as np

from launch.reporting import router
from launch.reporting.curves import Steps
from launch.reporting.metrics import Metrics


def run(loads, kind="train", layer="encoder.3", **figures):
    """loads [points, experts]"""
    found = Metrics()
    for step, shares in enumerate(loads, start=1):
        values = {f"router/{layer}/load_{n}": float(share) for n, share in enumerate(shares)}
        values |= {f"router/{layer}/{name}": value for name, value in figures.items()}
        found.add({"step": step, "kind": kind, **values})
    return found


def codes(one):
    found = np.frombuffer(base64.b64decode(one["load"]), np.uint8)
    return found.reshape(one["experts"], -1)


def decoded(code):
    """Fair shares, as maps.js reads them."""
    share = 2.0 ** (((code.astype(float) - 2) / 253 * 2 - 1) * 4)
    return np.where(code < 2, 0.0, share)


def test_a_load_reads_back_within_two_percent():
    rng = np.random.default_rng(0)
    loads = rng.dirichlet(np.ones(8), size=30)
    found = router.maps(run(loads), steps := Steps())
    [layer] = found["layers"]
    assert steps.lists[layer["x"]] == list(range(1, 31))
    fair = np.clip(8 * loads.T, 2**-4, 2**4)
    np.testing.assert_allclose(decoded(codes(layer)), fair, rtol=0.02)
    largest = 100 * (8 * loads.max(axis=1) - 1)
    [beyond] = found["figures"]
    np.testing.assert_allclose(beyond["rows"][0], largest, rtol=1e-3)


def test_an_expert_without_tokens_and_an_unknown_load_are_told_apart():
    [layer] = router.maps(run([[1.0, 0.0], [float("nan")] * 2]), Steps())["layers"]
    assert codes(layer).tolist() == [[160, router.UNKNOWN], [router.NOTHING, router.UNKNOWN]]


def test_layers_stand_in_the_order_of_the_model():
    found = Metrics()
    names = ("decoder.3", "encoder.11", "encoder.3")
    found.add({"step": 1, **{f"router/{name}/load_0": 1.0 for name in names}})
    maps = router.maps(found, Steps())
    assert maps["names"] == ["encoder.3", "encoder.11", "decoder.3"]
    assert [layer["name"] for layer in maps["layers"]] == maps["names"]


def test_evaluations_are_shown_where_training_measured_nothing():
    only = router.maps(run([[0.5, 0.5]], kind="eval"), Steps())
    assert only["evaluated"]
    assert router.maps(Metrics(), Steps()) is None


def test_figures_of_layers_are_rows_and_zeros_are_left_out():
    made = run([[0.5, 0.5]] * 3, dropped_choices=0.25, nonfinite=0.0)
    for step in (1, 3):
        sample = {"dropped_choices": 0.25, "idle_0": 7.0, "churn": 0.125 * step}
        named = {f"router/encoder.3/{name}": value for name, value in sample.items()}
        made.add({"step": step, "kind": "router", **named})
    maps = router.maps(made, steps := Steps())
    found = {one["name"]: one for one in maps["figures"]}
    assert found["dropped_choices"]["rows"] == [[25, 25, 25]]
    assert (steps.lists[found["churn"]["x"]], found["churn"]["rows"]) == ([1, 3], [[12.5, 37.5]])
    assert list(found) == ["dropped_choices", "churn"]  # neither zeros nor an even load


def test_hundreds_of_experts_over_many_steps_stay_small():
    rng = np.random.default_rng(0)
    made = Metrics()
    for step in range(1, 201):
        shares = rng.dirichlet(np.ones(64))
        for block in range(3, 16, 4):
            values = {f"router/encoder.{block}/load_{n}": float(x) for n, x in enumerate(shares)}
            made.add({"step": step, **values})
    found = router.maps(made, Steps(), cells=20_000)
    assert sum(len(layer["load"]) for layer in found["layers"]) < 4 * 20_000 // 3 + 100
    assert all(layer["means"] for layer in found["layers"])
