"""A detector that starts from a classifier, or from another detector."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from launch import export
from tests.vitattn.start.test_transfer import filled
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.config import override, to_json
from trainlib.errors import CheckpointError, ConfigError
from trainlib.model import statistics
from trainlib.run.workdir import save_config
from trainlib.sharding.mesh import make_mesh
from vitattn.config import default_config
from vitattn.labels import class_names
from vitattn.plan import make
from vitattn.start import transfer

BODY = {"blocks": (1, 1, 1, 1), "width": 0.125}
CLASSIFIER = BODY | {"image_size": 64, "num_classes": 7}
DETECTOR = BODY | {"image_size": 128, "num_classes": 3, "features": 16, "head_layers": 1}
ATTENTION = {
    "augmented": {"num_heads": 2, "min_key_depth": 4, "kappa": 0.5, "upsilon": 0.5},
    "local": {"num_heads": 2},
}
NAMES = ("cat", "dog", "cow")


def configured(model, keys, attention="none", **changes):
    task = "detection" if model == "retinanet" else "classification"
    config = default_config(model, task=task, attention=attention)
    config.model.update(keys)
    config.model.attention.update(ATTENTION.get(attention, {}))
    for key, value in changes.items():
        override(config, key.replace("__", "."), value, "test")
    return config


def planned(config, seed=0):
    plan = make(config, make_mesh(1, 1, devices=jax.devices()[:1]))
    return plan, jax.device_put(filled(plan.abstract_state(), seed), plan.shardings)


def saved(config, directory, count=6, **other):
    """The weights of a run of this configuration at step 3: name -> array."""
    _, state = planned(config, seed=7)
    state = dataclasses.replace(state, counts=np.full_like(state.counts, count))
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints")
    checkpoints.save(3, state, {"config": json.loads(to_json(config)), **other})
    checkpoints.close()
    return {n: np.asarray(v) for n, v in {**state.params, **state.model_state}.items()}


def started(config, directory, names=()):
    config.init_from = str(directory)
    plan, first = planned(config)
    begun, report = transfer.start(plan, first, names)
    both = ({**s.params, **s.model_state} for s in (begun, first))
    return (*({n: np.asarray(v) for n, v in found.items()} for found in both), report, begun)


def table(report, label):
    """What a row of the report says; a long row begins on the line below its label."""
    text = " ".join(report.split())
    labels = ("taken", "interpolated", "new", "classes", "left over", "note")
    rest = text.split(f" {label} ", 1)[1]
    ends = [rest.find(f" {other} ") for other in labels[labels.index(label) + 1 :]]
    return rest[: min((end for end in ends if end >= 0), default=len(rest))]


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_backbone_is_taken_from_a_classifier(norm, tmp_path):
    theirs = saved(configured("resnet", CLASSIFIER), tmp_path)
    ours, first, report, begun = started(
        configured("retinanet", DETECTOR, model__norm=norm), tmp_path
    )
    body = [name for name in ours if name.startswith("backbone.")]
    assert {n.removeprefix("backbone.") for n in body} == set(theirs) - {"head.kernel", "head.bias"}
    for name in body:
        np.testing.assert_array_equal(ours[name], theirs[name.removeprefix("backbone.")])
    for name in set(ours) - set(body):
        np.testing.assert_array_equal(ours[name], first[name], err_msg=name)
    assert ("backbone.stem.norm.scale" in begun.params) == (norm == "batch")
    assert "step 3 of a classifier in" in report
    assert table(report, "left over") == "2: head.bias, head.kernel"
    new = len(ours) - len(body)
    assert table(report, "new") == f"{new} in heads, pyramid (no part of a classifier)"
    assert f"{len(body)} weights and statistics" in table(report, "taken")
    layers = statistics.layers(begun.model_state)
    counts = dict(zip(layers, begun.counts.tolist(), strict=True))
    assert counts["backbone.stem.norm"] == 6
    assert counts["pyramid.norm.0"] == statistics.FRESH


def test_frozen_norms_that_stay_as_they_are_need_no_note(tmp_path):
    saved(configured("resnet", CLASSIFIER), tmp_path, count=statistics.UNCOUNTED)
    keys = {"pyramid_norm": "none", "head_norm": "none", "bn_decay": 0.9999}
    for norm, said in (("batch", True), ("frozen", False)):
        config = configured("retinanet", DETECTOR | keys | {"norm": norm}, steps=40)
        _, _, report, _ = started(config, tmp_path)
        assert ("statistics are still" in str(report)) == said


def test_relative_positions_of_a_larger_map_are_interpolated(tmp_path):
    """A map of 2 x 2 becomes one of 4 x 4, as between classifiers of other sizes."""
    theirs = saved(configured("resnet", CLASSIFIER, "augmented"), tmp_path)
    ours, _, report, _ = started(configured("retinanet", DETECTOR, "augmented"), tmp_path)
    name = next(n for n in ours if "conv5_x" in n and n.endswith("rel_h"))
    old, new = theirs[name.removeprefix("backbone.")], ours[name]
    assert (len(old), len(new)) == (3, 7)
    np.testing.assert_allclose(new[3], old[1], rtol=1e-6)
    np.testing.assert_allclose(new[[0, 6]], old[[0, 2]], rtol=1e-6)
    assert table(report, "interpolated").startswith("6: backbone.conv3_x.0.conv2.rel_h (15, ")


def test_stand_alone_attention_comes_along(tmp_path):
    theirs = saved(configured("resnet", CLASSIFIER, "local"), tmp_path)
    ours, _, report, _ = started(configured("retinanet", DETECTOR, "local"), tmp_path)
    body = [name for name in ours if name.startswith("backbone.")]
    assert any("rel" in name for name in body)
    for name in body:
        np.testing.assert_array_equal(ours[name], theirs[name.removeprefix("backbone.")])
    assert "none" in table(report, "interpolated")


def test_another_backbone_is_refused_by_name(tmp_path):
    saved(configured("resnet", CLASSIFIER, "augmented"), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"of a classifier of init_from.*is missing there"
    ) as e:
        started(configured("retinanet", DETECTOR), tmp_path)
    assert "config.json beside" in str(e.value)
    with pytest.raises(CheckpointError, match=r"is \(1, 1, 8, 8\) there and \(1, 1, 16, 16\) here"):
        started(configured("retinanet", DETECTOR | {"width": 0.25}), tmp_path)


def test_a_detector_is_no_classifier(tmp_path):
    saved(configured("retinanet", DETECTOR), tmp_path)
    with pytest.raises(CheckpointError, match="holds a detector, and this model classifies"):
        started(configured("resnet", CLASSIFIER), tmp_path)


def exported(directory, out, *flags):
    export.main([f"--workdir={directory}", f"--out={out}", "--format=safetensors", *flags])
    return out


def test_an_export_is_as_good_as_a_run(tmp_path):
    """In our own names; others have to be imported, and their step is the one they have."""
    config = configured("resnet", CLASSIFIER, "local")
    theirs = saved(config, tmp_path / "run")
    save_config(config, tmp_path / "run")
    out = exported(tmp_path / "run", tmp_path / "own")
    ours, _, report, begun = started(configured("retinanet", DETECTOR, "local"), out)
    for name in (name for name in ours if name.startswith("backbone.")):
        np.testing.assert_array_equal(ours[name], theirs[name.removeprefix("backbone.")])
    assert "step 3 of a classifier in" in report
    assert statistics.UNCOUNTED in begun.counts.tolist()
    with pytest.raises(ConfigError, match="init_from_step"):
        started(configured("retinanet", DETECTOR, "local", init_from_step=3), out)


def test_weights_in_other_names_are_to_be_imported(tmp_path):
    config = configured("resnet", CLASSIFIER)
    saved(config, tmp_path / "run")
    save_config(config, tmp_path / "run")
    out = exported(tmp_path / "run", tmp_path / "out", "--names=torchvision")
    for place in (out, out / "model.safetensors"):
        with pytest.raises(CheckpointError, match="Import them first"):
            started(configured("retinanet", DETECTOR), place)


def test_another_epsilon_of_frozen_norms_is_said(tmp_path):
    saved(configured("resnet", CLASSIFIER), tmp_path)
    for norm, said in (("batch", False), ("frozen", True)):
        _, _, report, _ = started(configured("retinanet", DETECTOR | {"norm": norm}), tmp_path)
        assert ("--config.model.bn_eps=1e-05 keeps them" in " ".join(str(report).split())) == said


# --------------------------------------------------------------------- detector from detector
def test_classes_are_found_by_name(tmp_path):
    meta = class_names.to_meta(NAMES)
    theirs = saved(configured("retinanet", DETECTOR), tmp_path, **meta)
    config = configured("retinanet", DETECTOR)
    ours, _, report, _ = started(config, tmp_path, ("cow", "cat", "dog"))
    for name, value in ours.items():
        expected = theirs[name]
        if name.startswith("heads.classes.predictor."):
            expected = expected[..., [2, 0, 1]]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert "another order" in report
    anew = r"New: pig\. Gone: cow\..*init_new='\^heads\[\.\]classes\[\.\]predictor\[\.\]'"
    with pytest.raises(ConfigError, match=anew):
        started(config, tmp_path, ("cat", "dog", "pig"))
    config = configured("retinanet", DETECTOR, init_new=(r"^heads[.]classes[.]predictor[.]",))
    ours, first, _, _ = started(config, tmp_path, ("cat", "dog", "pig"))
    name = "heads.classes.predictor.kernel"
    np.testing.assert_array_equal(ours[name], first[name])


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("keys", "new"),
    [
        ({"num_classes": 4}, ("classes",)),
        ({"num_scales": 3}, ("classes", "boxes")),
        ({"aspect_ratios": (2.0, 1.0, 0.5)}, ("classes", "boxes")),
        ({"anchors": "torchvision"}, ("classes", "boxes")),
    ],
)
def test_predictors_of_other_classes_or_anchors_start_anew(keys, new, tmp_path):
    theirs = saved(configured("retinanet", DETECTOR), tmp_path)
    ours, first, report, _ = started(configured("retinanet", DETECTOR | keys), tmp_path)
    anew = {f"heads.{head}.predictor.{part}" for head in new for part in ("kernel", "bias")}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, (first if name in anew else theirs)[name])
    assert all(name in table(report, "new") for name in anew)
    if len(new) == 2:
        (key,) = keys
        assert f"other anchors: model.{key}=" in table(report, "new")


def test_batch_and_frozen_norms_are_the_same_numbers(tmp_path):
    theirs = saved(configured("retinanet", DETECTOR | {"norm": "frozen"}), tmp_path)
    ours, _, report, _ = started(configured("retinanet", DETECTOR), tmp_path)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert "none" in table(report, "new")
