"""The rows that an analysis reads: those of a split, or the lines of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moe.data import eval_batches, make_source
from moe.data.denoisers.denoiser import Denoiser, Example
from moe.data.sources.from_cache import texts_of
from moe.data.sources.packing import batch_fields, fill_batch, pack_starts
from moe.models.architecture import Architecture
from moe.text.json_rows import Bad, input_rows
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.data.order import host_slice
from trainlib.errors import DataError, shown
from trainlib.step.plan import Plan

SPLITS = ("holdout", "train")
INPUTS, TARGETS, LANGUAGE = "inputs", "targets", "language"  # fields of a line
_SEED = 22_02_08906  # of the spans that are hidden in lines

HostBatch = dict[str, np.ndarray]  # this host's part of a batch


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read.

    Attributes:
      title: for the report.
      labels: of languages or sources, one at least.
      rows: label -> the batches of it, from the start; to be closed.
      notes: what to say of the source.
    """

    title: str
    labels: tuple[str, ...]
    rows: Callable[[int], contextlib.AbstractContextManager[Iterator[HostBatch]]]
    notes: tuple[str, ...] = ()


def of_split(plan: Plan[Architecture], split: str) -> Reading:
    """The rows of a split in their order, corrupted as in every evaluation; each part of a mixture
    is a label.

    Raises:
      DataError: the split is empty, or its data is absent or not what it should be.
      ConfigError: nothing is held out.
    """
    config = plan.config
    source = make_source(config.data, split)
    parts = [part for part, _ in source.parts()]
    if not all(map(len, parts)):
        empty = ", ".join(part.name for part in parts if not len(part))
        raise DataError(
            f"The {split} split of {shown(empty)} is empty, so there is nothing to analyse. Take "
            f"another: --split={' or '.join(s for s in SPLITS if s != split)}, or "
            "--input=FILE.jsonl."
        )
    size, process = _batch_size(config), (jax.process_index(), jax.process_count())

    @contextlib.contextmanager
    def rows(label: int) -> Iterator[Iterator[HostBatch]]:
        with eval_batches(parts[label], config.data, size, *process) as batches:
            fields = batch_fields(plan.model.kind)
            yield ({name: batch[name] for name in fields} for batch in batches)

    title = f"{config.data.source}, {split} split"
    return Reading(title, tuple(part.name for part in parts), rows, source.notes)


def of_file(plan: Plan[Architecture], path: Path, vocabulary: Vocabulary) -> Reading:
    """The lines of a JSONL file: text in the field `data.text_feature`, which is corrupted or
    continued as in training (by R_3_0.15 where the objective is UL2), or a pair in the fields
    `inputs` and (for the decoder) `targets`. A field `language` is its label.

    Raises:
      DataError: the file is absent, or has no line, or lines without text; names them.
    """
    by_label: dict[str, list[Example]] = {}
    make = _maker(plan, vocabulary)
    for label, row in _lines(path, plan.config.data.text_feature):
        by_label.setdefault(label, []).extend(make(row))
    labels = tuple(by_label)
    data, size = plan.config.data, _batch_size(plan.config)
    lengths = data.encoder_length, data.decoder_length
    ends = data.objective != "language_model"

    @contextlib.contextmanager
    def rows(label: int) -> Iterator[Iterator[HostBatch]]:
        records = _packed(by_label[labels[label]], lengths, ends)
        yield _batches(records, plan, size, ends)

    return Reading(shown(path), labels, rows)


def _batch_size(config: ConfigDict) -> int:
    return config.eval_batch_size or config.batch_size


def _lines(path: Path, text_field: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(label, fields of text) of each line."""
    found = input_rows(
        path,
        lambda row: _line(row, text_field),
        f'Give a JSONL file whose lines have their text in the field "{text_field}", or '
        f'"{INPUTS}" and "{TARGETS}".',
        f'Every line is a JSON object with text in the field "{text_field}", such as '
        f'{{"{text_field}": "It fell."}}, or in "{INPUTS}" and "{TARGETS}"; "{LANGUAGE}" is '
        "optional.",
    )
    return (line for line in found if line is not None)


def _line(row: dict[str, Any], text_field: str) -> tuple[str, dict[str, str]]:
    pair = [name for name in (INPUTS, TARGETS) if name in row]
    names = pair if INPUTS in pair else [text_field]
    fields = {name: row.get(name) for name in (*names, *({LANGUAGE} & row.keys()))}
    for name, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise Bad(f"has no text in the field '{shown(name, 40)}'")
    text = {name: str(value) for name, value in fields.items() if name != LANGUAGE}
    return str(fields.get(LANGUAGE, "")), text


def _maker(
    plan: Plan[Architecture], vocabulary: Vocabulary
) -> Callable[[dict[str, str]], list[Example]]:
    """What makes examples of a line."""
    data, number = plan.config.data, iter(range(1 << 62))
    causal = data.objective == "language_model"

    @functools.cache
    def window() -> int:
        return data.decoder_length if causal else denoiser()[1]

    @functools.cache
    def denoiser() -> tuple[Denoiser, int]:
        return next(iter(texts_of(vocabulary, data).values()))

    def make(fields: dict[str, str]) -> list[Example]:
        if INPUTS in fields and not causal:
            targets = fields.get(TARGETS, "")
            return [(vocabulary.encode(fields[INPUTS]), vocabulary.encode(targets))]
        ids = vocabulary.encode(" ".join(fields.values()))
        if causal:
            ids = np.append(ids, EOS)
        pieces = [ids[start : start + window()] for start in range(0, len(ids), window())]
        if causal:
            return [(piece[:0], piece) for piece in pieces]
        made = denoiser()[0].examples(pieces, [(_SEED, 0, next(number)) for _ in pieces])
        return [example for of_piece in made for example in of_piece]

    return make


def _packed(examples: list[Example], lengths: tuple[int, int], ends: bool) -> list[list[Example]]:
    """Examples in rows, as many as fit one after the other; a causal one has a row of its own."""
    if not ends:
        return [[example] for example in examples]
    encoder, decoder = (
        np.asarray([min(len(example[side]), limit - 1) + 1 for example in examples])
        for side, limit in enumerate(lengths)
    )
    starts = pack_starts(encoder, decoder, *lengths).tolist()
    return [examples[a:b] for a, b in itertools.pairwise(starts)]


def _batches(
    records: list[list[Example]], plan: Plan[Architecture], size: int, ends: bool
) -> Iterator[HostBatch]:
    """This host's part of the batches; the last is filled up with empty rows."""
    data, own = plan.config.data, slice(*host_slice(size, jax.process_index(), jax.process_count()))
    fields = batch_fields(plan.model.kind)
    for number in range(math.ceil(len(records) / size)):
        batch = records[number * size : (number + 1) * size]
        batch += [[]] * (size - len(batch))
        filled = fill_batch(batch[own], data.encoder_length, data.decoder_length, ends)
        yield {name: filled[name] for name in fields}
