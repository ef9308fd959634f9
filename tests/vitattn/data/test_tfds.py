"""TFDS data sets: a real one, written by TFDS's own writer in the names and features of
imagenet2012."""

import io
import pickle
import shutil
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import DataError
from vitattn.data import data_defaults, make_source, train_batches
from vitattn.images.files import UnreadableRecord


def config(**values):
    return ConfigDict({**{key: value for key, (value, _) in data_defaults().items()}, **values})


def jpeg(seed):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def prepare_imagenet(root, file_format="array_record", splits=("train", "validation")):
    """Writes a small data set with TFDS's own writer, in the features and names of imagenet2012.

    TFDS's imagenet2012 builder itself asks TensorFlow whether its archives exist, so it cannot run
    here.
    """
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for n in range({"train": 12, "validation": 5}[split]):
                example = {"image": io.BytesIO(jpeg(n)), "label": 83 * n, "file_name": f"{n}.JPEG"}
                yield f"{split}{n}", example

    builder = Imagenet2012(data_dir=str(root), file_format=file_format)
    builder.download_and_prepare()
    return config(source="imagenet", dir=str(root))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    return root, prepare_imagenet(root)


def test_imagenet_is_read_from_array_records_without_tensorflow(imagenet):
    _, c = imagenet
    before = set(sys.modules)  # other tests of this process may have imported it
    train, test = make_source(c, "train"), make_source(c, "test")
    assert (len(train), len(test), train.num_classes) == (12, 5, 1000)
    found = sorted((train[n].label, train[n].image) for n in range(12))
    assert found == [(83 * n, jpeg(n)) for n in range(12)]
    again = pickle.loads(pickle.dumps(train))
    assert again[4] == train[4]
    assert "imagenet2012-train.array_record-00000-of-00001 record 4" in train.describe(4)
    assert "tensorflow" not in set(sys.modules) - before
    c = c.copy_and_resolve_references()
    c.holdout = 0.25
    assert (len(make_source(c, "train")), len(make_source(c, "holdout"))) == (9, 3)


@pytest.mark.thorough
def test_worker_processes_read_imagenet_as_this_process_does(imagenet):
    batches = []
    for workers in (0, 2):
        c = config(source="imagenet", dir=str(imagenet[0]), workers=workers)
        with train_batches(make_source(c, "train"), c, 8, 0, 0, 0, 1, 24) as reader:
            batches.append([next(reader) for _ in range(3)])
            assert reader.bad == []
    for one, other in zip(*batches, strict=True):
        assert one["weight"].all()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def copied(imagenet, root):
    shutil.copytree(imagenet[0], root, dirs_exist_ok=True)
    return config(source="imagenet", dir=str(root))


@pytest.mark.parametrize("below", ["imagenet2012", "imagenet2012/5.1.0"])
def test_imagenet_is_found_from_each_level_of_its_directory(imagenet, below):
    root, _ = imagenet
    assert len(make_source(config(source="imagenet", dir=str(root / below)), "train")) == 12


def test_the_newest_version_is_taken(imagenet, tmp_path):
    root, _ = imagenet
    for version in ("5.1.0", "5.10.0"):
        (tmp_path / "imagenet2012").mkdir(exist_ok=True)
        (tmp_path / "imagenet2012" / version).symlink_to(root / "imagenet2012" / "5.1.0")
    (tmp_path / "imagenet2012" / "9.0.0").mkdir()
    source = make_source(config(source="imagenet", dir=str(tmp_path)), "train")
    assert source.directory.endswith("5.10.0")


def test_a_missing_shard_is_named_before_training(imagenet, tmp_path):
    c = copied(imagenet, tmp_path)
    shard = next(tmp_path.glob("imagenet2012/5.1.0/*train*"))
    shard.unlink()
    with pytest.raises(DataError, match=f"1 of the 1 files .* first is {shard.name}"):
        make_source(c, "train")


def test_a_damaged_shard_gives_unreadable_records(imagenet, tmp_path):
    c = copied(imagenet, tmp_path)
    shard = next(tmp_path.glob("imagenet2012/5.1.0/*train*"))
    content = bytearray(shard.read_bytes())
    for place in range(2000, len(content) - 3000, 501):
        content[place] ^= 255
    shard.write_bytes(content)
    source = make_source(c, "train")
    reasons = []
    for n in range(len(source)):
        try:
            source[n]
        except UnreadableRecord as error:
            reasons.append(str(error))
    assert reasons
    assert all(reason.startswith("cannot be read (") for reason in reasons)


def test_missing_split_and_broken_description_are_named(tmp_path):
    c = prepare_imagenet(tmp_path, splits=("train",))
    with pytest.raises(DataError, match=r"no split 'validation', only train"):
        make_source(c, "test")
    (tmp_path / "imagenet2012/5.1.0/dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="not a TFDS data set that can be read"):
        make_source(c, "train")


def test_absent_imagenet_says_the_three_ways_to_go_on(tmp_path):
    with pytest.raises(DataError) as caught:
        make_source(config(source="imagenet", dir=str(tmp_path)), "train")
    for words in (
        "tfds build imagenet2012",
        "ILSVRC2012_img_train.tar",
        "--config.data.source=folder:PATH",
        "':digits' variant",
        "--config.data.source=synthetic",
        str(tmp_path),
    ):
        assert words in str(caught.value)
