"""Names of a model's outputs: kept by training, carried by checkpoints and exports, and what the
labels of other data are matched by. A label number means something only beside them.

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

import numpy as np

from trainlib import config as settings
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.checkpoint import write as saving
from trainlib.errors import CheckpointError, ConfigError, DataError, UserError, shown, told_apart
from trainlib.formats import weight_source as weights
from trainlib.run import run
from trainlib.untrusted_files import read_small
from vitattn.data.catalog import official_names
from vitattn.data.source import Example, Source, short_digest

FILE = "class_names.txt"
SECTION = "classes"  # of a manifest's meta
SHOWN = 30  # names of one list that are printed
_NOTHING = "null"

Names = tuple[str | None, ...]  # [C]


@dataclasses.dataclass(frozen=True)
class Kept:
    """The names of a model.

    Attributes:
      names: one an output; None where no class was trained.
      where: what says so, for messages.
    """

    names: Names
    where: str

    @property
    def known(self) -> dict[str, int]:
        """Name -> output.

        Raises:
          DataError: two outputs have one name.
        """
        _refuse_twice(self.names, self.where)
        return {name: number for number, name in enumerate(self.names) if name is not None}


# ------------------------------------------------------------------------------- lines
def to_lines(names: Names) -> list[str]:
    """One printable line of ASCII or plain Unicode for each name."""
    return [_NOTHING if name is None else _line(name) for name in names]


def to_text(names: Names) -> str:
    """The content of `class_names.txt`."""
    return "".join(f"{line}\n" for line in to_lines(names))


def _line(name: str) -> str:
    plain = name.isprintable() and name == name.strip() and not name.startswith('"')
    return name if plain and name not in ("", _NOTHING) else json.dumps(name)


def _name(line: str) -> str | None:
    if line == _NOTHING:
        return None
    if line.startswith('"'):
        with contextlib.suppress(
            ValueError, TypeError
        ):  # a name of an earlier version may begin so
            found = json.loads(line)
            os.fsencode(found)  # half a surrogate pair that stands for no byte is no name
            return found
    return line


def from_text(text: str) -> list[str | None]:
    """The names in a file, written by training, an earlier version of it, or by hand."""
    lines = text.removeprefix("\ufeff").strip().replace("\r\n", "\n").split("\n")
    return [_name(line.strip()) for line in lines]


def of_outputs(names: Sequence[str], outputs: int, where: str) -> Names:
    """The names of a data set's classes as those of `outputs` outputs, of which the last may have
    no class.

    Raises:
      DataError: an empty name, or two classes of one name.
    """
    _refuse_twice(names, where)
    if "" in names:
        raise DataError(f"{shown(where)}: the class of label {names.index('')} has no name.")
    return (*names, *[None] * (outputs - len(names)))


def _refuse_twice(names: Sequence[str | None], where: str) -> None:
    (name, count), *_ = Counter(n for n in names if n is not None).most_common(1) or [("", 0)]
    if count > 1:
        numbers = ", ".join(str(i) for i, other in enumerate(names) if other == name)
        raise DataError(
            f"{shown(where)}: the class name '{shown(name)}' stands for the labels {numbers}. "
            "Every class needs a name of its own, since labels are matched by them."
        )


# ------------------------------------------------------------------------------- kept and found
def keep(names: Names, workdir: Path) -> None:
    """Writes the names of a run's outputs beside its checkpoints.

    Raises:
      StorageError: the disk refuses.
    """
    run.write(workdir / FILE, to_text(names))


def to_meta(names: Names) -> dict[str, Any]:
    """What a manifest says of them."""
    return {SECTION: {"names": to_lines(names)}}


def from_meta(meta: Mapping[str, Any], where: str) -> Kept | None:
    """What `to_meta` wrote; None in checkpoints of earlier versions and of imports.

    Raises:
      CheckpointError: it is no list of lines.
    """
    if SECTION not in meta:
        return None
    lines = meta[SECTION].get("names")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise CheckpointError(f"{where}: the class names in its manifest are no list of text.")
    names = tuple(map(_name, lines))
    if "" in names:
        raise CheckpointError(f"{where}: output {names.index('')} has an empty class name.")
    return Kept(names, where)


def read(file: Path, outputs: int, *, short: bool = False, follow: bool = True) -> Kept:
    """The names in a file.

    Args:
      file: one name a line.
      outputs: C.
      short: whether the last outputs may lack a line, as earlier versions wrote it.
      follow: whether it may be a link, as what a person named may be.

    Raises:
      DataError: it cannot be read, has an empty line, or not C names.
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
    return Kept((*names, *[None] * (outputs - len(names))), str(file))


