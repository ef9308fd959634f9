"""Images that are no squares, from the configuration to the exported program."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from configs.common import load
from launch import evaluate, export, predict, train
from tests.launch.commands import TINY
from trainlib import config as config_lib
from trainlib.errors import ConfigError
from vitattn import config, describe, plan
from vitattn import predict as vision
from vitattn.images import augment
from vitattn.images.decode import open_picture
from vitattn.models import build, configure

MODELS = ("resnet", "wide_resnet", "mnasnet")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", ["32,48", "(32, 48)", "[32,48]", " 32 , 48 "])
def test_the_command_line_takes_a_pair(model, given):
    made = config.default_config(model)
    config_lib.override(made, "model.image_size", given, "command line")
    assert configure(made.model).size == (32, 48)


def test_json_and_python_take_a_pair_and_keep_it(tmp_path):
    made = config.default_config()
    made.model.image_size = (32, 48)
    (tmp_path / "config.json").write_text(config_lib.to_json(made))
    assert json.loads((tmp_path / "config.json").read_text())["model.image_size"] == [32, 48]
    again = load.from_flags(str(tmp_path / "config.json"), {}).config
    assert configure(again.model).size == configure(made.model).size == (32, 48)
    assert not config_lib.differences(config_lib.flatten(made), config_lib.flatten(again))
    for value in ("40", 40):
        config_lib.override(again, "model.image_size", value, "x")
        assert configure(again.model).size == (40, 40)


WRONG = ["0", "-3", "32,0", "32,48,3", "32,", "32,x", "3.5", "a", "", "32,4.5", "()", "[32]"]


@pytest.mark.parametrize("given", [*WRONG, None, True, 2.5, [32], [0, 8], [8, None], (8, True), []])
def test_what_is_no_size_is_refused(given):
    made = config.default_config()

    def use():
        config_lib.override(made, "model.image_size", given, "command line")
        configure(made.model)

    with pytest.raises(ConfigError, match=r"model\.image_size"):
        use()


@pytest.mark.parametrize("given", [(0, 8), "32", (8,), (8, 8, 8), 2.5, None, (8.0, 8)])
def test_python_is_checked_as_well(given):
    made = config.default_config()
    made.model.image_size = given
    with pytest.raises(ConfigError, match=r"model\.image_size"):
        build(made.model)


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
@pytest.mark.parametrize("pair", [(24, 40), (40, 24), (1, 9)])
def test_every_augmentation_gives_the_size(name, pair):
    picture = np.random.default_rng(0).integers(0, 255, (37, 52, 3), np.uint8)
    for seed in range(5):
        draws = np.random.default_rng(seed)
        image = augment.AUGMENTATIONS[name](open_picture(picture), pair, draws, (0.5,) * 3)
        assert image.shape == (*pair, 3)


def test_a_pair_of_equal_sides_is_the_square():
    picture = np.random.default_rng(0).integers(0, 255, (37, 52, 3), np.uint8)
    for apply in augment.AUGMENTATIONS.values():
        one, two = (
            apply(open_picture(picture), given, np.random.default_rng(3), (0.5,) * 3)
            for given in (24, (24, 24))
        )
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_pictures_of_the_aspect_are_seen_whole_and_undistorted():
    """A picture twice as large comes out as itself, whatever its aspect; others are cut centrally,
    at the sides that are too long."""
    picture = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    expected = Image.fromarray(picture).resize((40, 24), Image.Resampling.BICUBIC)
    found = augment.evaluation(open_picture(picture), (24, 40), 1.0)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert augment.centre_box(80, 48, 1.0, 40 / 24) == (0, 0, 80, 48)
    assert augment.centre_box(100, 48, 1.0, 40 / 24) == pytest.approx((10, 0, 90, 48))
    assert augment.centre_box(80, 58, 0.5, 40 / 24) == pytest.approx((20, 17, 60, 41))


@pytest.mark.parametrize("target", [0.5, 1.0, 3.0])
def test_random_crops_keep_to_the_aspect_of_the_image(target):
    for seed in range(300):
        box = augment.inception_box(90, 70, np.random.default_rng(seed), target)
        aspect = (box[2] - box[0]) / (box[3] - box[1])
        assert 3 / 4 - 1e-9 <= aspect / target <= 4 / 3 + 1e-9
        assert min(box[:2]) >= -1e-9
        assert box[2] <= 90 + 1e-9
        assert box[3] <= 70 + 1e-9


@pytest.mark.thorough
@pytest.mark.parametrize("model", MODELS)
def test_counts_and_plans_see_both_sides(model):
    """A convolution costs by the pixel; the sides change places without changing the cost."""
    facts = {}
    for pair in ((32, 64), (64, 32), (32, 32)):
        made = config.default_config(model)
        made.model.image_size = pair
        facts[pair] = describe.describe(made)
        assert facts[pair]["image_size"] == pair
        json.dumps(facts[pair])
    wide, high, square = facts.values()
    assert wide["flops_per_example"] == high["flops_per_example"]
    assert wide["flops_per_example"] == pytest.approx(2 * square["flops_per_example"], rel=0.15)
    made.model.image_size = (32, 64)
    made.batch_size = 16
    assert plan.abstract_batch(plan.make(made))["image"].shape == (16, 32, 64, 3)


def folder(root):
    """Two classes of tall and wide pictures, with things in between that are left out."""
    for part in ("train", "val"):
        for shade, name in enumerate(("ant", "bee")):
            place = root / part / name
            place.mkdir(parents=True)
            for n in range(8):
                picture = Image.new("RGB", (30 + n, 20 + 3 * n), (120 * shade + 9 * n,) * 3)
                picture.save(place / f"{n}.{('jpg', 'png')[n % 2]}")
    with open(os.path.join(root, "train", "ant", os.fsdecode(b"caf\xe9.jpg")), "wb") as file:
        picture.save(file, "JPEG")
    (root / "train" / "bee" / "raw.HEIC").touch()
    os.mkfifo(root / "val" / "bee" / "pipe.jpg")


def said(capsys, main, *argv):
    assert main([*map(str, argv)]) in (0, None)
    return capsys.readouterr()


@pytest.mark.slow  # 45 CPU seconds, nearly all of it compilation
def test_a_run_on_images_that_are_no_squares_to_the_end(tmp_path, capsys, monkeypatch):
    """Trained, gone on with, evaluated, asked, looked into and exported, in 16 x 24 pixels."""
    folder(tmp_path / "data")
    run, model = tmp_path / "run", (16, 24)
    flags = (
        f"--workdir={run}",
        "--config.model.image_size=16,24",
        "--config.data.augment=inception",
        f"--config.data.source=folder:{tmp_path / 'data'}",
        "--config.model.num_classes=2",
        "--config.batch_size=8",
        "--config.data.workers=0",
        "--config.schedule.warmup_steps=0",
    )
    out = said(capsys, train.main, *TINY, *flags, "--config.steps=2").out
    assert "17 training and 16 evaluation images" in out
    assert "1 .heic, not the suffix of an image that is read (such as train/bee/raw.HEIC)" in out
    assert "1 .jpg, not a regular file but a named pipe (such as val/bee/pipe.jpg)" in out
    out = said(capsys, train.main, *TINY, *flags, "--config.steps=3").out
    assert "going on from 2" in out
    out = said(capsys, evaluate.main, f"--workdir={run}").out
    assert "16 (test split)" in out
    assert "named pipe" in out

    seen = []
    monkeypatch.setattr(vision.plots, "attention_picture", lambda *args: seen.append(args))
    images = (tmp_path / "data" / "val" / "ant" / "0.jpg", tmp_path / "data" / "train" / "ant")
    out = said(
        capsys,
        predict.main,
        f"--workdir={run}",
        *images,
        "--json",
        "--query=15,23",
        f"--attention={tmp_path / 'a.png'}",
    ).out
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 10
    assert answers[-1]["image"].endswith("caf\\xe9.jpg")
    ((_, rows, query),) = seen
    assert (query, rows[0].image.shape) == ((15, 23), (*model, 3))
    height, width = rows[0].maps.shape[1:]
    assert rows[0].cell == (height - 1, width - 1)
    assert height < width

    said(capsys, export.main, f"--workdir={run}", "--format=stablehlo", f"--out={tmp_path / 'hlo'}")
    inputs = [json.loads(file.read_text()) for file in (tmp_path / "hlo").glob("*.json")]
    assert '"batch", 16, 24, 3' in json.dumps(inputs)
