"""Each task's text, from records in the form in which its benchmark is published.

Expected inputs and targets are written out by hand from the formats of T5 (arXiv 1910.10683,
appendix D) and of its closed-book work (2002.08910).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from moe.data import make_source, supervised
from moe.data.benchmark import TEST, TRAIN, VALIDATION
from trainlib.errors import ConfigError, DataError


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ENTITIES = "Ann met Bo in Rome.\n@highlight\nBo was late"
MULTIRC = {
    "idx": 3,
    "version": 1.1,
    "passage": {
        "text": "<b>Sent 1: </b>Al left.<br><b>Sent 2: </b>Bea stayed.<br>",
        "questions": [
            {
                "question": "Who left?",
                "idx": 5,
                "answers": [
                    {"text": "Al", "idx": 8, "label": 1},
                    {"text": "Bea", "idx": 9, "label": 0},
                ],
            }
        ],
    },
}
RECORD = {
    "source": "x",
    "idx": 2,
    "passage": {
        "text": ENTITIES,
        # `end` is the last character: Ann, Bo, Rome, Bo again.
        "entities": [
            {"start": 0, "end": 2},
            {"start": 8, "end": 9},
            {"start": 14, "end": 17},
            {"start": 31, "end": 32},
        ],
    },
    "qas": [
        {
            "idx": 7,
            "query": "@placeholder missed the train.",
            "answers": [
                {"start": 8, "end": 9, "text": "Bo"},
                {"start": 31, "end": 32, "text": "Bo"},
            ],
        }
    ],
}
WSC = {
    "text": "Mark told Pete many lies about himself , which Pete included in his book .",
    "target": {"span1_index": 0, "span1_text": "mark", "span2_index": 12, "span2_text": "his"},
    "idx": 4,
    "label": True,
}
SQUAD = {
    "title": "T",
    "paragraphs": [
        {
            "context": "The mill (1712) burned; it's gone.",
            "qas": [
                {"id": "q1", "question": "When?", "answers": [{"text": "1712", "answer_start": 10}]}
            ],
        }
    ],
}
NO_ANSWER = {
    "title": "T",
    "paragraphs": [
        {
            "context": "The mill burned.",
            "qas": [
                {
                    "id": "q2",
                    "question": "Who saw it?",
                    "is_impossible": True,
                    "answers": [],
                    "plausible_answers": [{"text": "nobody", "answer_start": 0}],
                }
            ],
        }
    ],
}
TARGET = '(list (description "A b") (description C))'
URL = "http://x/1"
STORY = f"cnn/stories/{hashlib.sha1(URL.encode()).hexdigest()}.story"

# task -> files, inputs and targets of the first examples.
GOLDEN = {
    "boolq": (
        {
            "BoolQ/train.jsonl": jsonl(
                {"question": "is it", "passage": "P -- p.", "idx": 0, "label": True}
            )
        },
        [("boolq passage: P -- p. question: is it", ("True",))],
    ),
    "cb": (
        {
            "CB/train.jsonl": jsonl(
                {"premise": "A.", "hypothesis": "b", "idx": 0, "label": "neutral"}
            )
        },
        [("cb hypothesis: b premise: A.", ("neutral",))],
    ),
    "copa": (
        {
            "COPA/train.jsonl": jsonl(
                {
                    "premise": "P.",
                    "choice1": "X.",
                    "choice2": "Y.",
                    "question": "cause",
                    "idx": 0,
                    "label": 1,
                }
            )
        },
        [("copa choice1: X. choice2: Y. premise: P. question: cause", ("choice2",))],
    ),
    "multirc": (
        {"MultiRC/train.jsonl": jsonl(MULTIRC)},
        [
            (
                "multirc question: Who left? answer: Al paragraph: "
                "Sent 1: Al left. Sent 2: Bea stayed. ",
                ("True",),
            ),
            (
                "multirc question: Who left? answer: Bea paragraph: "
                "Sent 1: Al left. Sent 2: Bea stayed. ",
                ("False",),
            ),
        ],
    ),
    "record": (
        {"ReCoRD/train.jsonl": jsonl(RECORD)},
        [
            (
                "record query: @placeholder missed the train. entities: Ann, Bo, Rome passage: "
                "Ann met Bo in Rome. Bo was late",
                ("Bo",),
            )
        ],
    ),
    "rte": (
        {
            "RTE/train.jsonl": jsonl(
                {"premise": "A.", "hypothesis": "B.", "idx": 0, "label": "not_entailment"}
            )
        },
        [("rte hypothesis: B. premise: A.", ("not_entailment",))],
    ),
    "wic": (
        {
            "WiC/train.jsonl": jsonl(
                {
                    "word": "bank",
                    "sentence1": "A bank.",
                    "sentence2": "Two banks.",
                    "idx": 0,
                    "label": False,
                    "start1": 2,
                    "end1": 6,
                    "start2": 4,
                    "end2": 9,
                    "version": 1.1,
                }
            )
        },
        [("wic sentence1: A bank. sentence2: Two banks. word: bank", ("False",))],
    ),
    "wsc": (
        {"WSC/train.jsonl": jsonl(WSC)},
        [
            (
                "wsc: Mark told Pete many lies about himself , which Pete included in *his* book .",
                ("Mark",),
            )
        ],
    ),
    "dpr": (
        {"DPR/train.c.txt": "Bob asked Tom if he can lend some money.\nhe\nBob,Tom\nTom\n\n"},
        [("wsc: Bob asked Tom if *he* can lend some money.", ("Tom",))],
    ),
    "squad_v1": (
        {"SQuAD/train-v1.1.json": json.dumps({"data": [SQUAD]})},
        [("question: When ? context: The mill ( 1712 ) burned ; it ' s gone . ", ("1712",))],
    ),
    "squad_v2": (
        {"SQuAD/train-v2.0.json": json.dumps({"data": [NO_ANSWER]})},
        [("question: Who saw it ? context: The mill burned . ", ("unanswerable",))],
    ),
    "trivia_qa": (
        {
            "triviaqa-unfiltered/unfiltered-web-train.json": json.dumps(
                {
                    "Data": [
                        {
                            "Question": "Which? ",
                            "QuestionId": "t1",
                            "Answer": {"Value": "Yes", "Aliases": ["Yes", "Aye "]},
                        }
                    ]
                }
            )
        },
        [("trivia_qa question: Which?", ("Yes",))],
    ),
    "natural_questions": (
        {"nq_open/NQ-open.train.jsonl": jsonl({"question": "who", "answer": ["A", "B"]})},
        [("nq question: who", ("A",))],
    ),
    "web_questions": (
        {
            "WebQuestions/webquestions.examples.train.json": json.dumps(
                [{"url": "", "utterance": "what", "targetValue": TARGET}]
            )
        },
        [("wq question: what", ("A b",))],
    ),
    "arc_easy": (
        {
            "ARC-Easy/ARC-Easy-Train.jsonl": jsonl(
                {
                    "id": "a",
                    "answerKey": "2",
                    "question": {
                        "stem": "Why?",
                        "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}],
                    },
                }
            )
        },
        [("arc_easy question: Why? choices: (A) x (B) y", ("B",))],
    ),
    "winogrande": (
        {
            "winogrande_1.1/train_xl.jsonl": jsonl(
                {"qID": "q", "sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "2"}
            )
        },
        [("winogrande option1: x option2: y sentence: A _ b.", ("option2",))],
    ),
    "anli_r3": (
        {
            "anli_v1.0/R3/train.jsonl": jsonl(
                {"uid": "u", "context": "C.", "hypothesis": "H.", "label": "c"}
            )
        },
        [("anli_r3 hypothesis: H. premise: C.", ("contradiction",))],
    ),
    "xsum": (
        {
            "xsum/XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json": json.dumps({"train": ["1", "gone"]}),
            "xsum/xsum-extracts-from-downloads/1.data": (
                "[XSUM]URL[XSUM]\nhttp://x\n\n[XSUM]INTRODUCTION[XSUM]\nShort.\n\n"
                "[XSUM]RESTBODY[XSUM]\nShare this with\nOne.\n\nTwo.\n"
            ),
        },
        [("summarize: One.\nTwo.", ("Short.",))],
    ),
    "cnn_dailymail": (
        {
            "cnn_dailymail/all_train.txt": URL + "\n",
            f"cnn_dailymail/{STORY}": "One line\n\nTwo.\n\n@highlight\n\nFirst\n\n"
            "@highlight\n\nSecond!\n",
        },
        [("summarize: One line. Two.", ("First.\nSecond!",))],
    ),
}


@pytest.fixture
def folder(tmp_path, data_config):
    """`folder(files)`: a `data` section whose directory holds them."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return data_config(dir=str(tmp_path / "data"))

    return make


