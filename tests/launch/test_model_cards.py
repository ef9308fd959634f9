"""README.md of real exports: what a hub reads, what stays private, and that its snippet runs."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from launch import cli, export
from tests.launch.commands import TINY
from tests.launch.test_export import averaged_run
from tests.moe.interop import models
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import run_command

huggingface_hub = pytest.importorskip("huggingface_hub")

FIGURES = {"top1": 0.5, "top5": 0.75, "loss": 1.25, "examples": 360.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name -> workdir of tiny runs of both families."""
    from configs.common import load

    root = tmp_path_factory.mktemp("runs")
    for name in ("t5", "st_moe"):
        config = models.config(name)
        config.model.vocab_size = 384  # of bytes, with their sentinels
        models.workdir(config, root / name)
    overrides = cli.parse(cli.parser("test", ""), TINY[1:])[1]
    overrides["data.dir"] = str(root / "secret")
    config = load.from_flags(TINY[0].removeprefix("--config="), overrides).config
    averaged_run(config, root / "vision")
    saved = checkpoint.Checkpoints(root / "vision" / "checkpoints")
    saved.add_metrics(3, FIGURES)
    saved.close()
    return root


def exported(workdir, out, *flags) -> str:
    """The model card of an export."""
    assert export.main([f"--workdir={workdir}", f"--out={out}", *flags]) == 0
    return (out / "README.md").read_text()


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


@pytest.mark.thorough
def test_a_card_says_what_was_measured_and_no_path(runs, tmp_path, capsys):
    text = exported(runs / "vision", tmp_path / "out", "--format=safetensors", "--license=mit")
    assert "config.json holds paths of this machine: data.dir" in capsys.readouterr().out
    data = huggingface_hub.ModelCard(text).data
    assert data.license == "mit"
    assert data.pipeline_tag == "image-classification"
    measured = {result.metric_name: result.metric_value for result in data.eval_results}
    assert measured == {
        "top-1 accuracy": 0.5,
        "top-5 accuracy": 0.75,
        "cross entropy, nats": 1.25,
    }
    assert data.eval_results[0].dataset_split == "test"
    assert "| classes | 10: 0, 1, 2" in text
    assert "scaled to 8 x 8 pixels" in text
    assert "--config.data.dir=DATA_DIR" in text
    assert "at step 3, " in text
    for private in (str(runs), str(tmp_path), "secret", str(Path.home())):
        assert private not in text


def test_figures_of_other_weights_are_left_out(runs, tmp_path):
    """The run evaluated its moving averages; these are the weights as trained."""
    text = exported(runs / "vision", tmp_path / "out", "--format=safetensors", "--weights=raw")
    assert huggingface_hub.ModelCard(text).data.eval_results is None
    assert "no evaluation of exactly these weights" in text


def test_a_readme_of_others_is_not_overwritten_and_a_card_is(runs, tmp_path, capsys):
    flags = [f"--workdir={runs / 'st_moe'}", f"--out={tmp_path}", "--format=safetensors"]
    (tmp_path / "README.md").write_text("mine")
    assert run_command(lambda: export.main(flags)) == 64
    assert "already holds a README.md" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    first = exported(runs / "st_moe", tmp_path, "--format=safetensors")
    second = exported(runs / "st_moe", tmp_path, "--format=safetensors", "--license=mit")
    assert (huggingface_hub.ModelCard(first).data.license, "license" in second) == (None, True)
    assert json.loads((tmp_path / "export.json").read_text())["step"] == 0


SNIPPETS = {
    "vision": ("vision", "--format=safetensors"),
    "vision program": ("vision", "--format=stablehlo", "--platforms=cpu"),
    "moe": ("st_moe", "--format=safetensors"),
    "moe program": ("st_moe", "--format=stablehlo", "--platforms=cpu"),
    "hf": ("t5", "--format=safetensors"),
    "t5x": ("t5", "--format=t5x"),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", SNIPPETS)
def test_the_snippet_of_a_card_works(runs, tmp_path, monkeypatch, case):
    run, *flags = SNIPPETS[case]
    text = exported(runs / run, tmp_path, *flags)
    card = huggingface_hub.ModelCard(text)
    assert card.data.library_name == ("transformers" if case == "hf" else "vitattn-moe")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "load", raising=False)
    code = snippet(text)
    assert len(code.splitlines()) <= 8
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    if "program" in case:
        assert np.isfinite(jax.device_get(names["logits"])).all()
    if case == "vision":
        assert len(names["prediction"].top(3)) == 3
    if case == "t5x":
        assert all(isinstance(value, np.ndarray) for value in names["weights"].values())
