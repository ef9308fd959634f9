"""Choices beyond SuperGLUE: ARC, Winogrande XL and ANLI.

T5 has no texts for these; they follow its pattern of named fields.
"""

from __future__ import annotations

from typing import Any

from moe.tasks.task import (
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    Bad,
    Benchmark,
    Record,
    TextExample,
    ToText,
    class_number,
    classified,
    field,
    label,
    phrase,
    texts,
    words,
)

LETTERS = ("A", "B", "C", "D", "E")
OPTIONS = ("option1", "option2")
ANLI = ("entailment", "neutral", "contradiction")


def _arc_records(row: Any) -> list[Record]:
    question = field(row, "question", dict)
    choices = field(question, "choices", list)
    names = [field(choice, "label", str) for choice in choices]
    answers = [field(choice, "text", str) for choice in choices]
    record = {"id": row.get("id"), "question": field(question, "stem", str)}
    # A few questions number their choices 1 to 4.
    number = label(row, names, "answerKey")
    return [record | {"choices": {"text": answers}, "answerKey": number}]


def _arc_text(prefix: str) -> ToText:
    def text(record: Record) -> TextExample:
        choices = texts(field(record, "choices", dict), "text")
        if not 2 <= len(choices) <= len(LETTERS):
            raise Bad(f"has {len(choices)} choices, where 2 to {len(LETTERS)} are possible")
        letters = LETTERS[: len(choices)]
        listed = " ".join(f"({a}) {choice}" for a, choice in zip(letters, choices, strict=True))
        inputs = f"{phrase(prefix, record, 'question')} choices: {listed}"
        number = class_number(record, len(choices), "answerKey")
        targets = (letters[number],) if number != UNKNOWN_LABEL else ()
        return TextExample(inputs, targets, (field(record, "id", str),), number, letters)

    return text


def _winogrande_records(row: Any) -> list[Record]:
    published = {} if row.get("answer") == "" else row
    number = label(published, ("1", "2"), "answer")
    return [row | {"label": number, "id": field(row, "qID", str)}]


def _winogrande_text(record: Record) -> TextExample:
    inputs = phrase("winogrande", record, "option1", "option2", "sentence")
    if "_" not in record["sentence"]:
        raise Bad("has a sentence without the gap '_'")
    return classified(inputs, record, OPTIONS, field(record, "id", (str, int)))


def _anli_records(row: Any) -> list[Record]:
    return [row | {"label": label(row, ("e", "n", "c"))}]


def _anli_text(prefix: str) -> ToText:
    def text(record: Record) -> TextExample:
        premise, hypothesis = words(record, "context", "hypothesis").values()
        named = {"hypothesis": hypothesis, "premise": premise}
        inputs = phrase(prefix, named, "hypothesis", "premise")
        return classified(inputs, record, ANLI, field(record, "uid", str))

    return text


_SPLITS = {split: split for split in (TRAIN, VALIDATION, TEST)}
_JSONL = {TRAIN: "train.jsonl", VALIDATION: "dev.jsonl", TEST: "test.jsonl"}

TASKS = (
    *(
        Benchmark(
            name=f"arc_{level.lower()}",
            group="arc",
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
            group="anli",
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
