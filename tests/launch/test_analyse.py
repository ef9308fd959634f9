"""`launch.analyse` as a user types it, on weights that were saved without training."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import configs
from launch.analyse.__main__ import main
from moe import plan as plan_lib
from moe.analysis import record
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import run_command
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config

pytestmark = pytest.mark.usefixtures("compiled_once")


def tiny(**routing):
    config = configs.load("st_moe_tiny")
    config.model.update(d_model=16, d_ff=16, num_heads=2, head_dim=8, vocab_size=384)
    config.model.update(encoder_blocks=2, decoder_blocks=1, sparse_period=1)
    config.routing.update(routing)
    config.data.update(encoder_length=64, decoder_length=32, workers=0)
    config.batch_size = 8
    config.mesh.update(replica=2, data=4)  # the eight devices of the tests
    return config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with two steps; the logits of a router of the second are not finite."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny()
    config.data.cache = str(workdir / "cache")
    plan = plan_lib.make(config)
    state, rng = plan.abstract_state(), np.random.default_rng(3)
    flat = {
        name: jax.device_put(np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype))
        for name, leaf in checkpoint.to_flat(state).items()
    }
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    router = "params/decoder.sparse.experts.router"
    for step, scale in ((2, 1.0), (4, 8e37)):  # what is not finite itself is never saved
        leaves = flat | {router: scale * flat[router]}
        checkpoints.save(step, checkpoint.from_flat(leaves, state), checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, workdir)
    return workdir


def outcome(capsys, *argv) -> tuple[int, str, str]:
    code = run_command(lambda: main([str(word) for word in argv]))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.thorough
def test_a_split_and_a_file_of_languages(saved, tmp_path, capsys):
    flags = [f"--workdir={saved}", "--step=2", "--config.batch_size=8"]
    code, out, error = outcome(capsys, *flags, "--tokens=3000", "--json")
    assert code == 0, error
    folder = saved / "analysis"
    found = json.loads((folder / "report.json").read_text())
    assert json.loads(out.splitlines()[-1]) == found
    layers = {
        f"{name}.{layer['block']}"
        for name, stack in found["stacks"].items()
        for layer in stack["layers"]
    }
    assert layers == {"encoder.0", "encoder.1", "decoder.0"}
    report = (folder / "report.md").read_text()
    for words in (*layers, "table 14 of ST-MoE", "Nearest experts by router", "punctuation"):
        assert words in report
    read = record.read(folder / "tokens.npz")
    assert 3000 <= read.tokens < 3000 + 8 * 96
    assert read.tokens == sum(stack["tokens"] for stack in found["stacks"].values())
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["classes.png", "entropy.png", "layers.png", "sentence.png"]
    for name in pictures:
        assert f"]({name})" in report
        assert len(np.unique(np.asarray(Image.open(folder / name).convert("L")))) > 10
    assert str(folder / "report.md") in out

    lines = [
        {"text": f"{text} {n}", "language": name}
        for n in range(40)
        for name, text in (("English", "The red house | is near"), ("русский", "Красный дом"))
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = tmp_path / "new" / "report"
    code, out, error = outcome(
        capsys, *flags, f"--input={path}", f"--out={other}", "--tokens=0", "--row=999"
    )
    assert code == 0, error
    last = len(record.read(other / "tokens.npz").label) - 1
    assert f"there is no --row=999: sentence.png shows the last, {last}" in out
    assert (other / "languages.png").is_file()
    (layer,) = json.loads((other / "report.json").read_text())["stacks"]["decoder"]["layers"]
    assert {group["name"] for group in layer["labels"]} == {"English", "русский"}
    assert {"script", "language or source"} <= {e["name"] for e in layer["explained"]}

    code, _, error = outcome(capsys, f"--workdir={saved}", "--tokens=500")
    assert (code, "The router of decoder.0 gives logits that are not finite" in error) == (70, True)


@pytest.mark.parametrize(
    ("experts", "flags", "code", "said"),
    [
        (0, (), 64, "holds a dense model"),
        (1, ("--config.routing.top_k=1",), 64, "holds a model with one expert"),
        (4, ("--config.data.extra_ids=60",), 65, "was trained with data.extra_ids=100"),
        (4, ("--config.data.source=text:x", "--config.data.holdout=0"), 64, "nothing of data"),
        (4, ("--input=absent.jsonl",), 65, "cannot be read"),
        (4, ("--input=absent.jsonl", "--split=train"), 64, "both say what is read"),
        (4, ("--out={there}",), 64, "is no directory"),
        (4, ("--out={there}/report",), 64, "is no directory"),
        (4, ("--tokens=many",), 64, "no whole number"),
        (4, (), 66, "checkpoint"),
    ],
)
def test_what_cannot_be_analysed(experts, flags, code, said, tmp_path, capsys):
    config = tiny(num_experts=experts, top_k=min(2, max(experts, 1)))
    config.data.cache = str(tmp_path / "cache")
    save_config(config, tmp_path)
    flags = [flag.format(there=tmp_path / "config.json") for flag in flags]
    found, _, error = outcome(capsys, f"--workdir={tmp_path}", *flags)
    assert (found, said in error) == (code, True), error


def test_a_run_on_images(tmp_path, capsys):
    save_config(configs.load("aa_resnet50:digits"), tmp_path)
    code, _, error = outcome(capsys, f"--workdir={tmp_path}")
    assert (code, "holds a run on images" in error) == (64, True)
