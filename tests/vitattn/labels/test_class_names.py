"""Names of outputs: what a file of them survives, and where those of a model are read from."""

import os

import pytest

from trainlib.errors import CheckpointError, DataError
from vitattn.data import cifar100
from vitattn.labels import class_names

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


@pytest.mark.parametrize("outputs", [len(ODD), len(ODD) + 7])
def test_the_file_that_training_writes_holds_any_name_and_fits(tmp_path, outputs):
    names = class_names.of_outputs(ODD, outputs, "data")
    class_names.write(names, tmp_path)
    assert class_names.read(tmp_path / class_names.FILE, outputs).names == names
    assert (tmp_path / class_names.FILE).read_bytes().decode()
    assert class_names.from_meta(class_names.to_meta(names), "step").names == names
    printed = class_names.printable(names)
    assert all(name.isprintable() for name in printed)
    assert len(set(printed[: len(ODD)])) == len(ODD)


@pytest.mark.parametrize("name", ODD)
def test_each_odd_name_alone(tmp_path, name):
    class_names.write((name,), tmp_path)
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


def test_an_empty_name_in_a_manifest_is_refused():
    meta = {class_names.SECTION: {"names": ["ant", ""]}}
    with pytest.raises(CheckpointError, match="output 1 has an empty class name"):
        class_names.from_meta(meta, "run")


@pytest.mark.parametrize(
    ("source", "outputs", "last"),
    [
        ("imagenet", 1000, "n15075141"),
        ("cifar100", 100, "worm"),
        ("fashion_mnist", 10, "Ankle boot"),
        ("digits", 10, "9"),
        ("synthetic:7", 7, "class 6"),
        ("imagenet", 3, None),
        ("folder:x", 3, None),
        ("digits", 12, None),
    ],
)
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
