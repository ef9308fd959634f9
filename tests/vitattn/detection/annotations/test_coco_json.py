"""Every mistake that annotations have in practice: refused, left out or mended, and always said."""

import json
import os

import numpy as np
import pytest

from tests.vitattn.detection.data.sets import annotation, good, write
from trainlib.errors import DataError
from vitattn.detection.annotations import coco_json
from vitattn.detection.annotations.report import TRAPS


def read(tmp_path, content):
    return coco_json.read(write(tmp_path / "a.json", content))


def test_good_annotations_become_arrays(tmp_path):
    table, report = read(tmp_path, good())
    assert table.image_ids.tolist() == [30, 10, 20]
    assert table.file_names == ("3.png", "1.png", "2.png")
    assert table.category_ids == (4, 7)
    assert table.class_names == ("cat", "dög")
    assert table.starts.tolist() == [0, 2, 4, 4]
    assert table.boxes.tolist() == [
        [0, 0, 40, 30],
        [3, 3, 30, 20],
        [1, 2, 10.5, 20],
        [30, 20, 5, 5],
    ]
    assert table.classes.tolist() == [0, 1, 1, 0]
    assert table.area.tolist() == [1200, 600, 210, 12.25]
    assert table.crowd.tolist() == [False, True, False, False]
    assert report.counts == {"no_box": 1, "crowd": 1}
    report.check(0.0)
    one = table.truth(1)
    assert (one.image_id, one.file_name, one.height, one.width) == (10, "1.png", 30, 40)
    part = table.of_images(np.array([1, 2]))
    assert part.boxes.tolist() == table.boxes[2:].tolist()
    assert part.starts.tolist() == [0, 2, 2]


