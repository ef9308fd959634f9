"""When the samples of a page are made, and when they are read; what makes them is in the tests of
the families.
"""

import json

import numpy as np
import pytest

from launch import families
from launch.reporting import samples
from trainlib.checkpoint import manifest
from trainlib.errors import DataError
from trainlib.report import samples as files
from trainlib.report.samples import Sample, Samples


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"family": "moe", "name": "small"}))
    save(tmp_path, "0" * 16)
    return tmp_path


def save(workdir, digest, shape=(3, 4)):
    folder = workdir / "checkpoints" / "40"
    folder.mkdir(parents=True, exist_ok=True)
    leaf = manifest.Leaf(shape, "float32", digest)
    manifest.write(folder, manifest.Manifest(40, {"params/a": leaf}, {}, {}, {}, {}))


@pytest.fixture
def taken(monkeypatch):
    """How often a model was asked, for how many samples; it has five to give."""
    asked = []

    def take(config, workdir, at_step, count):
        asked.append(count)
        return Samples(at_step, "five", tuple(Sample(f"{n}") for n in range(min(count, 5))))

    monkeypatch.setattr("moe.samples.texts.take", take)
    return asked


def titles(workdir, count, say=lambda line: None):
    found = samples.of_checkpoint(workdir, 40, count, say, "off")
    return found if isinstance(found, str) else [sample.title for sample in found.samples]


def test_a_model_is_asked_once_for_its_weights(workdir, taken):
    said = []
    assert titles(workdir, 3, said.append) == ["0", "1", "2"]
    assert said == [
        "samples: the model of step 40 answers 3 held-out examples on this machine (--samples=0 "
        "leaves them out)"
    ]
    assert titles(workdir, 3) == titles(workdir, 8)[:3] == ["0", "1", "2"]
    assert titles(workdir, 2) == ["0", "1"]
    assert titles(workdir, 7) == ["0", "1", "2", "3", "4"]  # it has no more, and said so
    assert taken == [3, 8]
    save(workdir, "1" * 16)  # trained again
    assert titles(workdir, 3) == ["0", "1", "2"]
    assert taken == [3, 8, 3]
    files.path_of(workdir, 40).write_text("{")  # damaged
    assert "samples-40.json is not JSON" in titles(workdir, 3)
    files.path_of(workdir, 40).unlink()
    assert titles(workdir, 10**6) == ["0", "1", "2", "3", "4"]
    assert taken[-1] == files.MOST


def test_what_cannot_be_asked_is_said_instead(workdir, taken, monkeypatch):
    def refuse(*_):
        raise DataError("The data is gone.")

    monkeypatch.setattr("moe.samples.texts.take", refuse)
    assert titles(workdir, 3) == "The data is gone."
    (workdir / "config.json").write_text(json.dumps({"name": "small"}))
    assert "no key 'family'" in titles(workdir, 3)
    save(workdir, "2" * 16, (10**8, 10**5))
    text = titles(workdir, 3)
    assert isinstance(text, str)
    assert text.startswith("To answer with the weights of step 40 asks for 74,505.8 GiB and this ")
    (workdir / "checkpoints" / "40" / "manifest.json").unlink()
    assert "step 40 cannot be read" in titles(workdir, 3)


def test_a_workdir_that_takes_no_file_still_gives_samples(workdir, taken):
    (workdir / "report").write_text("in the way")
    said = []
    assert titles(workdir, 1, said.append) == ["0"]
    assert "made anew for the next one" in said[1]
    assert titles(workdir, 1) == ["0"]
    assert taken == [1, 1]


def test_an_accelerator_that_is_too_small_is_said(workdir, monkeypatch):
    import jax

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GiB\nand more")

    monkeypatch.setattr("moe.samples.texts.take", refuse)
    reason = "JAX cannot run the model on this machine: RESOURCE_EXHAUSTED: 3 GiB."
    assert titles(workdir, 3) == reason


@pytest.mark.parametrize("name", [family.name for family in families.FAMILIES])
def test_each_family_can_be_asked(name):
    assert callable(families.by_name(name).samples.take)
    assert np.isfinite(files.MOST)
