"""Which file of a step holds a leaf: asked only when something is damaged."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_of(step: Path, leaf: str) -> str:
    """The files that hold the values of a leaf, below the step directory, to be shown.

    Orbax keeps all leaves in one key-value store (OCDBT) whose data files have names like
    `d/8c1f...`; its tree says where each key lies. Where that cannot be read, it is the directory.
    """
    try:
        stamp = sum(hash((p, p.stat().st_size, p.stat().st_mtime_ns)) for p in step.rglob("*"))
        files = _files(step, stamp).get(leaf.encode(), set())
    except Exception:  # whatever is damaged: the directory is right as well
        files = set()
    return ", ".join(str(step / name) for name in sorted(files)[:3]) or str(step)


@functools.lru_cache(maxsize=1)  # a damaged step is asked for each of its leaves
def _files(step: Path, stamp: int) -> Mapping[bytes, set[str]]:
    """Leaf -> names of its files; `stamp` is that of what the directory holds."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "file", "path": f"{step}/"}).result()
    top = tensorstore.ocdbt.dump(store).result()
    files: dict[bytes, set[str]] = {}
    _add(files, store, top["versions"][-1]["root"]["location"], b"")
    return files


def _add(files: dict[bytes, set[str]], store: Any, node: str, prefix: bytes) -> None:
    import tensorstore

    tree: dict[str, Any] = tensorstore.ocdbt.dump(store, node).result()
    for entry in tree["entries"]:
        if "subtree_common_prefix" in entry or "location" in entry:
            common = prefix + entry.get("subtree_common_prefix", b"")
            _add(files, store, entry["location"], common)
        else:
            # Orbax's name of a leaf of a flat dictionary is its zarr directory.
            leaf = (prefix + entry["key"]).rpartition(b"/")[0]
            # "value:ocdbt.process_0/:d/8c1f...:OFFSET:LENGTH"; small values lie in the node itself.
            _, base, name, *_ = entry.get("indirect_value", node).split(":")
            files.setdefault(leaf, set()).add(base + name)
