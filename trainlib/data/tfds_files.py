"""Looks at the files of TensorFlow Datasets (TFDS) before TFDS does: they are data, never code.

TFDS makes the features of a data set from names of Python classes that stand in its files, and
imports the module of whatever name it finds, from the current directory too. It also reads files
whose paths stand there. So these files are read here first, bounded and as plain JSON: classes are
those of `tensorflow_datasets.core.features` alone, names are no paths, and everything in the
directory is a regular file.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainlib import paths
from trainlib.errors import ConfigError, DataError, shown
from trainlib.untrusted_files import MAX_JSON, parse_json, read_small, what_is

FEATURES = "features.json"
INFO = "dataset_info.json"
_LABELS = ".labels.txt"
_MOST_LABELS = 2**24

# The keys under which TFDS looks up a class: of its JSON, of the older form of it, and of protobuf.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
# JSON within JSON, in both forms.
_INNER_JSON = ("json", "content")
# Arguments of its features that are paths of files to read when they are texts.
_PATHS = ("names_file", "labels")
_CLASS = re.compile(r"tensorflow_datasets\.core\.features\.([a-z_]+)\.[A-Za-z_]+", re.ASCII)
_SET = re.compile(r"([A-Za-z]\w*)(/[\w.+\- ]+)?(:[\d.*]+)?", re.ASCII)


def check_set(name: str, data_dir: str) -> None:
    """Checks every prepared version of a data set, of which TFDS then picks one.

    Args:
      name: as TFDS reads it: NAME[/CONFIG][:VERSION].
      data_dir: TFDS's data directory; empty is its own.

    Raises:
      DataError: see `check_version`.
      ConfigError: the name is none of a set on a disk.
    """
    parts = _SET.fullmatch(name)
    if not parts:
        raise ConfigError(
            f"{shown(name)!r} is not the name of a TFDS data set on a disk: NAME[/CONFIG]:VERSION, "
            "for example wiki40b/en:1.3.0."
        )
    folder = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", parts[1]).lower()
    for root in _data_dirs(data_dir):
        for own in {root / parts[1], root / folder}:
            _check_default_config(own)
            for directory in _versions(own, 2):
                check_version(directory)


def _data_dirs(data_dir: str) -> list[Any]:
    from etils import epath

    own = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return [epath.Path(paths.resolve(data_dir or own, "data.dir"))]


def _versions(folder: Any, depth: int) -> Iterator[Any]:
    """The directories of prepared versions: NAME/VERSION and NAME/CONFIG/VERSION."""
    try:
        inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        if (folder / FEATURES).exists() or (folder / INFO).exists():
            yield folder
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be opened: {error.strerror or error}.") from error
    if depth:
        for path in inside:
            yield from _versions(path, depth - 1)


def _check_default_config(folder: Any) -> None:
    file = folder / ".config" / "metadata.json"
    if file.exists():
        content = _json(file)
        default = content.get("default_config_name") if isinstance(content, dict) else content
        if default is not None:
            _plain_name(default, f"{shown(file)}: default_config_name")


def check_version(directory: str | Path) -> None:
    """Checks the directory of one prepared version of a data set.

    Raises:
      DataError: it names a class that is not one of TFDS's features, or a path where a name should
        be; or holds a file that is too large, damaged, or no regular file.
    """
    from etils import epath

    location = epath.Path(paths.resolve(directory, "data.dir"))
    try:
        _check(location)
    except DataError as error:
        raise DataError(
            f"{shown(directory)} is not a TFDS data set that can be read: {error}"
        ) from error


def _check(location: Any) -> None:
    _check_files(os.fspath(location))
    if (location / FEATURES).exists():
        _check_features(_json(location / FEATURES), shown(location / FEATURES))
    if (location / INFO).exists():
        info = _json(location / INFO)
        if not isinstance(info, dict):
            raise DataError(f"{shown(location / INFO)} must hold one JSON object.")
        _check_features(info.get("features"), f"{shown(location / INFO)}: features")
        _check_names(info, shown(location / INFO))


def _check_files(location: str, depth: int = 2) -> None:
    """Pipes and devices would be waited for, or fill the memory. Links are followed."""
    if "://" in location:
        return  # buckets hold files only
    try:
        with os.scandir(location) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    if depth:
                        _check_files(entry.path, depth - 1)
                elif not entry.is_file():
                    raise DataError(
                        f"{shown(entry.path)} is {what_is(entry.path)}, not a regular file. Copy "
                        "the data set again."
                    )
                elif entry.name.endswith(_LABELS):
                    read_small(entry.path, _MOST_LABELS, follow=True, error=DataError)
    except OSError as error:
        name = error.filename or location
        raise DataError(f"{shown(name)} cannot be opened: {error.strerror or error}.") from error


def _json(file: Any) -> Any:
    path = os.fspath(file)
    if "://" not in path:
        data = read_small(path, MAX_JSON, follow=True, error=DataError)
    else:
        size = file.stat().length
        if size > MAX_JSON:
            raise DataError(f"{shown(path)} has {size:,} bytes, more than is read of such a file.")
        data = file.read_bytes()
    return parse_json(data, shown(path), error=DataError)


def _check_features(content: Any, what: str) -> None:
    """Looks through everything, at any depth, in texts that hold JSON too."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            if isinstance(item, str):
                if key in _CLASS_KEYS:
                    _check_class(item, what)
                elif key in _PATHS:
                    raise DataError(
                        f"{what}: {key} is {shown(item, 80)!r}, a file that TFDS would read. "
                        "Prepare the data set again with a present TFDS, which keeps the names "
                        "themselves."
                    )
                elif key in _INNER_JSON and item.strip():
                    waiting.append(parse_json(item.encode("utf-8"), what, error=DataError))
            else:
                waiting.append(item)


