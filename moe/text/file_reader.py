"""What readers of files share: the files of a folder, cut into pieces, and the held-out part."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from moe.text.files import Listing, TextFile, find
from moe.text.fingerprint import files_digest, unreadable
from moe.text.reader import Document, draw, held_out
from trainlib import paths
from trainlib.errors import DataError, shown

# Files are read in pieces of about this size; of jsonl, each the lines that begin in it.
PIECE_BYTES = 64 << 10


class _Division(NamedTuple):
    """Which documents are held out against their own draw, so that neither part is empty."""

    forced: dict[str, bool]  # key -> whether it is held out
    only: str = ""  # key of the only document that can be used


class FileReader:
    """The files of a folder (`moe.text.files` says which), or one file; cut into pieces whose ends
    depend on nothing but the files. A fixed part of the documents is held out, at least one."""

    most_shards = 1024

    def __init__(self, kind: str, path: str, fraction: float, holdout: bool):
        self.name, self.kind = f"{kind}:{path}", kind
        self.path = paths.resolve(path, f"data.source ({kind}:PATH)")
        self.fraction, self.holdout = fraction, holdout
        self.notes: Path | None = None  # see `files_digest`

    @functools.cached_property
    def _listing(self) -> Listing:
        try:
            return find(self.kind, self.path)
        except OSError as error:
            raise unreadable(self.name, error) from error

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self._listing.files)

    @property
    def passed_over(self) -> Sequence[str]:
        return self._listing.passed_over

    def fingerprint(self) -> str | None:
        for known in ("_listing", "_division"):  # files may have come or gone
            self.__dict__.pop(known, None)
        names = [file.name for file in self._listing.files]
        return files_digest(self.name, self.path, names, self.notes)

    def _pieces(self, shard: int, shards: int) -> Iterator[tuple[TextFile, int | None]]:
        """Yields (file, start) of the shard's pieces; None is all of a file that has to be read
        from its beginning.
        """
        pieces = (
            (file, start)
            for file in self._listing.files
            for start in (
                [None] if file.packed or file.array else range(0, max(file.size, 1), PIECE_BYTES)
            )
        )
        return itertools.islice(pieces, shard, None, shards)

    def _where(self, file: TextFile, position: str) -> str:
        return f"{shown(self.path / file.name)} {position}"

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        """Yields (key, document) of the documents whose key is wanted."""
        raise NotImplementedError

    def _divided(self, document: Document) -> Document:
        """This part's share of the only document."""
        raise NotImplementedError

    @functools.cached_property
    def _division(self) -> _Division:
        """Reads documents until both parts have one that can be used."""
        if not self.fraction:
            return _Division({})
        drawn: dict[str, int] = {}
        sides: set[bool] = set()
        for key, document in self._keyed(0, 1, lambda key: True):
            if document.unusable:
                continue
            sides.add(held_out(key, self.fraction))
            if len(sides) == 2:
                return _Division({})
            number = draw(key)
            if len(drawn) < 2:
                drawn[key] = number
            else:  # the lowest and the highest are all that can be needed
                low, high = sorted(drawn, key=drawn.__getitem__)
                low = key if number < drawn[low] else low
                high = key if number > drawn[high] else high
                drawn = {k: number if k == key else drawn[k] for k in (low, high)}
        if len(drawn) < 2:
            return _Division({}, only=next(iter(drawn), ""))
        low, high = sorted(drawn, key=drawn.__getitem__)
        return _Division({low: True} if sides == {False} else {high: False})

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        division = self._division

        def wanted(key: str) -> bool:
            if key == division.only:
                return True
            return division.forced.get(key, held_out(key, self.fraction)) == self.holdout

        for key, document in self._keyed(shard, shards, wanted):
            yield self._divided(document) if key == division.only else document

    def _indivisible(self, what: str) -> DataError:
        return DataError(
            f"{self.name} has {what}, so that nothing can be held out of it. Train without an "
            "evaluation (--config.data.holdout=0), or give it more."
        )
