"""Paths that people give, in flags and in configuration keys: one function reads them all.

`~` is a home directory, nothing is no path (an unset variable must not mean the current directory),
and an address such as gs://bucket/run is no directory of this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlib.errors import ConfigError, shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{2}")
# What begins at a root or a home, in text that may hold more.
_ROOTED = re.compile(r"(?:^|(?<=[\s:=,;'\"(\[]))(?:~[\w.-]*/|/(?=\w)|[A-Za-z]:[\\/])[^\s,;'\")\]]*")
KEYS = (
    *("data.dir", "data.images", "data.eval_json", "data.eval_images", "data.cache"),
    *("data.train", "data.validation", "data.test"),
    *("init_from", "upcycle.workdir"),
)
# Values that hold a path after a colon: key -> the words before it.
WITH_PATHS = {
    "data.source": ("folder", "idx", "coco", "voc", "yolo", "text", "jsonl", "brown"),
    "data.vocabulary": ("sentencepiece",),
}
_PARTS = "data.parts"  # of a mixture: sources and rates


def resolve(text: str | os.PathLike[str], what: str) -> Path:
    """The path that a person means.

    Args:
      text: as it was given.
      what: the flag or key, to be named.

    Raises:
      ConfigError: it is no text or path, empty, an address of another machine, longer than a path
        can be, or names the home of nobody.
    """
    if not isinstance(text, (str, os.PathLike)):
        raise ConfigError(f"{what} is {shown(repr(text), 60)}: give a path, such as 'runs/mine'.")
    given = os.fspath(text)
    if not given.strip():
        raise ConfigError(
            f"{what} is empty. A variable that is not set gives that: look at the command line. "
            "The current directory is written as a dot."
        )
    if address := _ADDRESS.match(given):
        raise ConfigError(
            f"{what}: '{shown(given)}' is an address ({address[0]}), and only directories of this "
            "machine are read and written. Mount it (gcsfuse, s3fs, NFS) or copy it, and give the "
            "path."
        )
    if "\0" in given:
        raise ConfigError(f"{what}: '{shown(given)}' holds a NUL, which no path can.")
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{what}: '{shown(given)}': the home directory of {shown(given.split('/')[0])} is not "
            "known. Write the path out."
        ) from None
    try:
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:
        raise ConfigError(f"{what}: '{shown(given)}' holds half of a character.") from None
    if max(sizes, default=0) > 255 or sum(sizes) + len(sizes) > 4096:
        raise ConfigError(
            f"{what}: '{shown(given)}' is too long: a name has at most 255 bytes, and a path 4,096."
        )
    return path


def optional(text: str, what: str) -> str:
    """The same for a value that may be "", which stays it; as text, for other libraries."""
    return str(resolve(text, what)) if text else ""


def check(values: Mapping[str, Any], where: str = "") -> None:
    """Refuses paths in a configuration that `resolve` refuses, before anything is opened.

    Args:
      values: dotted key -> value; a path that is not set is "".
      where: of the configuration, to be named.

    Raises:
      ConfigError: see `resolve`.
    """
    place = f"{where}: " if where else ""
    for key in KEYS:
        if isinstance(value := values.get(key), str) and value:
            resolve(value, place + key)
    given = [(key, values.get(key, ""), kinds) for key, kinds in WITH_PATHS.items()]
    given += [(_PARTS, source, WITH_PATHS["data.source"]) for source in _words(values.get(_PARTS))]
    for key, value, kinds in given:
        kind, colon, path = str(value).partition(":")
        if colon and kind in kinds:
            resolve(path, f"{place}{key} ({kind}:PATH)")


def published(key: str, value: Any) -> Any:
    """A value of a configuration as it may be published: a word in capitals for each path, which
    would tell of this machine and mean nothing on another.

    Args:
      key: dotted.
      value: of it; lists may be nested.
    """
    if isinstance(value, list | tuple):
        return type(value)(published(key, part) for part in value)
    if not isinstance(value, str) or not value:
        return value
    if key in KEYS:
        return key.replace(".", "_").upper()
    kinds = WITH_PATHS["data.source"] if key == _PARTS else WITH_PATHS.get(key, ())
    kind, colon, _ = value.partition(":")
    return f"{kind}:PATH" if colon and kind in kinds else without_paths(value)


def without_paths(text: str) -> str:
    """Text with the word PATH for everything in it that begins at a root or a home."""
    return _ROOTED.sub("PATH", text)


def _words(value: Any) -> list[str]:
    """The texts of nested lists, such as pairs of a name or a source and its rate."""
    if isinstance(value, list | tuple):
        return [word for part in value for word in _words(part)]
    return [value] if isinstance(value, str) else []
