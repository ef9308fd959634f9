"""Everything that is read and may come from others, as a table: who makes good files, who reads
them, and what must not be accepted without a word.

A new kind is one `Reader` in `READERS`. `tests.fuzz.mutate` damages one of its good files at a
time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlib.errors import CheckpointError, UserError


def unsealed(good: Any, found: Any) -> str:
    """For files without a checksum: another value in them is another value."""
    return ""


def sealed(good: Any, found: Any) -> str:
    """For files with one: what is read must be what was written."""
    return "" if found == good else f"it was read as {str(found)[:300]!r}"


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of files of others.

    Attributes:
      make: an empty folder -> the folder that holds good files (that one or another); called once.
      read: that folder -> what is read from it, to be compared; everything a command would read.
      refusal: the class of error that says that the files are bad; any other is a failure.
      silent: (what the good files give, what damaged ones gave) -> what is wrong with accepting
        them, or "".
      damaged: whether a file, by its path below the folder, is damaged at all.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    refusal: type[UserError] | tuple[type[UserError], ...]
    silent: Callable[[Any, Any], str] = unsealed
    damaged: Callable[[Path], bool] = lambda path: True


# --------------------------------------------------------------------------------- weights
@functools.cache
def _exports(root: Path) -> dict[str, Path]:
    from tests.fuzz.hostile import good_exports

    with contextlib.redirect_stdout(io.StringIO()):
        return good_exports(root)


def _export(kind: str) -> Callable[[Path], Path]:
    return lambda folder: _exports(folder.parent / "exports")[kind]


def read_hugging_face(path: Path) -> None:
    """All that an import reads, short of building the model."""
    from moe.interop import hf
    from trainlib.safetensors_io import Reader as Tensors
    from trainlib.untrusted import read_json

    hf.from_config(read_json(path / "config.json"))
    reader = Tensors(path)
    for name in reader.tensors:
        reader.read(name)


def read_t5x(path: Path) -> None:
    """The same of a T5X checkpoint; arrays of the size of the good one, as an import compares."""
    from moe.interop import t5x, t5x_io

    checkpoint = t5x_io.Checkpoint(path)
    t5x.guess(checkpoint.shapes)
    for name, shape in checkpoint.shapes.items():
        if 0 < len(shape) < 4 and max(shape) < 10**4:
            checkpoint.read(name)


def _few_arrays(path: Path) -> bool:
    """The many arrays of T5X are alike: a few stand for all."""
    return "/target." not in f"/{path}" or "embed" in str(path)


READERS: dict[str, Reader] = {
    "hf": Reader(_export("hf"), read_hugging_face, CheckpointError),
    "t5x": Reader(_export("t5x"), read_t5x, CheckpointError, damaged=_few_arrays),
}