@pytest.mark.parametrize("task", GOLDEN)
def test_records_as_published_become_the_texts_of_t5(folder, task):
    files, expected = GOLDEN[task]
    found = supervised.load(folder(files), f"task:{task}", TRAIN)
    assert [(example.inputs, example.targets) for example in found] == expected


def test_every_task_is_covered():
    alike = {"axb", "axg", "arc_challenge", "anli_r1", "anli_r2"}
    assert set(GOLDEN) | alike == set(supervised.TASKS)


def test_diagnostics_read_as_rte(folder):
    files = {
        "AX-b/AX-b.jsonl": jsonl(
            {"sentence1": "P.", "sentence2": "H.", "idx": 0, "label": "entailment", "logic": "x"}
        ),
        "AX-g/AX-g.jsonl": jsonl({"premise": "P.", "hypothesis": "H.", "idx": 0}),
    }
    config = folder(files)
    (first,) = supervised.load(config, "task:axb", TEST)
    (second,) = supervised.load(config, "task:axg", TEST)
    assert first.inputs == second.inputs == "rte hypothesis: H. premise: P."
    assert (first.label, second.label) == (0, -1)
    assert second.targets == ()


def test_what_scoring_needs_comes_along(folder):
    config = folder({**GOLDEN["multirc"][0], **GOLDEN["record"][0], **GOLDEN["wsc"][0]})
    both = supervised.load(config, "task:multirc", TRAIN)
    assert [(e.key, e.label, e.choices) for e in both] == [
        ((3, 5, 8), 1, ("False", "True")),
        ((3, 5, 9), 0, ("False", "True")),
    ]
    (query,) = supervised.load(config, "task:record", TRAIN)
    assert (query.key, query.choices, query.answers) == ((2, 7), ("Ann", "Bo", "Rome"), ("Bo",))
    (span,) = supervised.load(config, "task:wsc", TRAIN)
    assert (span.answers, span.label) == (("Mark",), 1)


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "expected"),
    [
        # Punctuation sticks to the pronoun.
        ('Good for him," he said.', "him", 2, 'Good for *him* ," he said.'),
        # The published index is one word off.
        ("They want to use it , now .", "it", 3, "They want to use *it* , now ."),
    ],
)
def test_pronouns_are_found_where_the_published_index_is_not_exact(
    folder, text, pronoun, index, expected
):
    spans = {"span1_index": 0, "span1_text": text.split()[0]}
    spans |= {"span2_index": index, "span2_text": pronoun}
    row = {"text": text, "idx": 0, "label": False, "target": spans}
    (example,) = supervised.load(folder({"WSC/train.jsonl": jsonl(row)}), "task:wsc", TRAIN)
    assert example.inputs == f"wsc: {expected}"
    assert example.targets == ()  # a wrong span is not trained on


