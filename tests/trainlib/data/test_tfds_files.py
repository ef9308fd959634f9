"""What is refused in directories of TFDS before TFDS sees them, on a data set that TFDS wrote."""

import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from moe.tasks import records, registry
from trainlib.data import tfds_files
from trainlib.errors import ConfigError, DataError
from vitattn.data import tfds as tfds_source

CORE = "tensorflow_datasets.core.features"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of a version with features of many kinds, written by TFDS."""
    import tensorflow_datasets as tfds

    f = tfds.features
    features = {
        "image": f.Image(shape=(4, 4, 3), encoding_format="png"),
        "label": f.ClassLabel(names=["cat", "dog"]),
        "type": f.Text(),  # a feature may be called like a key of the format
        "inner": {
            "boxes": f.Sequence(
                {"box": f.BBoxFeature(), "at": f.Tensor(shape=(2,), dtype=np.float32)}
            ),
            "size": f.Scalar(np.int32),
        },
    }

    class Mini(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            file = io.BytesIO()
            Image.new("RGB", (4, 4)).save(file, "PNG")
            for n in range(3):
                inner = {"boxes": [], "size": n}
                image = io.BytesIO(file.getvalue())
                yield n, {"image": image, "label": n % 2, "type": "x", "inner": inner}

    root = tmp_path_factory.mktemp("tfds")
    Mini(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root / "mini" / "1.0.0"


@pytest.fixture
def place(written, tmp_path, monkeypatch):
    """A copy, below a current directory with a program that must not run."""
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nclass X: pass\n")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield shutil.copytree(written, tmp_path / "data" / "mini" / "1.0.0")
    assert not os.path.exists("ran")
    assert not {name for name in sys.modules if name.split(".")[0] == "evil"}


def opened(place):
    return tfds_source.TfdsSource(str(place), "train", (0.5,) * 3, (0.5,) * 3)


def change(place, edit, name="features.json"):
    """Rewrites a description; returns the refusal of the whole source."""
    content = json.loads((place / name).read_text())
    content = edit(content) or content
    (place / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        opened(place)
    with pytest.raises(DataError):
        tfds_files.check_set("mini:1.0.0", str(place.parents[1]))
    return str(caught.value)


def test_what_tfds_writes_is_read(place):
    source = opened(place)
    assert (len(source), source.class_names) == (3, ("cat", "dog"))
    assert sorted(source[n].label for n in range(3)) == [0, 0, 1]
    for name in ("mini", "Mini", "mini:1.0.0"):
        tfds_files.check_set(name, str(place.parents[1]))
    tfds_files.check_set("not_there:1.0.0", str(place.parents[1]))


def at(content, *path):
    for key in path:
        content = content[key]
    return content


FOREIGN = [
    "evil.X",
    "evil.core.X",
    "os.path.X",
    "evil",
    f"{CORE}_evil.x.X",
    f"{CORE}.evil.X",
    f"{CORE}.image_feature.Image.evil",
    f"{CORE}.image_feature_test.X",
    "évil.X",
    "",
    "tensorflow_datasets.testing.X",
    f" {CORE}.image_feature.Image",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_class_of_another_package_is_not_imported(place, name):
    def edit(content):
        at(content, "featuresDict", "features", "image")["pythonClassName"] = name

    assert "which can be any program" in change(place, edit)


NESTED = ("featuresDict", "features", "inner", "featuresDict", "features", "boxes")
LEGACY = {"type": f"{CORE}.features_dict.FeaturesDict", "content": {}}


def within(feature):
    return json.dumps({"x": feature})


HIDDEN = {
    "top": lambda c: c.update(pythonClassName="evil.X"),
    "nested": lambda c: at(c, *NESTED).update(pythonClassName="evil.X"),
    "in a sequence": lambda c: at(c, *NESTED, "sequence", "feature").update(
        pythonClassName="evil.X"
    ),
    "other spelling": lambda c: c.pop("pythonClassName") and c.update(python_class_name="evil.X"),
    "JSON in JSON": lambda c: at(c, *NESTED[:3]).update(
        pythonClassName=f"{CORE}.features_dict.FeaturesDict",
        jsonFeature={"json": within({"type": "evil.X", "content": {}})},
    ),
    "older form": lambda c: LEGACY | {"content": {"x": {"type": "evil.X", "content": {}}}},
    "older sequence": lambda c: {
        "type": f"{CORE}.sequence_feature.Sequence",
        "content": {"length": None, "feature": {"type": "evil.X", "content": {}}},
    },
    "text of protobuf": lambda c: (
        LEGACY
        | {
            "proto_cls": "tensorflow_datasets.FeaturesDict",
            "content": json.dumps({"features": {"x": {"pythonClassName": "evil.X"}}}),
        }
    ),
    "byte-order mark": lambda c: "\ufeff" + json.dumps(c | {"pythonClassName": "evil.X"}),
    "escaped": lambda c: json.dumps(c).replace(f"{CORE}.text_feature.Text", "\\u0065vil.X"),
    "in a list": lambda c: [c, {"type": "evil.X"}],
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_class_is_found_wherever_tfds_would_look_it_up(place, name):
    assert "'evil.X'" in change(place, HIDDEN[name])


def test_the_features_of_dataset_info_are_looked_at_too(place):
    features = {"pythonClassName": "evil.X", "jsonFeature": {"json": "{}"}}
    said = change(place, lambda c: c.update(features=features), "dataset_info.json")
    assert "dataset_info.json: features names the class 'evil.X'" in said


def test_the_same_of_a_language_model(place):
    """The readers of texts ask before TFDS is imported."""
    features = place / "features.json"
    text = features.read_text().replace(f"{CORE}.text_feature.Text", "evil.X")
    folder = place.parents[1] / "super_glue" / "cb" / "1.0.2"
    shutil.copytree(place, folder)
    (folder / "features.json").write_text(text)
    task = registry.TASKS["cb"]
    assert task.tfds == "super_glue/cb:1.0.2"
    with pytest.raises(DataError, match="which can be any program"):
        next(records.tfds_records(task, str(place.parents[1]), "train"))


DAMAGE = {
    "path of labels": (
        lambda c: (
            LEGACY
            | {
                "content": {
                    "label": {
                        "type": f"{CORE}.class_label_feature.ClassLabel",
                        "content": {"names_file": "/dev/zero"},
                    }
                }
            }
        ),
        "features.json",
        "a file that TFDS would read",
    ),
    "twice": (
        lambda c: json.dumps(c)[:-1] + ', "pythonClassName": "evil.X"}',
        "features.json",
        "twice",
    ),
    "no JSON": (lambda c: "{", "features.json", "not JSON"),
    "deep": (lambda c: "[" * 100_000, "features.json", "not JSON"),
    "other name": (lambda c: c.update(name="../../x"), "dataset_info.json", "which is no name"),
    "template": (
        lambda c: c["splits"][0].update(filepathTemplate="../{SPLIT}"),
        "dataset_info.json",
        "which is no name",
    ),
    "absolute": (
        lambda c: c["splits"][0].update(filepathTemplate="/dev/zero"),
        "dataset_info.json",
        "which is no name",
    ),
    "negative": (
        lambda c: c["splits"][0].update(shardLengths=["-3"]),
        "dataset_info.json",
        "no number of records",
    ),
    "too many": (
        lambda c: c["splits"][0].update(shardLengths=[str(10**14)]),
        "dataset_info.json",
        "100,000,000,000,000 records",
    ),
    "no object": (lambda c: [c], "dataset_info.json", "one JSON object"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_names_are_no_paths_and_numbers_are_believed_with_measure(place, name):
    edit, file, words = DAMAGE[name]
    content = json.loads((place / file).read_text())
    content = edit(content) or content
    (place / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=words):
        opened(place)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_descriptions_are_regular_and_bounded(place, name, kind):
    os.unlink(place / name)
    if kind == "pipe":
        os.mkfifo(place / name)
    elif kind == "device":
        (place / name).symlink_to("/dev/zero")
    else:
        with open(place / name, "wb") as file:
            file.truncate(2**33)  # sparse
    with pytest.raises(DataError, match="not a regular file" if kind != "large" else "larger than"):
        opened(place)


def test_shards_are_regular_files(place):
    shard = next(place.glob("*array_record*"))
    content = shard.read_bytes()
    (place.parents[1] / "disk").write_bytes(content)
    shard.unlink()
    shard.symlink_to(place.parents[1] / "disk")  # a link to a disk is followed
    assert len(opened(place)) == 3
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataError, match="a named pipe"):
        opened(place)


@pytest.mark.parametrize("drop", ["label", "image"])
def test_a_set_without_images_or_classes_is_named(place, drop):
    content = json.loads((place / "features.json").read_text())
    del content["featuresDict"]["features"][drop]
    (place / "features.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no data set of images with one class each"):
        opened(place)


def test_the_default_configuration_is_no_path(place):
    (place.parent / ".config").mkdir()
    (place.parent / ".config" / "metadata.json").write_text(
        json.dumps({"default_config_name": "../../elsewhere"})
    )
    with pytest.raises(DataError, match="which is no name"):
        tfds_files.check_set("mini", str(place.parents[1]))


@pytest.mark.parametrize("name", ["../evil", "huggingface:x/y", "mini/data_dir=x", "a/b/c:1.0.0"])
def test_names_of_sets_that_are_not_on_a_disk(name, tmp_path):
    with pytest.raises(ConfigError, match="not the name of a TFDS data set"):
        tfds_files.check_set(name, str(tmp_path))
