"""The library as a stranger takes it: models by name, trained models from a directory."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

import configs
import vitattn
from launch import export, predict
from trainlib.errors import CheckpointError, ConfigError, DataError
from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn import train

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
# Ten layers, the fifth with attention: it compiles in seconds.
SMALL = {
    "depth": 10,
    "widening": 1,
    "image_size": 8,
    "num_classes": 10,
    "dtype": "float32",
    "attention": {"num_heads": 1, "min_key_depth": 4, "stages": (3,)},
}


def tiny_config(**values):
    return configs.load(
        "aa_wrn28_10:digits",
        **{"model": SMALL, "steps": STEPS, "batch_size": 32, "eval_every": 0, "data.workers": 0},
        **{"schedule.warmup_steps": 1, "checkpoint.every": 2, **values},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training on digits: checkpoints of steps 2 and 3, with moving averages."""
    workdir = tmp_path_factory.mktemp("library") / "run"
    train.run(tiny_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(run):
    return vitattn.load(run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several formats, sizes and modes, sorted by name."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, (mode, suffix, size) in enumerate(
        [("RGB", "png", (8, 8)), ("L", "png", (30, 20)), ("RGBA", "webp", (9, 9))]
    ):
        shape = (*size, len(mode)) if mode != "L" else size
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}", lossless=True)
    return sorted(folder.iterdir())


# ---------------------------------------------------------------- import vitattn
def test_importing_the_package_loads_nothing_heavy_and_lists_its_names():
    code = (
        "import sys, vitattn\n"
        "assert {'create_model', 'list_models', 'load', 'layers'} <= set(dir(vitattn))\n"
        "assert 'AugmentedConv' in dir(vitattn.layers)\n"
        "bad = {'jax', 'flax', 'numpy', 'orbax', 'grain'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [vitattn, vitattn.layers])
def test_every_public_name_is_there_and_documented(module):
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    assert set(module.__all__) == set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


# ---------------------------------------------------------------- create_model
def small_model(**overrides):
    return vitattn.create_model("aa_wrn28_10", **SMALL | overrides, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_a_model_by_name_is_ready_to_be_called():
    model = small_model(num_classes=3)
    logits = model(jnp.zeros((2, 8, 8, 3)), train=False)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


def test_names_can_be_searched():
    assert vitattn.list_models("sasa*") == [
        "retinanet_sasa_resnet50",
        "sasa_resnet26",
        "sasa_resnet38",
        "sasa_resnet50",
    ]
    assert vitattn.list_models("nothing like this") == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention": {"num_heads": 4}}, {"num_heads": 4, "kappa": 0.2, "upsilon": 0.1}),
        ({"attention.kappa": 0.5}, {"kappa": 0.5, "num_heads": 8}),
        ({"attention": {"kind": "local", "window": 3}}, {"window": 3, "num_heads": 8}),
        ({"attention": {}}, {"kappa": 0.2}),
    ],
)
def test_a_part_is_changed_field_by_field(changes, expected):
    attention = vitattn.create_model("aa_resnet50", rngs=None, **changes).config.attention
    assert expected.items() <= dataclasses.asdict(attention).items()