def test_the_order_of_the_members_does_not_matter(tmp_path):
    first, _ = read(tmp_path, good())
    second, _ = read(tmp_path, dict(reversed(good().items())))
    for one, other in zip(
        (first.boxes, first.classes), (second.boxes, second.classes), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- one mistake at a time
def change(member, number, **values):
    """Sets fields of one entry; None takes the field away."""

    def apply(content):
        entry = content[member][number]
        for key, value in values.items():
            if value is None:
                entry.pop(key)
            else:
                entry[key] = value

    return apply


def box(*numbers):
    return change("annotations", 0, bbox=list(numbers))


def append(member, entry):
    return lambda content: content[member].append(entry)


def mask(**values):
    """An annotation with a mask of 30x40 (height, width) and no box."""
    return change(
        "annotations", 0, bbox=None, segmentation={"size": [30, 40], "counts": [0, 1200], **values}
    )


def all_boxes(form):
    """Many boxes that fit their images, in another form."""

    def apply(content):
        rng = np.random.default_rng(0)
        content["annotations"] = []
        for number in range(1, 60):
            x, y = rng.integers(0, 38), rng.integers(0, 28)
            w, h = rng.integers(2, 41 - x), rng.integers(2, 31 - y)
            entry = [float(side) for side in form(x, y, w, h)]
            content["annotations"].append(annotation(number, 10, 7, entry))

    return apply


MISTAKES = {
    # name: (change, trap, how many, is it refused)
    "id 0": (change("annotations", 0, id=0), "id_zero", 1, False),
    "ids twice": (change("annotations", 1, id=5), "id_twice", 1, False),
    "no id": (change("annotations", 1, id=None), "no_id", 1, False),
    "text as id": (change("annotations", 1, id="a"), "id_form", 1, False),
    "no area": (change("annotations", 0, area=None), "no_area", 1, False),
    "NaN as area": (change("annotations", 0, area=float("nan")), "no_area", 1, False),
    "text as area": (change("annotations", 0, area="12"), "no_area", 1, False),
    "no iscrowd": (change("annotations", 0, iscrowd=None), "no_crowd", 1, False),
    "iscrowd of 2": (change("annotations", 0, iscrowd=2), "no_crowd", 1, False),
    "text in a box": (box(1, 2, "3", 4), "box_text", 1, True),
    "truth in a box": (box(1, 2, True, 4), "box_truth", 1, True),
    "null in a box": (box(1, 2, None, 4), "box_form", 1, True),
    "three numbers": (box(1, 2, 3), "box_form", 1, True),
    "a box of boxes": (box([1, 2, 3, 4], 2, 3, 4), "box_form", 1, True),
    "a whole number that is no float": (box(1, 2, 10**400, 4), "box_form", 1, True),
    "NaN": (box(1, 2, float("nan"), 4), "box_nan", 1, True),
    "infinity": (box(1, 2, 3, float("inf")), "box_nan", 1, True),
    "negative": (box(1, 2, -3, 4), "box_negative", 1, True),
    "no width": (box(1, 2, 0, 4), "box_empty", 1, False),
    "outside": (box(41, 2, 3, 4), "box_outside", 1, False),
    "outside above": (box(1, -20, 3, 4), "box_outside", 1, False),
    "over the edge": (box(38.5, 2, 3, 4), "box_over", 1, False),
    "unknown image": (change("annotations", 0, image_id=11), "unknown_image", 1, True),
    "unknown category": (change("annotations", 0, category_id=5), "unknown_category", 1, True),
    "text as image id": (change("annotations", 0, image_id="10"), "reference_form", 1, True),
    "truth as category": (change("annotations", 0, category_id=True), "reference_form", 1, True),
    "image id of 10.0": (change("annotations", 0, image_id=10.0), "reference_float", 1, False),
    "image id beyond 64 bits": (
        change("annotations", 0, image_id=2**64),
        "reference_form",
        1,
        True,
    ),
    "no category": (change("annotations", 0, category_id=None), "reference_form", 1, True),
    "no geometry": (change("annotations", 0, bbox=None), "no_geometry", 1, True),
    "empty box": (change("annotations", 0, bbox=[]), "no_geometry", 1, True),
    "no object": (append("annotations", [1, 2]), "annotation_form", 1, True),
    "polygon": (
        change("annotations", 0, bbox=None, segmentation=[[1, 2, 11, 2, 5, 9.5]]),
        "from_polygon",
        1,
        False,
    ),
    "polygon of two points": (
        change("annotations", 0, bbox=None, segmentation=[[1, 2, 11, 2]]),
        "polygon_form",
        1,
        True,
    ),
    "mask": (mask(), "from_mask", 1, False),
    "mask that does not fit": (mask(counts=[0, 12]), "polygon_form", 1, True),
    "mask of text": (mask(counts="\u1234"), "polygon_form", 1, True),
    "empty mask": (mask(counts=[1200]), "polygon_form", 1, True),
    "huge mask": (mask(size=[10**6, 10**6]), "polygon_form", 1, True),
    "the same box twice": (
        append("annotations", annotation(9, 10, 7, [1, 2, 10.5, 20])),
        "box_twice",
        1,
        False,
    ),
    "captions": (
        lambda c: c.update(annotations=[{"id": 1, "image_id": 10, "caption": "a cat"}] * 2),
        "captions",
        2,
        True,
    ),
    "panoptic": (
        lambda c: c.update(annotations=[{"image_id": 10, "segments_info": []}]),
        "panoptic",
        1,
        True,
    ),
    "image id twice": (change("images", 0, id=10), "image_twice", 1, True),
    "file twice": (change("images", 0, file_name="1.png"), "file_twice", 1, True),
    "text as id of an image": (change("images", 2, id="x"), "image_form", 1, True),
    "no file name": (change("images", 2, file_name=None), "file_name", 1, True),
    "path above": (change("images", 2, file_name="../x.png"), "file_name", 1, True),
    "path inside above": (change("images", 2, file_name="a/../../x.png"), "file_name", 1, True),
    "absolute": (change("images", 2, file_name="/etc/passwd"), "file_name", 1, True),
    "drive": (change("images", 2, file_name="C:\\x.png"), "file_name", 1, True),
    "NUL": (change("images", 2, file_name="a\0b"), "file_name", 1, True),
    "half a surrogate": (change("images", 2, file_name="a\ud83d.png"), "file_name", 1, True),
    "folder": (change("images", 2, file_name="a/"), "file_name", 1, True),
    "id of 30.0": (change("images", 0, id=30.0), "image_float", 1, False),
    "backslash": (change("images", 2, file_name="a\\2.png"), "backslash", 1, False),
    "no width of an image": (change("images", 2, width=None), "image_size", 1, False),
    "text as height": (change("images", 2, height="30"), "image_size", 1, False),
    "negative category": (change("categories", 0, id=-7), "category_form", 1, True),
    "category twice": (change("categories", 0, id=4), "category_twice", 1, True),
    "name twice": (change("categories", 0, name="cat"), "name_twice", 1, True),
    "empty name": (change("categories", 0, name=" "), "no_name", 1, True),
    "no name": (change("categories", 0, name=None), "category_form", 1, True),
    "unused": (append("categories", {"id": 0, "name": "things"}), "unused", 1, False),
    "no categories": (lambda c: c.pop("categories"), "no_categories", 1, True),
    "no images": (lambda c: c.pop("images"), "no_images", 1, True),
    "no annotations": (lambda c: c.pop("annotations"), "no_annotations", 1, True),
    "empty annotations": (lambda c: c.update(annotations=[]), "no_annotations", 1, True),
    "only crowds": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        "only_crowds",
        4,
        True,
    ),
    "corners": (all_boxes(lambda x, y, w, h: (x, y, x + w, y + h)), "corners", 59, True),
    "swapped": (all_boxes(lambda x, y, w, h: (y, x, h, w)), "swapped", 59, True),
    "centres": (all_boxes(lambda x, y, w, h: (x + w / 2, y + h / 2, w, h)), "centres", 59, True),
    "fractions": (
        all_boxes(lambda x, y, w, h: (x / 40, y / 30, w / 40, h / 30)),
        "fractions",
        59,
        True,
    ),
    "another size": (
        all_boxes(lambda x, y, w, h: (9 * x, 9 * y, 9 * w, 9 * h)),
        "misfit",
        59,
        True,
    ),
    "a crowd of boxes": (
        lambda c: c.update(
            annotations=[
                annotation(n, 10, 7, [n % 30, 1, 2 + n / 1e6, 3]) for n in range(1, 10_002)
            ]
        ),
        "crowded",
        1,
        True,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_counted_and_named(tmp_path, name):
    apply, trap, count, refused = MISTAKES[name]
    content = good()
    apply(content)
    _, report = read(tmp_path, content)
    assert report.counts[trap] == count, report.counts
    assert (trap in report.refused(0.0)) is refused
    assert TRAPS[trap].what in " ".join(report.lines())
    if refused:
        with pytest.raises(DataError, match=r"a\.json cannot be used: ") as caught:
            report.check(0.0)
        assert TRAPS[trap].what in str(caught.value)
    else:
        report.check(0.0)


def test_every_mistake_has_a_test():
    here = {trap for _, trap, _, _ in MISTAKES.values()}
    elsewhere = {"no_box", "crowd", "no_file"}  # the first test, and that of `coco`
    elsewhere |= {"line_form", "pixels", "unreadable"}  # those of `voc` and `yolo`
    elsewhere |= {"turned", "other_size"}  # those of `checks`
    assert here | elsewhere == set(TRAPS)


def test_mended_boxes_are_right(tmp_path):
    content = good()
    content["annotations"] = [
        annotation(1, 10, 7, [0, 0, 0, 0], segmentation=[[4, 5, 9.5, 5, 9.5, 12, 4, 8]]),
        annotation(2, 10, 7, [1, 1, 4, 4], area="x"),
    ]
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["area"] = 21.5
    table, _ = read(tmp_path, content)
    assert table.boxes.tolist() == [[4, 5, 5.5, 7], [1, 1, 4, 4]]
    assert table.area.tolist() == [21.5, 16]


def test_some_broken_annotations_may_be_left_out(tmp_path):
    content = good()
    content["annotations"][0]["bbox"][2] = float("nan")
    table, report = read(tmp_path, content)
    assert len(table.boxes) == 3
    with pytest.raises(DataError, match=r"max_bad_fraction is 0\.2: mend"):
        report.check(0.2)
    report.check(0.25)
    assert any("NaN or infinity in the box: 1 annotation, left out" in n for n in report.lines())


def test_all_reasons_are_in_one_message(tmp_path):
    content = good()
    content["annotations"][0]["bbox"][2] = float("nan")
    content["annotations"][1]["category_id"] = 99
    content["images"][0]["file_name"] = "../3.png"
    _, report = read(tmp_path, content)
    with pytest.raises(DataError) as caught:
        report.check(0.001)
    for words in ("'file_name' of a file below", "category_id that no", "NaN or infinity"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut off or empty"),
        ("[]", "holds a list, as results"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "holds a list, as results"),
        ('{"a": 1}', "no file of COCO's annotations.*'a'"),
        ("{}", "it holds nothing"),
        ('{"images": [', "cut off or empty"),
        ('{"images": []}{', "more follows"),
        ('{"images": [], "images": []}', "names 'images' twice"),
        ('{"images": [{"id": 1, "id": 2}]}', "names 'id' twice in one object"),
        ('{"images": ' + "[" * 100_000, "nests too deeply"),
        ('{"images": [{"id": ' + "1" * 5000 + "}]}", "Exceeds the limit"),
        ("\xff\xfe", "not JSON"),
    ],
)
def test_what_is_no_coco_json_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_members_of_another_kind_are_no_images(tmp_path):
    _, report = read(tmp_path, {**good(), "images": {"1": {}}})
    assert "no_images" in report.refused(1.0)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        coco_json.read(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        coco_json.read(tmp_path)


def test_the_same_file_is_read_once_until_it_changes(tmp_path):
    path = write(tmp_path / "a.json", good())
    os.utime(path, (10**9, 10**9))
    first, _ = coco_json.read(path)
    assert coco_json.read(path)[0] is first
    content = good()
    content["annotations"].pop()
    other, _ = read(tmp_path, content)
    assert len(other.boxes) == 3


def test_what_pycocotools_reads_is_the_same(tmp_path):
    """On a clean set with polygons, its own loader finds the same boxes of the same images."""
    coco = pytest.importorskip("pycocotools.coco")
    rng, content = np.random.default_rng(5), good()
    content["annotations"] = []
    for number in range(1, 200):
        x, y = rng.uniform(0, 35), rng.uniform(0, 25)
        side = [x, y, rng.uniform(1, 40 - x), rng.uniform(1, 30 - y)]
        entry = annotation(
            number,
            int(rng.choice([10, 20, 30])),
            int(rng.choice([4, 7])),
            side,
            segmentation=[[1, 2, 3, 4, 5, 6.25]],
            iscrowd=int(rng.random() < 0.1),
        )
        content["annotations"].append(entry)
    path = write(tmp_path / "a.json", content)
    theirs = coco.COCO(str(path))
    table, _ = coco_json.read(path)
    for image in range(len(table)):
        truth = table.truth(image)
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=[truth.image_id]))
        assert truth.boxes.tolist() == [entry["bbox"] for entry in expected]
        assert truth.area.tolist() == [entry["area"] for entry in expected]
        assert truth.crowd.tolist() == [bool(entry["iscrowd"]) for entry in expected]
        ids = [table.category_ids[number] for number in truth.classes]
        assert ids == [entry["category_id"] for entry in expected]
        assert truth.file_name == theirs.imgs[truth.image_id]["file_name"]


def test_the_box_of_a_mask_is_that_of_pycocotools(tmp_path):
    masks = pytest.importorskip("pycocotools.mask")
    from vitattn.detection.annotations import segments

    rng = np.random.default_rng(3)
    for number in range(60):
        high, wide = rng.integers(1, 60, 2)
        inside = rng.random((high, wide)) < rng.choice([0.02, 0.3, 1.0])
        inside[rng.integers(high), rng.integers(wide)] = True
        packed = masks.encode(np.asfortranarray(inside.astype(np.uint8)))
        counts = packed["counts"].decode()
        expected = masks.toBbox(packed).tolist()
        found, kind = segments.box_of({"size": [int(high), int(wide)], "counts": counts})
        assert (list(found), kind) == (expected, "mask"), number
        runs = segments._uncompressed(counts)
        assert sum(runs) == high * wide
        assert segments.box_of({"size": [int(high), int(wide)], "counts": runs})[0] == found


def test_json_of_a_person_who_writes_it_by_hand(tmp_path):
    """Indented, with a byte-order mark, and members that nobody asked for."""
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(good(), indent=4))
    table, report = coco_json.read(tmp_path / "a.json")
    assert len(table.boxes) == 4
    report.check(0.0)
