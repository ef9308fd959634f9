"""`launch.predict` as a user types it, on weights that were saved without training."""

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs.common import load
from launch import cli, export, predict
from tests.launch.commands import TINY, command, environment
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import run_command
from trainlib.model import weights as nn
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config
from trainlib.sharding.mesh import make_mesh
from trainlib.step import schedules
from trainlib.step import train_state as state_lib
from trainlib.step.optimizers import make_optimizer
from vitattn import config as config_lib
from vitattn import predict as vision
from vitattn.analysis import plots
from vitattn.data import eval_batches, make_source
from vitattn.models import build

LAYER = "conv4_x.0.conv2"  # of those at the highest resolution, 2 x 2, the last


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir whose moving averages are not its weights, and those averages."""
    workdir = tmp_path_factory.mktemp("run")
    _, *flags = TINY
    overrides = cli.parse(cli.parser("test", ""), flags)[1]
    config = load.from_flags(TINY[0].removeprefix("--config="), overrides).config
    abstract = nn.abstract(build(config.model))
    schedule = schedules.make_schedule(config.schedule, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, abstract.params)
    mesh, rules = make_mesh(), config_lib.sharding_rules(config)
    shardings = state_lib.state_shardings(abstract, optimizer, mesh, rules, with_ema=True)
    rng = np.random.default_rng(0)

    def filled(name, leaf):
        # Near the scale at which activations keep theirs, so that images end up apart.
        spread = np.sqrt(6 / max(6, np.prod(leaf.shape[:-1])))
        low = 0.5 if name.endswith(("var", "scale")) else -spread
        value = rng.uniform(low, low + 2 * spread, leaf.shape).astype(leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    like = checkpoint.to_flat(state_lib.abstract_state(abstract, optimizer, shardings))
    leaves = {name: filled(name, leaf) for name, leaf in like.items()}
    state = checkpoint.from_flat(leaves, state_lib.abstract_state(abstract, optimizer, shardings))
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, state, checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, workdir)
    return workdir, config, abstract, state.ema


@pytest.fixture(scope="module")
def digits(saved, tmp_path_factory):
    """Eleven test digits as files, and the pixels that evaluation makes of them."""
    folder = tmp_path_factory.mktemp("digits")
    config = saved[1]
    source = make_source(config.data, "test")
    for record in range(11):
        Image.fromarray(source[record].image[..., 0]).save(folder / f"{record:02}.png")
    with eval_batches(source, config.data, 16, 0, 1, 8) as batches:
        return folder, next(batches)["image"][:11]


def outcome(capsys, *argv: str) -> tuple[int, str, str]:
    code = run_command(lambda: predict.main(argv))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.slow
def test_many_images_take_one_compilation_and_averaged_weights(saved, digits, capsys, monkeypatch):
    workdir, _, abstract, ema = saved
    folder, pixels = digits
    monkeypatch.setattr(vision, "BATCH", 8)  # so 11 images are two batches, the last with padding
    traced = []
    make = vision.make_predict

    def counted(*args):
        forward = make(*args)
        return lambda *given: traced.append(1) or forward(*given)

    monkeypatch.setattr(vision, "make_predict", counted)
    (folder / "03b.png").write_bytes(b"not an image")
    code, out, error = outcome(capsys, f"--workdir={workdir}", str(folder), "--json")
    (folder / "03b.png").unlink()
    assert code == 65
    assert "1 of 12 images got no answer" in error
    assert "03b.png is none of the formats" in error
    assert "image 12/12 100%" in error
    assert len(traced) == 1

    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == sorted(
        [f"{n:02}.png" for n in range(11)] + ["03b.png"]
    )
    assert "none of the formats" in lines.pop(4)["error"]
    params = {name: ema[name] for name in abstract.params}
    statistics = {name: ema[name] for name in abstract.model_state}
    model = jax.jit(lambda p, s, x: jax.nn.softmax(abstract.bind(p, s)(x, train=False)))
    expected = np.asarray(model(params, statistics, pixels))
    for line, probabilities in zip(lines, expected, strict=True):
        classes = [entry["class"] for entry in line["classes"]]
        found = [entry["probability"] for entry in line["classes"]]
        np.testing.assert_allclose(found, probabilities[classes], atol=1e-5)
        np.testing.assert_allclose(found, np.sort(probabilities)[:-6:-1], atol=1e-5)
        assert line["classes"][0]["name"] == str(classes[0])
    assert expected.std(0).max() > 1e-3  # the images differ, so their order was checked too


def test_an_exported_directory_answers_as_its_run(saved, digits, capsys, tmp_path):
    """The same digits from the averaged weights in safetensors, without the run."""
    out = tmp_path / "exported"
    export.main([f"--workdir={saved[0]}", f"--out={out}", "--format=safetensors"])
    capsys.readouterr()
    images = [str(digits[0] / name) for name in ("00.png", "07.png")]
    code, expected, error = outcome(capsys, f"--workdir={saved[0]}", *images)
    assert code == 0, error
    assert "step 3" in expected
    code, found, error = outcome(capsys, f"--workdir={out}", *images)
    assert code == 0, error
    assert found == expected
    code, _, error = outcome(capsys, f"--workdir={out}", "--step=3", *images)
    assert code == 64
    assert "one step" in error


def test_attention_is_drawn_for_each_image_and_layer(saved, digits, capsys, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "attention_picture", lambda *args: drawn.append(args))
    (tmp_path / "names").write_text("".join(f"digit {n}\n" for n in range(10)))
    images = [str(digits[0] / name) for name in ("00.png", "07.png")]
    code, out, error = outcome(
        capsys,
        *images,
        f"--workdir={saved[0]}",
        f"--class_names={tmp_path / 'names'}",
        f"--attention={tmp_path / 'out.png'}",
        f"--layers=conv3_x,{LAYER}",
        "--query=0,5",
    )
    assert code == 0, error
    assert "step 3" in out
    assert out.count("%  digit ") == 10
    ((path, rows, query),) = drawn
    assert (path, query) == (tmp_path / "out.png", (0, 5))
    assert [row.layer for row in rows] == ["conv3_x.0.conv2", LAYER] * 2
    for number, row in zip((0, 0, 7, 7), rows, strict=True):
        assert row.caption.startswith(f"{number:02}.png: digit ")
        assert row.maps.shape == (2, 2, 2)
        assert row.cell == (0, 1)
        np.testing.assert_allclose(row.maps.sum((1, 2)), 1, atol=1e-5)
        shown = np.asarray(Image.open(digits[0] / f"{number:02}.png")) / 255
        np.testing.assert_allclose(row.image, np.repeat(shown[..., None], 3, -1), atol=1e-5)


MISTAKES = [
    (["{digit}"], 64, ["--workdir is missing"]),
    (["--workdir={run}"], 64, ["there is no image"]),
    (["--workdir={empty}", "{digit}"], 64, ["holds no run"]),
    (["--workdir={run}", "{digit}", "--attenton=a.png"], 64, ["Did you mean '--attention'"]),
    (["--workdir={run}", "{digit}", "--heads=1"], 64, ["what --attention"]),
    (["--workdir={run}", "{digit}", "--attention=a.png", "--heads=x"], 64, ["such as 0,3"]),
    (["--workdir={run}", "{digit}", "--attention=a.png", "--query=3"], 64, ["a row and a column"]),
    (["--workdir={run}", "{digit}", "--attention=a.png", "--query=8,0"], 64, ["8 x 8 pixels"]),
    (["--workdir={run}", "{digit}", "--attention=a.gif"], 64, ["png"]),
    (["--workdir={run}", "{digit}", "--attention=none/a.png"], 74, ["does not exist"]),
    (
        ["--workdir={run}", "{digit}", "--attention=a.png", "--layers=conv4_x.0.conv1"],
        64,
        [f"Did you mean '{LAYER}'", "conv5_x.0.conv2"],
    ),
    (["--workdir={run}", "{digit}", "--attention=a.png", "--heads=2"], 64, ["numbered 0 to 1"]),
    (["--workdir={run}", "{run}/digit.png"], 65, ["There is no image"]),
    (["--workdir={run}", "{empty}"], 65, ["has no images"]),
    (["--workdir={run}", "{digit}", "--class_names={digit}"], 65, ["cannot be read"]),
    (["--workdir={run}", "{digit}", "--class_names={run}/config.json"], 65, ["10 classes"]),
    (["--workdir={run}", "{digit}", "--step=7"], 66, ["no step 7", "steps there: 3"]),
    (["--workdir={run}", "{digit}", "--config.model.width=0.5"], 66, ["Step 3 in"]),
    (["--workdir={run}", "{digit}", "--input=a.jsonl"], 64, ["holds a run on images"]),
    (["--workdir={run}", "{digit}", "--boxes=boxes"], 64, ["draws what a detector finds"]),
]


@pytest.mark.parametrize(("argv", "code", "words"), MISTAKES, ids=lambda v: str(v)[-50:])
def test_mistakes_are_refused_in_one_paragraph(
    argv, code, words, saved, digits, capsys, tmp_path, monkeypatch
):
    def refuse(*_):
        raise AssertionError("it would have been compiled")

    monkeypatch.setattr(vision.step, "put_batch", refuse)
    (tmp_path / "empty").mkdir()
    places = {"run": saved[0], "digit": digits[0] / "00.png", "empty": tmp_path / "empty"}
    found, _, text = outcome(capsys, *(word.format(**places) for word in argv))
    assert found == code, text
    for word in words:
        assert word in text


def test_a_model_of_text_classifies_no_images(capsys, tmp_path, digits):
    save_config(load.from_flags("configs/st_moe_tiny.py", {}).config, tmp_path)
    code, _, text = outcome(capsys, f"--workdir={tmp_path}", str(digits[0] / "00.png"))
    assert code == 64
    assert "holds a run on texts: give --input=FILE.jsonl" in text


@pytest.mark.thorough
def test_the_command_itself(saved, digits, tmp_path):
    """On one device, from a process of its own, with the picture drawn."""
    picture = tmp_path / "out.png"
    argv = [f"--workdir={saved[0]}", f"--attention={picture}", str(digits[0] / "00.png")]
    done = subprocess.run(
        command("predict", *argv),
        cwd=Path(__file__).resolve().parents[2],
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("aa_resnet50:digits, step 3")
    assert str(picture) in done.stderr
    width, height = Image.open(picture).size
    assert width > height > 100
