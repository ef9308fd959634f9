"""Prediction and export of a detector as a user types them, on weights that no training made."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vitattn
from configs.common import load
from launch import cli, export, predict
from tests.launch.commands import environment
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import ConfigError, DataError, NumericAbort, run_command
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config
from trainlib.step.train_state import TrainState
from vitattn.analysis import attention_maps, plots
from vitattn.detection.annotations import official
from vitattn.detection.answers import pictures
from vitattn.interop import torchvision as interop
from vitattn.samples import images

OVERRIDES = [
    "--config.model.width=0.125",
    "--config.model.features=8",
    "--config.model.head_layers=1",
    "--config.model.image_size=64",
    "--config.detection.max_detections=7",
    "--config.detection.score_threshold=0.2",
    "--config.ema_decay=0",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a detector with attention, and its config."""
    workdir = tmp_path_factory.mktemp("detector")
    overrides = cli.parse(cli.parser("test", ""), OVERRIDES)[1]
    config = load.from_flags("configs/retinanet_aa_resnet50.py:shapes", overrides).config
    save(config, workdir, 1.0)
    return workdir, config


def save(config, workdir, spread):
    abstract = interop.abstract(config)
    random = np.random.default_rng(0)

    def draw(specs):
        made = {}
        for name, spec in specs.items():
            low = 0.5 if name.endswith(("var", "scale")) else -spread
            scale = np.sqrt(6 / max(6, np.prod(spec.shape[:-1])))
            # Boxes that stay near their anchors, scores that differ.
            scale *= 1e-3 if "predictor.kernel" in name else 1
            made[name] = jnp.asarray(random.uniform(low, low + 2 * spread, spec.shape) * scale)
        return {name: value.astype(jnp.float32) for name, value in made.items()}

    arrays = draw(abstract.params), draw(abstract.model_state)
    state = TrainState(jnp.int32(3), *arrays, (), None, jnp.zeros(2, jnp.int32))
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, state, checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, workdir)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two pictures of one name in two folders, wide and high, and a file that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(1)
    for place, shape in (("a", (48, 96, 3)), ("b", (150, 75, 3))):
        (folder / place).mkdir()
        Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(folder / place / "x.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def outcome(capsys, command, *argv):
    code = run_command(lambda: command.main([str(word) for word in argv]))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.slow
def test_boxes_are_drawn_and_written_in_pixels_of_each_picture(run, photographs, capsys, tmp_path):
    out = tmp_path / "new" / "out"
    flags = [f"--workdir={run[0]}", photographs, "--json", f"--boxes={out}", "--min_score=0"]
    code, text, error = outcome(capsys, predict, *flags)
    assert code == 65
    assert "1 of 3 images got no answer" in error
    assert "boxes drawn: " in error
    assert f"from the score 0 on, in {out} detections: {out / 'detections.json'}" in error
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "x.jpg", "x_2.jpg"]
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line.get("height"), line.get("width")) for line in lines] == [
        (48, 96),
        (150, 75),
        (None, None),
    ]
    written = json.loads((out / "detections.json").read_text())
    said = [(line, one) for line in lines for one in line.get("detections", ())]
    assert len(said) == len(written) > 2
    for entry, (line, one) in zip(written, said, strict=True):
        assert entry["image_id"] == line["image"]  # two have one name, so it is the path
        assert (entry["bbox"], entry["score"]) == (one["bbox"], one["score"])
        assert (entry["category_id"], entry["category_name"]) == (one["class"] + 1, one["name"])
        x, y, width, height = entry["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= line["width"] + 1e-9
        assert y + height <= line["height"] + 1e-9
    for name, image in (("x.jpg", "a/x.png"), ("x_2.jpg", "b/x.png")):
        drawn, plain = Image.open(out / name), Image.open(photographs / image)
        assert drawn.width * plain.height == pytest.approx(drawn.height * plain.width)
        assert max(drawn.size) >= 640

    loaded = vitattn.load(run[0])
    wide, high = loaded.predict([photographs / "a" / "x.png", photographs / "b" / "x.png"])
    for found, line in ((wide, lines[0]), (high, lines[1])):
        assert len(found) == len(line["detections"])
        for one, other in zip(found, line["detections"], strict=True):
            x, y, width, height = other["bbox"]
            np.testing.assert_allclose(one.box, (x, y, x + width, y + height), atol=1e-3)
            assert (one.class_number, one.class_name) == (other["class"], other["name"])
            assert one.score == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.thorough
def test_lines_for_people_and_attention_of_a_detector(
    run, photographs, capsys, monkeypatch, tmp_path
):
    drawn = []
    monkeypatch.setattr(plots, "attention_picture", lambda *args: drawn.append(args))
    picture = tmp_path / "attention.png"
    flags = [f"--workdir={run[0]}", photographs / "a", f"--attention={picture}", "--layers=all"]
    code, text, error = outcome(capsys, predict, *flags)
    assert code == 0, error
    assert "%  class " in text
    (_, rows, _), *_ = drawn
    assert {row.layer.split(".")[0] for row in rows} == {"backbone"}
    assert rows[0].caption.startswith("x.png: ")
    for row in rows:
        np.testing.assert_allclose(row.maps.sum((1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min_score=0.5"], "--boxes=DIR"),
        (["--boxes=out", "--min_score=2"], "not a number from 0 to 1"),
        (["--boxes=photographs/a"], "would replace an image"),
        (["--boxes=photographs/broken.jpg"], "is a regular file"),
    ],
)
def test_what_cannot_be_drawn_is_refused_first(run, photographs, capsys, tmp_path, flags, words):
    (tmp_path / "photographs").symlink_to(photographs)
    image = photographs / "a" / "x.jpg"
    Image.open(photographs / "a" / "x.png").save(image)
    flags = [flag.replace("photographs", str(photographs)) for flag in flags]
    code, _, error = outcome(capsys, predict, f"--workdir={run[0]}", image, *flags)
    image.unlink()
    assert code == 64
    assert words in error


@pytest.mark.slow
def test_a_detector_that_has_diverged_says_so(run, photographs, capsys, tmp_path):
    save(run[1], tmp_path, 1e30)
    picture = photographs / "a" / "x.png"
    code, _, error = outcome(capsys, predict, f"--workdir={tmp_path}", picture)
    assert code == 70
    assert "not finite" in error
    assert "x.png" in error
    with pytest.raises(NumericAbort, match="not finite"):
        vitattn.load(tmp_path).predict(picture)


@pytest.mark.thorough
def test_detections_of_the_library(run, photographs, tmp_path):
    loaded = vitattn.load(run[0])
    picture = photographs / "a" / "x.png"
    found = loaded.predict(picture)
    assert found.image == picture
    assert found.image_size == (48, 96)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    best = found[0]
    assert best in list(found.of_class(best.class_name))
    assert len(found.above(best.score)) == 1
    assert not len(found.above(1.0).of_class("nothing"))
    assert list(found[:2]) == [found[0], found[1]]
    assert f"Detections({len(found)}: {best.class_name}" in repr(found)
    with pytest.raises(ConfigError, match="score"):
        found.above(2)
    with pytest.raises(DataError, match=r"1 of 2 images got no answer: .*broken\.jpg"):
        loaded.predict([picture, photographs / "broken.jpg"])
    assert found.draw(tmp_path / "out.png").size == Image.open(tmp_path / "out.png").size
    pixels = np.asarray(Image.open(picture))
    unnamed = loaded.predict(pixels)
    np.testing.assert_array_equal(unnamed.boxes, found.boxes)
    assert unnamed.image is None
    assert unnamed.draw(image=pixels).tobytes() == found.draw().tobytes()
    for error, given, words in (
        (ConfigError, {}, "in memory"),
        (DataError, {"image": photographs / "b" / "x.png"}, "75 x 150"),
        (ConfigError, {"image": pixels, "path": tmp_path / "out.gif"}, "Allowed: "),
    ):
        with pytest.raises(error, match=words):
            unnamed.draw(**given)


@pytest.mark.slow
def test_an_exported_detector_runs_without_this_package(run, photographs, capsys, tmp_path):
    """Post-processing is in the program, for any batch and for several platforms."""
    out = tmp_path / "exported"
    flags = ["--format=stablehlo", "--platforms=cpu,tpu"]
    code, _, error = outcome(capsys, export, f"--workdir={run[0]}", f"--out={out}", *flags)
    assert code == 0, error
    signature = json.loads((out / "signature.json").read_text())
    assert signature["inputs"]["image"]["shape"] == ["batch", 64, 64, 3]
    assert signature["outputs"] == {
        "boxes": {"shape": ["batch", 7, 4], "dtype": "float32"},
        "classes": {"shape": ["batch", 7], "dtype": "int32"},
        "scores": {"shape": ["batch", 7], "dtype": "float32"},
    }
    assert len(signature["facts"]["mean"]) == 3
    loaded = vitattn.load(run[0])
    images = loaded.preprocess([photographs / n / "x.png" for n in "aba"])
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('vitattn', 'trainlib', 'launch', 'flax', 'PIL'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from load import load\n"
        "forward, _ = load('.')\n"
        f"np.savez({str(tmp_path / 'found.npz')!r}, **forward({{'image': np.load("
        f"{str(tmp_path / 'images.npy')!r})}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": out, "env": environment(tmp_path / "cache"), "text": True},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    outputs = jax.device_get(loaded._apply(*nnx.split(loaded.model), images))
    np.testing.assert_array_equal(found["classes"], outputs["classes"])
    np.testing.assert_allclose(found["scores"], outputs["scores"], atol=1e-6)
    np.testing.assert_allclose(found["boxes"], outputs["boxes"], atol=1e-3)
    assert (found["classes"] >= 0).any()


def test_names_of_pictures_neither_collide_nor_leave_the_folder(tmp_path):
    given = ["a/x.png", "b/X.jpg", "x_2.png", "..", ".hidden.png", "..\\up.png", "n\nl.png"]
    given += [
        "ﬁ.png",
        "fi.png",
        "é.png",
        "e\u0301.png",
        "y" * 250 + ".png",
        "细胞.png",
        "\udcff.png",
    ]
    names = pictures.file_names([tmp_path / name for name in given])
    assert names[:3] == ["x.jpg", "X_2.jpg", "x_2_2.jpg"]
    assert names[-2] == "细胞.jpg"
    assert len({pictures._folded(name) for name in names}) == len(given)
    for name in names:
        assert name.isprintable()
        assert not set(name) & set('/\\:*?"<>|')
        assert not name.startswith(".")
        assert len(name.encode()) < 250
        (tmp_path / name).write_text("")


def test_categories_are_those_of_coco_where_the_classes_are():
    tpu, torchvision = official.of_outputs(90, 1), official.of_outputs(91, 0)
    named = tuple(name for name in torchvision if name is not None)
    assert pictures.category_ids(named)[-1] == 90
    assert [n for n in pictures.category_ids(tpu) if n] == list(official.NAMES)
    assert pictures.category_ids(torchvision)[1] == 1
    assert pictures.category_ids(("person", None, "cell")) == [1, 2, 3]


def test_attention_of_heads_is_shown_on_their_finest_map():
    """They run on each level; 8 x 8 is that of P3."""
    flags = [*OVERRIDES, "--config.model.features=16", "--config.model.head_attention=towers"]
    overrides = cli.parse(cli.parser("test", ""), flags)[1]
    config = load.from_flags("configs/retinanet_sasa_resnet50.py:shapes", overrides).config
    layers = attention_maps.survey(interop.abstract(config), (64, 64))
    assert layers["backbone.conv5_x.0.conv2"].size == (4, 4)
    for head in ("classes", "boxes"):
        assert layers[f"heads.{head}.tower.0.conv"].size == (8, 8)


@pytest.mark.thorough
def test_samples_of_a_detector_show_true_and_found_boxes(run):
    workdir, config = run
    taken = images.take(config, workdir, None, 2)
    assert taken.step == 3
    assert taken.about.startswith("2 of the ")
    for sample in taken.samples:
        assert sample.right is None
        true, found, *attention = [picture.caption for picture in sample.pictures]
        assert true.startswith("the truth, ")
        assert found.startswith("what is found, ")
        assert [caption.split()[0] for caption in attention] == ["attention"]
        assert sum(int(row.truth) for row in sample.compared) == int(true.split()[2])
