"""`prepare --check`: what it says of a set that can be used, and of those that cannot."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.vitattn.detection.data.sets import annotation, coco, config, good, picture, write
from trainlib.errors import DataError
from vitattn import check
from vitattn.detection import check as detection_check
from vitattn.detection.data.checks import look


def check_data(config):
    """What was found, without the parts."""
    return look(config)[0]


def whole(outputs=2, **values):
    """A configuration with everything that is looked at."""
    model = ConfigDict({"num_classes": outputs})
    return ConfigDict({"task": "detection", "data": config(**values), "model": model})


def two_files(root, evaluation):
    """A set whose evaluation has other images in another folder."""
    path = coco(root)
    for number in (1, 2, 3):
        picture(root / "other" / f"{number}.png")
    other = write(root / "instances_val.json", evaluation)
    return {
        "source": f"coco:{path}",
        "eval_json": str(other),
        "eval_images": str(root / "other"),
    }


def test_a_set_that_can_be_used(tmp_path, capsys):
    checked = check_data(whole(**two_files(tmp_path, good())))
    assert checked.refused == []
    said = "\n".join(checked.lines)
    for line in (
        "training: 3 images, 4 boxes, 2 classes",
        "  boxes of each class: cat 2, dög 2",
        "medium and large (from 96x96): 75.0%, 25.0%, 0.0%; 1.3 in an image, at most 2 (",
        f"  images are read from {tmp_path}/images",
        "  images without a box: 1, kept",
        "  crowds: 1 annotation, not learnt",
        "evaluation: 3 images, 4 boxes, 2 classes",
        f"  images are read from {tmp_path}/other",
    ):
        assert line in said
    assert "both splits" not in said
    assert check.run(whole(**two_files(tmp_path, good()))) == 0
    assert "The data can be used." in capsys.readouterr().out


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys):
    content = good()
    content["annotations"][0]["bbox"][2] = float("nan")
    content["annotations"][1].pop("area")
    evaluation = good()
    evaluation["categories"].append({"id": 9, "name": "emu"})
    evaluation["annotations"].append(annotation(9, 10, 77, [1, 2, 3, 4]))
    c = whole(outputs=1, **two_files(tmp_path, evaluation))
    coco(tmp_path, content)
    picture(tmp_path / "images" / "2.png", (20, 20))
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="The data cannot be used, for 6 reasons") as caught:
        check.run(c)
    for line in (
        "training: NaN or infinity in the box: 1 annotation, more than data.max_bad_fraction",
        r"training: images or XML files that cannot be read: 1",
        "3.png: is none of the formats",
        "training: pictures of another size than their annotations say: 1 image",
        "2.png is 20x20 pixels, and its annotations are for 40x30",
        "evaluation: a category_id that no category has: 1 annotation",
        "set --config.model.num_classes=2",
        "evaluation has classes that training lacks: emu",
    ):
        assert line in caught.value.details
    assert "no usable area: 1 annotation, that of the box is taken" in capsys.readouterr().out


def test_splits_are_compared_by_names(tmp_path):
    evaluation = good()
    evaluation["categories"] = [{"id": 4, "name": "dög"}]
    evaluation["annotations"] = [annotation(1, 10, 4, [1, 2, 3, 4])]
    values = two_files(tmp_path, evaluation)
    checked = check_data(whole(**(values | {"eval_images": str(tmp_path / "images")})))
    assert checked.refused == []
    said = "\n".join(checked.lines)
    assert "classes of training that evaluation lacks: cat" in said
    assert "category ids that differ between the splits: 1 (such as that of dög)" in said
    assert "images that are in both splits: 3" in said


def test_turned_pictures_are_counted(tmp_path):
    path = coco(tmp_path)
    picture(tmp_path / "images" / "1.jpg", (30, 40), orientation=6)
    content = good()
    content["images"][1]["file_name"] = "1.jpg"
    write(path, content)
    said = "\n".join(check_data(whole(source=f"coco:{path}", holdout=0.3)).lines)
    assert "pictures that their EXIF orientation turns: 1 image" in said
    assert "1.jpg, upright" in said
    assert "evaluation: 1 of the training images (data.holdout=0.3)" in said


def test_a_part_that_is_absent_does_not_hide_the_other(tmp_path):
    path = coco(tmp_path)
    c = whole(source=f"coco:{path}", eval_json=str(tmp_path / "nope.json"))
    checked = check_data(c)
    assert checked.lines[0].startswith("training: 3 images")
    assert "nope.json cannot be read" in checked.refused[0]
    checked = check_data(whole(source=f"coco:{path}"))
    assert "there is nothing to evaluate on" in checked.refused[0]
    checked = check_data(whole(source=f"coco:{path}", eval_split="train"))
    assert checked.refused == []
    assert checked.lines[-1] == "evaluation: the training images (data.eval_split=train)"


def test_images_of_more_boxes_than_training_sees(tmp_path):
    path = coco(tmp_path)
    said = "\n".join(check_data(whole(source=f"coco:{path}", holdout=0.3, max_boxes=1)).lines)
    assert "images of more than data.max_boxes=1 boxes: 2; training sees the first 1" in said


def test_sets_of_other_kinds_are_read_record_by_record():
    checked = check_data(whole(source="shapes"))
    assert re.fullmatch(r"training: \d+ images, [\d,]+ boxes, 4 classes", checked.lines[0])
    assert checked.refused == [
        "the model has 2 outputs, and the data 4 classes: set --config.model.num_classes=4"
    ]


def test_the_command_ends_with_65(tmp_path, capsys):
    from launch import prepare
    from trainlib.errors import run_command

    content = good()
    content["annotations"][0]["bbox"] = [1, 2, -3, 4]
    path = coco(tmp_path, content)
    flags = [
        "--check",
        "--config=retinanet_resnet50:own",
        f"--config.data.source=coco:{path}",
        "--config.data.holdout=0.3",
        "--config.model.num_classes=2",
    ]
    assert run_command(lambda: prepare.main(flags)) == 65
    error = capsys.readouterr().err
    assert (
        "training: a negative width or height: 1 annotation, more than data.max_bad_fraction"
        in error
    )
    assert run_command(lambda: prepare.main([*flags, "--config.data.max_bad_fraction=0.5"])) == 0
    assert "a negative width or height: 1 annotation, left out" in capsys.readouterr().out


def test_texts_are_checked_in_another_way(capsys):
    from launch import prepare
    from trainlib.errors import run_command

    assert run_command(lambda: prepare.main(["--check", "--config=st_moe_tiny"])) == 64
    assert "--check is for images" in capsys.readouterr().err
    assert run_command(lambda: prepare.main(["--config=retinanet_resnet50:shapes"])) == 64
    assert "--check looks through them" in capsys.readouterr().err


def test_a_few_images_are_drawn_with_their_boxes(tmp_path):
    """In a set that is refused too: a box of another form is seen at once."""
    content = good()
    content["annotations"][0]["bbox"] = [1, 2, -3, 4]
    c = whole(source=f"coco:{coco(tmp_path, content)}", holdout=0.3)
    with pytest.raises(DataError, match="cannot be used"):
        check.run(c, tmp_path / "drawn")
    files = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert files == ["training_01.jpg", "training_02.jpg"]
    with Image.open(tmp_path / "drawn" / "training_01.jpg") as picture:
        assert picture.size == (640, 480)  # 16 times as large, to be looked at
        edge = np.asarray(picture, np.int32)[:4, 300:500]  # of the box that is all of it
    orange = (edge[..., 0] - edge[..., 2] > 100).mean()
    assert orange > 0.3


def test_a_picture_that_is_cut_off_is_found_and_one_with_more_behind_it_is_not(tmp_path):
    path = coco(tmp_path)
    images = tmp_path / "images"
    whole_png = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole_png[: len(whole_png) // 2])
    (images / "2.png").write_bytes((images / "2.png").read_bytes() + bytes(2**17))
    checked = check_data(whole(source=f"coco:{path}", eval_split="train"))
    (reason,) = checked.refused
    assert "images or XML files that cannot be read: 1" in reason
    assert "1.png: cannot be decoded" in reason


def test_twelve_pictures_are_drawn_of_a_set_of_any_more(tmp_path):
    content = good()
    content["images"] = [
        {"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(1, 24)
    ]
    content["annotations"] = [annotation(n, n, 4, [1, 2, 20, 9]) for n in range(1, 24)]
    path = coco(tmp_path, content)
    for number in range(1, 24):
        picture(tmp_path / "images" / f"{number}.png")
    drawn = detection_check.check_data(
        whole(source=f"coco:{path}", holdout=0.3), tmp_path / "drawn"
    )
    assert any("pictures of training: 12," in line for line in drawn.lines)
    assert len(list((tmp_path / "drawn").iterdir())) == 12
