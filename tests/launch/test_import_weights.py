"""`launch.import_weights` as a user types it: tables, checks, mistakes, and what it leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.common.load import of_workdir
from launch import export, import_weights
from moe import interop
from tests.moe.interop import models
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.checkpoint import find as init_from
from trainlib.errors import run_command
from trainlib.formats import safetensors as safetensors_io
from trainlib.formats import weight_source as weights
from vitattn.interop import torchvision as vision
from vitattn.labels import class_names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {n: models.workdir(models.config(n), root / n) for n in ("t5", "switch")}
    for name in made:
        flags = [f"--workdir={root / name}", f"--out={root / name}.hf", "--shard_size=60KB"]
        export.main([*flags, "--format=safetensors"])
    export.main([f"--workdir={root / 't5'}", f"--out={root / 't5.t5x'}", "--format=t5x"])
    return root, made


def take(capsys, *flags):
    code = run_command(lambda: import_weights.main(list(flags)))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "switch"])
def test_the_check_prints_the_difference(runs, tmp_path, capsys, name):
    pytest.importorskip("torch", reason="--check runs the other library")
    pytest.importorskip("transformers", reason="--check runs the other library")
    root, _ = runs
    flags = ["--format=hf", f"--path={root / name}.hf", f"--out={tmp_path / 'back'}", "--check"]
    code, out, err = take(capsys, *flags)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "largest difference" in line]
    assert float(line.split()[6].rstrip(",")) < 1e-4
    assert f"init_from={tmp_path / 'back'}" in out


def test_an_import_is_a_run_to_start_from(runs, tmp_path, capsys):
    """`init_from` finds step 0 and its leaves; the configuration beside it builds the model."""
    root, made = runs
    flags = ["--format=hf", f"--path={root / 't5.hf'}", f"--out={tmp_path / 'back'}"]
    assert take(capsys, *flags)[0] == 0
    directory, step = init_from.find(tmp_path / "back")
    checkpoints = checkpoint.Checkpoints(directory)
    assert checkpoints.pick(step) == 0
    shapes = checkpoints.shapes(0)
    for name, value in made["t5"].items():
        assert tuple(shapes[f"params/{name}"].shape) == value.shape
    config = of_workdir(tmp_path / "back", {})
    assert interop.abstract(config).param_count == sum(v.size for v in made["t5"].values())
    # The same directory again is refused: nothing is overwritten.
    code, _, err = take(capsys, *flags)
    assert code == 64
    assert "already holds a run" in err


def changed(source, target, change):
    """A copy of a Hugging Face directory in one file, with its tensors changed."""
    reader = safetensors_io.Reader(source)
    target.mkdir()
    tensors = change({name: reader.read(name) for name in reader.tensors})
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((source / "config.json").read_text())


def without(name):
    return lambda tensors: {n: v for n, v in tensors.items() if n != name}


NORM = "encoder.block.0.layer.0.layer_norm.weight"
CHANGES = {
    "missing": (without(NORM), "missing     1", NORM),
    "unexpected": (
        lambda t: t | {"more.weight": np.zeros(3, "f4")},
        "unexpected  1",
        "more.weight",
    ),
    "mis-shaped": (lambda t: t | {NORM: np.zeros(3, "f4")}, "mis-shaped  1", "(3,) there"),
    "transposed": (
        lambda t: t | {"lm_head.weight": np.ascontiguousarray(t["lm_head.weight"].T)},
        "mis-shaped  1",
        "(24, 128) there, (128, 24) here",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_table_names_what_does_not_fit(runs, tmp_path, capsys, kind):
    change, row, named = CHANGES[kind]
    changed(runs[0] / "t5.hf", tmp_path / "changed", change)
    out = tmp_path / "back"
    code, text, err = take(capsys, "--format=hf", f"--path={tmp_path / 'changed'}", f"--out={out}")
    assert code == 66
    assert row in text
    assert named in text
    assert "does not fit" in err
    assert not out.exists()


def test_names_can_be_left_out(runs, tmp_path, capsys):
    change = CHANGES["unexpected"][0]
    changed(runs[0] / "t5.hf", tmp_path / "changed", change)
    flags = ["--format=hf", f"--path={tmp_path / 'changed'}", f"--out={tmp_path / 'back'}"]
    code, text, err = take(capsys, *flags, "--ignore=^more")
    assert code == 0, err
    assert "unexpected  0" in text


def test_other_dtypes_become_float32(runs, tmp_path, capsys):
    changed(
        runs[0] / "t5.hf",
        tmp_path / "half",
        lambda tensors: {n: v.astype(np.float16) for n, v in tensors.items()},
    )
    flags = ["--format=hf", f"--path={tmp_path / 'half'}", f"--out={tmp_path / 'back'}"]
    assert take(capsys, *flags)[0] == 0
    config = of_workdir(tmp_path / "back", {})
    for name, value in weights.Saved(tmp_path / "back", interop.abstract(config)).leaves():
        expected = runs[1]["t5"][name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(value, expected, strict=True)


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--format=hf"], 64, "--path is missing"),
        (["--format=huggingface", "--path={hf}"], 64, "hf"),
        (["--format=hf", "--path=nowhere"], 66, "does not exist"),
        (["--format=t5x", "--path={hf}"], 66, "checkpoint_<step>"),
        (["--format=torchvision", "--path={hf}"], 66, "no ResNet"),
        (["--format=safetensors", "--path={hf}"], 66, "own names"),
        (["--format=safetensors", "--path={hf}/.."], 66, "parts of it (--part) are still to come"),
        (["--format=t5x", "--path={t5x}", "--check"], 64, "no other library for --format=t5x"),
        (["--format=hf", "--path={hf}", "--check"], 64, "lacking is not installed: pip install la"),
        (["--format=hf", "--path={hf}", "--config.model.d_modl=3"], 64, "model.d_model"),
        (["--format=hf", "--path={hf}", "--ignore=("], 64, "--ignore"),
    ],
)
def test_mistakes_are_explained(runs, tmp_path, capsys, monkeypatch, flags, code, named):
    """Those of `--check` before any weight is read."""
    monkeypatch.setattr("trainlib.formats.layout.take", None)
    monkeypatch.setitem(interop.COMPARED, "hf", ("json", "lacking"))
    filled = [flag.format(hf=runs[0] / "t5.hf", t5x=runs[0] / "t5.t5x") for flag in flags]
    found, _, err = take(capsys, *filled, f"--out={tmp_path / 'back'}")
    assert found == code, err
    assert named in err
    assert not (tmp_path / "back").exists()


def prefixed(tensors):
    return {f"model.{name}": value for name, value in tensors.items()}


def test_a_prefix_is_named_and_the_advice_works(runs, tmp_path, capsys):
    changed(runs[0] / "t5.hf", tmp_path / "wrapped", prefixed)
    flags = ["--format=hf", f"--path={tmp_path / 'wrapped'}", f"--out={tmp_path / 'back'}"]
    code, _, err = take(capsys, *flags)
    assert (code, err.endswith("--strip_prefix=model.")) == (66, True), err
    assert take(capsys, *flags, "--strip_prefix=model.")[0] == 0


# ------------------------------------------------------------------------------- torchvision
COUNTS, WIDTHS, CLASSES = (3, 4, 6, 3), (64, 128, 256, 512), 11


def torchvision_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """ResNet-50's names and shapes as torchvision has them, filled at random."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def conv(name, norm, into, out, size):
        spread = (2 / (into * size * size)) ** 0.5
        found[f"{name}.weight"] = random.normal(0, spread, (out, into, size, size)).astype("f4")
        for part, low in (("weight", 0.5), ("bias", -0.1), ("running_mean", -0.1)):
            found[f"{norm}.{part}"] = random.uniform(low, low + 0.3, out).astype("f4")
        found[f"{norm}.running_var"] = random.uniform(0.5, 1.5, out).astype("f4")
        found[f"{norm}.num_batches_tracked"] = np.array(5, np.int64)

    conv("conv1", "bn1", 3, 64, 7)
    into = 64
    for stage, (count, width) in enumerate(zip(COUNTS, WIDTHS, strict=True), 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", f"{name}.bn1", into, width, 1)
            conv(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            conv(f"{name}.conv3", f"{name}.bn3", width, 4 * width, 1)
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", into, 4 * width, 1)
            into = 4 * width
    found["fc.weight"] = random.normal(0, 0.05, (CLASSES, into)).astype("f4")
    found["fc.bias"] = random.normal(0, 0.1, CLASSES).astype("f4")
    return found


def resnet50_in_torch(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """ResNet-50 v1.5 by torch's functions, from its paper's figure: [B, 3, H, W] -> logits."""
    import torch
    from torch.nn import functional

    values = {name: torch.from_numpy(value) for name, value in weights.items()}

    def layer(x, conv, norm, stride=1):
        kernel = values[f"{conv}.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = [values[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts, eps=1e-5)

    x = functional.relu(layer(torch.from_numpy(image), "conv1", "bn1", 2))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(COUNTS, 1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            y = functional.relu(layer(x, f"{name}.conv1", f"{name}.bn1"))
            y = functional.relu(layer(y, f"{name}.conv2", f"{name}.bn2", stride))
            y = layer(y, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), values["fc.weight"], values["fc.bias"]).numpy()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """torchvision's weights and the workdir that the import made of them."""
    root = tmp_path_factory.mktemp("resnet")
    tensors = torchvision_weights()
    save_file(tensors, root / "resnet50.safetensors")
    flags = [f"--path={root / 'resnet50.safetensors'}", f"--out={root / 'run'}"]
    import_weights.main(["--format=torchvision", *flags, "--config.model.image_size=32"])
    return tensors, root / "run"


@pytest.mark.slow
def test_torchvisions_resnet50_computes_the_same(resnet):
    pytest.importorskip("torch", reason="the reference is torch's arithmetic")
    tensors, workdir = resnet
    config = of_workdir(workdir, {})
    assert (config.model.depth, config.model.num_classes) == (50, CLASSES)
    abstract = vision.abstract(config)
    values = dict(weights.Saved(workdir, abstract).leaves())
    image = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    forward, *_ = vision.serving(config)
    params = {n: values[n] for n in abstract.params}
    statistics = {n: values[n] for n in abstract.model_state}
    found = np.asarray(forward(params, statistics, {"image": image}))
    expected = resnet50_in_torch(tensors, np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_torchvisions_names_come_back_bit_for_bit(resnet, tmp_path):
    tensors, workdir = resnet
    flags = [f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--format=safetensors"]
    export.main([*flags, "--names=torchvision"])
    reader = safetensors_io.Reader(tmp_path / "out")
    expected = {n: v for n, v in tensors.items() if not n.endswith("num_batches_tracked")}
    assert set(reader.tensors) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(reader.read(name), value, strict=True)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["step"] == 0


def test_names_of_classes_are_those_beside_the_weights_or_none(resnet, tmp_path, capsys):
    """Eleven outputs are not the first eleven classes of ImageNet."""
    _, workdir = resnet
    assert class_names.of_model(workdir, None, CLASSES)[1] is None
    weights_file = workdir.parent / "resnet50.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {n}\n" for n in range(CLASSES)))
    flags = ["--format=torchvision", f"--path={weights_file}", "--config.model.image_size=32"]
    code, _, err = take(capsys, *flags, f"--out={tmp_path / 'a'}", f"--class_names={names}")
    assert code == 0, err
    assert class_names.of_model(tmp_path / "a", None, CLASSES)[1].names[10] == "thing 10"
    names.write_text("one\ntwo\n")
    code, _, err = take(capsys, *flags, f"--out={tmp_path / 'b'}", f"--class_names={names}")
    assert (code, "2 names and the model has 11 classes" in err) == (65, True)
    assert not (tmp_path / "b").exists()
