"""Names of outputs: what a file of them survives, and how two lists of them are matched."""

import os

import numpy as np
import pytest

from trainlib.errors import CheckpointError, ConfigError, DataError, nearest, told_apart
from vitattn.classification import class_names
from vitattn.classification.class_names import Kept
from vitattn.data import cifar100
from vitattn.data.arrays import Arrays

ODD = (
    *("cat", "great dane", "Äffchen", " blank ", "new\nline", "tab\tbed", "car\rriage", '"quoted"'),
    *(
        "null",
        '"',
        "\x1b[31mred",
        "\u2028",
        "\x85",
        "\ufeffmark",
        "\u202eturned",
        "a\\nb",
        "#",
        "{}",
    ),
    *(os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9"), "K\u00e4fer", "Ka\u0308fer", "class 1"),
)


def data(*names, labels=None):
    labels = np.arange(len(names)) if labels is None else np.asarray(labels)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return Arrays("data", images, labels, names, (0.5,) * 3, (0.2,) * 3, "digest")


def labels(source):
    return [source[record].label for record in range(len(source))]


@pytest.mark.parametrize("outputs", [len(ODD), len(ODD) + 7])
def test_the_file_that_training_writes_holds_any_name_and_fits(tmp_path, outputs):
    names = class_names.of_outputs(ODD, outputs, "data")
    class_names.keep(names, tmp_path)
    assert class_names.read(tmp_path / class_names.FILE, outputs).names == names
    assert (tmp_path / class_names.FILE).read_bytes().decode()
    assert class_names.from_meta(class_names.to_meta(names), "step").names == names
    printed = class_names.printable(names)
    assert all(name.isprintable() for name in printed)
    assert len(set(printed[: len(ODD)])) == len(ODD)


@pytest.mark.parametrize("name", ODD)
def test_each_odd_name_alone(tmp_path, name):
    class_names.keep((name,), tmp_path)
    assert class_names.read(tmp_path / class_names.FILE, 1).names == (name,)


def test_files_of_people_and_of_earlier_versions(tmp_path):
    file = tmp_path / class_names.FILE
    file.write_bytes("\ufeffcat\r\n great dane \r\nÄffchen\r\n\r\n".encode())
    assert class_names.read(file, 3).names == ("cat", "great dane", "Äffchen")
    with pytest.raises(DataError, match="3 names and the model has 10 classes"):
        class_names.read(file, 10)
    # A run of ten outputs and three folders left this before.
    assert class_names.find(tmp_path, "", {}, 10).names[2:] == ("Äffchen", *[None] * 7)
    for content, words in ((b"\xff\xfe\x00", "cannot be read"), (b"a\n\nb", "line 2 is empty")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=words):
            class_names.read(file, 3)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError):
            class_names.read(missing, 3)


def test_twice_and_nothing_are_no_names():
    with pytest.raises(DataError, match="'bee' stands for the labels 0, 2"):
        class_names.of_outputs(("bee", "cat", "bee"), 3, "data")
    with pytest.raises(DataError, match="label 1 has no name"):
        class_names.of_outputs(("bee", ""), 3, "data")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("bee", "cat"), [1, 2]), (("cat", "ant"), [2, 0]), (("ant", "bee", "cat"), [0, 1, 2])],
)
@pytest.mark.parametrize("outputs", [3, 10])
def test_labels_are_those_of_the_model(names, expected, outputs):
    kept = Kept(class_names.of_outputs(("ant", "bee", "cat"), outputs, ""), "run")
    found = class_names.by_name(data(*names), kept, "BC")
    assert labels(found) == expected
    assert found.num_classes == outputs
    assert len(found.class_names) == outputs


def test_an_unknown_class_shows_both_lists():
    kept = Kept(("ant", "bee", "cat"), "run")
    with pytest.raises(DataError) as caught:
        class_names.by_name(data("aardvark", "bee", "cat"), kept, "ABC")
    for words in ("not trained on: aardvark.", "aardvark, bee, cat", "ant, bee, cat", "data: ant"):
        assert words in str(caught.value)


def test_blanks_at_the_ends_of_names_are_seen():
    assert told_apart(["ant ", " bee", " ", "a b"]) == [["ant\\x20", "\\x20bee", "\\x20", "a b"]]
    assert told_apart(["K\u00e4fer "], ["K\u00e4fer"]) == [["K\\xe4fer\\x20"], ["K\\xe4fer"]]
    with pytest.raises(DataError, match=r"not trained on: ant\\x20\. .*data\: ant\."):
        class_names.by_name(data("ant "), Kept(("ant",), "run"), "data")


