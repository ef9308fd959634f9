"""COCO sets on a disk: layouts, folders of images, splits, what is missing, turned pictures."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.vitattn.detection.data.sets import annotation, coco, config, good, picture, write
from trainlib.errors import ConfigError, DataError
from vitattn.detection.data.catalog import make_source, official_names, statistics
from vitattn.detection.data.source import relabelled
from vitattn.images.decode import open_picture
from vitattn.images.files import UnreadableRecord


def own(path, **values):
    return config(source=f"coco:{path}", **values)


def test_a_record_has_the_image_and_its_boxes_in_pixels(tmp_path):
    source = make_source(own(coco(tmp_path)), "train")
    assert (len(source), source.num_classes, source.class_names) == (3, 2, ("cat", "dög"))
    image, boxes, classes, crowd = source[1]
    with Image.open(tmp_path / "images" / "1.png") as file:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(file))
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[2, 1, 22, 11.5], [20, 30, 25, 35]]
    assert (classes.tolist(), classes.dtype) == ([1, 0], np.int32)
    assert source[0].crowd.tolist() == [False, True]
    assert source[2].boxes.shape == (0, 4)
    assert source.image_id(1) == 10
    assert source.describe(1) == str(tmp_path / "images" / "1.png")
    assert crowd.dtype == bool
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1].boxes, boxes)
    assert again.digest == source.digest


def test_the_ground_truth_is_a_coco_object_with_clean_ids(tmp_path):
    content = good()
    content["annotations"][0].update(id=0, bbox=[-1.5, 2, 10.5, 20])
    content["annotations"][1].pop("area")
    truth = make_source(own(coco(tmp_path, content)), "train").ground_truth()
    assert json.loads(json.dumps(truth)) == truth
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4]
    assert truth["annotations"][2]["bbox"] == [-1.5, 2, 10.5, 20]  # not clipped
    assert truth["annotations"][0]["area"] == 1200
    assert truth["categories"] == [{"id": 4, "name": "cat"}, {"id": 7, "name": "dög"}]
    assert truth["images"][0] == {"id": 30, "file_name": "3.png", "height": 30, "width": 40}


def test_boxes_of_a_record_lie_inside_and_have_an_area(tmp_path):
    content = good()
    for entry in content["images"]:
        del entry["width"]  # so that only the picture says how large it is
    content["annotations"] += [
        annotation(20, 10, 4, [-3, -3, 10, 10]),
        annotation(21, 10, 4, [40, 0, 5, 5]),
        annotation(22, 10, 4, [38, 28, 50, 50]),
    ]
    source = make_source(own(coco(tmp_path, content)), "train")
    assert source[1].boxes.tolist() == [
        [2, 1, 22, 11.5],
        [20, 30, 25, 35],
        [0, 0, 7, 7],
        [28, 38, 30, 40],
    ]
    assert len(source.truth(1).boxes) == 5


def spoil_ids(content):
    for entry in content["annotations"]:
        entry["id"] = 0


def drop_fields(content):
    for entry in content["annotations"][:3]:
        del entry["area"], entry["iscrowd"], entry["id"]


def drop_boxes(content):
    for entry in content["annotations"]:
        x, y, w, h = entry.pop("bbox")
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h]]


@pytest.mark.parametrize("spoil", [spoil_ids, drop_fields, drop_boxes])
def test_what_is_mended_no_longer_misleads_pycocotools(tmp_path, spoil):
    """Right detections get the AP 1 that they deserve; of the ids as they were it is 0."""
    tools = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    content = good()
    spoil(content)
    truth = make_source(own(coco(tmp_path, content)), "train").ground_truth()
    exact = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 0.9}
        for image, category, box in (
            (30, 4, [0, 0, 40, 30]),
            (10, 7, [1, 2, 10.5, 20]),
            (10, 4, [30, 20, 5, 5]),
        )
    ]
    theirs = tools.COCO()
    theirs.dataset = truth
    theirs.createIndex()
    measured = evaluation.COCOeval(theirs, theirs.loadRes(exact), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    assert measured.stats[0] == pytest.approx(1)


# ---------------------------------------------------------------- splits
def test_parts_of_the_training_images_are_held_out(tmp_path):
    c = own(coco(tmp_path), holdout=0.4)
    train, held, test = (make_source(c, split) for split in ("train", "holdout", "test"))
    assert (len(train), len(held), len(test)) == (2, 1, 1)
    ids = [source.image_id(n) for source in (train, held) for n in range(len(source))]
    assert sorted(ids) == [10, 20, 30]
    truth = held.ground_truth()
    assert [entry["id"] for entry in truth["images"]] == [held.image_id(0)]
    assert held.digest == test.digest != train.digest
    assert held.category_ids == (4, 7)
    assert pickle.loads(pickle.dumps(train)).image_id(0) == train.image_id(0)


def test_nothing_to_evaluate_on_is_said_with_what_lies_beside(tmp_path):
    path = coco(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing to evaluate on.*data\.holdout=0\.1"):
        make_source(own(path), "test")
    write(tmp_path / "instances_val.json", good())
    with pytest.raises(ConfigError, match=r"Beside it lies .*instances_val\.json"):
        make_source(own(path), "test")
    c = own(path, eval_json=str(tmp_path / "instances_val.json"))
    assert len(make_source(c, "test")) == 3
    with pytest.raises(ConfigError, match="has no split 'holdout'"):
        make_source(c, "holdout")


LAYOUTS = {
    "official": ("annotations/instances_{}2017.json", "{}2017"),
    "images": ("annotations/instances_{}.json", "images/{}"),
    "beside": ("{}.json", "images"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
    "flat": ("annotations/{}.json", "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("below", ["", "deep/"])
def test_layouts_that_people_have(tmp_path, layout, below):
    where, images = LAYOUTS[layout]
    evaluation = "valid" if layout == "roboflow" else "val"
    for part in ("train", evaluation):
        content = good()
        for entry in content["images"]:
            entry["file_name"] = f"{below}{part}{entry['file_name']}"
            picture(tmp_path / images.format(part) / entry["file_name"])
        write(tmp_path / where.format(part), content)
    c = config(dir=str(tmp_path))
    train, test = make_source(c, "train"), make_source(c, "test")
    assert (len(train), len(test)) == (3, 3)
    assert train.describe(0).endswith(f"{below}train3.png")
    assert test.describe(0).endswith(f"{below}{evaluation}3.png")
    folder = tmp_path / images.format("train")
    assert train.left_out[0].endswith(f"images are read from {folder}")
    assert len(train[0].boxes) == 2


def test_evaluation_alone_needs_no_training_images(tmp_path):
    coco(tmp_path, train="annotations/instances_val2017.json")
    (tmp_path / "images").rename(tmp_path / "val2017")
    assert len(make_source(config(dir=str(tmp_path)), "test")) == 3
    with pytest.raises(DataError, match="holds no annotations of training"):
        make_source(config(dir=str(tmp_path)), "train")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a folder.*coco:MY/instances_train\.json"):
        make_source(config(), "train")
    with pytest.raises(DataError, match="holds no annotations of training"):
        make_source(config(dir=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"There is no .*nope\.json"):
        make_source(own(tmp_path / "nope.json"), "train")
    path = coco(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean 'instances_train\.json'\?"):
        make_source(own(tmp_path / "instances_trian.json"), "train")
    assert len(make_source(own(tmp_path), "train")) == 3  # a folder is looked through
    with pytest.raises(DataError, match=r"data\.images: .*nope is no folder"):
        make_source(own(path, images=str(tmp_path / "nope")), "train")


# ---------------------------------------------------------------- files
def test_the_file_of_another_split_is_refused(tmp_path):
    content = good()
    for entry in content["images"]:
        entry["file_name"] = f"other{entry['file_name']}"
    path = coco(tmp_path, content)
    with pytest.raises(DataError, match=r"None of the 3 images .*other3\.png.*another split"):
        make_source(own(path), "train")
    with pytest.raises(DataError, match=r"None of the 3 images .*data\.images=DIR"):
        make_source(own(path, images=str(tmp_path / "images")), "train")


def test_missing_images_are_counted_up_to_a_limit(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(
        DataError,
        match=r"file is not there: 1, more than data\.max_bad_fraction .*\(such as 3\.png\)",
    ):
        make_source(own(path), "train")
    source = make_source(own(path, max_bad_fraction=0.4), "train")
    assert len(source) == 2
    assert [source.image_id(n) for n in range(2)] == [10, 20]
    assert source[0].classes.tolist() == [1, 0]
    assert any("file is not there: 1" in line for line in source.left_out)


def test_the_images_of_evaluation_may_lie_elsewhere(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    other = coco(tmp_path / "elsewhere", train="instances_val.json")
    c = own(path, eval_json=str(other), eval_images=str(tmp_path / "elsewhere" / "images"))
    assert "elsewhere" in make_source(c, "test").describe(0)
    c.images, c.eval_images = str(tmp_path / "images"), ""
    assert "elsewhere" not in make_source(c, "test").describe(0)  # they are in both
    for file in (tmp_path / "images").iterdir():
        file.rename(tmp_path / file.name)
    c.images = str(tmp_path)
    (tmp_path / "images").rmdir()
    for file in list(tmp_path.glob("*.png")):
        file.rename(file.with_name(f"own{file.name}"))
    assert "elsewhere" in make_source(c, "test").describe(0)


def test_a_record_that_cannot_be_read_says_why(tmp_path):
    source = make_source(own(coco(tmp_path)), "train")
    picture(tmp_path / "images" / "1.png", (20, 15))
    with pytest.raises(
        UnreadableRecord, match="is 20x15 pixels, and its annotations are for 40x30"
    ):
        source[1]
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(UnreadableRecord, match="No such file"):
        source[1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_fit_the_picture_as_it_is_decoded(tmp_path, orientation):
    """Annotations of a turned photograph are for it upright, or as it is stored: sizes tell."""
    path = coco(tmp_path)
    stored = (40, 30) if orientation < 5 else (30, 40)
    picture(tmp_path / "images" / "1.jpg", stored, orientation)  # upright it is 40x30
    content = good()
    content["images"][1]["file_name"] = "1.jpg"
    write(path, content)
    image = make_source(own(path), "train")[1].image
    shown = open_picture(image)
    assert isinstance(image, bytes)
    assert (shown.width, shown.height) == (40, 30)
    if orientation >= 5:
        content["images"][1].update(width=30, height=40)
        content["annotations"][2]["bbox"] = [20, 30, 5, 5]
        write(path, content)
        image = make_source(own(path), "train")[1].image
        assert image.shape == (40, 30, 3)
        with Image.open(tmp_path / "images" / "1.jpg") as file:
            np.testing.assert_array_equal(image, np.asarray(file))


def test_boxes_of_another_form_are_found_without_sizes_too(tmp_path):
    content = good()
    for entry in content["images"]:
        del entry["height"]
    content["annotations"] = [
        annotation(n, 10, 7, [20 + n % 7, 10 + n % 11, 30 + n % 9, 25 + n % 5])
        for n in range(1, 50)
    ]
    path = coco(tmp_path, content)
    with pytest.raises(DataError, match=r"look like \[x0, y0, x1, y1\]: 49 annotations"):
        make_source(own(path), "train")


# ---------------------------------------------------------------- classes
def test_classes_get_the_numbers_of_a_model(tmp_path):
    source = make_source(own(coco(tmp_path)), "train")
    model = relabelled(source, ("dög", None, "cat", "bird"), np.array([2, 0]))
    assert (model.num_classes, model.class_names) == (4, ("dög", "", "cat", "bird"))
    assert model.category_ids == (7, -1, 4, -1)
    assert model[1].classes.tolist() == [0, 2]
    assert model.truth(1).classes.tolist() == [0, 2]
    assert model.image_id(1) == 10
    assert model.describe(1) == source.describe(1)
    assert model.ground_truth()["annotations"] == source.ground_truth()["annotations"]
    ids = {entry["name"]: entry["id"] for entry in model.ground_truth()["categories"]}
    assert ids == {"dög": 7, "cat": 4}


def test_the_digest_notices_boxes_classes_and_files(tmp_path):
    digests = [make_source(own(coco(tmp_path)), "train").digest]
    content = good()
    content["annotations"][0]["bbox"][0] = 1.5
    digests.append(make_source(own(coco(tmp_path, content)), "train").digest)
    content["annotations"][0]["category_id"] = 4
    digests.append(make_source(own(coco(tmp_path, content)), "train").digest)
    (tmp_path / "images" / "1.png").write_bytes(b"x")
    digests.append(make_source(own(tmp_path / "instances_train.json"), "train").digest)
    assert len(set(digests)) == 4
    assert len(make_source(own(coco(tmp_path)), "train").digest) == 16


def test_what_is_known_without_the_data():
    names = official_names("coco")
    assert (len(names), names[0], names[-1]) == (80, "person", "toothbrush")
    assert official_names("coco:my.json") == ()
    assert statistics(config())[0] == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match=r"Did you mean 'coco'\?"):
        make_source(config(source="cocoa:x"), "train")
