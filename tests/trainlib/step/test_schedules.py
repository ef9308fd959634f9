"""Each schedule against its formula written in NumPy, with the recipes of the papers."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import overrides
from configs.common.load import from_python
from trainlib.errors import ConfigError
from trainlib.step import schedules
from trainlib.step.schedules import make_schedule


def rates(config, total, steps):
    schedule = make_schedule(config, total)
    return np.array([schedule(jnp.int32(step)) for step in steps])


def reference(config, total, step):
    """The rate in f64, by the definitions of the papers' code."""
    o = {key: default for key, (default, _) in schedules.defaults().items()} | config
    warmup, peak = o["warmup_steps"], o["learning_rate"]
    if o["name"] == "constant":
        rate = peak
    elif o["name"] == "step":
        factors = list(o["factors"]) * (len(o["boundaries"]) // len(o["factors"]))
        rate = peak * np.prod(
            [f for b, f in zip(o["boundaries"], factors, strict=True) if b <= step]
        )
    elif o["name"] == "cosine":
        part = (step - warmup) / (total - warmup)
        final = o["final_learning_rate"]
        rate = final + (peak - final) * (1 + np.cos(np.pi * part)) / 2
    elif o["name"] == "exponential":
        times = step / o["decay_steps"]
        rate = peak * o["decay_rate"] ** (np.floor(times) if o["staircase"] else times)
    else:
        rate = peak / np.sqrt(max(step, o["plateau_steps"]))
        peak /= np.sqrt(max(warmup, o["plateau_steps"]))
    if step < warmup:
        rate = o["warmup_start"] + (peak - o["warmup_start"]) * step / warmup
    return rate


BODIES = (
    {"name": "constant"},
    {"name": "step", "boundaries": (30, 60, 80, 90)},
    {"name": "step", "boundaries": (30, 60), "factors": (0.5, 0.2)},
    {"name": "cosine"},
    {"name": "cosine", "final_learning_rate": 0.01},
    {"name": "exponential", "decay_rate": 0.97, "decay_steps": 7},
    {"name": "exponential", "decay_rate": 0.9, "decay_steps": 7, "staircase": False},
    {"name": "inverse_sqrt", "plateau_steps": 20},
    {"name": "inverse_sqrt", "plateau_steps": 5},
)
WARMUPS = ({}, {"warmup_steps": 10}, {"warmup_steps": 7, "warmup_start": 0.02})


@pytest.mark.parametrize(("body", "warmup"), itertools.product(BODIES, WARMUPS))
def test_schedule_is_its_formula_at_every_step(body, warmup):
    config = {"learning_rate": 0.4, **body, **warmup}
    expected = [reference(config, 100, step) for step in range(101)]
    np.testing.assert_allclose(rates(config, 100, range(101)), expected, rtol=2e-6, atol=1e-8)


def test_host_integers_give_the_same_rates_in_f32():
    schedule = make_schedule({"name": "cosine", "warmup_steps": 3}, 20)
    on_host = [schedule(step) for step in range(20)]
    assert all(rate.dtype == jnp.float32 for rate in on_host)
    np.testing.assert_allclose(on_host, rates({"name": "cosine", "warmup_steps": 3}, 20, range(20)))


def test_resnet_recipe():
    # 100 epochs of 5,000 steps: warm-up over the first 5 %, a tenth at epochs 30, 60, 80, 90.
    boundaries = tuple(5000 * epoch for epoch in (30, 60, 80, 90))
    config = {"name": "step", "learning_rate": 0.128, "boundaries": boundaries}
    config["warmup_steps"] = 25_000
    at = [0, 12_500, 25_000, 149_999, 150_000, 300_000, 400_000, 450_000, 499_999]
    expected = 0.128 * np.array([0, 0.5, 1, 1, 0.1, 1e-2, 1e-3, 1e-4, 1e-4])
    np.testing.assert_allclose(rates(config, 500_000, at), expected, rtol=1e-5)


def test_st_moe_recipe():
    # 1 / sqrt(max(step, 10000)): constant at 0.01, then falling; 1.5 M steps.
    config = {"name": "inverse_sqrt", "learning_rate": 1.0}
    at = [0, 9_999, 10_000, 40_000, 1_000_000]
    expected = [0.01, 0.01, 0.01, 0.005, 0.001]
    np.testing.assert_allclose(rates(config, 1_500_000, at), expected, rtol=1e-6)


def test_stairs_fall_on_the_exact_step_late_in_a_long_run():
    # MnasNet: 2.4 epochs of 1,251 steps = 3,002; after 140 stairs f32 must still know which side.
    config = {"name": "exponential", "learning_rate": 1.0, "decay_steps": 3002, "decay_rate": 0.97}
    before, after = rates(config, 500_000, [140 * 3002 - 1, 140 * 3002])
    np.testing.assert_allclose([before, after], [0.97**139, 0.97**140], rtol=1e-5)


def test_boundaries_past_the_end_are_allowed():
    # A short run of a long recipe must start.
    config = {"name": "step", "boundaries": (1000, 2000), "learning_rate": 0.5}
    np.testing.assert_allclose(rates(config, 10, [9]), [0.5])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "cosin"}, ("schedule.name", "cosine", "exponential")),
        ({"learningrate": 1.0}, ("learningrate", "learning_rate")),
        ({"learning_rate": "fast"}, ("learning_rate", "fast")),
        ({"learning_rate": -0.1}, ("learning_rate=-0.1", "a number from 0")),
        ({"learning_rate": float("nan")}, ("learning_rate", "finite")),
        ({"warmup_steps": 101}, ("warmup_steps=101", "100")),
        ({"warmup_steps": -1}, ("warmup_steps=-1",)),
        ({"warmup_steps": 1.5}, ("warmup_steps",)),
        ({"name": "step"}, ("boundaries",)),
        ({"name": "step", "boundaries": (20, 10)}, ("boundaries", "rising")),
        ({"name": "step", "boundaries": (20, 20)}, ("boundaries", "rising")),
        ({"name": "step", "boundaries": (0.5, 2)}, ("boundaries",)),
        ({"name": "step", "boundaries": (5,), "warmup_steps": 9}, ("boundaries", "warm-up")),
        ({"name": "step", "boundaries": (5, 9), "factors": (0.1, 0.1, 0.1)}, ("factors", "2")),
        ({"name": "step", "boundaries": (5,), "factors": (0.0,)}, ("factors",)),
        ({"name": "exponential", "decay_steps": 0}, ("decay_steps",)),
        ({"name": "exponential", "decay_rate": 0.0}, ("decay_rate",)),
        ({"name": "inverse_sqrt", "plateau_steps": 0}, ("plateau_steps",)),
        ({"name": None}, ("schedule.name",)),
    ],
)
def test_what_cannot_work_is_refused_by_name(config, words):
    with pytest.raises(ConfigError) as caught:
        make_schedule(config, 100)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_option_has_a_one_line_meaning():
    assert all(doc and "\n" not in doc for _, doc in schedules.defaults().values())