class _Builder:
    """Stands for a TFDS builder: records with bytes and NumPy numbers, as TFDS yields them."""

    def __init__(self, records):
        self.records = records

    def as_data_source(self, split):
        assert split == "train"
        return self.records


TFDS = {
    "boolq": {
        "question": b"is it",
        "passage": b"P -- p.",
        "idx": np.int32(0),
        "label": np.int64(1),
    },
    "multirc": {
        "question": b"Who left?",
        "answer": b"Al",
        "label": np.int64(1),
        "paragraph": b"<b>Sent 1: </b>Al left.<br><b>Sent 2: </b>Bea stayed.<br>",
        "idx": {"paragraph": np.int32(3), "question": np.int32(5), "answer": np.int32(8)},
    },
    "record": {
        "passage": ENTITIES.encode(),
        "query": b"@placeholder missed the train.",
        "entities": np.asarray([b"Ann", b"Bo", b"Rome"], object),
        "answers": np.asarray([b"Bo"], object),
        "idx": {"passage": np.int32(2), "query": np.int32(7)},
    },
    "wsc": {
        "text": WSC["text"].encode(),
        "span1_text": b"Mark",
        "span1_index": np.int32(0),
        "span2_text": b"his",
        "span2_index": np.int32(12),
        "idx": np.int32(4),
        "label": np.int64(1),
    },
    "squad_v1": {
        "id": b"q1",
        "title": b"T",
        "context": b"The mill (1712) burned; it's gone.",
        "question": b"When?",
        "answers": {"text": np.asarray([b"1712"], object), "answer_start": np.asarray([10])},
    },
    "web_questions": {
        "url": b"",
        "question": b"what",
        "answers": np.asarray([b"A b", b"C"], object),
    },
    "arc_easy": {
        "id": b"a",
        "question": b"Why?",
        "answerKey": np.int64(1),
        "choices": {"text": np.asarray([b"x", b"y"], object), "label": np.asarray([0, 1])},
    },
}


