"""Names of a model's outputs: written by training, carried by checkpoints and exports, read back
from there. A label number has a meaning only together with them; see `matching`.

C outputs. In `class_names.txt` a line is the name of one output, in their order. What one plain
line cannot hold (control characters, blanks at the ends, bytes that are no UTF-8, a quotation mark
at the start) is a JSON string, and `null` is an output that no class was trained on. The manifest
of a checkpoint holds the same lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainlib import commands
from trainlib import config as settings
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.checkpoint import write as saving
from trainlib.errors import CheckpointError, ConfigError, DataError, UserError, shown, told_apart
from trainlib.formats import weight_source as weights
from trainlib.run.workdir import write_text
from trainlib.untrusted_files import read_small
from vitattn.data.catalog import official_names

FILE = "class_names.txt"
SECTION = "classes"  # of a manifest's meta
_NOTHING = "null"

Names = tuple[str | None, ...]  # [C]


@dataclasses.dataclass(frozen=True)
class ModelNames:
    """The names of a model's outputs, and where they come from.

    Attributes:
      names: one for each output; None where no class was trained.
      where: the file or data set that they were read from, for messages.
    """

    names: Names
    where: str

    @property
    def outputs(self) -> dict[str, int]:
        """Name -> number of its output.

        Raises:
          DataError: two outputs have one name.
        """
        _check_distinct(self.names, self.where)
        return {name: number for number, name in enumerate(self.names) if name is not None}


# ---------------------------------------------------------------- as lines of text
def to_lines(names: Names) -> list[str]:
    """Returns one printable line for each name."""
    return [_NOTHING if name is None else _line(name) for name in names]


def to_text(names: Names) -> str:
    """Returns the content of `class_names.txt`."""
    return "".join(f"{line}\n" for line in to_lines(names))


def _line(name: str) -> str:
    plain = name.isprintable() and name == name.strip() and not name.startswith('"')
    return name if plain and name not in ("", _NOTHING) else json.dumps(name)


def _name(line: str) -> str | None:
    if line == _NOTHING:
        return None
    if line.startswith('"'):
        # Earlier versions wrote names as they were: a quotation mark need not begin JSON.
        with contextlib.suppress(ValueError, TypeError):
            name = json.loads(line)
            os.fsencode(name)  # half a surrogate pair that stands for no byte is no name
            return name
    return line


def from_text(text: str) -> list[str | None]:
    """Returns the names in a file that training, an earlier version of it, or a person wrote."""
    lines = text.removeprefix("\ufeff").strip().replace("\r\n", "\n").split("\n")
    return [_name(line.strip()) for line in lines]


def of_outputs(names: Sequence[str], outputs: int, where: str) -> Names:
    """Returns the names of a data set's classes as those of C outputs; the last outputs may have no
    class.

    Args:
      names: of the classes, in the order of their labels.
      outputs: C, as many as there are names or more.
      where: the data set, for messages.

    Raises:
      DataError: an empty name, or two classes of one name.
    """
    _check_distinct(names, where)
    if "" in names:
        raise DataError(f"{shown(where)}: the class of label {names.index('')} has no name.")
    return (*names, *[None] * (outputs - len(names)))


def _check_distinct(names: Sequence[str | None], where: str) -> None:
    (name, count), *_ = Counter(n for n in names if n is not None).most_common(1) or [("", 0)]
    if count > 1:
        numbers = ", ".join(str(i) for i, other in enumerate(names) if other == name)
        raise DataError(
            f"{shown(where)}: the class name '{shown(name)}' stands for the labels {numbers}. "
            "Every class needs a name of its own, since labels are matched by them."
        )


# ---------------------------------------------------------------- written and read
def write(names: Names, workdir: Path) -> None:
    """Writes the names of a run's outputs beside its checkpoints.

    Raises:
      StorageError: the disk refuses.
    """
    write_text(workdir / FILE, to_text(names))


def to_meta(names: Names) -> dict[str, Any]:
    """Returns the names as a section of a checkpoint's manifest."""
    return {SECTION: {"names": to_lines(names)}}


