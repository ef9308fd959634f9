"""YOLO: text files as Ultralytics, Roboflow and darknet lay them out."""

import pytest

from tests.vitattn.detection.data.sets import config, picture
from trainlib.errors import ConfigError, DataError
from vitattn.detection.data.catalog import make_source

LINES = "1 0.5 0.5 0.25 0.5\n0 0.125 0.1 0.25 0.2\n"  # of an image of 40x30
BOXES = [[7.5, 15, 22.5, 25], [0, 0, 6, 10]]
YAML = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"


def part(images, labels, prefix, lines=LINES):
    """Two images, the second without a file of labels."""
    for number in (1, 2):
        picture(images / f"{prefix}{number}.jpg")
    labels.mkdir(parents=True, exist_ok=True)
    (labels / f"{prefix}1.txt").write_text(lines)


def ultralytics(root, lines=LINES, yaml=YAML):
    for name in ("train", "val"):
        part(root / "images" / name, root / "labels" / name, name, lines)
    (root / "data.yaml").write_text(yaml)
    return config(source=f"yolo:{root}")


def test_boxes_become_pixels(tmp_path):
    c = ultralytics(tmp_path)
    train, test = make_source(c, "train"), make_source(c, "test")
    assert (len(train), train.class_names, train.category_ids) == (2, ("cat", "dog"), (1, 2))
    assert train[0].boxes.tolist() == BOXES
    assert train[0].classes.tolist() == [1, 0]
    assert len(train[1].boxes) == 0
    assert train.truth(0).boxes.tolist() == [[15, 7.5, 10, 15], [0, 0, 10, 6]]
    assert test.describe(1) == str(tmp_path / "images" / "val" / "val2.jpg")
    assert test.ground_truth()["annotations"][1]["area"] == 60


@pytest.mark.parametrize(
    "yaml",
    [
        "names: {0: cat, 1: dog}\ntrain: ../train/images\nval: ../valid/images\nnc: 2\n",
        "names:\n- cat\n- dog\n",
        "path: /somewhere/else/set\ntrain: /somewhere/else/set/train/images\nnames: [cat, dog]\n",
        None,
    ],
)
def test_folders_of_parts_with_labels_in_them(tmp_path, yaml):
    """As Roboflow writes them."""
    for name in ("train", "valid"):
        part(tmp_path / name / "images", tmp_path / name / "labels", name)
    if yaml is None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    else:
        (tmp_path / "data.yaml").write_text(yaml)
    c = config(source=f"yolo:{tmp_path}" + ("/data.yaml" if yaml else ""))
    for split in ("train", "test"):
        source = make_source(c, split)
        assert len(source) == 2
        assert source[0].boxes.tolist() == BOXES
        assert source.class_names == ("cat", "dog")


def test_labels_beside_the_images(tmp_path):
    part(tmp_path, tmp_path, "x")
    (tmp_path / "obj.names").write_text("cat\n\ndog\n")
    c = config(source=f"yolo:{tmp_path}")
    assert make_source(c, "train")[0].boxes.tolist() == BOXES
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        make_source(c, "test")
    c.holdout = 0.5
    assert len(make_source(c, "test")) == 1


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    c = ultralytics(tmp_path)
    picture(tmp_path / "images" / "train" / "train1.jpg", (30, 40), orientation=6)
    assert make_source(c, "train")[0].boxes.tolist() == BOXES


def test_a_polygon_gives_the_box_around_it(tmp_path):
    source = make_source(ultralytics(tmp_path, "0 0.1 0.2 0.5 0.2 0.3 0.6\n"), "train")
    assert source[0].boxes[0].tolist() == pytest.approx([6, 4, 18, 20])
    assert any("polygons without a box: 1 annotation" in line for line in source.left_out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0 0.5 0.5 0.2\n", r"line that is not a class.*line 1 of images/train/train1\.jpg"),
        ("0 0.5 0.5 0.2 0.2 0.9\n", "line that is not a class"),
        ("cat 0.5 0.5 0.2 0.2\n", "line that is not a class"),
        ("0.5 0.5 0.5 0.2 0.2\n", "line that is not a class"),
        ("2 0.5 0.5 0.2 0.2\n", "category_id that no category has"),
        ("-1 0.5 0.5 0.2 0.2\n", "category_id that no category has"),
        ("0 nan 0.5 0.2 0.2\n", "NaN or infinity"),
        ("0 0.5 0.5 -0.2 0.2\n", "negative width"),
        ("0 20 15 10 10\n", "look like pixels"),
    ],
)
def test_bad_lines_are_counted(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        make_source(ultralytics(tmp_path, lines), "train")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat, dog]\ntrain: nowhere\n", "names 'nowhere', and there is no such folder"),
        ("names: [cat, dog]\ntrain: images/../../x\n", "there is no such folder"),
        ("names: 3\n", "must be a list"),
        ("names: {1: cat, 2: dog}\n", "must be 0, 1, 2"),
        ("names: [cat, [dog]]\n", "must be a list"),
        ("- cat\n", "must hold `names`"),
        ("names: !!python/object/apply:os.system [touch x]\n", "no YAML that can be read"),
        ("a: &a [*a]\n{", "no YAML that can be read"),
    ],
)
def test_a_bad_description_is_named(tmp_path, yaml, message):
    with pytest.raises(DataError, match=message):
        make_source(ultralytics(tmp_path, yaml=yaml), "train")


def test_without_names_of_classes_nothing_is_guessed(tmp_path):
    part(tmp_path / "images", tmp_path / "labels", "x")
    with pytest.raises(DataError, match=r"neither data\.yaml nor classes\.txt"):
        make_source(config(source=f"yolo:{tmp_path}"), "train")


def test_a_picture_that_cannot_be_read_is_counted(tmp_path):
    c = ultralytics(tmp_path)
    (tmp_path / "images" / "train" / "train2.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot be read: 1,.*images/train/train2\.jpg"):
        make_source(c, "train")


def test_boxes_without_their_picture_are_counted(tmp_path):
    ultralytics(tmp_path)
    source = f"yolo:{tmp_path}"
    labels = tmp_path / "labels" / "train"
    (labels / "gone.txt").write_text(LINES)
    (labels / "classes.txt").write_text("cat\ndog\n")
    (labels / "note.txt").write_text("Drawn in May.\n")
    with pytest.raises(DataError, match=r"whose file is not there: 1, .* that of .*gone\.txt"):
        make_source(config(source=source), "train")
    train = make_source(config(source=source, max_bad_fraction=0.5), "train")
    assert len(train) == 2
    assert not any("area" in line for line in train.left_out)