@pytest.mark.parametrize("task", TFDS)
def test_tfds_gives_the_same_text_as_the_published_file(folder, data_config, task, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    asked = []

    def builder(name, data_dir):
        asked.append((name, data_dir))
        return _Builder([TFDS[task]])

    monkeypatch.setattr(tfds, "builder", builder)
    (theirs,) = supervised.load(data_config(dir=""), f"task:{task}", TRAIN)
    assert asked == [(supervised.TASKS[task].tfds, None)]
    ours = supervised.load(folder(GOLDEN[task][0]), f"task:{task}", TRAIN)[0]
    for name in ("inputs", "targets", "label", "choices", "answers"):
        assert getattr(theirs, name) == getattr(ours, name), name


def test_the_samples_are_whole():
    """About 24 examples a SuperGLUE task and 8 of each other, in every split that they have."""
    from moe.config import default_config

    config = default_config("st_moe_tiny").data
    for name, task in supervised.TASKS.items():
        counts = {}
        for split in task.tfds_splits:
            file = supervised._SAMPLES / task.folders[0] / task.files[split]
            there = file.exists() or name == "xsum"  # whose splits are lists in one file
            if there and (name not in supervised.GROUPS["summaries"] or split != TEST):
                counts[split] = len(supervised.load(config, f"sample:{name}", split))
        total = sum(counts.values())
        least, most = (
            (12, 30) if name in (*supervised.GROUPS["superglue"], "axb", "axg") else (8, 8)
        )
        assert least <= total <= most, (name, counts)
        if VALIDATION in task.tfds_splits:
            assert counts[TRAIN] > counts[VALIDATION] > 0


# ------------------------------------------------------------------ what is refused

BOOLQ = {"question": "q", "passage": "p", "idx": 0, "label": True}
BAD = [
    ("boolq", "BoolQ/train.jsonl", BOOLQ | {"passage": " "}, "an empty field 'passage'"),
    (
        "boolq",
        "BoolQ/train.jsonl",
        {"questoin": "q", "passage": "p", "idx": 0},
        "Did you mean 'questoin'",
    ),
    ("boolq", "BoolQ/train.jsonl", BOOLQ | {"label": "yes"}, "'yes', which is none of false, true"),
    ("boolq", "BoolQ/train.jsonl", BOOLQ | {"label": 1}, "the label 1"),
    (
        "cb",
        "CB/train.jsonl",
        {"premise": "a", "hypothesis": "b", "idx": 0, "label": "maybe"},
        "'maybe'",
    ),
    (
        "boolq",
        "BoolQ/train.jsonl",
        BOOLQ | {"idx": "0"},
        "'0' in the field 'idx', where int is needed",
    ),
    (
        "record",
        "ReCoRD/train.jsonl",
        RECORD | {"qas": [RECORD["qas"][0] | {"answers": [{"text": "Zoe"}]}]},
        "the answer 'Zoe', which is not in the passage",
    ),
    (
        "record",
        "ReCoRD/train.jsonl",
        RECORD | {"passage": {"text": "Ann", "entities": [{"start": 1, "end": 3}]}},
        "an entity at 1..3 of a passage of 3 characters",
    ),
    (
        "record",
        "ReCoRD/train.jsonl",
        RECORD | {"passage": RECORD["passage"] | {"entities": "Ann"}},
        "'Ann' in the field 'entities', where list is needed",
    ),
    (
        "record",
        "ReCoRD/train.jsonl",
        RECORD | {"qas": [RECORD["qas"][0] | {"answers": ["Bo"]}]},
        "has 'Bo' where an object with the field 'text' is needed",
    ),
    (
        "multirc",
        "MultiRC/train.jsonl",
        MULTIRC | {"passage": MULTIRC["passage"]["text"]},
        "in the field 'passage', where dict is needed",
    ),
    (
        "wsc",
        "WSC/train.jsonl",
        WSC | {"target": WSC["target"] | {"span2_index": "12"}},
        "'12' in the field 'span2_index', where int is needed",
    ),
    (
        "boolq",
        "BoolQ/train.jsonl",
        BOOLQ | {"question": "half a pair: \ud83d"},
        "which is no character, in the field 'question'",
    ),
    (
        "wsc",
        "WSC/train.jsonl",
        WSC | {"target": WSC["target"] | {"span2_index": 3}},
        "pronoun 'his' at word 3",
    ),
]


@pytest.mark.parametrize(("task", "file", "row", "message"), BAD)
def test_a_record_that_cannot_be_used_is_named_with_file_and_line(folder, task, file, row, message):
    good = GOLDEN[task][0][file]
    config = folder({file: good + jsonl(row)})
    with pytest.raises(DataError) as error:
        supervised.load(config, f"task:{task}", TRAIN)
    assert f"{file} line 2" in str(error.value)
    assert message in str(error.value)


def without(row, *path):
    """A copy of a published row that lacks the field at the end of a path."""
    copy = json.loads(json.dumps(row))
    *way, last = path
    place = copy
    for key in way:
        place = place[key]
    del place[last]
    return copy


UNANSWERED = [
    ("boolq", "BoolQ/{}.jsonl", "label", jsonl(without(BOOLQ, "label"))),
    ("wsc", "WSC/{}.jsonl", "label", jsonl(without(WSC, "label"))),
    (
        "multirc",
        "MultiRC/{}.jsonl",
        "label",
        jsonl(without(MULTIRC, "passage", "questions", 0, "answers", 1, "label")),
    ),
    ("record", "ReCoRD/{}.jsonl", "answers", jsonl(without(RECORD, "qas", 0, "answers"))),
    (
        "anli_r3",
        "anli_v1.0/R3/{}.jsonl",
        "label",
        jsonl({"uid": "u", "context": "C.", "hypothesis": "H."}),
    ),
]


@pytest.mark.parametrize(("task", "file", "field", "content"), UNANSWERED)
def test_only_the_test_split_may_lack_the_answer(folder, task, file, field, content):
    config = folder({file.format(split): content for split in ("train", "test")})
    with pytest.raises(DataError) as error:
        supervised.load(config, f"task:{task}", TRAIN)
    assert f"{file.format('train')} line 1 has no answer in the field '{field}'" in str(error.value)
    assert not all(example.known for example in supervised.load(config, f"task:{task}", TEST))


def test_a_question_without_answers_has_to_say_that_there_are_none(folder):
    article = without(SQUAD, "paragraphs", 0, "qas", 0, "answers")
    config = folder({"SQuAD/train-v1.1.json": json.dumps({"data": [article]})})
    with pytest.raises(DataError, match=r"question 1 has no answer in the field 'answers'"):
        supervised.load(config, "task:squad_v1", TRAIN)


def places(value, way=()):
    """The way to every value inside a JSON document, and to itself."""
    yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*way, key))