def _check_class(name: str, what: str) -> None:
    match = _CLASS.fullmatch(name)
    if not match or match[1] not in _modules():
        raise DataError(
            f"{what} names the class {shown(name, 120)!r}, and TFDS would import its module, which "
            "can be any program. Read are the features of tensorflow_datasets itself "
            "(tensorflow_datasets.core.features). Prepare the data set with these, or take out the "
            "feature."
        )


@functools.cache
def _modules() -> frozenset[str]:
    """The modules of TFDS's own features, without importing TFDS."""
    package = importlib.util.find_spec("tensorflow_datasets")
    folders = (package.submodule_search_locations if package else None) or []
    files = [file for folder in folders for file in Path(folder).glob("core/features/*.py")]
    return frozenset(f.stem for f in files if not re.search("^__|^test_|_test$", f.stem))


def _check_names(info: dict[str, Any], what: str) -> None:
    for key in ("name", "version", "configName", "config_name", "fileFormat", "file_format"):
        _plain_name(info.get(key, ""), f"{what}: {key}")
    splits = info.get("splits") or []
    for split in splits if isinstance(splits, list) else [splits]:
        if not isinstance(split, dict):
            raise DataError(f"{what}: splits must be a list of objects.")
        _plain_name(split.get("name", ""), f"{what}: splits: name")
        for key in ("filepathTemplate", "filepath_template"):
            # A template may have a folder in it, below this one.
            template = str(split.get(key, ""))
            plain = template.replace("/", "") if not template.startswith("/") else template
            _plain_name(plain, f"{what}: splits: {key}")
        lengths = split.get("shardLengths", split.get("shard_lengths")) or []
        for length in lengths if isinstance(lengths, list) else [lengths]:
            if not re.fullmatch(r"\d{1,15}", str(length), re.ASCII):
                raise DataError(
                    f"{what}: splits: shardLengths holds {shown(repr(length), 60)}, which is no "
                    "number of records."
                )


def _plain_name(name: Any, what: str) -> None:
    """Names of these files become parts of paths."""
    if not isinstance(name, str) or "/" in name or "\\" in name or "\0" in name or ".." in name:
        raise DataError(
            f"{what} is {shown(repr(name), 80)}, which is no name: such a data set would have "
            "files in other places. Prepare it again with TFDS."
        )
