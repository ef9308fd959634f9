"""Latency of published models: what is timed, on this machine and by the TPU's compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_compiler import needs_libtpu
from trainlib.errors import ConfigError
from trainlib.model import weights
from vitattn import latency
from vitattn.latency import Setting
from vitattn.models import build, configure

SMALL = {"name": "resnet", "depth": 18, "width": 0.125, "image_size": 32, "num_classes": 3}


@pytest.mark.thorough
def test_a_classifier_is_measured():
    found = latency.measure(SMALL, Setting(batch=2, image_size=16, seconds=0.01))
    assert 0 < found.low <= found.seconds <= found.high
    assert latency.LEAST_RUNS <= found.runs <= latency.MOST_RUNS
    assert (found.batch, found.image_size, found.dtype) == (2, (16, 16), "float32")
    assert found.images_per_second == 2 / found.seconds
    assert "CPU" in found.device


def test_runs_go_on_for_a_time_but_are_at_least_five(monkeypatch):
    """A clock on which every call takes a second, and the first is not counted."""
    clock = iter(np.arange(0.0, 1000.0))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert latency._timed(lambda: None, seconds=0) == [1.0] * 5
    assert len(latency._timed(lambda: None, seconds=7.5)) == 8
    assert len(latency._timed(lambda: None, seconds=1e9)) == latency.MOST_RUNS


def outputs(section):
    """What is timed of a model, as shapes."""
    config = configure(section)
    abstract = weights.abstract(build(section))
    shapes = [latency._shapes(specs) for specs in (abstract.params, abstract.model_state)]
    images = jax.ShapeDtypeStruct((2, *config.size, 3), jnp.float32)
    return jax.eval_shape(latency._inference(abstract, config), *shapes, images)


def test_a_classifier_is_timed_up_to_its_probabilities():
    assert outputs(SMALL).shape == (2, 3)


def test_a_detector_is_timed_up_to_its_detections():
    found = outputs({"name": "retinanet", "depth": 18, "width": 0.125, "image_size": 128})
    assert found["boxes"].shape == (2, 100, 4)
    assert found["scores"].shape == found["classes"].shape == (2, 100)


@needs_libtpu
@pytest.mark.thorough
def test_a_prediction_is_of_the_schedule_of_one_device():
    found = latency.predict(SMALL, Setting(batch=2), "v5e-4")
    assert 0 < found.seconds == found.low == found.high < 1
    assert (found.runs, found.dtype, found.device) == (0, "bfloat16", "one device of v5e-4")


def test_gpus_are_not_predicted():
    with pytest.raises(ConfigError, match=r"predicted for TPUs alone.*--latency"):
        latency.predict(SMALL, Setting(), "gpu:h200x1")


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else found(name, *a)
    )
    with pytest.raises(ConfigError, match="libtpu is not installed"):
        latency.predict(SMALL, Setting(), "v5e-1")


def test_a_batch_that_does_not_fit_is_said_in_gib(monkeypatch):
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.42G) exceeds available HBM (15.75G)."
    )

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr("trainlib.planning.ledger.ledger_of", full)
    with pytest.raises(ConfigError, match=r"--batch=64 needs 18.4 GiB, .* has 15.8"):
        latency.predict(SMALL, Setting(batch=64), "v5e-1")
