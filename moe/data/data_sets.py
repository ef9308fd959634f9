"""The kinds of data sets that `data.source` can name: a table from the name before the colon.

A new kind is a file with a `Kind` and a row of `KINDS`, or a `Kind` in a module of one's own that
`data.source=module:MODULE:NAME` names; mixtures of several sources are in
`moe.data.mixtures`.
"""

from __future__ import annotations

from moe.pairs import reader as pairs_reader
from moe.tasks import task_reader
from moe.text import brown, jsonl, pydoc_topics, seqio_source, text_folder
from moe.text.reader import Kind
from trainlib import extension

KINDS: dict[str, Kind] = {
    "pydoc": pydoc_topics.KIND,
    "text": text_folder.KIND,
    "jsonl": jsonl.KIND,
    "brown": brown.KIND,
    "c4": seqio_source.C4,
    "tfds": seqio_source.TFDS,
    "seqio": seqio_source.SEQIO,
    "task": task_reader.TASK,
    "sample": task_reader.SAMPLE,
    "pairs": pairs_reader.KIND,
}


def usage() -> str:
    """All values of `data.source` but mixtures, as a phrase."""
    own = f"{extension.PREFIX}{extension.FORM}[:ARGUMENT]"
    return ", ".join([*(kind.usage for kind in KINDS.values()), own])


def kind_of(source: str) -> Kind | None:
    """The kind that a source names; None for a mixture, and where there is no such kind.

    Raises:
      ConfigError: a data set of one's own that cannot be imported.
    """
    if source.startswith(extension.PREFIX):
        reference = extension.reference_of(source)
        return extension.load(reference, "data.source", Kind, "a moe.text.reader.Kind")
    return KINDS.get(source.partition(":")[0])
