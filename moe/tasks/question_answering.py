"""Free answers: SQuAD v1.1 and v2.0, and closed-book TriviaQA, Natural Questions, WebQuestions.

Texts are those of T5 (arXiv 1910.10683) and of its closed-book work (2002.08910). T5 has no text
for SQuAD v2; a question without an answer has the target `UNANSWERABLE` here, which scores as the
empty answer.
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
    ToText,
    field,
    json_document,
    texts,
    words,
)

UNANSWERABLE = "unanswerable"


def pad_punctuation(text: str) -> str:
    """Spaces around ASCII punctuation ([[:punct:]], `_` included), single ones, as T5 does."""
    return re.sub(r"[\t\n\f\r ]+", " ", re.sub(r"([!-/:-@\[-`{-~])", r" \1 ", text))


def _joined(*parts: str) -> str:
    return re.sub(r"[\t\n\f\r ]+", " ", " ".join(parts))


def _entries(where: str, row: Any, name: str, called: str) -> Rows:
    """The entries of a list in a row, each numbered; one bad row where there is no such list."""
    try:
        if isinstance(row, Bad):
            raise row
        entries = field(row, name, list) if name else row
        if not isinstance(entries, list):
            raise Bad("is no JSON list")
    except Bad as error:
        yield where or "the file", error
        return
    for number, entry in enumerate(entries, start=1):
        yield f"{where} {called} {number}".strip(), entry


def _listed(path: Path, name: str = "", called: str = "entry") -> Rows:
    """The entries of a JSON file, which is a list or holds one in a field."""
    try:
        content = json_document(path)
    except Bad as error:
        content = error
    return _entries("", content, name, called)


def _squad_rows(path: Path) -> Rows:
    for where, article in _listed(path, "data", "article"):
        for there, paragraph in _entries(where, article, "paragraphs", "paragraph"):
            for position, question in _entries(there, paragraph, "qas", "question"):
                if isinstance(question, dict):
                    question = {"context": paragraph.get("context"), **question}
                yield position, question


def _squad_records(row: Any) -> list[Record]:
    question = words(row, "question")  # refuses what is no object
    answers = field(row, "answers", list) if "answers" in row else []
    answers = [field(answer, "text", str) for answer in answers]
    return [row | question | {"answers": {"text": answers}}]


def _squad_text(record: Record) -> TextExample:
    context, question = words(record, "context", "question").values()
    answers = texts(field(record, "answers", dict), "text")
    impossible = "is_impossible" in record and field(record, "is_impossible", bool)
    for answer in answers:
        if not impossible and answer not in context:
            raise Bad(f"has the answer {answer!r}, which is not in the context")
    padded = () if impossible else tuple(map(pad_punctuation, answers))
    inputs = _joined("question:", pad_punctuation(question), "context:", pad_punctuation(context))
    targets = (UNANSWERABLE,) if impossible else padded[:1]
    return TextExample(inputs, targets, (field(record, "id", str),), answers=padded)


def _closed(prefix: str, name: str) -> ToText:
    """A question without context; the first accepted answer is the target."""

    def text(record: Record) -> TextExample:
        question, answers = words(record, "question")["question"], tuple(texts(record, name))
        key = field(record, "id", int)
        return TextExample(f"{prefix} question: {question}", answers[:1], (key,), answers=answers)

    return text


def _trivia_text(record: Record) -> TextExample:
    answer = field(record, "answer", dict)
    value = words(answer, "value")["value"]
    return TextExample(
        f"trivia_qa question: {words(record, 'question')['question']}",
        (value,),
        (field(record, "question_id", str),),
        answers=tuple(dict.fromkeys([value, *texts(answer, "aliases", blank=True)])),
    )


def _trivia_records(row: Any) -> list[Record]:
    answer = field(row, "Answer", dict)
    aliases = [alias.strip() for alias in texts(answer, "Aliases", blank=True)]
    return [
        {
            "question": field(row, "Question", str).strip(),
            "question_id": row.get("QuestionId"),
            "answer": {"value": field(answer, "Value", str).strip(), "aliases": aliases},
        }
    ]


def _trivia_rows(path: Path) -> Rows:
    return _listed(path, "Data")


def _natural_records(row: Any) -> list[Record]:
    return [row]


_DESCRIPTION = re.compile(r'\(description (?:"([^"]+?)"|([^)]+?))\)')


def _web_records(row: Any) -> list[Record]:
    record = words(row, "utterance", "targetValue")
    answers = [a or b for a, b in _DESCRIPTION.findall(record["targetValue"])]
    if not answers:
        raise Bad(f"has no (description ..) in targetValue {record['targetValue']!r}")
    return [{"question": record["utterance"], "answers": answers}]


_TWO = {TRAIN: TRAIN, VALIDATION: VALIDATION}

TASKS = tuple(
    Benchmark(
        name=f"squad_v{version}",
        metric="squad",
        group="squad",
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
        group="closed_book",
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
        metric="closed_book",
        group="closed_book",
        text=_closed("nq", "answer"),
        answer="answer",
        records=_natural_records,
        folders=("nq_open", "NaturalQuestionsOpen"),
        files={TRAIN: "NQ-open.train.jsonl", VALIDATION: "NQ-open.dev.jsonl"},
        tfds="natural_questions_open:1.0.0",
        tfds_splits=_TWO,
    ),
    Benchmark(
        name="web_questions",
        metric="closed_book",
        group="closed_book",
        text=_closed("wq", "answers"),
        answer="answers",
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
