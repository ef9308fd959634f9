"""Labels of data, heads and resumed runs are matched by the names of their classes."""

import numpy as np
import pytest

from trainlib.errors import ConfigError, DataError, nearest, told_apart
from vitattn.data.source import Arrays
from vitattn.labels import class_names, matching
from vitattn.labels.class_names import ModelNames
from vitattn.labels.matching import Relabelled


def data(*names, labels=None):
    labels = np.arange(len(names)) if labels is None else np.asarray(labels)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return Arrays("data", images, labels, names, (0.5,) * 3, (0.2,) * 3, "digest")


def labels(source):
    return [source[record].label for record in range(len(source))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("bee", "cat"), [1, 2]), (("cat", "ant"), [2, 0]), (("ant", "bee", "cat"), [0, 1, 2])],
)
@pytest.mark.parametrize("outputs", [3, 10])
def test_labels_are_those_of_the_model(names, expected, outputs):
    kept = ModelNames(class_names.of_outputs(("ant", "bee", "cat"), outputs, ""), "run")
    found = matching.by_name(data(*names), kept, "BC", Relabelled)
    assert labels(found) == expected
    assert found.num_classes == outputs
    assert len(found.class_names) == outputs


def test_an_unknown_class_shows_both_lists():
    kept = ModelNames(("ant", "bee", "cat"), "run")
    with pytest.raises(DataError) as caught:
        matching.by_name(data("aardvark", "bee", "cat"), kept, "ABC", Relabelled)
    for words in ("not trained on: aardvark.", "aardvark, bee, cat", "ant, bee, cat", "data: ant"):
        assert words in str(caught.value)


def test_blanks_at_the_ends_of_names_are_seen():
    assert told_apart(["ant ", " bee", " ", "a b"]) == [["ant\\x20", "\\x20bee", "\\x20", "a b"]]
    assert told_apart(["K\u00e4fer "], ["K\u00e4fer"]) == [["K\\xe4fer\\x20"], ["K\\xe4fer"]]
    with pytest.raises(DataError, match=r"not trained on: ant\\x20\. .*data\: ant\."):
        matching.by_name(data("ant "), ModelNames(("ant",), "run"), "data", Relabelled)


def test_names_of_a_person_are_not_written_over_in_silence(tmp_path, capsys):
    names = ("ant", "bee", None)
    class_names.write(names, tmp_path)
    matching.check_resume(class_names.to_meta(names), 1, names, tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / class_names.FILE).write_text("Ameise\nBiene\nnull\n")
    matching.check_resume(class_names.to_meta(names), 1, names, tmp_path)
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
        matching.by_name(data(composed), ModelNames((split,), "run"), "data", Relabelled)
    assert "K\\xe4fer" in str(caught.value)
    assert "Ka\\u0308fer" in str(caught.value)


@pytest.mark.parametrize("way", ["meta", "file", "old file"])
def test_a_run_goes_on_with_its_own_classes_only(tmp_path, way):
    names = ("ant", " bee", "a\nb", None)
    meta = class_names.to_meta(names) if way == "meta" else {}
    if way == "file":
        class_names.write(names, tmp_path)
    elif way == "old file":
        (tmp_path / class_names.FILE).write_text("ant\n bee\na\nb\n")
    matching.check_resume(meta, 5, names, tmp_path)
    for other in (("ant", " bee", "a\nb", "new"), ("ant", " bee", None, None), ("b", *names[1:])):
        with pytest.raises(ConfigError, match=r"new --workdir"):
            matching.check_resume(meta, 5, other, tmp_path)


def test_the_order_of_another_head():
    there = ModelNames(("cat", None, "ant", "bee"), "there")
    assert matching.head_order(there, ("ant", "bee", "cat", None), "").tolist() == [2, 3, 0, 1]
    assert matching.head_order(there, there.names, "") is None
    with pytest.raises(ConfigError, match=r"New: dog.*Gone: cat.*anew by ANEW"):
        matching.head_order(there, ("ant", "bee", "dog", None), "ANEW")