def replaced(value, way, new):
    """A copy in which another value stands at the end of a way."""
    if not way:
        return new
    copy = value.copy()
    copy[way[0]] = replaced(value[way[0]], way[1:], new)
    return copy


JSON_TASKS = [task for task in GOLDEN if task not in ("dpr", "cnn_dailymail")]


@pytest.mark.parametrize("task", JSON_TASKS)
def test_a_wrong_type_anywhere_is_a_bad_record_or_no_matter(folder, task):
    """Every value of a published record in turn becomes a value of each other type."""
    name, content = next((n, c) for n, c in GOLDEN[task][0].items() if "json" in n)
    folder(GOLDEN[task][0])
    row, refused = json.loads(content), []
    for way in places(row):
        for new in (None, True, 7, 1.5, "x", "\ud800", [], ["x"], [7], {}, {"text": 7}):
            config = folder({name: json.dumps(replaced(row, way, new)) + "\n"})
            try:
                supervised.load(config, f"task:{task}", TRAIN)
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > 20
    folder_of_file = name.rpartition("/")[0]
    assert all(folder_of_file in text or "has no examples" in text for text in refused)


def test_training_leaves_out_a_few_bad_records_and_says_which(folder, capsys):
    rows = [BOOLQ | {"idx": n} for n in range(40)]
    rows[7]["passage"] = ""
    config = folder({"BoolQ/train.jsonl": jsonl(*rows)})
    config.source = "task:boolq"
    source = make_source(config, "train")
    assert source.cache.documents == 39
    assert "line 8: has an empty field 'passage'" in capsys.readouterr().out
    config.update(max_bad_fraction=0.0, sentinels=1)
    with pytest.raises(DataError, match="line 8: has an empty"):
        make_source(config, "train")


