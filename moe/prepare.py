"""Tokenises the data of a configuration into caches that training reads."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from moe.data import check_vocabulary, make_vocabulary, unigram_entropy
from moe.data.cache.build import build
from moe.data.cache.read import Cache, is_complete
from moe.data.catalog import (
    check_settings,
    holds_out,
    is_stale,
    open_reader,
    shard_count,
    unknown,
)
from moe.data.mixtures import parts_of, write_mixture
from moe.text.vocabulary import Vocabulary
from trainlib.chips import usable_cores
from trainlib.errors import DataError, Interrupted, Preempted


def run(
    config: ConfigDict,
    *,
    splits: Sequence[str] = ("train", "holdout"),
    workers: int = -1,
    part: tuple[int, int] = (0, 1),
    tasks: Path | None = None,
    verify: bool = False,
) -> int:
    """Prepares every source of the configuration, and says what each holds.

    Args:
      config: a configuration of this family; its `data` part decides.
      splits: which splits to prepare.
      workers: processes; -1 is one for each CPU core.
      part: (index, count), this machine's share of the shards.
      tasks: a Python file that registers the seqio Tasks and Mixtures that `data.source` names.
      verify: also reads what is there and compares the digests.

    Returns:
      0; a share of the shards counts as done although others are missing.

    Raises:
      ConfigError: a source, a vocabulary or a package that does not exist.
      DataError: nothing to read, too many unusable documents, ids outside the vocabulary, damage.
      StorageError: the disk.
      Preempted: stopped on request after some shards were finished, which stay.
    """
    data = config.data
    check_settings(data)
    vocabulary = make_vocabulary(data)
    if "model" in config and "vocab_size" in config.model:
        check_vocabulary(vocabulary, config.model.vocab_size)
    if tasks is not None:
        from moe.text.seqio_source import load_definitions

        load_definitions(tasks)
    write_mixture(data)
    workers = usable_cores() if workers < 0 else workers
    complete, finished = True, []
    try:
        for split in splits:
            for source, _ in parts_of(data, split):
                if split == "holdout" and not holds_out(data, source):
                    print(f"{source} (holdout): data.holdout=0, nothing is held out")
                    continue
                complete &= _prepare(
                    data, source, split, vocabulary, workers, part, tasks, verify, finished.append
                )
    except Interrupted as stop:
        if not finished:
            raise
        raise Preempted(
            f"{str(stop).rstrip('.')} on request; what is finished is kept ({len(finished)} shards "
            "seen by this command), and the same command goes on from there."
        ) from None
    if not complete:
        print("Other shares of the shards are missing: run the other --part=I/N.")
    return 0


def _prepare(
    data: ConfigDict,
    source: str,
    split: str,
    vocabulary: Vocabulary,
    workers: int,
    part: tuple[int, int],
    tasks: Path | None,
    verify: bool,
    finished: Callable[[str], None],
) -> bool:
    """Prepares one source; `finished` takes a line for each shard that is or was written."""

    def report(line: str) -> None:
        finished(line)
        print(line, flush=True)

    reader, directory = open_reader(data, source, split, vocabulary)
    definitions = hashlib.sha256(tasks.read_bytes()).hexdigest()[:16] if tasks else ""
    again = is_stale(source, reader, directory, f"{source} ({split})")
    if again or not is_complete(directory):
        done = build(
            directory,
            reader,
            vocabulary,
            shards=shard_count(reader),
            workers=workers,
            max_bad_fraction=data.max_bad_fraction,
            title=f"{source} ({split})",
            part=part,
            replace=again,
            definitions=definitions,
            prepare_worker=functools.partial(_load, tasks) if tasks else None,
            report=report,
        )
        if not done:
            return False
    cache = Cache(directory)
    if tasks and definitions != cache.manifest["definitions"]:
        raise DataError(
            f"{source} ({split}) was prepared with another version of {tasks}. Remove {directory} "
            "and prepare it again, or give the file as it was."
        )
    if verify:
        cache.verify()
    for line in reader.passed_over:
        print(f"passed over in {source}: {line}")
    print(describe(source, split, cache))
    return True


def _load(tasks: Path) -> None:
    from moe.text.seqio_source import load_definitions

    load_definitions(tasks)


def describe(source: str, split: str, cache: Cache) -> str:
    """Returns what a cache holds: sizes, entropy of its ids, and the documents left out."""
    held = (
        f"{source} ({split}): {cache.documents:,} documents, {cache.tokens:,} tokens, unigram "
        f"entropy {unigram_entropy(cache.counts()):.3f} nats, in {cache.directory}"
    )
    return "\n  ".join([held, *unknown(source, cache), *cache.left_out()])
