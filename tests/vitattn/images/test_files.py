"""What is read of folders of images, and what is left out with a count, by training and prediction
alike."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from trainlib.data import folders
from trainlib.errors import ConfigError, DataError
from vitattn import answers
from vitattn.classification import task
from vitattn.data import data_defaults, eval_batches, make_source
from vitattn.data.unlabelled import Unlabelled
from vitattn.images.decode import MAX_BYTES
from vitattn.images.files import UnreadableRecord, find_images


def config(**values):
    defaults = {key: value for key, (value, _) in data_defaults().items()}
    return ConfigDict({**defaults, "workers": 0, **values})


def picture(path, kind="JPEG"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(file, kind)


def found(root, split="train", **values):
    """The names that training reads, and what it says of the rest."""
    source = make_source(config(source=f"folder:{root}", **values), split)
    return list(source.names), [line.partition(": ")[2] for line in source.left_out]


@pytest.fixture
def root(tmp_path):
    """Two classes of two pictures each, and nothing else."""
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        picture(tmp_path / "in" / name)
    return tmp_path / "in"


PLAIN = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]


def test_nothing_is_said_where_nothing_is_left_out(root):
    assert found(root) == (PLAIN, [])


def test_every_suffix_of_the_formats_is_read(root):
    """A .jfif holds a JPEG; suffixes count in capitals too."""
    for number, suffix in enumerate((".jfif", ".JPE", ".apng", ".pbm", ".PNM", ".Tif", ".webp")):
        kind = {".apng": "PNG", ".pbm": "PPM", ".PNM": "PPM", ".Tif": "TIFF", ".webp": "WEBP"}
        picture(root / "cat" / f"x{number}{suffix}", kind.get(suffix, "JPEG"))
    names, lines = found(root)
    assert (len(names), lines) == (11, [])
    source = make_source(config(source=f"folder:{root}"), "train")
    with eval_batches(source, config(max_bad_fraction=0.0), 11, 0, 1, 8) as batches:
        assert next(batches)["weight"].sum() == 11


def test_pictures_below_a_class_that_has_pictures_are_counted(root):
    """Two of three vanished without a word."""
    for name in ("more/1.jpg", "more/deep/2.jpg", "other/3.png"):
        picture(root / "cat" / name, "PNG" if name.endswith("png") else "JPEG")
    assert found(root) == (
        PLAIN,
        [
            "2 .jpg, in a sub-folder of a class that has images itself (such as cat/more/1.jpg)",
            "1 .png, in a sub-folder of a class that has images itself (such as cat/other/3.png)",
        ],
    )


def test_what_is_left_out_is_counted_by_suffix_and_reason(root):
    (root / "cat" / "a.HEIC").touch()
    (root / "dog" / "b.heic").touch()
    (root / "dog" / "raw").touch()
    (root / "labels.csv").touch()
    picture(root / "stray.png")
    (root / "cat" / "._1.jpg").touch()
    (root / ".git").mkdir()
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    suffix = "not the suffix of an image that is read"
    assert found(root) == (
        PLAIN,
        [
            f"2 .heic, {suffix} (such as cat/a.HEIC)",
            f"1 .csv, {suffix} (such as labels.csv)",
            "1 .jpg, hidden (such as cat/._1.jpg)",
            "1 .png, outside the class folders (such as stray.png)",
            "1 folder, hidden (such as .git)",
            "1 folder, left by an archive of macOS (such as __MACOSX)",
            f"1 without a suffix, {suffix} (such as dog/raw)",
        ],
    )


def test_odd_names_of_class_folders_are_classes(root):
    for name in ("__background__", "x.jpg", " b", "@c", "Thumbs.db"):
        picture(root / name / "1.jpg")
    source = make_source(config(source=f"folder:{root}"), "train")
    odd = (" b", "@c", "Thumbs.db", "__background__", "cat", "dog", "x.jpg")
    assert (source.class_names, source.left_out) == (odd, ())
    assert len(source) == 9


def test_folders_beside_train_and_val_are_counted(root, tmp_path):
    for part in ("train", "val", "test"):
        picture(tmp_path / "parts" / part / "cat" / "1.jpg")
    picture(tmp_path / "parts" / "2.jpg")
    lines = [
        "1 .jpg, outside the class folders (such as 2.jpg)",
        "1 folder, beside the folders that are read (such as test)",
    ]
    for split in ("train", "test"):
        assert found(tmp_path / "parts", split) == (["cat/1.jpg"], lines)


def special(root):
    """Everything in a folder that is named like an image and is none."""
    os.mkfifo(root / "pipe.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "gone.jpg").symlink_to(root / "nothing")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")


def test_pipes_devices_and_links_to_nothing_are_never_opened(root):
    special(root / "cat")
    assert found(root) == (
        PLAIN,
        [
            "2 .jpg, not a regular file but a link to nothing (such as cat/gone.jpg)",
            "1 .jpg, not a regular file but a link to a device (such as cat/device.jpg)",
            "1 .jpg, not a regular file but a named pipe (such as cat/pipe.jpg)",
        ],
    )


def test_links_are_followed_and_circles_end(root, tmp_path):
    picture(tmp_path / "disk" / "far.jpg")
    (root / "cat" / "near.jpg").symlink_to(tmp_path / "disk" / "far.jpg")
    (root / "elk").symlink_to(tmp_path / "disk")
    (root / "cat" / "round").symlink_to(root)
    names, lines = found(root)
    assert names == [
        "cat/1.jpg",
        "cat/2.jpg",
        "cat/near.jpg",
        "dog/1.jpg",
        "dog/2.jpg",
        "elk/far.jpg",
    ]
    # Through the link there are dog and elk; cat, which is read, and round are not entered again.
    reason = "in a sub-folder of a class that has images itself"
    assert lines == [
        f"3 .jpg, {reason} (such as cat/round/dog/1.jpg)",
        "1 folder, a link to a folder that is read already (such as cat/round/cat)",
    ]


def test_prediction_reads_by_the_same_rule(root, capsys):
    special(root / "cat")
    for name in ("._x.jpg", ".hidden/1.jpg", "__MACOSX/cat/._1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "cat" / "a.heic").touch()
    picture(root / "x.jpg" / "inside.jfif")  # a folder that is named like an image
    (root / "again").symlink_to(root)
    names = [os.path.relpath(path, root) for path in find_images([root])]
    assert names == [*PLAIN, "x.jpg/inside.jfif"]
    said = capsys.readouterr().err
    for words in (
        "1 .heic, not the suffix",
        "1 .jpg, hidden (such as ._x.jpg)",
        "such as __MACOSX",
        "a named pipe (such as cat/pipe.jpg)",
        "read already (such as again)",
    ):
        assert words in said
    assert said.count("\n") == 8


def test_named_paths_that_are_no_file_get_no_answer_and_do_not_wait(root):
    special(root)
    paths = find_images([root / "pipe.jpg", root / "device.jpg"])
    images = Unlabelled(paths, (0.5,) * 3, (0.5,) * 3)
    for record, kind in enumerate(("a named pipe", "a link to a device")):
        with pytest.raises(UnreadableRecord, match=f"^is {kind}, not a regular file$"):
            images[record]
    for name in ("gone.jpg", "x" * 5000, "no\0name"):
        with pytest.raises(DataError, match="There is no image"):
            find_images([root / name])


def test_an_image_that_turns_into_something_else_is_unreadable(root):
    """Between the look and the reading a file may change: it is looked at again."""
    source = make_source(config(source=f"folder:{root}"), "train")
    os.unlink(root / "cat" / "1.jpg")
    os.mkfifo(root / "cat" / "1.jpg")
    with pytest.raises(UnreadableRecord, match="a named pipe, not a regular file"):
        source[0]
    with open(root / "cat" / "2.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room until it is read
    with pytest.raises(UnreadableRecord, match="is larger than 256 MiB"):
        source[1]
    os.unlink(root / "dog" / "1.jpg")
    with pytest.raises(UnreadableRecord, match=r"^cannot be read: No such file or directory$"):
        source[2]


BYTES = b"caf\xe9.jpg"  # Latin-1, no UTF-8
ODD = os.fsdecode(BYTES)


def test_names_that_are_no_utf8_are_read_and_shown(root):
    picture(os.path.join(root, os.fsdecode(b"\xfcber"), ODD))
    (root / "dog" / os.fsdecode(b"x.\xff")).touch()
    os.mkfifo(root / "dog" / os.fsdecode(b"\xfe.png"))
    source = make_source(config(source=f"folder:{root}", holdout=0.5), "train")
    assert len(source.digest) == 16
    assert pickle.loads(pickle.dumps(source)).names == source.names
    names, lines = found(root)
    assert names == [*PLAIN, os.fsdecode(b"\xfcber/") + ODD]
    assert "1 .\\udcff, not the suffix of an image that is read (such as dog/x.\\udcff)" in lines
    assert "1 .png, not a regular file but a named pipe (such as dog/\\udcfe.png)" in lines
    source = make_source(config(source=f"folder:{root}"), "train")
    assert source[4].image.startswith(b"\xff\xd8")
    assert source.describe(4).endswith("\\udcfcber/caf\\udce9.jpg")


def test_prediction_prints_names_that_are_no_utf8(root):
    picture(os.path.join(root, "cat", ODD))
    (path,) = [p for p in find_images([root]) if p.name == ODD]
    for error in ("", "is empty"):
        outputs = {"probabilities": np.array([0.25, 0.75])}
        answer = answers.Answer(0, error, np.zeros((2, 2, 3)), outputs, {})
        as_text, as_line = (
            answers.renderer(task, [path], ("a", "b"), as_json) for as_json in (False, True)
        )
        assert "caf\\udce9.jpg" in as_text(answer)
        line = json.loads(as_line(answer))
        assert line["image"].encode().endswith(b"caf\\xe9.jpg")  # Unicode, unlike half surrogates
    images = Unlabelled([path], (0.5,) * 3, (0.5,) * 3)
    assert len(images.digest) == 16
    assert images.describe(0).endswith("caf\\udce9.jpg")


def test_a_folder_of_data_that_is_no_utf8_is_refused_and_the_advice_works(root, tmp_path):
    odd = tmp_path / os.fsdecode(b"d\xe9")
    root.rename(odd)
    with pytest.raises(ConfigError, match=r"d\\udce9 has a name that is no UTF-8.*ln -s"):
        found(odd)
    (tmp_path / "link").symlink_to(odd)
    assert found(tmp_path / "link") == (PLAIN, [])


def test_many_kinds_are_a_dozen_lines(root):
    for number in range(30):
        (root / "cat" / f"x.{number:03}").touch()
    (_, lines), most = found(root), folders._MOST_LINES
    assert len(lines) == most + 1
    assert lines[-1] == "18 more of 18 other kinds (such as cat/x.012)"


def test_an_empty_class_is_still_refused(root):
    (root / "elk").mkdir()
    special(root / "elk")
    with pytest.raises(DataError, match=r"elk has no images \(4 other files: device\.jpg, "):
        found(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_folder_below_that_cannot_be_opened_is_counted(root):
    (root / "cat" / "shut").mkdir(mode=0)
    assert "cannot be opened (Permission denied)" in found(root)[1][0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_broken_exif_means_upright(kind):
    """Pillow reads such a picture; its metadata say nothing."""
    from vitattn.images.decode import open_picture

    picture = Image.fromarray(np.zeros((6, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    broken = [b"", b"Exif", b"Exif\0\0II*\0", b"\x00" * 30, whole[:16], b"MM" + whole[2:]]
    broken += [whole[:position] + b"\xff" + whole[position + 1 :] for position in range(6, 14)]
    for content in broken:
        file = io.BytesIO()
        picture.save(file, kind, exif=content)
        Image.open(io.BytesIO(file.getvalue())).load()
        opened = open_picture(file.getvalue())
        assert (opened.width, opened.height) == (8, 6)
        assert opened.render((0, 0, 8, 6), 4).size == (4, 4)
    file = io.BytesIO()
    picture.save(file, kind, exif=whole)
    assert open_picture(file.getvalue()).width == 6  # and whole ones still turn it