def test_a_part_can_be_left_out():
    plain = vitattn.create_model("resnet50", rngs=None)
    for none in (None, {"kind": "none"}):
        model = vitattn.create_model("aa_resnet50", rngs=None, attention=none)
        assert nn.abstract(model).param_count == nn.abstract(plain).param_count


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("aa_resnet5O", {}, r"name of a model='aa_resnet5O'.*Did you mean 'aa_resnet50'"),
        ("resnet50", {"num_clases": 10}, r"num_clases.*Did you mean 'num_classes'"),
        ("aa_resnet50", {"attention": {"num_head": 4}}, r"Did you mean 'num_heads'"),
        ("aa_resnet50", {"attention": {"kind": "locl"}}, r"Did you mean 'local'"),
        ("aa_resnet50", {"depth": 51}, r"model.depth=51 is not allowed"),
        ("aa_resnet50", {"depth.more": 51}, r"'depth' is a key with a value of its own"),
        ("aa_resnet50", {"num_classes": "ten"}, r"model.num_classes='ten'"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(name, changes, words):
    with pytest.raises(ConfigError, match=words):
        vitattn.create_model(name, rngs=None, **changes)


# ---------------------------------------------------------------- load
@pytest.mark.slow
def test_a_run_answers_in_a_fresh_process_as_the_command_does(run, pictures, capsys):
    predict.main(["--workdir", str(run), "--json", *map(str, pictures)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    code = (
        "import json, sys, vitattn\n"
        "trained = vitattn.load(sys.argv[1])\n"
        "answers = trained.predict(sys.argv[2:])\n"
        "print(json.dumps([[list(c) for c in answer.top(5)] for answer in answers]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), *map(str, pictures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for line, answer in zip(lines, json.loads(done.stdout.splitlines()[-1]), strict=True):
        for said, (number, name, probability) in zip(line["classes"], answer, strict=True):
            assert (said["class"], said["name"]) == (number, name)
            assert said["probability"] == pytest.approx(probability, abs=1e-6)


def test_an_image_can_be_given_in_every_form(trained, pictures):
    expected = [answer.probabilities for answer in trained.predict(pictures)]
    forms = {
        "text": [str(path) for path in pictures],
        "bytes": [path.read_bytes() for path in pictures],
        "pillow": [Image.open(path) for path in pictures],
        "array": [np.asarray(Image.open(path)) for path in pictures],
        "folder": [pictures[0].parent],
        "mixed": [pictures[0], pictures[1].read_bytes(), Image.open(pictures[2])],
        "tuple": tuple(pictures),
    }
    for form, images in forms.items():
        for answer, wanted in zip(trained.predict(images), expected, strict=True):
            np.testing.assert_array_equal(answer.probabilities, wanted, err_msg=form)
    array = np.asarray(Image.open(pictures[0]))
    batch = trained.predict(np.stack([array, array]))
    assert len(batch) == 2
    np.testing.assert_allclose(batch[1].probabilities, expected[0], atol=1e-6)
    grey = np.asarray(Image.open(pictures[1]))
    for single in (str(pictures[1]), grey, grey[..., None], Image.open(pictures[1])):
        np.testing.assert_allclose(trained.predict(single).probabilities, expected[1], atol=1e-6)
    assert trained.predict([]) == []


def test_a_prediction_has_names_and_probabilities(trained, pictures):
    answer = trained.predict(pictures[0])
    assert trained.class_names == tuple("0123456789")
    assert answer.image == pictures[0]
    assert answer.probabilities.shape == (10,)
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert answer.class_number == int(answer.probabilities.argmax())
    assert answer.class_name == str(answer.class_number)
    assert answer.probability == pytest.approx(float(answer.probabilities.max()))
    top = answer.top(3)
    assert [c.probability for c in top] == sorted(answer.probabilities.tolist())[:-4:-1]
    for most in (-1, 1.5):
        with pytest.raises(ConfigError, match=r"most=.*It takes a whole number"):
            answer.top(most)
    assert answer.class_name in repr(answer)
    assert "10 classes" in repr(trained)


def test_a_picture_of_the_caller_stays_as_it_is_and_is_turned_upright(trained, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif.tobytes())
    picture = Image.open(tmp_path / "turned.png")
    pair = trained.preprocess([tmp_path / "turned.png", picture])
    np.testing.assert_array_equal(*pair)
    assert (picture.size, picture.getexif()[0x0112]) == ((20, 12), 6)
    upright = trained.preprocess(np.rot90(pixels, -1))
    np.testing.assert_allclose(upright[0], pair[0], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (3, "this is int"),
        ([None], "this is NoneType"),
        (np.zeros((8, 8, 3)), r"type float64. Pixels from 0 to 1 become"),
        (np.zeros((4, 8, 8), np.uint8), r"this array is 4 x 8 x 8. A batch of grey images is"),
        (np.zeros((0, 8, 3), np.uint8), "image 0 has no pixels"),
        (b"", "1 of 1 images got no answer: image 0 is empty"),
        ([b"nothing", np.zeros((8, 8), np.uint8)], "1 of 2 images got no answer: image 0 is none"),
        ("nowhere.png", "There is no image nowhere.png"),
        (str(ROOT), r"is a folder, and one image was asked for. Give a list"),
        ("", "path of an image is empty"),
    ],
)
def test_what_is_no_image_is_refused(trained, images, words):
    with pytest.raises((DataError, ConfigError), match=words):
        trained.predict(images)


def test_a_step_can_be_chosen(run, trained):
    earlier = vitattn.load(run, step=2)
    assert (earlier.step, trained.step) == (2, STEPS)
    one, other = (jax.tree.leaves(nnx.state(m.model, nnx.Param)) for m in (earlier, trained))
    assert any(bool((a != b).any()) for a, b in zip(one, other, strict=True))
    with pytest.raises(CheckpointError, match="holds no step 1; steps there: 2, 3"):
        vitattn.load(run, step=1)


def test_an_export_answers_as_its_run(run, trained, pictures, tmp_path):
    export.main(
        ["--workdir", str(run), "--format=safetensors", "--names=own", f"--out={tmp_path}/e"]
    )
    exported = vitattn.load(tmp_path / "e")
    assert exported.class_names == trained.class_names
    for ours, theirs in zip(trained.predict(pictures), exported.predict(pictures), strict=True):
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    with pytest.raises(ConfigError, match="is an export"):
        vitattn.load(tmp_path / "e", step=2)
    counts = counts_of(exported.model)
    assert set(counts) == {statistics.UNCOUNTED}  # nothing says how much was averaged


def test_a_directory_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"There is no directory .*Did you mean 'run'"):
        vitattn.load(run.parent / "ran")
    with pytest.raises(ConfigError, match="is a file: give the directory of the run"):
        vitattn.load(run / "config.json")
    with pytest.raises(ConfigError, match="directory is None: give a path"):
        vitattn.load(None)
    with pytest.raises(ConfigError, match=r"there is no config\.json in it"):
        vitattn.load(tmp_path)
    (tmp_path / "config.json").write_text('{"family": "moe"}')
    with pytest.raises(ConfigError, match=r"family='moe', and vitattn\.load reads"):
        vitattn.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ConfigError, match="is of another program"):
        vitattn.load(tmp_path)


# ---------------------------------------------------------------- trained further
def counts_of(model):
    stats = nn.stats(model)
    return [int(stats[name]) for name in sorted(stats) if name.endswith("count")]


class Mine(nnx.Module):
    """A user's network around a loaded one."""

    def __init__(self, body, rngs: nnx.Rngs):
        self.body = body
        self.head = nnx.Linear(10, 2, rngs=rngs)

    def __call__(self, x, train=False):
        return self.head(self.body(x, train=train))


@pytest.mark.thorough
def test_a_loaded_model_trains_on_inside_a_module_of_the_user(run):
    """Its statistics go on from those of the run, as the share of one more batch."""
    loaded = vitattn.load(run)
    assert set(counts_of(loaded.model)) == {statistics.FRESH + STEPS}
    norm = loaded.model.conv2_x[0].norm1  # what the stem gives
    before = np.asarray(norm.mean[...])
    model = Mine(loaded.model, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)
    labels = jnp.arange(8) % 2

    @nnx.jit
    def step(model, optimizer):
        def loss_fn(model):
            logits = model(x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    batch_mean = np.asarray(model.body.stem(x)).mean((0, 1, 2))
    losses = [float(step(model, optimizer))]
    share = max(0.1, 10 / (10 + STEPS))  # trainlib.model.statistics
    moved = before + share * (batch_mean - before)
    np.testing.assert_allclose(norm.mean[...], moved, rtol=1e-4, atol=1e-6)
    losses += [float(step(model, optimizer)) for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    assert set(counts_of(loaded.model)) == {statistics.FRESH + STEPS + 9}
    # What was trained further answers from now on.
    pixels = np.zeros((8, 8, 3), np.uint8)
    fresh = vitattn.load(run).predict(pixels).probabilities
    assert np.abs(loaded.predict(pixels).probabilities - fresh).max() > 1e-3
