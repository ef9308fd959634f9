"""Which file of a step holds a leaf: asked only when something is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def file_of(step: Path, leaf: str) -> str:
    """The files that hold the values of a leaf, below the step directory, to be shown.

    Orbax keeps all leaves in one key-value store (OCDBT) whose data files have names like
    `d/8c1f...`; its tree says where each key lies. Where that cannot be read, it is the directory.
    """
    import tensorstore

    try:
        store = tensorstore.KvStore.open({"driver": "file", "path": f"{step}/"}).result()
        top = tensorstore.ocdbt.dump(store).result()
        found = _search(store, top["versions"][-1]["root"]["location"], b"", _key(leaf))
    except Exception:  # whatever is damaged: the directory is right as well
        found = set()
    return ", ".join(str(step / name) for name in sorted(found)[:3]) or str(step)


def _key(leaf: str) -> bytes:
    """Orbax's name of a leaf of a flat dictionary: its zarr directory."""
    return leaf.encode() + b"/"


def _search(store: Any, node: str, prefix: bytes, key: bytes) -> set[str]:
    import tensorstore

    tree: dict[str, Any] = tensorstore.ocdbt.dump(store, node).result()
    files = set()
    for entry in tree["entries"]:
        if "subtree_common_prefix" in entry or "location" in entry:
            common = prefix + entry.get("subtree_common_prefix", b"")
            files |= _search(store, entry["location"], common, key)
        elif (prefix + entry["key"]).startswith(key):
            # "value:ocdbt.process_0/:d/8c1f...:OFFSET:LENGTH"; small values lie in the node itself.
            _, base, name, *_ = entry.get("indirect_value", node).split(":")
            files.add(base + name)
    return files
