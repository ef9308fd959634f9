"""Choices beyond SuperGLUE: ARC, Winogrande XL and ANLI.

T5 has no texts for these; they follow its pattern of named fields.
"""

from __future__ import annotations

from typing import Any

from moe.data.benchmark import (
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    Bad,
    Benchmark,
    Record,
    TextExample,
    classified,
    field,
    label,
    phrase,
    words,
)

LETTERS = ("A", "B", "C", "D", "E")
OPTIONS = ("option1", "option2")
ANLI = ("entailment", "neutral", "contradiction")


def _arc_records(row: Any) -> list[Record]:
    question = field(row, "question", dict)
    choices = field(question, "choices", list)
    if not 2 <= len(choices) <= len(LETTERS):
        raise Bad(f"has {len(choices)} choices, where 2 to {len(LETTERS)} are possible")
    names = [field(choice, "label", str) for choice in choices]
    texts = [words(choice, "text")["text"] for choice in choices]
    record = {"id": field(row, "id", str), "question": words(question, "stem")["stem"]}
    # A few questions number their choices 1 to 4.
    number = label(row, names, "answerKey")
    letters = list(LETTERS[: len(choices)])
    return [record | {"choices": {"text": texts, "label": letters}, "answerKey": number}]


def _arc_text(prefix: str) -> Any:
    def text(record: Record) -> TextExample:
        texts, number = record["choices"]["text"], record["answerKey"]
        letters = LETTERS[: len(texts)]
        listed = " ".join(f"({a}) {text}" for a, text in zip(letters, texts, strict=True))
        inputs = f"{prefix} question: {record['question']} choices: {listed}"
        targets = (letters[number],) if number != UNKNOWN_LABEL else ()
        return TextExample(inputs, targets, (record["id"],), number, letters)

    return text


def _winogrande_records(row: Any) -> list[Record]:
    record = words(row, "qID", "sentence", "option1", "option2")
    if "_" not in record["sentence"]:
        raise Bad("has a sentence without the gap '_'")
    published = {} if row.get("answer") == "" else row
    return [record | {"label": label(published, ("1", "2"), "answer"), "id": record["qID"]}]


def _winogrande_text(record: Record) -> TextExample:
    key = record.get("id", record.get("idx"))
    inputs = phrase("winogrande", record, "option1", "option2", "sentence")
    return classified(inputs, record, OPTIONS, key)


def _anli_records(row: Any) -> list[Record]:
    record = words(row, "uid", "context", "hypothesis")
    return [record | {"label": label(row, ("e", "n", "c"))}]


def _anli_text(prefix: str) -> Any:
    def text(record: Record) -> TextExample:
        named = {"hypothesis": record["hypothesis"], "premise": record["context"]}
        inputs = phrase(prefix, named, "hypothesis", "premise")
        return classified(inputs, record, ANLI, record["uid"])

    return text


_SPLITS = {split: split for split in (TRAIN, VALIDATION, TEST)}
_JSONL = {TRAIN: "train.jsonl", VALIDATION: "dev.jsonl", TEST: "test.jsonl"}

TASKS = (
    *(
        Benchmark(
            name=f"arc_{level.lower()}",
            metric="accuracy",
            text=_arc_text(f"arc_{level.lower()}"),
            records=_arc_records,
            folders=(f"ARC-{level}", f"ARC-V1-Feb2018-2/ARC-{level}"),
            files={
                split: f"ARC-{level}-{name}.jsonl"
                for split, name in ((TRAIN, "Train"), (VALIDATION, "Dev"), (TEST, "Test"))
            },
            answer="answerKey",
            tfds=f"ai2_arc/ARC-{level}:1.0.0",
            tfds_splits=_SPLITS,
        )
        for level in ("Easy", "Challenge")
    ),
    Benchmark(
        name="winogrande",
        metric="accuracy",
        text=_winogrande_text,
        records=_winogrande_records,
        folders=("winogrande_1.1", "winogrande"),
        files={TRAIN: "train_xl.jsonl", VALIDATION: "dev.jsonl", TEST: "test.jsonl"},
        tfds="winogrande:1.2.0",
        tfds_splits=_SPLITS | {TRAIN: "train_xl"},
        labels=OPTIONS,
        answer="answer",
    ),
    *(
        Benchmark(
            name=f"anli_r{part}",
            metric="accuracy",
            text=_anli_text(f"anli_r{part}"),
            records=_anli_records,
            folders=(f"anli_v1.0/R{part}", f"R{part}"),
            files=_JSONL,
            tfds=f"anli/r{part}:0.1.0",
            tfds_splits=_SPLITS,
            labels=ANLI,
        )
        for part in (1, 2, 3)
    ),
)
