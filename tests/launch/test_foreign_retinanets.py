"""RetinaNets in torchvision's names: what is read, what is refused and by which name, and that a
user who brings trained weights gets detections at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import configs
import vitattn
from configs.common.load import of_workdir
from launch import export, import_weights, predict
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import ConfigError, run_command
from trainlib.formats import layout as interchange
from trainlib.formats import weight_source as weights
from vitattn.config import default_config
from vitattn.interop import torchvision as interop
from vitattn.interop import torchvision_retinanet
from vitattn.labels import class_names
from vitattn.models import configure

TINY = {"blocks": (1, 1, 1, 1), "width": 0.125, "features": 32, "num_classes": 4, "image_size": 128}
V1 = {"norm": "frozen", "pyramid_norm": "none", "head_norm": "none", "p6_from": "p5"}
V2 = {"norm": "batch", "pyramid_norm": "none", "head_norm": "group", "p6_from": "c5"}
FORMS = {"v1": V1, "v2": V2}
# Tensors of torchvision 0.29 without num_batches_tracked: how many, and the digest of their sorted
# lines "name 64x3x7x7".
REAL = {
    "v1": (301, "193e5ebb5bd2461f0b8b61d83f8c0b1ad9ef930e5303a42b930daebac00bd700"),
    "v2": (309, "cd2a5a96d63d834395093f0a6a96470b97178e9efa4c6fd6dbb99a45499c1a38"),
}
CAT = 17  # COCO's id, and the number of torchvision's output


def configuration(form, **keys):
    config = default_config("retinanet", task="detection")
    config.model.update(TINY | FORMS[form] | {"bn_eps": 1e-5})
    config.model.update(torchvision_retinanet.ANCHORS | keys)
    return config


def shapes(config):
    """Name -> shape in torchvision's names."""
    abstract = interop.abstract(config)
    specs = {**abstract.params, **abstract.model_state}
    entries = interop.layout(config, "safetensors", "torchvision").entries
    return {e.theirs: interchange.their_shape(e, specs[e.ours]) for e in entries}


def tensors(config, seed=0):
    """Random values for them; of trained batch norms with the number of their batches."""
    random, found = np.random.default_rng(seed), {}
    for name, shape in shapes(config).items():
        low = 0.5 if name.endswith("_var") else -0.2
        found[name] = random.uniform(low, low + 0.4, shape).astype("f4")
        if name.endswith("running_mean") and config.model.norm == "batch":
            tracked = name.replace("running_mean", "num_batches_tracked")
            found[tracked] = np.array(7, np.int64)
    return found


def run(capsys, command, *flags):
    code = run_command(lambda: command.main(list(flags)))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def bring(capsys, values, folder, *flags):
    """Exit code, output and error of an import of tensors."""
    folder.mkdir(exist_ok=True)
    save_file(values, folder / "model.safetensors")
    given = [f"--path={folder / 'model.safetensors'}", f"--out={folder / 'run'}", *flags]
    return run(capsys, import_weights, "--format=torchvision", *given)


@pytest.mark.parametrize("form", FORMS)
def test_names_and_shapes_are_those_of_torchvision(form):
    full = {"blocks": (), "width": 1.0, "features": 256, "num_classes": 91, "image_size": 640}
    found = shapes(configuration(form, **full))
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(lines), digest) == REAL[form]