def lengths_of(config):
    names = ("warmup_steps", "boundaries", "decay_steps")
    return [config.steps, *(config.schedule[name] for name in names)]


@pytest.mark.parametrize(
    ("name", "settled"),
    [
        ("cosine", [30, 3, (100, 200), 24]),
        ("step", [30, 3, (10, 20), 24]),
        ("exponential", [30, 3, (100, 200), 2]),
    ],
)
def test_steps_follow_from_epochs_and_the_schedule_keeps_its_shape(name, settled):
    """3 epochs of 97 examples in batches of 10 are 29.1 steps, a tenth of 300."""
    values = {"steps": 300, "batch_size": 10, "schedule.name": name}
    values |= {"schedule.warmup_steps": 30, "schedule.boundaries": (100, 200)}
    config = from_python("configs/resnet50.py", {**values, "schedule.decay_steps": 24})
    assert not schedules.settle_epochs(config, 97)
    config = overrides.apply(config, {"epochs": 3.0}, "a second call")
    assert schedules.settle_epochs(config, 97)
    assert lengths_of(config) == settled
    assert not schedules.settle_epochs(config, 97)
    assert lengths_of(config) == settled


def test_a_warm_up_that_is_set_with_the_epochs_stays():
    config = from_python("configs/resnet50.py:digits", {"epochs": 1, "schedule.warmup_steps": 7})
    schedules.settle_epochs(config, 1437)
    assert config.schedule.warmup_steps == 7
    assert config.steps == math.ceil(1437 / config.batch_size)


@pytest.mark.parametrize("epochs", [1, 100])
def test_a_warm_up_may_need_the_steps_that_the_epochs_come_to(epochs):
    """500 steps are more than the 300 of the file, and fewer than 100 epochs."""
    values = {"epochs": epochs, "schedule.warmup_steps": 500}
    config = from_python("configs/resnet50.py:digits", values)
    assert schedules.of_run(config)(0) == config.schedule.learning_rate
    assert schedules.settle_epochs(config, 1437)
    if epochs == 1:
        with pytest.raises(ConfigError, match="warmup_steps=500"):
            schedules.of_run(config)
    else:
        assert schedules.of_run(config)(250) == pytest.approx(config.schedule.learning_rate / 2)


def test_a_file_that_sets_epochs_and_no_steps_means_its_warm_up_as_it_is(tmp_path):
    """The default of `steps` is nobody's choice, so that the warm-up has no share of it."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from vitattn.config import default_config\n\n\n"
        "def get_config(variant=''):\n"
        "    config = default_config('resnet')\n"
        "    config.epochs, config.batch_size, config.schedule.warmup_steps = 3.0, 10, 5\n"
        "    return config\n"
    )
    for values, steps in (({}, 30), ({"epochs": 6}, 60)):
        config = from_python(str(file), values)
        schedules.settle_epochs(config, 97 + 3)
        assert (config.steps, config.schedule.warmup_steps) == (steps, 5)
