"""ResNets in torchvision's names: what is read, what is refused and by which name, and that advice
works when it is carried out.
"""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.common.load import of_workdir
from launch import export, import_weights
from tests.moe.interop import models
from trainlib.errors import ConfigError, run_command
from trainlib.formats import layout as interchange
from trainlib.formats import weight_source as weights
from vitattn import config as config_lib
from vitattn.interop import torchvision as interop
from vitattn.interop import torchvision_names

KEYS = {"blocks": (1, 1, 1, 1), "width": 0.125, "image_size": 32, "num_classes": 3}


def configuration(**keys):
    config = config_lib.default_config("resnet")
    config.model.update(KEYS | keys)
    return config


def tensors(config, seed=0):
    """Names and shapes of torchvision for a configuration, filled at random."""
    random, abstract = np.random.default_rng(seed), interop.abstract(config)
    specs = {**abstract.params, **abstract.model_state}
    found = {}
    for entry in interop.layout(config, "safetensors", "torchvision").entries:
        shape = interchange.their_shape(entry, specs[entry.ours])
        low = 0.5 if entry.theirs.endswith(("_var", "bn1.weight")) else -0.3
        found[entry.theirs] = random.uniform(low, low + 0.6, shape).astype("f4")
        if entry.theirs.endswith("running_mean"):
            name = entry.theirs.replace("running_mean", "num_batches_tracked")
            found[name] = np.array(7, np.int64)
    return found


def bring(capsys, values, folder, *flags):
    """Exit code, output and error of an import of tensors."""
    folder.mkdir(exist_ok=True)
    save_file(values, folder / "model.safetensors")
    given = [f"--path={folder / 'model.safetensors'}", f"--out={folder / 'run'}", *flags]
    code = run_command(lambda: import_weights.main(["--format=torchvision", *given]))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("depth", "width", "blocks"), [(50, 0.125, (1, 1, 1, 1)), (18, 0.25, (1, 2, 1, 1))]
)
def test_any_width_is_read_and_comes_back(depth, width, blocks, tmp_path, capsys):
    values = tensors(configuration(depth=depth, width=width, blocks=blocks))
    code, _, err = bring(capsys, values, tmp_path)
    assert code == 0, err
    config = of_workdir(tmp_path / "run", {})
    assert (config.model.width, tuple(config.model.blocks)) == (width, blocks)
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--names=torchvision"]
    assert run_command(lambda: export.main([*flags, "--format=safetensors"])) == 0
    assert f"no ResNet of width {width}" in " ".join(capsys.readouterr().out.split())
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert set(back) == {n for n in values if not n.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, values[name], strict=True)
    facts = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert facts["mean"] == [0.485, 0.456, 0.406]


def reshaped(name, shape):
    return lambda values: values | {name: np.zeros(shape, "f4")}


def wide(values):
    inner = {"layer1.0.conv1.weight": (16, 8, 1, 1), "layer1.0.conv2.weight": (16, 16, 3, 3)}
    return values | {name: np.zeros(shape, "f4") for name, shape in inner.items()}