@pytest.mark.parametrize("form", FORMS)
def test_fine_tuning_has_a_variant_of_the_same_network(form, tmp_path):
    full = {"blocks": (), "width": 1.0, "features": 256, "num_classes": 91, "image_size": 640}
    found = default_config("retinanet", task="detection")
    there = shapes(configuration(form, **full))
    torchvision_retinanet.recognise(there, tmp_path, found)
    variant = f"torchvision{'_v2' * (form == 'v2')}"
    config = configs.load(f"retinanet_resnet50:{variant}")
    ours, theirs = configure(config.model), configure(found.model)
    same = {"num_classes": 91, "dtype": "float32", "bn_decay": theirs.bn_decay}
    assert dataclasses.replace(ours, **same) == theirs


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_a_detector_is_recognised_and_comes_back_bit_for_bit(form, tmp_path, capsys):
    made = configuration(form)
    values = tensors(made)
    code, out, err = bring(capsys, values, tmp_path)
    assert code == 0, err
    assert "anchors are those of torchvision's default" in out
    config = of_workdir(tmp_path / "run", {})
    assert config.model.image_size == interop.DETECTION_SIZE
    config.model.image_size = 128
    assert configure(config.model) == configure(made.model)
    assert config.name == f"torchvision_retinanet_resnet_fpn{'_v2' * (form == 'v2')}"
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--names=torchvision"]
    code, out, err = run(capsys, export, *flags, "--format=safetensors")
    assert code == 0, err
    assert "no function for a RetinaNet of 32 features" in " ".join(out.split())
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert set(back) == {n for n in values if not n.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, values[name], strict=True)


def older(values):
    """The same in the names of torchvision before 0.13."""
    found = {}
    for name, value in values.items():
        parts = name.split(".")
        if parts[1] == "fpn" and parts[2] in ("inner_blocks", "layer_blocks"):
            del parts[4]
        elif parts[0] == "head" and parts[2] == "conv":
            parts[3:5] = [str(2 * int(parts[3]))]
        found[".".join(parts)] = value
    return found


