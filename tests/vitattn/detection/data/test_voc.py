"""Pascal VOC: XML files as the official set, LabelImg and Roboflow write them."""

import pytest

from tests.vitattn.detection.data.sets import config, picture
from trainlib.errors import ConfigError, DataError
from vitattn.detection.data.catalog import make_source


def page(name="1.jpg", objects=(), size=(40, 30)):
    """One XML file; an object is (class, xmin, ymin, xmax, ymax, difficult)."""
    inner = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, hard in objects
    )
    wide, high = size
    return (
        f'<?xml version="1.0"?><annotation><folder>VOC2012</folder><filename>{name}</filename>'
        f"<size><width>{wide}</width><height>{high}</height><depth>3</depth></size>{inner}"
        "</annotation>"
    )


CAT, DOG = ("cat", 1, 1, 40, 30, 0), ("dog", 11, 6, 20, 25, 1)


def official(root, parts=("train", "val")):
    """The layout of the official set: two images a part, the second without an object."""
    for number, name in enumerate(("a", "b", "c", "d")[: 2 * len(parts)]):
        picture(root / "JPEGImages" / f"{name}.jpg")
        picture(root / "SegmentationClass" / f"{name}.png")
        (root / "Annotations").mkdir(exist_ok=True)
        objects = () if number % 2 else (DOG, CAT)
        (root / "Annotations" / f"{name}.xml").write_text(page(f"{name}.jpg", objects))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for number, part in enumerate(parts):
        names = "\n".join(("a", "b", "c", "d")[2 * number : 2 * number + 2])
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(names + "\n")
    return config(source=f"voc:{root}")


def test_official_files_count_pixels_from_1(tmp_path):
    c = official(tmp_path)
    train, test = make_source(c, "train"), make_source(c, "test")
    assert (len(train), len(test)) == (2, 2)
    assert train.class_names == ("cat", "dog")
    assert train.category_ids == (1, 2)
    image, boxes, classes, crowd = train[0]
    assert image == (tmp_path / "JPEGImages" / "a.jpg").read_bytes()
    assert boxes.tolist() == [[5, 10, 25, 20], [0, 0, 30, 40]]
    assert (classes.tolist(), crowd.tolist()) == ([1, 0], [True, False])
    assert len(train[1].boxes) == 0
    assert any("1 objects are marked as difficult" in line for line in train.left_out)
    assert test.describe(0) == str(tmp_path / "JPEGImages" / "c.jpg")
    assert [train.image_id(n) for n in range(2)] == [1, 2]


def test_files_that_hold_a_zero_hold_edges(tmp_path):
    picture(tmp_path / "x.png")
    (tmp_path / "x.xml").write_text(page("elsewhere.jpg", [("cat", 0, 3, 10, 30, 0)]))
    source = make_source(config(source=f"voc:{tmp_path}"), "train")
    assert source[0].boxes.tolist() == [[3, 0, 30, 10]]
    assert any("read as edges" in line for line in source.left_out)


@pytest.mark.parametrize("evaluation", ["valid", "test", ""])
def test_folders_of_parts(tmp_path, evaluation):
    for part in filter(None, ("train", evaluation)):
        for number in range(4):
            picture(tmp_path / part / f"{number}.jpg")
            (tmp_path / part / f"{number}.xml").write_text(page(objects=[CAT]))
    c = config(source=f"voc:{tmp_path}")
    assert len(make_source(c, "train")) == 4
    if evaluation:
        assert f"/{evaluation}/" in make_source(c, "test").describe(0)
        return
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        make_source(c, "test")
    c.holdout = 0.25
    assert [len(make_source(c, split)) for split in ("train", "test", "holdout")] == [3, 1, 1]


BAD = {
    "<annotation><object>": "is no XML",
    "<html></html>": "holds <html>, not <annotation>",
    '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>': "declares a document type",
    "\xff": "is no UTF-8",
    page(objects=[("cat", "x", 1, 2, 3, 0)]): "has 'x' as a side of its bndbox",
    page(objects=[("", 1, 1, 2, 3, 0)]): "an object has no name",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_cannot_be_read_is_counted(tmp_path, text):
    c = official(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"cannot be read: 1,.*a\.xml: .*{BAD[text]}"):
        make_source(c, "train")


def test_boxes_are_checked_as_those_of_any_set(tmp_path):
    c = official(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(page("a.jpg", [("cat", 30, 1, 20, 30, 0), ("cat", 1, 1, "nan", 5, 0)]))
    with pytest.raises(DataError, match=r"NaN or infinity.*negative width.*object 1 of JPEGImages"):
        make_source(c, "train")
    file.write_text(page("a.jpg", [CAT], size=(80, 60)))
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"file is not there: 1,.*b\.jpg"):
        make_source(c, "train")


def test_what_is_no_voc_set_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"holds no XML file. Expected: .*/Annotations/\*\.xml"):
        make_source(config(source=f"voc:{tmp_path}"), "train")
    with pytest.raises(DataError, match="is no folder"):
        make_source(config(source=f"voc:{tmp_path}/x"), "train")
    c = official(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match="is no name of a file"):
        make_source(c, "train")
