"""COCO as TFDS prepares it: written by TFDS's own writer, equal to the JSON of the same images."""

import contextlib
import io
import pickle
import sys

import numpy as np
import pytest

from tests.vitattn.detection.data.sets import annotation, config, picture, write
from trainlib.errors import DataError
from vitattn.detection.annotations.official import NAMES
from vitattn.detection.data.catalog import make_source

SIZES = {n: (60 + 17 * n, 50 + 7 * n) for n in range(1, 5)}  # width, height of image n


def content():
    """Four images, the last without a box; one crowd; three of the 80 classes."""
    rng = np.random.default_rng(1)
    entries = []
    for number in range(1, 13):
        image = 1 + number % 3
        wide, high = SIZES[image]
        x, y = rng.uniform(0, wide - 9), rng.uniform(0, high - 9)
        box = [
            round(float(n), 2) for n in (x, y, rng.uniform(2, wide - x), rng.uniform(2, high - y))
        ]
        category = int(rng.choice([1, 13, 90]))
        entries.append(annotation(number, image, category, box, iscrowd=int(number == 5)))
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": SIZES[n][0], "height": SIZES[n][1]}
            for n in SIZES
        ],
        "annotations": entries,
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
    }


def prepare(root, images, splits=("train", "validation")):
    """Writes the same with TFDS's own writer, in the names and features of its coco/2017, whose own
    builder would download it."""
    import tensorflow_datasets as tfds

    coco = content()
    labels = {identity: number for number, identity in enumerate(NAMES)}

    class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2017", version="1.1.0"),)

        def _info(self):
            one = {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=list(NAMES.values())),
                "is_crowd": np.bool_,
            }
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(one),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for image in coco["images"]:
                wide, high = image["width"], image["height"]
                own = [e for e in coco["annotations"] if e["image_id"] == image["id"]]
                objects = []
                for entry in own:
                    x, y, w, h = entry["bbox"]
                    bbox = tfds.features.BBox(
                        y / high, x / wide, min((y + h) / high, 1), min((x + w) / wide, 1)
                    )
                    objects.append(
                        {
                            "id": entry["id"],
                            "area": int(entry["area"]),
                            "bbox": bbox,
                            "label": labels[entry["category_id"]],
                            "is_crowd": bool(entry["iscrowd"]),
                        }
                    )
                name = image["file_name"]
                data = io.BytesIO((images / name).read_bytes())
                yield (
                    name,
                    {
                        "image": data,
                        "image/filename": name,
                        "image/id": image["id"],
                        "objects": objects,
                    },
                )

    with contextlib.redirect_stderr(io.StringIO()):
        Coco(data_dir=str(root), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Configurations of the two forms of one set."""
    root = tmp_path_factory.mktemp("coco")
    for number, size in SIZES.items():
        picture(root / "train2017" / f"{number}.jpg", size)
    write(root / "annotations" / "instances_train2017.json", content())
    prepare(root / "tfds", root / "train2017")
    return config(dir=str(root)), config(source="coco/2017", dir=str(root / "tfds"))


def test_both_forms_of_coco_give_the_same_boxes(both):
    before = set(sys.modules)
    json, tfds = (make_source(c, "train") for c in both)
    assert "tensorflow" not in set(sys.modules) - before
    assert len(json) == len(tfds) == 4
    assert json.class_names == tfds.class_names == tuple(NAMES.values())
    assert json.category_ids == tfds.category_ids == tuple(NAMES)
    of_id = {tfds.image_id(n): n for n in range(4)}
    for record in range(4):
        ours, theirs = json[record], tfds[of_id[json.image_id(record)]]
        assert ours.image == theirs.image
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=2e-5)  # float32 fractions
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        np.testing.assert_array_equal(ours.crowd, theirs.crowd)
        one, other = json.truth(record), tfds.truth(of_id[json.image_id(record)])
        assert one[:4] == other[:4]
        np.testing.assert_allclose(one.boxes, other.boxes, atol=2e-5)
        np.testing.assert_array_equal(np.floor(one.area), other.area)


def test_the_ground_truth_of_both_is_the_same(both):
    json, tfds = (make_source(c, "train").ground_truth() for c in both)
    assert json["categories"] == tfds["categories"]
    assert sorted(e["id"] for e in json["images"]) == sorted(e["id"] for e in tfds["images"])
    assert len(json["annotations"]) == len(tfds["annotations"]) == 12
    assert [e["id"] for e in tfds["annotations"]] == list(range(1, 13))


def test_splits_and_pickling(both):
    c = both[1].copy_and_resolve_references()
    assert len(make_source(c, "test")) == 4
    c.holdout = 0.25
    train, held = make_source(c, "train"), make_source(c, "holdout")
    assert (len(train), len(held)) == (3, 1)
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[0].boxes, train[0].boxes)
    assert "record" in train.describe(0)
    assert len(held.ground_truth()["images"]) == 1


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"tfds build coco/2017.*data\.source=coco "):
        make_source(config(source="coco/2017", dir=str(tmp_path)), "train")


def test_a_set_without_boxes_is_named(tmp_path):
    from tests.vitattn.data.test_tfds import prepare_imagenet

    prepare_imagenet(tmp_path, splits=("train",))
    c = config(source="coco/2017", dir=str(tmp_path / "imagenet2012" / "5.1.0"))
    with pytest.raises(DataError, match=r"no data set of images with boxes.*image.*label"):
        make_source(c, "train")
