"""The tree of a checkpoint that T5X writes with use_orbax=True.

    checkpoint_<step>/_CHECKPOINT_METADATA        by newer versions
    checkpoint_<step>/state/checkpoint            msgpack: {target, state}, by older versions
    checkpoint_<step>/state/_METADATA             JSON: the paths of all leaves, by newer versions
    checkpoint_<step>/state/target.<path>/.zarray one zarr array for each parameter, as in T5X's own

A leaf of the msgpack tree is an array, or text that names the directory of one. Only parameters are
looked at; nothing of their sizes is believed before their arrays say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainlib.errors import CheckpointError, shown
from trainlib.untrusted_files import read_json

METADATA = "_METADATA"
STATE = "state"  # the item of the train state beside that of the data
OCDBT = "manifest.ocdbt"
PLACEHOLDER = "PLACEHOLDER://"
TARGET = "target"
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,100}")


def check_form(directory: Path) -> None:
    """Refuses arrays in one database.

    Raises:
      CheckpointError: they are; says what to do.
    """
    if (directory / OCDBT).exists():
        _refuse_form(directory, "OCDBT, one database for all arrays")


def _refuse_form(directory: Path, form: str) -> None:
    raise CheckpointError(
        f"{shown(directory)} is written by Orbax as {form}. Read is a directory for each array, in "
        "zarr version 2, as T5X writes. Restore it with Orbax where you trust it, and save it with "
        "PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)."
    )


def folders(directory: Path) -> Iterator[tuple[str, str]]:
    """(path of a parameter, name of its directory), from the JSON of a newer version.

    Raises:
      CheckpointError: damaged, of another form, or no train state.
    """
    where = directory / METADATA
    content = read_json(where)
    for key, form in (("use_ocdbt", "OCDBT"), ("use_zarr3", "zarr version 3")):
        if content.get(key, False):
            _refuse_form(directory, form)
    tree = content.get("tree_metadata")
    if not isinstance(tree, dict):
        raise CheckpointError(f"{shown(where)} holds no tree_metadata.")
    for leaf in tree.values():
        keys = _keys(leaf, where)
        if keys[0] != TARGET:
            continue
        for key in keys:
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise CheckpointError(f"{shown(where)} holds the name {shown(repr(key), 80)}.")
        yield "/".join(keys[1:]), ".".join(keys)


def _keys(leaf: Any, where: Path) -> list[Any]:
    metadata = leaf.get("key_metadata") if isinstance(leaf, Mapping) else None
    if not isinstance(metadata, list) or not 0 < len(metadata) <= 32:
        raise CheckpointError(f"{shown(where)}: a leaf without a short list key_metadata.")
    if not all(isinstance(part, Mapping) and "key" in part for part in metadata):
        raise CheckpointError(f"{shown(where)}: key_metadata is no list of keys.")
    return [part["key"] for part in metadata]
