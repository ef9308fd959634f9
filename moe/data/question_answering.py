"""Free answers: SQuAD v1.1 and v2.0, and closed-book TriviaQA, Natural Questions, WebQuestions.

Texts are those of T5 (arXiv 1910.10683) and of its closed-book work (2002.08910). T5 has no text
for SQuAD v2; a question without an answer has the target `UNANSWERABLE` here, which scores as the
empty answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe.data.benchmark import (
    TEST,
    TRAIN,
    VALIDATION,
    Bad,
    Benchmark,
    Record,
    Rows,
    TextExample,
    field,
    json_document,
    words,
)

UNANSWERABLE = "unanswerable"


def pad_punctuation(text: str) -> str:
    """Spaces around all but ASCII letters, digits and underscores, single ones, as T5 does."""
    return re.sub(r"[\t\n\f\r ]+", " ", re.sub(r"([^A-Za-z0-9_])", r" \1 ", text))


def _joined(*parts: str) -> str:
    return re.sub(r"[\t\n\f\r ]+", " ", " ".join(parts))


def _listed(path: Path, *keys: str) -> Rows:
    """The entries of a JSON file, which holds a list under `keys`."""
    try:
        found = json_document(path)
        for key in keys:
            found = field(found, key, list)
    except Bad as error:
        yield "the file", error
        return
    if not isinstance(found, list):
        yield "the file", Bad("is no JSON list")
        return
    for number, row in enumerate(found, start=1):
        yield f"entry {number}", row


def _squad_rows(path: Path) -> Rows:
    for where, article in _listed(path, "data"):
        if isinstance(article, Bad):
            yield where, article
            continue
        for p, paragraph in enumerate(article.get("paragraphs", ()), start=1):
            for q, question in enumerate(paragraph.get("qas", ()), start=1):
                place = f"article {where.split()[1]} paragraph {p} question {q}"
                yield place, {"context": paragraph.get("context", ""), **question}


def _squad_records(row: Any) -> list[Record]:
    record = words(row, "context", "question") | {"id": field(row, "id", str)}
    answers = [words(answer, "text")["text"] for answer in row.get("answers", ())]
    impossible = bool(row.get("is_impossible", False))
    for answer in answers:
        if not impossible and answer not in record["context"]:
            raise Bad(f"has the answer {answer!r}, which is not in the context")
    answers = [] if impossible else answers
    return [record | {"answers": {"text": answers}, "is_impossible": impossible}]


def _squad_text(record: Record) -> TextExample:
    answers = tuple(pad_punctuation(answer) for answer in record["answers"]["text"])
    question = pad_punctuation(record["question"])
    inputs = _joined("question:", question, "context:", pad_punctuation(record["context"]))
    targets = answers[:1]
    if record.get("is_impossible"):
        targets = (UNANSWERABLE,)
    return TextExample(inputs, targets, (record["id"],), answers=answers)


def _closed(prefix: str) -> Any:
    """A question without context; the first accepted answer is the target."""

    def text(record: Record) -> TextExample:
        answers = tuple(record["answer"])
        inputs = f"{prefix} question: {record['question']}"
        return TextExample(inputs, answers[:1], (record["id"],), answers=answers)

    return text


def _trivia_text(record: Record) -> TextExample:
    answer = record["answer"]
    return TextExample(
        f"trivia_qa question: {record['question']}",
        (answer["value"],),
        (record["question_id"],),
        answers=tuple(dict.fromkeys([answer["value"], *answer["aliases"]])),
    )


def _trivia_records(row: Any) -> list[Record]:
    answer = field(row, "Answer", dict)
    value = words(answer, "Value")["Value"].strip()
    aliases = [alias.strip() for alias in field(answer, "Aliases", list)]
    record = {"question": words(row, "Question")["Question"].strip()}
    return [
        record
        | {"question_id": field(row, "QuestionId", str)}
        | {"answer": {"value": value, "aliases": aliases}}
    ]


def _trivia_rows(path: Path) -> Rows:
    return _listed(path, "Data")


def _natural_records(row: Any) -> list[Record]:
    answers = field(row, "answer", list)
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise Bad("has no text in the field 'answer', a list of accepted answers")
    return [words(row, "question") | {"answer": answers, "id": row["question"]}]


_DESCRIPTION = re.compile(r'\(description (?:"([^"]+?)"|([^)]+?))\)')


def _web_records(row: Any) -> list[Record]:
    record = words(row, "utterance", "targetValue")
    answers = [a or b for a, b in _DESCRIPTION.findall(record["targetValue"])]
    if not answers:
        raise Bad(f"has no (description ..) in targetValue {record['targetValue']!r}")
    question = record["utterance"]
    return [{"question": question, "answer": answers, "id": question}]


def _web_text(record: Record) -> TextExample:
    if "answers" in record:  # as TFDS calls it
        record = record | {"answer": record["answers"]}
    return _closed("wq")(record)


_TWO = {TRAIN: TRAIN, VALIDATION: VALIDATION}

TASKS = tuple(
    Benchmark(
        name=f"squad_v{version}",
        metric="squad",
        text=_squad_text,
        records=_squad_records,
        folders=("SQuAD", "squad"),
        files={
            TRAIN: f"train-v{version}.{minor}.json",
            VALIDATION: f"dev-v{version}.{minor}.json",
        },
        answer="answers",
        read=_squad_rows,
        tfds=f"squad/v{version}.{minor}:3.0.0",
        tfds_splits=_TWO,
    )
    for version, minor in ((1, 1), (2, 0))
) + (
    Benchmark(
        name="trivia_qa",
        metric="trivia",
        text=_trivia_text,
        records=_trivia_records,
        folders=("triviaqa-unfiltered", "TriviaQA"),
        files={TRAIN: "unfiltered-web-train.json", VALIDATION: "unfiltered-web-dev.json"},
        read=_trivia_rows,
        tfds="trivia_qa/unfiltered.nocontext:1.1.0",
        tfds_splits=_TWO,
    ),
    Benchmark(
        name="natural_questions",
        metric="squad",
        text=_closed("nq"),
        records=_natural_records,
        folders=("nq_open", "NaturalQuestionsOpen"),
        files={TRAIN: "NQ-open.train.jsonl", VALIDATION: "NQ-open.dev.jsonl"},
        tfds="natural_questions_open:1.0.0",
        tfds_splits=_TWO,
    ),
    Benchmark(
        name="web_questions",
        metric="squad",
        text=_web_text,
        records=_web_records,
        folders=("WebQuestions", "webquestions"),
        files={
            TRAIN: "webquestions.examples.train.json",
            VALIDATION: "webquestions.examples.test.json",
        },
        read=_listed,
        tfds="web_questions:1.0.0",
        tfds_splits={TRAIN: TRAIN, VALIDATION: TEST},
    ),
)
