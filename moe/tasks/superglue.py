"""SuperGLUE (arXiv 1905.00537) and DPR: published JSONL lines to records, records to text.

DPR (Definite Pronoun Resolution) is trained on beside WSC, as in T5; it stands in for WNLI. The
diagnostics AX-b and AX-g are read as RTE and have no training split.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe.tasks.task import (
    TEST,
    TRAIN,
    VALIDATION,
    Bad,
    Benchmark,
    Record,
    Rows,
    TextExample,
    ToRecords,
    ToText,
    class_number,
    classified,
    field,
    label,
    phrase,
    read_file,
    texts,
    words,
)

FALSE_TRUE = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
JSONL = {TRAIN: "train.jsonl", VALIDATION: "val.jsonl", TEST: "test.jsonl"}
SAME = {split: split for split in JSONL}


def _task(
    name: str,
    folder: str,
    records: ToRecords,
    text: ToText,
    labels: tuple[str, ...] = (),
    **other: Any,
) -> Benchmark:
    values = {
        "metric": "accuracy",
        "files": JSONL,
        "tfds": f"super_glue/{name}:1.0.2",
        "tfds_splits": SAME,
        "labels": labels,
        "group": "superglue",
    }
    return Benchmark(name=name, folders=(folder,), records=records, text=text, **(values | other))


def _plain(classes: tuple[Any, ...]) -> ToRecords:
    """Lines that are records but for the name of the class."""

    def records(row: Any) -> list[Record]:
        return [row | {"label": label(row, classes)}]

    return records


def _classes(prefix: str, names: tuple[str, ...], labels: tuple[str, ...]) -> ToText:
    def text(record: Record) -> TextExample:
        return classified(phrase(prefix, record, *names), record, labels, field(record, "idx", int))

    return text


def _numbers(record: Record, *names: str) -> tuple[int, ...]:
    """The numbers under `idx` of a record that is part of a published line."""
    numbers = field(record, "idx", dict)
    return tuple(field(numbers, name, int) for name in names)


def _multirc_records(row: Any) -> list[Record]:
    passage = field(row, "passage", dict)
    paragraph = field(passage, "text", str)
    return [
        {
            "paragraph": paragraph,
            "question": field(question, "question", str),
            "answer": field(answer, "text", str),
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
    key = _numbers(record, "paragraph", "question", "answer")
    return classified(text, record, FALSE_TRUE, *key)


def _record_records(row: Any) -> list[Record]:
    passage = field(row, "passage", dict)
    text = field(passage, "text", str)
    entities = {_span(text, entity) for entity in field(passage, "entities", list)}
    records = []
    for question in field(row, "qas", list):
        query = field(question, "query", str)
        answers = field(question, "answers", list) if "answers" in question else []
        index = {"passage": field(row, "idx", int), "query": field(question, "idx", int)}
        records.append(
            {"passage": text, "query": query, "entities": sorted(entities), "idx": index}
            | {"answers": sorted({field(answer, "text", str) for answer in answers})}
        )
    return records


def _span(text: str, entity: Any) -> str:
    start, end = field(entity, "start", int), field(entity, "end", int)  # `end` is inside the span
    if not 0 <= start <= end < len(text):
        raise Bad(f"has an entity at {start}..{end} of a passage of {len(text)} characters")
    return text[start : end + 1]


def _record_text(record: Record) -> TextExample:
    passage, query = words(record, "passage", "query").values()
    entities, answers = tuple(texts(record, "entities")), tuple(texts(record, "answers"))
    if "@placeholder" not in query:
        raise Bad("has a query without @placeholder")
    if not entities:
        raise Bad("names no entities in its passage")
    for answer in answers:
        if answer not in passage:
            raise Bad(f"has the answer {answer!r}, which is not in the passage")
    # Highlights become sentences of the passage.
    passage = re.sub(r"(\.|\?|\!|\"|')\n@highlight\n", r"\1 ", passage)
    passage = passage.replace("\n@highlight\n", ". ")
    inputs = f"record query: {query} entities: {', '.join(entities)} passage: {passage}"
    key = _numbers(record, "passage", "query")
    return TextExample(inputs, answers, key, choices=entities, answers=answers)


def _wsc_records(row: Any) -> list[Record]:
    target = field(row, "target", dict)
    record = words(row, "text") | words(target, "span1_text", "span2_text")
    record |= {name: field(target, name, int) for name in ("span1_index", "span2_index")}
    record |= {"label": label(row, (False, True)), "idx": row.get("idx")}
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
    text, referent, pronoun = words(record, "text", "span1_text", "span2_text").values()
    inputs = f"wsc: {_starred(text, pronoun, field(record, 'span2_index', int))}"
    number = class_number(record, 2)
    targets = (referent,) if number == 1 else ()
    key = field(record, "idx", int)
    return TextExample(inputs, targets, (key,), number, answers=(referent,))


def _starred(text: str, pronoun: str, index: int) -> str:
    parts = text.split(" ")
    # A few published indices are one word off, and punctuation may stick to the pronoun.
    for at in (index, index - 1, index + 1):
        if not 0 <= at < len(parts):
            continue
        before, here, after = parts[at].partition(pronoun)
        if here and not any(c.isalnum() for c in before + after):
            parts[at] = " ".join(filter(None, (before, f"*{pronoun}*", after)))
            return " ".join(parts)
    raise Bad(f"has not the pronoun {pronoun!r} at word {index} of its text")


def _dpr_rows(path: Path) -> Rows:
    """Four lines a record (sentence, pronoun, candidates, answer) and an empty one."""
    lines = read_file(path).decode("utf-8-sig", errors="replace").splitlines()
    for start in range(0, len(lines), 5):
        rows = [line.strip() for line in lines[start : start + 4]]
        if not any(rows):
            continue
        names = ("sentence", "pronoun", "candidates", "answer")
        yield f"line {start + 1}", dict(zip(names, rows, strict=False))


def _dpr_records(row: Any) -> list[Record]:
    record = words(row, "sentence", "pronoun", "candidates", "answer")
    candidates = [name.strip() for name in record["candidates"].split(",")]
    return [record | {"candidates": candidates, "label": label(record, candidates, "answer")}]


def _dpr_text(record: Record) -> TextExample:
    sentence, pronoun = words(record, "sentence", "pronoun").values()
    if not re.search(rf"\b{re.escape(pronoun)}\b", sentence):
        raise Bad(f"has not the pronoun {pronoun!r} in its sentence")
    # The first occurrence is the one to resolve. T5 marks it only where one of these follows.
    pattern = rf" ({re.escape(pronoun)})( |\.|,)"
    sentence = re.sub(pattern, r" *\1*\2", sentence, count=1)
    choices = tuple(texts(record, "candidates"))
    return classified(f"wsc: {sentence}", record, choices, field(record, "id", int))


def _pairs(prefix: str, first: str, second: str) -> ToText:
    """RTE and its diagnostics: which field is the hypothesis, which the premise."""

    def text(record: Record) -> TextExample:
        fields = words(record, first, second)
        named = {"hypothesis": fields[first], "premise": fields[second]}
        inputs = phrase(prefix, named, "hypothesis", "premise")
        return classified(inputs, record, ENTAILMENT, field(record, "idx", int))

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
        _plain(_BOOL),
        _classes("boolq", ("passage", "question"), FALSE_TRUE),
        FALSE_TRUE,
    ),
    _task(
        "cb",
        "CB",
        _plain(_CB),
        _classes("cb", ("hypothesis", "premise"), _CB),
        _CB,
        metric="cb",
    ),
    _task("copa", "COPA", _plain((0, 1)), _classes("copa", _COPA_TEXT, _COPA), _COPA),
    _task("multirc", "MultiRC", _multirc_records, _multirc_text, FALSE_TRUE, metric="multirc"),
    _task("record", "ReCoRD", _record_records, _record_text, metric="record", answer="answers"),
    _task(
        "rte",
        "RTE",
        _plain(ENTAILMENT),
        _pairs("rte", "hypothesis", "premise"),
        ENTAILMENT,
    ),
    _task(
        "wic",
        "WiC",
        _plain(_BOOL),
        _classes("wic", _WIC_TEXT, FALSE_TRUE),
        FALSE_TRUE,
    ),
    _task("wsc", "WSC", _wsc_records, _wsc_text, metric="wsc", tfds="super_glue/wsc.fixed:1.0.2"),
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
        _plain(ENTAILMENT),
        _pairs("rte", "sentence2", "sentence1"),
        ENTAILMENT,
        metric="axb",
        group="diagnostics",
        files={TEST: "AX-b.jsonl"},
        tfds_splits={TEST: TEST},
    ),
    _task(
        "axg",
        "AX-g",
        _plain(ENTAILMENT),
        _pairs("rte", "hypothesis", "premise"),
        ENTAILMENT,
        metric="parity",
        group="diagnostics",
        files={TEST: "AX-g.jsonl"},
        tfds_splits={TEST: TEST},
    ),
)