def test_names_of_earlier_versions_are_read(tmp_path, capsys):
    values = tensors(configuration("v1"))
    assert "head.regression_head.conv.6.bias" in older(values)
    assert "backbone.fpn.layer_blocks.2.weight" in older(values)
    for folder, named in ((tmp_path / "a", values), (tmp_path / "b", older(values))):
        code, _, err = bring(capsys, named, folder)
        assert code == 0, err
    abstract = interop.abstract(configuration("v1"))
    here, there = (dict(weights.Saved(tmp_path / n / "run", abstract).leaves()) for n in "ab")
    for name, value in here.items():
        np.testing.assert_array_equal(value, there[name])


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A detector of COCO's 91 outputs that sees a cat everywhere, in torchvision's names."""
    values = tensors(configuration("v1", num_classes=91))
    bias = np.full((9, 91), -9.0, "f4")
    bias[4, CAT] = 3.0
    values["head.classification_head.cls_logits.bias"] = bias.reshape(-1)
    for name in ("classification_head.cls_logits", "regression_head.bbox_reg"):
        values[f"head.{name}.weight"][...] = 0
    values["head.regression_head.bbox_reg.bias"][...] = 0
    folder = tmp_path_factory.mktemp("coco")
    save_file(values, folder / "model.safetensors")
    flags = [f"--path={folder / 'model.safetensors'}", f"--out={folder / 'run'}"]
    assert (
        import_weights.main(["--format=torchvision", *flags, "--config.model.image_size=128"]) == 0
    )
    return folder / "run"


@pytest.mark.slow
def test_trained_weights_detect_at_once(coco, tmp_path, capsys):
    """By COCO's names, at torchvision's anchors: half of the image's scale is 64 pixels of the
    network for 128 of the picture."""
    config = of_workdir(coco, {})
    assert 0 < config.model.bn_eps < torchvision_retinanet.NOTHING
    known = class_names.of_model(coco, None, 91)[1]
    assert known is not None
    names = known.names
    assert (names[0], names[CAT], names[12], names[90]) == (None, "cat", None, "toothbrush")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(picture)
    code, out, err = run(capsys, predict, f"--workdir={coco}", "--json", str(picture))
    assert code == 0, err
    (found,) = [json.loads(line) for line in out.splitlines()]
    assert {one["name"] for one in found["detections"]} == {"cat"}
    assert all(abs(one["score"] - 1 / (1 + np.exp(-3))) < 1e-5 for one in found["detections"])
    # Anchor 4 is the square one of the middle size, 40 of 32 pixels, on the corner of its cell.
    box = [2 * (64 - 20), 2 * (64 - 20), 2 * 40, 2 * 40]
    assert any(np.abs(np.subtract(one["bbox"], box)).max() < 1e-3 for one in found["detections"])
    detections: Any = vitattn.load(coco).predict(str(picture))
    assert detections[0].class_name == "cat"
    assert len(detections) == len(found["detections"])


def test_epsilon_is_that_of_the_published_weights_or_said(coco, tmp_path, capsys):
    values = tensors(configuration("v1", num_classes=91))
    code, out, err = bring(capsys, values, tmp_path, "--config.model.bn_eps=1e-5")
    assert code == 0, err
    assert "the norms add no epsilon" in out
    assert "--config.model.bn_eps=1e-05" in out
    assert of_workdir(tmp_path / "run", {}).model.bn_eps == 1e-5
    flags = [f"--workdir={coco}", f"--out={tmp_path / 'out'}", "--names=torchvision"]
    code, out, err = run(capsys, export, *flags, "--format=safetensors")
    assert code == 0, err
    assert "set eps = 0.0 on them" in " ".join(out.split())


def snippet(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return compile(code, "README.md", "exec")


def test_the_card_of_a_detector_is_read_by_a_hub_and_its_snippet_runs(
    coco, tmp_path, capsys, monkeypatch
):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    saved = checkpoint.Checkpoints(coco / "checkpoints")
    saved.add_metrics(0, {"ap": 0.364, "ap50": 0.55, "detections": 7.0, "examples": 5.0})
    saved.close()
    code, _, err = run(
        capsys, export, f"--workdir={coco}", f"--out={tmp_path}", "--format=safetensors"
    )
    assert code == 0, err
    text = (tmp_path / "README.md").read_text()
    data = huggingface_hub.ModelCard(text).data
    assert (data.pipeline_tag, data.library_name) == ("object-detection", "vitattn-moe")
    measured = {result.metric_name: result.metric_value for result in data.eval_results}
    assert measured == {"AP (COCO, IoU 0.50 to 0.95)": 0.364, "AP50": 0.55}
    assert "| classes | 91: class 0, person, bicycle" in text
    assert "as large as fits into 128 x 128 pixels" in text
    assert "1708.02002" in text
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet(tmp_path), names)
    assert names["one"].class_name == "cat"


@pytest.mark.slow
def test_the_snippet_of_a_program_runs(coco, tmp_path, capsys, monkeypatch):
    flags = [f"--workdir={coco}", f"--out={tmp_path}", "--format=stablehlo", "--platforms=cpu"]
    code, _, err = run(capsys, export, *flags)
    assert code == 0, err
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "load", raising=False)
    names: dict = {}
    exec(snippet(tmp_path), names)
    assert int(names["detections"]["classes"][0, 0]) == CAT


def without(text):
    return lambda values: {n: v for n, v in values.items() if text not in n}


def renamed(before, after):
    return lambda values: {n.replace(before, after): v for n, v in values.items()}


def added(name, *shape):
    return lambda values: values | {name: np.zeros(shape, "f4")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            added("roi_heads.box_head.fc6.weight", 4, 4),
            "a Faster R-CNN, which this package has not",
        ),
        (added("roi_heads.mask_head.0.0.weight", 4, 4), "a Mask R-CNN"),
        (added("head.regression_head.bbox_ctrness.weight", 1, 32, 3, 3), "an FCOS"),
        (added("backbone.fpn.inner_blocks.3.0.weight", 32, 8, 1, 1), "a RetinaNet on 4 stages"),
        (added("head.regression_head.bbox_reg.weight", 12, 32, 3, 3), "of 3 anchors at a place"),
        (
            added("head.classification_head.cls_logits.weight", 0, 32, 3, 3),
            "there is no head.classification_head.cls_logits.weight",
        ),
        (without("cls_logits"), "there is no head.classification_head.cls_logits.weight"),
        (without("extra_blocks"), "there is no backbone.fpn.extra_blocks.p6.weight"),
        (without("layer2"), "no ResNet in torchvision's names"),
        (added("backbone.body.conv1.weight", 8, 3, 3, 3), "first convolution is 3 x 3"),
        (without("conv.2.0.weight"), "missing (head.classification_head.conv.2.0.weight"),
    ],
)
def test_what_it_is_instead_is_said(change, named, tmp_path, capsys):
    code, _, err = bring(capsys, change(tensors(configuration("v1"))), tmp_path)
    assert (code, named in err) == (66, True), err
    assert not (tmp_path / "run").exists()


def test_a_prefix_is_named_and_the_advice_works(tmp_path, capsys):
    values = {f"module.{n}": v for n, v in tensors(configuration("v2")).items()}
    code, _, err = bring(capsys, values, tmp_path)
    assert code == 66
    (advice,) = [word for word in err.split() if word.startswith("--strip_prefix=")]
    assert advice == "--strip_prefix=module."
    code, _, err = bring(capsys, values, tmp_path, advice)
    assert code == 0, err


def test_a_pickle_is_refused_with_advice(tmp_path, capsys):
    file = tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.pth"
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    flags = ["--format=torchvision", f"--path={file}", f"--out={tmp_path / 'run'}"]
    code, _, err = run(capsys, import_weights, *flags)
    assert code == 66
    assert "safetensors.torch.save_file(torch.load(PATH, weights_only=True)" in err


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"attention": {"kind": "augmented"}}, "attention \\(model.attention\\)"),
        ({"pyramid_norm": "batch"}, "model.pyramid_norm=batch"),
        ({"head_norm": "batch"}, "model.head_norm=batch"),
        ({"num_scales": 2}, "model.num_scales=2 \\(but 3\\)"),
        ({"anchors": "centred"}, "model.anchors=centred"),
        ({"head_layers": 2}, "model.head_layers=2"),
        ({"head_norm": "group", "bn_eps": 1e-3}, "model.bn_eps=0.001"),
    ],
)
def test_what_the_names_cannot_hold_is_named(keys, named):
    kinds = {"attention": keys["attention"]["kind"]} if "attention" in keys else {}
    config = default_config("retinanet", task="detection", **kinds)
    config.model.update(TINY | V1 | torchvision_retinanet.ANCHORS | {"bn_eps": 1e-5})
    config.model.update({} if kinds else keys)
    with pytest.raises(ConfigError, match=named):
        torchvision_retinanet.layout(config, {})


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_the_check_compares_logits_and_boxes(form, tmp_path, capsys):
    pytest.importorskip("torchvision", reason="--check runs torchvision's model")
    full = {"depth": 18, "blocks": (), "width": 1.0, "features": 256, "num_classes": 3}
    values = tensors(configuration(form, **full))
    for name in values:
        if name.endswith("weight") and values[name].ndim == 4:  # of about the gain of trained ones
            values[name] *= 3 / values[name][0].size ** 0.5
    code, out, err = bring(capsys, values, tmp_path, "--check")
    assert code == 0, err
    assert "of the corners of" in out


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_the_snippet_for_torchvision_runs(form, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torchvision", reason="the snippet loads torchvision's model")
    full = {"blocks": (), "width": 1.0, "features": 256, "num_classes": 91}
    code, _, err = bring(capsys, tensors(configuration(form, **full)), tmp_path)
    assert code == 0, err
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--names=torchvision"]
    assert run(capsys, export, *flags, "--format=safetensors")[0] == 0
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec(snippet(tmp_path / "out"), names)
    assert names["model"].backbone.body.bn1.eps == (0.0 if form == "v1" else 1e-5)