def test_an_empty_name_in_a_manifest_is_refused():
    meta = {class_names.SECTION: {"names": ["ant", ""]}}
    with pytest.raises(CheckpointError, match="output 1 has an empty class name"):
        class_names.from_meta(meta, "run")


def test_names_of_a_person_are_not_written_over_in_silence(tmp_path, capsys):
    names = ("ant", "bee", None)
    class_names.keep(names, tmp_path)
    class_names.check_resume(class_names.to_meta(names), 1, names, tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / class_names.FILE).write_text("Ameise\nBiene\nnull\n")
    class_names.check_resume(class_names.to_meta(names), 1, names, tmp_path)
    assert "--class_names=FILE" in " ".join(capsys.readouterr().err.split())


def test_names_that_look_alike_are_told_apart():
    composed, split = "K\u00e4fer", "Ka\u0308fer"
    assert told_apart([composed, "bee"], [split, "bee"]) == [
        ["K\\xe4fer", "bee"],
        ["Ka\\u0308fer", "bee"],
    ]
    assert told_apart([composed], ["bee"]) == [[composed], ["bee"]]
    long = ["a" * 150 + letter + "b" * 150 for letter in "xy"]
    assert told_apart(long) == [long]
    assert "Ka\\u0308fer" in nearest(composed, [split])
    assert "K\\xe4fer" in nearest(composed, [split])
    with pytest.raises(DataError) as caught:
        class_names.by_name(data(composed), Kept((split,), "run"), "data")
    assert "K\\xe4fer" in str(caught.value)
    assert "Ka\\u0308fer" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "outputs", "last"),
    [("imagenet", 1000, "n15075141"), ("cifar100", 100, "worm"), ("digits", 10, "9"),
     ("synthetic:7", 7, "class 6"), ("imagenet", 3, None), ("folder:x", 3, None),
     ("digits", 12, None)],
)  # fmt: skip
def test_names_that_nobody_kept_are_those_of_a_data_set_of_as_many(tmp_path, source, outputs, last):
    (tmp_path / "config.json").write_text(f'{{"data.source": "{source}"}}')
    found = class_names.find(tmp_path, "", {}, outputs)
    assert (found and found.names[-1]) == last
    assert len(set(cifar100.CLASS_NAMES)) == 100


def test_what_a_checkpoint_says_counts_and_is_checked(tmp_path, capsys):
    meta = class_names.to_meta(("ant", "bee"))
    (tmp_path / class_names.FILE).write_text("bee\nant\n")
    assert class_names.find(tmp_path, "step", meta, 2).names == ("ant", "bee")
    assert "holds other names" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(CheckpointError, match="2 outputs"):
        class_names.find(tmp_path, "step", meta, 3)
    for forged in ({"classes": {}}, {"classes": {"names": "ant"}}, {"classes": {"names": [1]}}):
        with pytest.raises(CheckpointError, match="no list of text"):
            class_names.find(tmp_path, "step", forged, 2)
    half = class_names.find(tmp_path, "step", {"classes": {"names": ['"\\ud800"', "b"]}}, 2)
    assert half.names[0] == '"\\ud800"'


@pytest.mark.parametrize("way", ["meta", "file", "old file"])
def test_a_run_goes_on_with_its_own_classes_only(tmp_path, way):
    names = ("ant", " bee", "a\nb", None)
    meta = class_names.to_meta(names) if way == "meta" else {}
    if way == "file":
        class_names.keep(names, tmp_path)
    elif way == "old file":
        (tmp_path / class_names.FILE).write_text("ant\n bee\na\nb\n")
    class_names.check_resume(meta, 5, names, tmp_path)
    for other in (("ant", " bee", "a\nb", "new"), ("ant", " bee", None, None), ("b", *names[1:])):
        with pytest.raises(ConfigError, match=r"new --workdir"):
            class_names.check_resume(meta, 5, other, tmp_path)


def test_the_order_of_another_head():
    there = Kept(("cat", None, "ant", "bee"), "there")
    assert class_names.head_order(there, ("ant", "bee", "cat", None), "").tolist() == [2, 3, 0, 1]
    assert class_names.head_order(there, there.names, "") is None
    with pytest.raises(ConfigError, match=r"New: dog.*Gone: cat.*anew by ANEW"):
        class_names.head_order(there, ("ant", "bee", "dog", None), "ANEW")