def of_model(workdir: Path, at_step: int | None, outputs: int) -> tuple[int | None, Kept | None]:
    """Which step of a run is read (that of an export is not chosen), and the names of the model's
    outputs; None where nothing says them.

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


def find(workdir: Path, step: str, meta: Mapping[str, Any], outputs: int) -> Kept | None:
    """The names of a model: those in its manifest, else in the file beside its checkpoints or
    weights, else those that its data set fixes, when they are as many as its outputs. None where
    nothing says them.

    Args:
      workdir: of a run, import or export.
      step: where the manifest lies, for messages.
      meta: of the manifest; empty for an export.
      outputs: C.

    Raises:
      CheckpointError: the manifest names another number of outputs.
      DataError: the file cannot be read or does not fit.
    """
    file, found = workdir / FILE, from_meta(meta, step)
    if found is None and file.exists():
        return read(file, outputs, short=True, follow=False)
    if found is None:
        source = meta.get("config", {}).get("data.source") or _configured(workdir)
        names = official_names(str(source))
        return Kept(names, f"data.source={source}") if len(names) == outputs else None
    if len(found.names) != outputs:
        raise CheckpointError(
            f"{step} holds a model of {len(found.names)} outputs, and model.num_classes is "
            f"{outputs} here. Give the configuration that it was trained with."
        )
    with contextlib.suppress(UserError):  # the manifest is enough
        if file.exists() and read(file, outputs, short=True, follow=False).names != found.names:
            saving.warn(
                f"{shown(file)} holds other names than {step}, whose are taken: a checkpoint says "
                "what its outputs were trained on. `launch.predict --class_names=FILE` prints "
                "others."
            )
    return found


def _configured(workdir: Path) -> Any:
    with contextlib.suppress(ConfigError):
        return settings.read_json(workdir / "config.json").get("data.source", "")
    return ""


def numbered(names: Names) -> list[str]:
    """The names, with outputs that have none called by their number."""
    return [f"class {i}" if name is None else name for i, name in enumerate(names)]


def printable(names: Names) -> list[str]:
    """The same for people: nothing that steers a terminal, and no two look alike."""
    return told_apart(numbered(names))[0]


# ------------------------------------------------------------------------------- compared
def listed(names: Sequence[str]) -> str:
    """Names that `told_apart` made, as one phrase."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def difference(here: Sequence[str], there: Sequence[str]) -> tuple[str, str, str, str]:
    """Two lists of names as phrases: both lists, what only the first has and what only the second
    has. Names that look alike come out so that one sees the difference.
    """
    only_here, only_there = set(here) - set(there), set(there) - set(here)
    lists = told_apart(
        here, there, [n for n in here if n in only_here], [n for n in there if n in only_there]
    )
    return tuple(map(listed, lists))  # pyright: ignore[reportReturnType]


class Relabelled:
    """The records of another source, with the labels of a model's outputs."""

    def __init__(self, parent: Source, names: Names, labels: np.ndarray):
        self.parent, self.labels = parent, labels
        self.num_classes = len(names)
        self.class_names = tuple(name or "" for name in names)
        self.in_memory, self.mean, self.std = parent.in_memory, parent.mean, parent.std
        self.left_out = parent.left_out
        self.digest = short_digest(parent.digest, *to_lines(names))

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, record: int) -> Example:
        image, label = self.parent[record]
        return Example(image, int(self.labels[label]))

    def describe(self, record: int) -> str:
        return self.parent.describe(record)


