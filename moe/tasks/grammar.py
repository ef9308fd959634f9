"""Grammar: the column of ST-MoE's table 7, from the data that its field publishes.

`bea2019` is Write & Improve with LOCNESS of the BEA-2019 shared task, whose files are M2: a line
`S` of words and, below it, lines `A` with the corrections of one or more annotators. `c4_200m`
(Stahlberg and Kumar, 2021) is made by its authors' scripts as pairs of sentences; it is large, has
no split but that for training, and no ids, so that none is looked for twice.

The paper names neither its data nor its text. The text here follows T5's pattern of a prefix, and
sentences of M2 stay cut into words, as the shared task scores them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
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
    field,
    words,
)
from moe.text.json_rows import text_lines

# Edits that change nothing: the sentence is right, or nobody knew what to put there.
_NO_CHANGE = frozenset(("noop", "UNK"))
_NOTHING = "-NONE-"  # a correction that deletes
_SHARD = re.compile(r"(?:sentence_pairs|C4_200M)\.tsv-(\d{5})-of-(\d{5})")


def corrected(sentence: list[str], edits: list[tuple[int, int, str]]) -> str:
    """The words of a sentence with its edits made, with single spaces.

    Args:
      sentence: its words.
      edits: (first word, word after the last, what stands there then); an insertion has both at
        the same word. In any order; those at the same place are made in the order given.

    Raises:
      Bad: an edit outside of the sentence, or two of the same words.
    """
    made, at = [], 0
    for start, end, text in sorted(edits, key=lambda edit: edit[:2]):
        if not 0 <= start <= end <= len(sentence):
            raise Bad(f"has an edit of the words {start} to {end} of {len(sentence)}")
        if start < at:
            raise Bad(f"has two edits of its word {start}")
        made += sentence[at:start] + text.split()
        at = end
    return " ".join(made + sentence[at:])


def _edit(line: str) -> tuple[str, tuple[int, int, str] | None]:
    """(annotator, edit) of a line `A`; None where it changes nothing."""
    parts = line.removeprefix("A ").split("|||")
    span = parts[0].split()
    if len(parts) != 6 or len(span) != 2 or not all(re.fullmatch(r"-?\d{1,9}", n) for n in span):
        raise Bad("has an edit that is not 'A START END|||TYPE|||CORRECTION|||..|||..|||ANNOTATOR'")
    start, end = map(int, span)
    if parts[1] in _NO_CHANGE:
        return parts[5], None
    first = parts[2].partition("||")[0]  # the others are as good
    return parts[5], (start, end, "" if first == _NOTHING else first)


def _m2_row(block: list[str]) -> dict[str, Any]:
    """A sentence and what its annotators make of it: {"source", "corrections"}."""
    sentence = block[0].removeprefix("S").split()
    edits: dict[str, list[tuple[int, int, str]]] = {}
    for line in block[1:]:
        annotator, edit = _edit(line)
        edits.setdefault(annotator, []).extend([edit] if edit else [])
    texts = [corrected(sentence, edits[annotator]) for annotator in sorted(edits)]
    return {"source": " ".join(sentence), "corrections": texts or [" ".join(sentence)]}


def _m2_rows(path: Path) -> Rows:
    """The sentences of an M2 file; those of a file `.orig`, one a line, are without corrections."""
    if path.suffix == ".orig":
        for number, line in text_lines(path):
            if isinstance(line, Bad) or line.strip():
                plain = line if isinstance(line, Bad) else {"source": " ".join(line.split())}
                yield f"line {number}", plain
        return
    for first, block in _blocks(path):
        try:
            yield f"line {first}", _m2_row(block) if isinstance(block, list) else block
        except Bad as error:
            yield f"line {first}", error


def _blocks(path: Path) -> Iterator[tuple[int, list[str] | Bad]]:
    """(number of its first line, lines) of each sentence; why not, where a line is none of M2."""
    groups = itertools.groupby(text_lines(path), key=lambda n_line: _is_blank(n_line[1]))
    for blank, group in groups:
        if blank:
            continue
        numbered = list(group)
        first, block = numbered[0][0], []
        for number, line in numbered:
            if isinstance(line, Bad):
                yield number, line
                break
            if not line.startswith("A " if block else "S "):
                wanted = "'A ', an edit, or is blank" if block else "'S ', a sentence"
                yield number, Bad(f"is no line of M2: it should begin with {wanted}")
                break
            block.append(line)
        else:
            yield first, block


def _is_blank(line: str | Bad) -> bool:
    return isinstance(line, str) and not line.strip()


def _pair_rows(path: Path) -> Rows:
    """`FOLDER/sentence_pairs.tsv` -> the pairs of all its shards, in their order."""
    found = [(file, _SHARD.fullmatch(file.name)) for file in path.parent.iterdir()]
    shards = {int(match[1]): (file, int(match[2])) for file, match in found if match}
    if not shards or path.exists():  # pairs in one file, or nothing, which opening it will tell
        yield from _pairs(path, "")
        return
    counts = sorted({count for _, count in shards.values()})
    if len(counts) > 1:
        sets = " and of ".join(map(str, counts))
        yield "", Bad(f"stands for shards of {sets}: keep one set in the folder")
        return
    if len(shards) < counts[0]:
        yield "", Note(f"has {len(shards)} of {counts[0]} shards, and is read without the others")
    for number in sorted(shards):
        yield from _pairs(shards[number][0], f"({shards[number][0].name}) ")


def _pairs(path: Path, where: str) -> Rows:
    for number, line in text_lines(path):
        if isinstance(line, Bad):
            yield f"{where}line {number}", line
        elif line.strip():
            parts = line.split("\t")
            row = {"source": parts[0], "corrections": parts[1:]}
            wrong = Bad(f"has {len(parts)} columns, where a sentence and its correction are needed")
            yield f"{where}line {number}", row if len(parts) == 2 else wrong


def _records(row: Any) -> list[Record]:
    return [row]


def _example(record: Record, keyed: bool) -> TextExample:
    source = words(record, "source")["source"]
    # A correction may be empty: all words are wrong, and one annotator in some thousands says so.
    answers = tuple(field(record, "corrections", list)) if "corrections" in record else ()
    key = (field(record, "id", int),) if keyed else ()
    return TextExample(f"grammar: {source}", answers[:1], key, answers=answers)


TASKS = (
    Benchmark(
        name="bea2019",
        metric="grammar",
        group="grammar",
        text=lambda record: _example(record, keyed=True),
        records=_records,
        folders=("wi+locness",),
        files={
            TRAIN: "m2/ABC.train.gold.bea19.m2",
            VALIDATION: "m2/ABCN.dev.gold.bea19.m2",
            TEST: "test/ABCN.test.bea19.orig",
        },
        answer="corrections",
        read=_m2_rows,
        tfds="",
        tfds_splits={TRAIN: TRAIN, VALIDATION: VALIDATION, TEST: TEST},
    ),
    Benchmark(
        name="c4_200m",
        metric="grammar",
        group="grammar",
        text=lambda record: _example(record, keyed=False),
        records=_records,
        folders=("C4_200M", "c4_200m"),
        files={TRAIN: "sentence_pairs.tsv"},
        answer="corrections",
        read=_pair_rows,
        tfds="",
        tfds_splits={TRAIN: TRAIN},
    ),
)
