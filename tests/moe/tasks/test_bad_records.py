"""Published records that cannot be used are named, with file and line, and never a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe.data import make_source
from moe.tasks import records, registry, task_reader
from moe.tasks.task import TEST, TRAIN, VALIDATION
from tests.moe.tasks.published import GOLDEN, MULTIRC, RECORD, SQUAD, STORY, TFDS, WSC, jsonl
from trainlib.errors import ConfigError, DataError

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
        "'0' in the field 'idx', where a whole number is needed",
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
        "'Ann' in the field 'entities', where a list is needed",
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
        "in the field 'passage', where an object is needed",
    ),
    (
        "wsc",
        "WSC/train.jsonl",
        WSC | {"target": WSC["target"] | {"span2_index": "12"}},
        "'12' in the field 'span2_index', where a whole number is needed",
    ),
    (
        "boolq",
        "BoolQ/train.jsonl",
        BOOLQ | {"question": "half a pair: \ud83d"},
        "holds half of a surrogate pair, such as",
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
        records.load(config, f"task:{task}", TRAIN)
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
        records.load(config, f"task:{task}", TRAIN)
    assert f"{file.format('train')} line 1 has no answer in the field '{field}'" in str(error.value)
    assert not all(example.known for example in records.load(config, f"task:{task}", TEST))


def test_a_question_without_answers_has_to_say_that_there_are_none(folder):
    article = without(SQUAD, "paragraphs", 0, "qas", 0, "answers")
    config = folder({"SQuAD/train-v1.1.json": json.dumps({"data": [article]})})
    with pytest.raises(DataError, match=r"question 1 has no answer in the field 'answers'"):
        records.load(config, "task:squad_v1", TRAIN)


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


NO_JSON = ("dpr", "cnn_dailymail", "bea2019", "c4_200m")
JSON_TASKS = [task for task in GOLDEN if task not in NO_JSON]


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
                records.load(config, f"task:{task}", TRAIN)
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > 20
    folder_of_file = name.rpartition("/")[0]
    assert all(folder_of_file in text or "has no examples" in text for text in refused)


OF_TFDS = [
    ("boolq", {"passage": b" "}, "an empty field 'passage'"),
    ("boolq", {"label": np.int64(2)}, "the label 2, which is none of 0 to 1"),
    ("boolq", {"label": np.int64(-1)}, "no answer in the field 'label'"),
    ("boolq", {"idx": b"0"}, "'0' in the field 'idx', where a whole number is needed"),
    ("boolq", {"question": b"\xff"}, "is not UTF-8"),
    ("record", {"answers": np.asarray([b"Zoe"], object)}, "'Zoe', which is not in the passage"),
    ("record", {"entities": np.asarray([], object)}, "names no entities"),
    ("squad_v1", {"answers": {"text": np.asarray([b"1812"], object)}}, "not in the context"),
    ("arc_easy", {"answerKey": np.int64(4)}, "the answerKey 4, which is none of 0 to 1"),
    ("wsc", {"span2_index": np.int32(99)}, "pronoun 'his' at word 99"),
]


@pytest.mark.parametrize(("task", "change", "message"), OF_TFDS)
def test_records_of_tfds_are_checked_alike(data_config, tfds_of, task, change, message):
    tfds_of([TFDS[task], TFDS[task] | change])
    with pytest.raises(DataError) as error:
        records.load(data_config(dir=""), f"task:{task}", TRAIN)
    assert f"{registry.TASKS[task].tfds} train record 1 " in str(error.value)
    assert message in str(error.value)


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
        records.load(config, "task:boolq", TRAIN)
    for part in (
        "line 2 repeats the id 0 of",
        "line 3 is not JSON",
        "line 4 is no JSON object",
        "3 records",
    ):
        assert part in str(error.value)
    article = json.loads(json.dumps(SQUAD))
    article["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "1812"
    config = folder({"SQuAD/train-v1.1.json": json.dumps({"data": [article]})})
    with pytest.raises(
        DataError, match=r"train-v1\.1\.json article 1 paragraph 1 question 1 has the"
    ):
        records.load(config, "task:squad_v1", TRAIN)


def test_stories_that_cannot_be_read_are_bad_records(folder, tmp_path):
    config = folder(GOLDEN["xsum"][0] | GOLDEN["cnn_dailymail"][0])
    for file in ("xsum/xsum-extracts-from-downloads/1.data", f"cnn_dailymail/{STORY}"):
        (tmp_path / "data" / file).write_bytes(b"One line\n\xff\n")
    for task in ("xsum", "cnn_dailymail"):
        with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0xff at 9\)"):
            records.load(config, f"task:{task}", TRAIN)
    (tmp_path / "data" / "cnn_dailymail" / STORY).unlink()
    with pytest.raises(DataError, match=r"line 1 names http://x/1, and there is no \w+\.story"):
        records.load(config, "task:cnn_dailymail", TRAIN)


def test_a_missing_directory_or_split_says_the_ways_to_go_on(folder, tmp_path):
    config = folder({"BoolQ/train.jsonl": jsonl(BOOLQ)})
    with pytest.raises(DataError) as error:
        records.load(config, "task:cb", TRAIN)
    for part in ("no folder CB", "--config.data.dir=DIR", "tfds build super_glue/cb", "sample:cb"):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"val\.jsonl cannot be read"):
        records.load(config, "task:boolq", VALIDATION)
    # The folder itself is taken as well.
    config.dir = f"{config.dir}/BoolQ"
    assert len(records.load(config, "task:boolq", TRAIN)) == 1
    with pytest.raises(ConfigError, match="Did you mean 'boolq'"):
        registry.task_names("task:bolq")
    with pytest.raises(ConfigError, match="names no task"):
        registry.task_names("sample:")


class _Vocabulary:
    name, size, extra_ids, digest = "words", 300, 0, "x"

    def __init__(self, known):
        self.known = known

    def encode(self, text):
        return np.asarray([self.known.get(word, 2) for word in text.split()], np.int32)

    def decode(self, ids):
        return ""


def test_a_vocabulary_without_the_label_words_is_refused():
    tasks = registry.tasks_of("task:cb", TRAIN)
    task_reader.check_labels(
        tasks, _Vocabulary({"entailment": 5, "contradiction": 6, "neutral": 7})
    )
    with pytest.raises(
        DataError, match="cb has the label 'neutral', which the vocabulary words cannot encode"
    ):
        task_reader.check_labels(tasks, _Vocabulary({"entailment": 5, "contradiction": 6}))
    with pytest.raises(DataError, match="cannot tell from"):
        task_reader.check_labels(
            tasks, _Vocabulary({"entailment": 5, "contradiction": 6, "neutral": 6})
        )