def by_name(source: Source, kept: Kept, what: str) -> Source:
    """The data set with each label replaced by the output that has the name of its class.

    Args:
      source: any data set with some of the model's classes.
      kept: the model's names.
      what: the data set, for messages.

    Raises:
      DataError: it has a class that the model was not trained on; both lists are shown.
    """
    own = of_outputs(source.class_names, len(source.class_names), what)
    known = kept.known
    if any(name not in known for name in own):
        theirs, ours, strange, lacking = difference(source.class_names, list(known))
        raise DataError(
            f"{shown(what)} has classes that the model was not trained on: {strange}. Its classes: "
            f"{theirs}. Those of the model ({shown(kept.where)}): {ours}. Not in the data: "
            f"{lacking}. Labels are matched by these names: rename or leave out what is unknown."
        )
    labels = np.asarray([known[name] for name in own if name is not None], np.int64)
    if (labels == np.arange(len(labels))).all() and len(own) == len(kept.names):
        return source
    return Relabelled(source, kept.names, labels)


def check_resume(meta: Mapping[str, Any], step: int, names: Names, workdir: Path) -> None:
    """Refuses to go on with other classes than a run began with.

    Args:
      meta: of the manifest of `step`.
      step: where the run goes on.
      names: of the outputs, by the data set as it is now.
      workdir: of the run.

    Raises:
      ConfigError: a class came, went or was renamed; both lists are shown.
    """
    where = str(workdir / "checkpoints" / str(step))
    kept, file = from_meta(meta, where), workdir / FILE
    if kept is None and file.exists():
        text = read_small(file, error=ConfigError).decode(errors="replace")
        if text == "".join(f"{name}\n" for name in names if name is not None):
            return  # of an earlier version, which wrote names as they were
        kept = read(file, len(names), short=True, follow=False)
    if kept is None or kept.names == names:
        _say_if_edited(file, names)
        return
    now, then = ([name for name in found if name is not None] for found in (names, kept.names))
    ours, theirs, new, gone = difference(now, then)
    raise ConfigError(
        f"The classes of the data are other ones than those that the run in {shown(workdir)} was "
        f"trained on, and its outputs mean something else now. Classes of the data: {ours}. Of the "
        f"run ({shown(kept.where)}): {theirs}. New: {new}. Gone: {gone}. Put the classes back as "
        "they were, or use a new --workdir; --config.init_from starts one from these weights."
    )


def _say_if_edited(file: Path, names: Names) -> None:
    """A run that goes on writes its names again; what a person wrote there does not go in
    silence.
    """
    with contextlib.suppress(UserError, UnicodeDecodeError):
        if file.exists() and from_text(read_small(file, error=DataError).decode()) != list(names):
            saving.warn(
                f"{shown(file)} was changed since the run wrote it, and is written again with the "
                "names of the data. Keep names of your own in another file, for "
                "`launch.predict --class_names=FILE`."
            )


def head_order(there: Kept, names: Names, anew: str) -> np.ndarray | None:
    """Which output of another model each output here continues, [C]; None when it is the same.

    Args:
      there: names of the other model, of as many outputs.
      names: of the outputs here.
      anew: the setting with which the head starts anew.

    Raises:
      ConfigError: they are not the same classes; both lists are shown.
    """
    known, here = there.known, [name for name in names if name is not None]
    if set(here) != set(known):
        ours, theirs, new, gone = difference(here, list(known))
        raise ConfigError(
            f"init_from: the outputs of that model ({shown(there.where)}) stand for other classes, "
            f"though there are as many. Classes here: {ours}. There: {theirs}. New: {new}. Gone: "
            f"{gone}. Its head is of no use for them: let it start anew by {anew}"
        )
    unnamed = iter(number for number, name in enumerate(there.names) if name is None)
    order = [next(unnamed) if name is None else known[name] for name in names]
    return None if order == sorted(order) else np.asarray(order)