def test_no_json_repeated_ids_and_absent_answers_are_named(folder):
    config = folder({"BoolQ/train.jsonl": jsonl(BOOLQ, BOOLQ) + "{not json\n[1]\n"})
    with pytest.raises(DataError) as error:
        supervised.load(config, "task:boolq", TRAIN)
    for part in (
        "line 2 repeats the id 0 of", "line 3 is not JSON", "line 4 is no JSON object", "3 records"
    ):  # fmt: skip
        assert part in str(error.value)
    article = json.loads(json.dumps(SQUAD))
    article["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "1812"
    config = folder({"SQuAD/train-v1.1.json": json.dumps({"data": [article]})})
    with pytest.raises(
        DataError, match=r"train-v1\.1\.json article 1 paragraph 1 question 1 has the"
    ):
        supervised.load(config, "task:squad_v1", TRAIN)


def test_a_missing_directory_or_split_says_the_ways_to_go_on(folder, tmp_path):
    config = folder({"BoolQ/train.jsonl": jsonl(BOOLQ)})
    with pytest.raises(DataError) as error:
        supervised.load(config, "task:cb", TRAIN)
    for part in ("no folder CB", "--config.data.dir=DIR", "tfds build super_glue/cb", "sample:cb"):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"val\.jsonl cannot be read"):
        supervised.load(config, "task:boolq", VALIDATION)
    # The folder itself is taken as well.
    config.dir = f"{config.dir}/BoolQ"
    assert len(supervised.load(config, "task:boolq", TRAIN)) == 1
    with pytest.raises(ConfigError, match="Did you mean 'boolq'"):
        supervised.task_names("task:bolq")
    with pytest.raises(ConfigError, match="names no task"):
        supervised.task_names("sample:")


class _Vocabulary:
    name, size, extra_ids, digest = "words", 300, 0, "x"

    def __init__(self, known):
        self.known = known

    def encode(self, text):
        return np.asarray([self.known.get(word, 2) for word in text.split()], np.int32)

    def decode(self, ids):
        return ""


def test_a_vocabulary_without_the_label_words_is_refused():
    supervised.check_labels(
        "task:cb", TRAIN, _Vocabulary({"entailment": 5, "contradiction": 6, "neutral": 7})
    )
    with pytest.raises(
        DataError, match="cb has the label 'neutral', which the vocabulary words cannot encode"
    ):
        supervised.check_labels(
            "task:cb", TRAIN, _Vocabulary({"entailment": 5, "contradiction": 6})
        )
    with pytest.raises(DataError, match="cannot tell from"):
        supervised.check_labels(
            "task:cb", TRAIN, _Vocabulary({"entailment": 5, "contradiction": 6, "neutral": 6})
        )