def from_meta(meta: Mapping[str, Any], where: str) -> ModelNames | None:
    """Reads what `to_meta` wrote; None for checkpoints of earlier versions and of imports.

    Raises:
      CheckpointError: the section is not a list of lines.
    """
    if SECTION not in meta:
        return None
    lines = meta[SECTION].get("names")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise CheckpointError(f"{where}: the class names in its manifest are no list of text.")
    names = tuple(map(_name, lines))
    if "" in names:
        raise CheckpointError(f"{where}: output {names.index('')} has an empty class name.")
    return ModelNames(names, where)


def read(file: Path, outputs: int, *, short: bool = False, follow: bool = True) -> ModelNames:
    """Reads the names in a file.

    Args:
      file: one name a line.
      outputs: C.
      short: whether the last outputs may lack a line, as earlier versions wrote it.
      follow: whether the file may be a link; one that a person named may be.

    Raises:
      DataError: the file cannot be read, has an empty line, or does not hold C names.
    """
    data = read_small(file, follow=follow, error=DataError)
    try:
        names = from_text(data.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"The class names {shown(file)} cannot be read: {error}.") from None
    if len(names) > outputs or (len(names) < outputs and not short):
        raise DataError(
            f"{shown(file)} holds {len(names)} names and the model has {outputs} classes. "
            f"Give one name a line, in the order of the labels; {_NOTHING} for an output without a "
            "class."
        )
    if "" in names:
        raise DataError(f"{shown(file)}: line {names.index('') + 1} is empty.")
    return ModelNames((*names, *[None] * (outputs - len(names))), str(file))


def of_model(
    workdir: Path, at_step: int | None, outputs: int
) -> tuple[int | None, ModelNames | None]:
    """Finds the names of the outputs of a run or export.

    Args:
      workdir: of the run or export.
      at_step: a step of the run; None for the newest.
      outputs: C.

    Returns:
      The step that is read (as given for an export, which has one), and the names, or None where
      they are not known.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      DataError: `class_names.txt` does not fit.
    """
    if weights.is_export(workdir):
        return at_step, find(workdir, "", {}, outputs)
    with contextlib.closing(checkpoint.Checkpoints(workdir / "checkpoints")) as checkpoints:
        number = checkpoints.pick(at_step)
        where = str(checkpoints.directory / str(number))
        return number, find(workdir, where, checkpoints.meta(number), outputs)


def find(workdir: Path, step: str, meta: Mapping[str, Any], outputs: int) -> ModelNames | None:
    """Finds the names of a model: those in its manifest, else in the file beside its checkpoints or
    weights, else those that its data set fixes, if they are as many as its outputs; else None.

    Args:
      workdir: of a run, import or export.
      step: where the manifest lies, for messages.
      meta: of the manifest; empty for an export.
      outputs: C.

    Raises:
      CheckpointError: the manifest names another number of outputs.
      DataError: the file cannot be read or does not fit.
    """
    file, recorded = workdir / FILE, from_meta(meta, step)
    if recorded is None and file.exists():
        return read(file, outputs, short=True, follow=False)
    if recorded is None:
        source = meta.get("config", {}).get("data.source") or _configured(workdir)
        names = official_names(str(source))
        return ModelNames(names, f"data.source={source}") if len(names) == outputs else None
    if len(recorded.names) != outputs:
        raise CheckpointError(
            f"{step} holds a model of {len(recorded.names)} outputs, and model.num_classes is "
            f"{outputs} here. Give the configuration that it was trained with."
        )
    with contextlib.suppress(UserError):  # the manifest is enough
        if file.exists() and read(file, outputs, short=True, follow=False).names != recorded.names:
            saving.warn(
                f"{shown(file)} holds other names than {step}, whose are taken: a checkpoint says "
                "what its outputs were trained on. "
                f"`{commands.name('predict')} --class_names=FILE` prints "
                "others."
            )
    return recorded


def _configured(workdir: Path) -> Any:
    with contextlib.suppress(ConfigError):
        return settings.read_json(workdir / "config.json").get("data.source", "")
    return ""


def numbered(names: Names) -> list[str]:
    """Returns the names, and "class N" for output N where there is none."""
    return [f"class {i}" if name is None else name for i, name in enumerate(names)]


def as_unicode(name: str | Path) -> str:
    """Returns a name with the bytes written out that are not UTF-8: JSON holds Unicode only."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(names: Names) -> list[str]:
    """Returns the same for people: nothing that steers a terminal, and no two look alike."""
    return told_apart(numbered(names))[0]
