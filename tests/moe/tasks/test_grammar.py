"""Grammar: edits of M2 as the shared task defines them, shards of pairs, faults, scores."""

from __future__ import annotations

import gzip
import itertools
import random

import pytest

from moe.eval import submission
from moe.eval.scores import score
from moe.tasks import records
from moe.tasks.grammar import corrected
from moe.tasks.task import TEST, TRAIN, VALIDATION, TextExample
from trainlib.errors import DataError

TRAINED, DEV = "wi+locness/m2/ABC.train.gold.bea19.m2", "wi+locness/m2/ABCN.dev.gold.bea19.m2"
PAIRS = "C4_200M/sentence_pairs.tsv"


def edit(start, end, text, kind="R:OTHER", annotator=0):
    return f"A {start} {end}|||{kind}|||{text}|||REQUIRED|||-NONE-|||{annotator}\n"


def plainly(sentence, edits):
    """Edits one after the other, from the last word on, so that no position moves."""
    made = list(sentence)
    for start, end, text in sorted(edits, reverse=True):
        made[start:end] = text.split()
    return " ".join(made)


def test_edits_are_made_as_one_after_the_other_would():
    rng = random.Random(0)
    for _ in range(500):
        sentence = [f"w{n}" for n in range(rng.randint(1, 9))]
        cuts = sorted(rng.sample(range(len(sentence) + 1), rng.randint(0, len(sentence))))
        edits = [
            (start, end, rng.choice(("", "x", "x y")))
            for start, end in itertools.pairwise(cuts)
            if rng.random() < 0.5
        ]
        expected = plainly(sentence, edits)
        rng.shuffle(edits)
        assert corrected(sentence, edits) == expected


def test_insertions_at_a_word_come_before_its_edit_in_the_order_given():
    assert corrected(["a", "b"], [(1, 2, "B"), (1, 1, "x"), (1, 1, "y")]) == "a x y B"
    assert corrected(["a"], [(1, 1, "end"), (0, 0, "start")]) == "start a end"


def test_each_annotator_gives_a_correction(folder):
    """What is only found, and not corrected, stays; -NONE- deletes; of alternatives the first."""
    text = "S a b c .\n" + edit(0, 1, "A||E", annotator=1) + edit(1, 2, "-NONE-", annotator=0)
    text += edit(2, 3, "?", "UNK", annotator=2) + edit(-1, -1, "-NONE-", "noop", annotator=3)
    (example,) = records.load(folder({DEV: text}), "task:bea2019", VALIDATION)
    assert example.answers == ("a c .", "A b c .", "a b c .", "a b c .")
    assert example.targets == ("a c .",)


def test_sentences_of_the_test_split_have_no_answer(folder):
    config = folder({"wi+locness/test/ABCN.test.bea19.orig": "He go .\n\nShe  came .\n"})
    found = records.load(config, "task:bea2019", TEST)
    assert [e.inputs for e in found] == ["grammar: He go .", "grammar: She came ."]
    assert [e.known for e in found] == [False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S a b\n" + edit(1, 3, "x"), "an edit of the words 1 to 3 of 2"),
        ("S a b\n" + edit(1, 0, "x"), "an edit of the words 1 to 0"),
        ("S a b c\n" + edit(0, 2, "x") + edit(1, 3, "y"), "two edits of its word 1"),
        ("S a b\nA 0 1|||R|||x\n", "has an edit that is not 'A START END"),
        ("S a b\nA zero 1|||R|||x|||REQUIRED|||-NONE-|||0\n", "has an edit that is not"),
        ("S a b\nS c\n", "line 2 is no line of M2: it should begin with 'A '"),
        (edit(0, 1, "x"), "line 1 is no line of M2: it should begin with 'S '"),
        ("{}\n", "is no line of M2"),
        ("S \n", "an empty field 'source'"),
        (b"S a \xff\n", "is not UTF-8 (byte 0xff at offset 4"),
    ],
)
def test_faults_of_m2_are_named_with_their_line(folder, text, message):
    config = folder({TRAINED: ""})
    path = f"{config.dir}/{TRAINED}"
    with open(path, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        records.load(config, "task:bea2019", TRAIN)
    assert message in str(caught.value)
    assert f"{path} line " in str(caught.value)


def test_lines_of_windows_and_a_mark_at_the_start_are_no_matter(folder):
    text = "\ufeffS a b\r\n" + edit(0, 1, "A").replace("\n", "\r\n") + "\r\nS c\r\n"
    found = records.load(folder({TRAINED: text}), "task:bea2019", TRAIN)
    assert [e.targets for e in found] == [("A b",), ("c",)]


def test_shards_are_read_in_order_and_missing_ones_are_said(folder, capsys):
    files = {f"{PAIRS}-0000{n}-of-00003": f"s{n}\tt{n}\n" for n in (2, 0)}
    found = records.load(folder(files), "task:c4_200m", TRAIN)
    assert [(e.inputs, e.targets) for e in found] == [
        ("grammar: s0", ("t0",)),
        ("grammar: s2", ("t2",)),
    ]
    assert "has 2 of 3 shards" in capsys.readouterr().err


def test_shards_of_two_sets_are_refused(folder):
    config = folder({f"{PAIRS}-00000-of-00003": "a\tb\n", f"{PAIRS}-00001-of-00002": "a\tb\n"})
    with pytest.raises(DataError, match="shards of 2 and of 3"):
        records.load(config, "task:c4_200m", TRAIN)


def test_faults_of_pairs_are_named_with_their_line(folder):
    config = folder({PAIRS: "a\tb\nc\nd\te\tf\n\tx\n"})
    with pytest.raises(DataError) as caught:
        records.load(config, "task:c4_200m", TRAIN)
    for fault in ("line 2 has 1 columns", "line 3 has 3 columns", "line 4 has an empty field"):
        assert fault in str(caught.value)


def test_damaged_gzip_is_named(folder):
    config = folder({PAIRS: ""})
    packed = gzip.compress(b"a\tb\n" * 1000)
    with open(f"{config.dir}/{PAIRS}", "wb") as file:
        file.write(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"sentence_pairs\.tsv"):
        records.load(config, "task:c4_200m", TRAIN)


@pytest.mark.parametrize("task", ["bea2019", "c4_200m"])
def test_without_files_the_advice_names_what_there_is(data_config, tmp_path, task):
    for place in ("", str(tmp_path)):
        with pytest.raises(DataError) as caught:
            records.load(data_config(dir=place), f"task:{task}", TRAIN)
        assert f"sample:{task}" in str(caught.value)
        assert "tfds" not in str(caught.value)


def test_an_answer_counts_if_it_equals_any_correction():
    asked = [
        TextExample("", (a[0],), (n,), answers=a) for n, a in enumerate([("A b", "c"), ("d",)])
    ]
    assert score("bea2019", asked, [" c ", "D"]) == {"em": 50.0}
    assert score("bea2019", asked, ["A  b", "d"]) == {"em": 100.0}


def test_corrections_are_written_as_the_shared_task_takes_them(tmp_path):
    asked = [TextExample("", (), (n,)) for n in range(2)]
    submission.prepare(tmp_path)
    (path,) = submission.write(tmp_path, {"bea2019": asked}, {"bea2019": ["a\nb ", ""]})
    assert (path.name, path.read_text()) == ("bea2019.txt", "a b\n\n")
    with pytest.raises(Exception, match="holds predictions already"):
        submission.prepare(tmp_path)
