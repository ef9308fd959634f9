"""Summaries: XSum and CNN-DailyMail, with T5's prefix."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from moe.tasks.task import (
    TEST,
    TRAIN,
    VALIDATION,
    Bad,
    Benchmark,
    Note,
    Record,
    Rows,
    TextExample,
    ToText,
    field,
    json_document,
    read_file,
    texts,
    words,
)

_XSUM_SPLITS = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
# The archive of articles that its authors publish, and what their scripts make of the web pages,
# which TFDS takes: folder, end of a file's name.
_XSUM_FORMS = (("bbc-summary-data", ".summary"), ("xsum-extracts-from-downloads", ".data"))
_XSUM_PARTS = re.compile(r"\[(?:SN|XSUM)\]")
# Lines of the web page that are no part of an XSum article.
_BUTTONS = frozenset(
    (
        "Share this with",
        "Email",
        "Facebook",
        "Messenger",
        "Twitter",
        "Pinterest",
        "WhatsApp",
        "Linkedin",
        "LinkedIn",
        "Copy this link",
        "These are external links and will open in a new window",
    )
)
# What ends a sentence; other lines of a CNN or Daily Mail story get a full stop.
_ENDS = (".", "!", "?", "...", "'", "`", '"', "\u2019", "\u201d", ")")


def _text_file(path: Path, name: str) -> Any:
    """The row of a file that holds one record."""
    try:
        return {"id": name, "text": path.read_text(encoding="utf-8-sig")}
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})")
    except OSError as error:
        return Bad(f"cannot be read ({error.strerror})")


def _xsum_rows(path: Path) -> Rows:
    """`FOLDER/split` -> the articles of that split; the split file names their ids."""
    folder, split = path.parent, path.name
    inside, ending = next(
        (form for form in _XSUM_FORMS if (folder / form[0]).is_dir()), _XSUM_FORMS[0]
    )
    where = folder / _XSUM_SPLITS
    try:
        ids = texts(json_document(where), split)
    except Bad as error:
        yield f"({_XSUM_SPLITS})", error
        return
    missing = 0
    for name in ids:
        file = folder / inside / f"{name}{ending}"
        if file.is_file():
            yield f"({file.name})", _text_file(file, name)
        else:  # published ids whose pages are gone; TFDS leaves them out as well
            missing += 1
    if missing:
        yield "", Note(f"misses {missing:,} of {len(ids):,} articles, which are left out")


def _xsum_records(row: Any) -> list[Record]:
    lines = [line for line in row["text"].splitlines() if line.strip() and line not in _BUTTONS]
    parts = _XSUM_PARTS.split("\n".join(lines))
    named = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=False)}
    summary = named.get("FIRST-SENTENCE", named.get("INTRODUCTION"))
    if summary is None or "RESTBODY" not in named:
        raise Bad(
            "has not the parts [SN]FIRST-SENTENCE[SN] (or [XSUM]INTRODUCTION[XSUM]) and "
            "[SN]RESTBODY[SN] (or [XSUM]RESTBODY[XSUM])"
        )
    return [{"summary": summary, "document": named["RESTBODY"], "id": row["id"]}]


def _story_rows(path: Path) -> Rows:
    """`FOLDER/all_train.txt` lists URLs; a story is named by the SHA-1 of its URL."""
    lines = read_file(path).decode("utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = hashlib.sha1(line.strip().encode()).hexdigest()
        files = [
            path.parent / paper / "stories" / f"{name}.story" for paper in ("cnn", "dailymail")
        ]
        story = next((file for file in files if file.is_file()), None)
        if story is None:
            yield f"line {number}", Bad(f"names {line.strip()}, and there is no {name}.story")
        else:
            yield story.name, _text_file(story, name)


def _story_records(row: Any) -> list[Record]:
    article, highlights, highlight = [], [], False
    for line in map(str.strip, row["text"].splitlines()):
        if line.startswith("@highlight"):
            highlight = True
        elif line:
            line = line if line.endswith(_ENDS) else f"{line}."
            (highlights if highlight else article).append(line)
    joined = {"article": " ".join(article), "highlights": "\n".join(highlights)}
    return [joined | {"id": row["id"]}]


def _text(source: str, summary: str) -> ToText:
    def text(record: Record) -> TextExample:
        document, answer = words(record, source, summary).values()
        key = field(record, "id", (str, int))
        return TextExample(f"summarize: {document}", (answer,), (key,), answers=(answer,))

    return text


_SPLITS = {split: split for split in (TRAIN, VALIDATION, TEST)}

TASKS = (
    Benchmark(
        name="xsum",
        metric="summary",
        group="summaries",
        text=_text("document", "summary"),
        records=_xsum_records,
        folders=("xsum", "XSum"),
        files=_SPLITS,
        read=_xsum_rows,
        tfds="xsum:1.1.0",
        tfds_splits=_SPLITS,
    ),
    Benchmark(
        name="cnn_dailymail",
        metric="summary",
        group="summaries",
        text=_text("article", "highlights"),
        records=_story_records,
        folders=("cnn_dailymail", "cnn-dailymail"),
        files={TRAIN: "all_train.txt", VALIDATION: "all_val.txt", TEST: "all_test.txt"},
        read=_story_rows,
        tfds="cnn_dailymail:3.4.0",
        tfds_splits=_SPLITS,
    ),
)
