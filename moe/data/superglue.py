"""SuperGLUE (arXiv 1905.00537) and DPR: published JSONL lines to records, records to text.

DPR (Definite Pronoun Resolution) is trained on beside WSC, as in T5; it stands in for WNLI. The
diagnostics AX-b and AX-g are read as RTE and have no training split.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe.data.benchmark import (
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    Bad,
    Benchmark,
    Record,
    Rows,
    TextExample,
    classified,
    field,
    label,
    phrase,
    words,
)

FALSE_TRUE = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
JSONL = {TRAIN: "train.jsonl", VALIDATION: "val.jsonl", TEST: "test.jsonl"}
SAME = {split: split for split in JSONL}


def _task(
    name: str, folder: str, records: Any, text: Any, labels: tuple[str, ...] = (), **other: Any
) -> Benchmark:
    values = {
        "metric": "accuracy",
        "files": JSONL,
        "tfds": f"super_glue/{name}:1.0.2",
        "tfds_splits": SAME,
        "labels": labels,
    }
    return Benchmark(name=name, folders=(folder,), records=records, text=text, **(values | other))


def _plain(*names: str, classes: tuple[Any, ...]) -> Any:
    """Lines that hold texts, a class and `idx`."""

    def records(row: Any) -> list[Record]:
        return [words(row, *names) | {"label": label(row, classes), "idx": field(row, "idx", int)}]

    return records


def _classes(prefix: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Any:
    def text(record: Record) -> TextExample:
        return classified(phrase(prefix, record, *names), record, labels, record["idx"])

    return text


def _multirc_records(row: Any) -> list[Record]:
    passage = field(row, "passage", dict)
    paragraph = words(passage, "text")["text"]
    return [
        {
            "paragraph": paragraph,
            **words(question, "question"),
            "answer": words(answer, "text")["text"],
            "label": label(answer, (0, 1)),
            "idx": {
                "paragraph": field(row, "idx", int),
                "question": field(question, "idx", int),
                "answer": field(answer, "idx", int),
            },
        }
        for question in field(passage, "questions", list)
        for answer in field(question, "answers", list)
    ]


def _multirc_text(record: Record) -> TextExample:
    text = phrase("multirc", record, "question", "answer", "paragraph")
    text = re.sub("</?b>", "", text.replace("<br>", " "))
    place = record["idx"]
    key = place["paragraph"], place["question"], place["answer"]
    return classified(text, record, FALSE_TRUE, *key)


def _record_records(row: Any) -> list[Record]:
    passage = field(row, "passage", dict)
    text = words(passage, "text")["text"]
    entities = {_span(text, entity) for entity in field(passage, "entities", list)}
    if not entities:
        raise Bad("names no entities in its passage")
    records = []
    for question in field(row, "qas", list):
        query = words(question, "query")["query"]
        if "@placeholder" not in query:
            raise Bad("has a query without @placeholder")
        answers = sorted({words(a, "text")["text"] for a in question.get("answers", ())})
        for answer in answers:
            if answer not in text:
                raise Bad(f"has the answer {answer!r}, which is not in the passage")
        place = {"passage": field(row, "idx", int), "query": field(question, "idx", int)}
        records.append(
            {"passage": text, "query": query, "entities": sorted(entities), "answers": answers}
            | {"idx": place}
        )
    return records


def _span(text: str, entity: Any) -> str:
    start, end = field(entity, "start", int), field(entity, "end", int)  # `end` is inside the span
    if not 0 <= start <= end < len(text):
        raise Bad(f"has an entity at {start}..{end} of a passage of {len(text)} characters")
    return text[start : end + 1]


def _record_text(record: Record) -> TextExample:
    # Highlights become sentences of the passage.
    passage = re.sub(r"(\.|\?|\!|\"|')\n@highlight\n", r"\1 ", record["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    entities = tuple(record["entities"])
    answers = tuple(record["answers"])
    inputs = f"record query: {record['query']} entities: {', '.join(entities)} passage: {passage}"
    place = record["idx"]
    return TextExample(
        inputs, answers, (place["passage"], place["query"]), choices=entities, answers=answers
    )


def _wsc_records(row: Any) -> list[Record]:
    target = field(row, "target", dict)
    record = words(row, "text") | words(target, "span1_text", "span2_text")
    record |= {name: field(target, name, int) for name in ("span1_index", "span2_index")}
    record |= {"label": label(row, (False, True)), "idx": field(row, "idx", int)}
    for span in ("span1", "span2"):
        record[f"{span}_text"] = _as_in_text(record, span)
    return [record]


def _as_in_text(record: Record, span: str) -> str:
    """The span as the text writes it: published spans differ in case, full stops and line ends."""
    text, words_of_text = record[f"{span}_text"], record["text"].split()
    index = record[f"{span}_index"]
    if not 0 <= index < len(words_of_text):
        raise Bad(f"has {span}_index {index} in a text of {len(words_of_text)} words")
    if text in record["text"]:
        return text
    first = text[0].lower() if words_of_text[index][0].islower() else text[0].upper()
    return (first + text[1:]).rstrip(".").replace("\n", " ")


def _wsc_text(record: Record) -> TextExample:
    """The pronoun between stars; the answer is its referent. Only right spans are trained on."""
    inputs = f"wsc: {_starred(record['text'], record['span2_text'], record['span2_index'])}"
    referent = record["span1_text"]
    targets = (referent,) if record["label"] == 1 else ()
    return TextExample(inputs, targets, (record["idx"],), record["label"], answers=(referent,))


def _starred(text: str, pronoun: str, index: int) -> str:
    parts = text.split(" ")
    # A few published indices are one word off, and punctuation may stick to the pronoun.
    for place in (index, index - 1, index + 1):
        if not 0 <= place < len(parts):
            continue
        before, found, after = parts[place].partition(pronoun)
        if found and not any(c.isalnum() for c in before + after):
            parts[place] = " ".join(filter(None, (before, f"*{pronoun}*", after)))
            return " ".join(parts)
    raise Bad(f"has not the pronoun {pronoun!r} at word {index} of its text")


def _dpr_rows(path: Path) -> Rows:
    """Four lines a record (sentence, pronoun, candidates, answer) and an empty one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for start in range(0, len(lines), 5):
        rows = [line.strip() for line in lines[start : start + 4]]
        if not any(rows):
            continue
        names = ("sentence", "pronoun", "candidates", "answer")
        yield f"line {start + 1}", dict(zip(names, rows, strict=False)) | {"number": start // 5}


def _dpr_records(row: Any) -> list[Record]:
    record = words(row, "sentence", "pronoun", "candidates", "answer")
    candidates = [name.strip() for name in record["candidates"].split(",")]
    return [
        {
            "sentence": record["sentence"],
            "pronoun": record["pronoun"],
            "candidates": candidates,
            "label": label(record, candidates, "answer"),
            "idx": row["number"],
        }
    ]


def _dpr_text(record: Record) -> TextExample:
    # The first occurrence is the one to resolve.
    pattern = rf" ({re.escape(record['pronoun'])})( |\.|,)"
    sentence, count = re.subn(pattern, r" *\1*\2", record["sentence"], count=1)
    if not count:
        raise Bad(f"has not the pronoun {record['pronoun']!r} in its sentence")
    choices = tuple(record["candidates"])
    number = record["label"]
    targets = (choices[number],) if number != UNKNOWN_LABEL else ()
    return TextExample(f"wsc: {sentence}", targets, (record["idx"],), number, choices)


def _pairs(prefix: str, first: str, second: str) -> Any:
    """RTE and its diagnostics: which field is the hypothesis, which the premise."""

    def text(record: Record) -> TextExample:
        renamed = record | {"hypothesis": record[first], "premise": record[second]}
        inputs = phrase(prefix, renamed, "hypothesis", "premise")
        return classified(inputs, record, ENTAILMENT, record["idx"])

    return text


_CB = ("entailment", "contradiction", "neutral")
_COPA = ("choice1", "choice2")
_COPA_TEXT = ("choice1", "choice2", "premise", "question")
_WIC_TEXT = ("sentence1", "sentence2", "word")
_BOOL = (False, True)

TASKS = (
    _task(
        "boolq",
        "BoolQ",
        _plain("passage", "question", classes=_BOOL),
        _classes("boolq", ("passage", "question"), FALSE_TRUE),
        FALSE_TRUE,
    ),
    _task(
        "cb",
        "CB",
        _plain("hypothesis", "premise", classes=_CB),
        _classes("cb", ("hypothesis", "premise"), _CB),
        _CB,
        metric="cb",
    ),
    _task(
        "copa", "COPA", _plain(*_COPA_TEXT, classes=(0, 1)), _classes("copa", _COPA_TEXT, _COPA),
        _COPA,
    ),
    _task("multirc", "MultiRC", _multirc_records, _multirc_text, FALSE_TRUE, metric="multirc"),
    _task("record", "ReCoRD", _record_records, _record_text, metric="record", answer="answers"),
    _task(
        "rte",
        "RTE",
        _plain("premise", "hypothesis", classes=ENTAILMENT),
        _pairs("rte", "hypothesis", "premise"),
        ENTAILMENT,
    ),
    _task(
        "wic",
        "WiC",
        _plain(*_WIC_TEXT, classes=_BOOL),
        _classes("wic", _WIC_TEXT, FALSE_TRUE),
        FALSE_TRUE,
    ),
    _task(
        "wsc", "WSC", _wsc_records, _wsc_text, metric="wsc", tfds="super_glue/wsc.fixed:1.0.2"
    ),
    _task(
        "dpr",
        "DPR",
        _dpr_records,
        _dpr_text,
        read=_dpr_rows,
        answer="answer",
        files={TRAIN: "train.c.txt", TEST: "test.c.txt"},
        tfds="definite_pronoun_resolution:1.1.0",
        tfds_splits={TRAIN: TRAIN, TEST: TEST},
    ),
    _task(
        "axb",
        "AX-b",
        _plain("sentence1", "sentence2", classes=ENTAILMENT),
        _pairs("rte", "sentence2", "sentence1"),
        ENTAILMENT,
        metric="matthews",
        files={TEST: "AX-b.jsonl"},
        tfds_splits={TEST: TEST},
    ),
    _task(
        "axg",
        "AX-g",
        _plain("premise", "hypothesis", classes=ENTAILMENT),
        _pairs("rte", "hypothesis", "premise"),
        ENTAILMENT,
        files={TEST: "AX-g.jsonl"},
        tfds_splits={TEST: TEST},
    ),
)  # fmt: skip