def without_head(values):
    return {name: value for name, value in values.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (wide, "a Wide ResNet of torchvision's kind (16 channels inside"),
        (reshaped("layer1.0.conv2.weight", (8, 2, 3, 3)), "a ResNeXt (convolutions of 4 groups)"),
        (reshaped("conv1.weight", (8, 3, 3, 3)), "first convolution is 3 x 3 on 3 channels"),
        (reshaped("conv1.weight", (8, 1, 7, 7)), "first convolution is 7 x 7 on 1 channels"),
        (without_head, "without a head: there is no matrix fc.weight"),
        (lambda v: {"encoder.weight": v["fc.weight"]}, "it holds 1 tensors: encoder.weight"),
    ],
)
def test_what_it_is_instead_is_said(change, named, tmp_path, capsys):
    code, _, err = bring(capsys, change(tensors(configuration())), tmp_path)
    assert (code, named in err) == (66, True), err
    assert "--config" not in err  # no key would help
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prefix", ["module.", "model.", "state_dict/backbone.", "_orig_mod."])
def test_a_prefix_is_named_and_the_advice_works(prefix, tmp_path, capsys):
    values = tensors(configuration())
    wrapped = {prefix + name: value for name, value in values.items()}
    code, _, err = bring(capsys, wrapped, tmp_path)
    assert code == 66
    (advice,) = [word for word in err.split() if word.startswith("--strip_prefix=")]
    assert advice == f"--strip_prefix={prefix}"
    code, out, err = bring(capsys, wrapped, tmp_path, advice)
    assert code == 0, err
    assert "missing" in out
    code, _, err = bring(capsys, wrapped, tmp_path / "b", "--strip_prefix=modle.")
    assert (code, f"There are {prefix}" in err) == (66, True), err
    code, _, err = bring(capsys, wrapped, tmp_path / "c", advice, "--check")
    assert (code, "--strip_prefix" in err) == (64, True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_by_tensor(bad, tmp_path, capsys):
    values = tensors(configuration())
    values["layer2.0.bn1.running_var"][3] = bad
    code, _, err = bring(capsys, values, tmp_path)
    assert code == 66
    assert "layer2.0.bn1.running_var holds 1 values of 16 that are NaN or infinite" in err
    assert "learning_rate" not in err
    assert not (tmp_path / "run").exists()


def logits(config, values, images):
    forward, *_ = interop.serving(config)
    abstract = interop.abstract(config)
    parts = ({n: values[n] for n in s} for s in (abstract.params, abstract.model_state))
    return np.asarray(jax.jit(forward)(*parts, {"image": images}))


@pytest.mark.sample(1)
@pytest.mark.parametrize("eps", [0.1, 1e-3, 1e-6])
def test_another_epsilon_is_in_the_variances(eps, tmp_path, capsys):
    """torch adds 1e-5, whatever ours was: an export that is read back has its epsilon."""
    config = configuration(bn_eps=eps)
    abstract, random = interop.abstract(config), np.random.default_rng(0)
    specs = {**abstract.params, **abstract.model_state}
    values = {n: random.uniform(0.05, 0.2, s.shape).astype("f4") for n, s in specs.items()}
    weights.save_as_run(config, abstract, values, tmp_path / "made")
    flags = [f"--workdir={tmp_path / 'made'}", f"--out={tmp_path / 'out'}", "--names=torchvision"]
    assert run_command(lambda: export.main([*flags, "--format=safetensors"])) == 0
    assert "running_var holds var" in " ".join(capsys.readouterr().out.split())
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = values["stem.norm.var"].astype("f8") + eps
    np.testing.assert_allclose(written["bn1.running_var"].astype("f8") + 1e-5, expected, rtol=1e-6)
    code, _, err = bring(capsys, written, tmp_path / "back", "--config.model.image_size=32")
    assert code == 0, err
    again = of_workdir(tmp_path / "back" / "run", {})
    assert again.model.bn_eps == 1e-5
    found = dict(weights.Saved(tmp_path / "back" / "run", abstract).leaves())
    images = random.normal(size=(2, 32, 32, 3)).astype("f4")
    there, here = logits(again, found, images), logits(config, values, images)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5 * np.abs(here).max())


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"stem": "small_image"}, "model.stem=small_image"), ({"gate": "se"}, "model.gate=se")],
)
def test_what_the_names_cannot_hold_is_named(keys, named):
    with pytest.raises(ConfigError, match=named):
        torchvision_names.layout(configuration(**keys), {})


# --------------------------------------------------------------------------------- lossy casts
@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (65504.0, "f2", True),
        (7e4, "f2", False),
        (-7e4, "f2", False),
        (3.38e38, ml_dtypes.bfloat16, True),
        (3.4e38, ml_dtypes.bfloat16, False),
        (7e4, "f4", True),
    ],
)
def test_a_cast_that_would_make_infinity_stops(value, dtype, fits):
    leaf = np.array([1.0, value, 2.0], np.float32)
    if fits:
        assert np.isfinite(interchange.cast(leaf, np.dtype(dtype), "a.kernel")).all()
        return
    with pytest.raises(ConfigError, match=r"1 of 3 values of a\.kernel do not fit into"):
        interchange.cast(leaf, np.dtype(dtype), "a.kernel")


FORMS = {"safetensors": [], "own": ["--names=own"], "t5x": [], "stablehlo": ["--platforms=cpu"]}


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_every_format_names_the_leaf_that_does_not_fit(form, tmp_path, capsys):
    config = models.config("t5")
    from moe import interop as text

    abstract = text.abstract(config)
    values = {n: np.full(s.shape, 0.5, "f4") for n, s in abstract.params.items()}
    values["encoder.norm.scale"][0] = 7e4
    weights.save_as_run(config, abstract, values, tmp_path / "run")
    kind = "safetensors" if form == "own" else form
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", f"--format={kind}"]
    code = run_command(lambda: export.main([*flags, "--dtype=f16", *FORMS[form]]))
    err = " ".join(capsys.readouterr().err.split())
    assert code == 64, err
    assert "1 of" in err
    assert "encoder.norm.scale do not fit into float16" in err
    assert not weights.is_export(tmp_path / "out")
    code = run_command(lambda: export.main([*flags, "--dtype=bf16", *FORMS[form]]))
    assert code == 0, capsys.readouterr().err
