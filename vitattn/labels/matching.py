"""Matching labels by the names of their classes: other data with a model's outputs, a resumed run
with its own, a new head with an older one.

C outputs of a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from trainlib import commands
from trainlib.checkpoint import write as saving
from trainlib.errors import ConfigError, DataError, UserError, shown, told_apart
from trainlib.untrusted_files import read_small
from vitattn.data.source import AnySource, Example, Labelled, Source, short_digest
from vitattn.labels import class_names
from vitattn.labels.class_names import FILE, ModelNames, Names

SHOWN = 30  # names of one list that are printed

Data = TypeVar("Data", bound=Labelled)
# Labels a data set with the numbers [classes] of the outputs that have these names.
Relabel = Callable[[Data, Names, np.ndarray], Data]


def listed(names: Sequence[str]) -> str:
    """Returns names that `told_apart` made as one phrase."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def difference(here: Sequence[str], there: Sequence[str]) -> tuple[str, str, str, str]:
    """Returns four phrases that compare two lists of names: both lists, what only the first holds,
    and what only the second holds. Names that look alike are written so that one sees the
    difference.
    """
    only_here, only_there = set(here) - set(there), set(there) - set(here)
    first, second, new, gone = told_apart(
        here, there, [n for n in here if n in only_here], [n for n in there if n in only_there]
    )
    return listed(first), listed(second), listed(new), listed(gone)


class Renumbered(Generic[AnySource]):
    """What all data sets share whose records are those of another source, with the numbers of a
    model's outputs in place of its own labels.

    Args:
      parent: whose records they are.
      names: of the model's outputs.
      labels: i64 [C of the parent], the output of each class.
    """

    def __init__(self, parent: AnySource, names: Names, labels: np.ndarray):
        self.parent, self.labels = parent, labels
        self.num_classes = len(names)
        self.class_names = tuple(name or "" for name in names)
        self.in_memory, self.mean, self.std = parent.in_memory, parent.mean, parent.std
        self.left_out = parent.left_out
        self.digest = short_digest(parent.digest, *class_names.to_lines(names))

    def __len__(self) -> int:
        return len(self.parent)

    def describe(self, record: int) -> str:
        return self.parent.describe(record)


class Relabelled(Renumbered[Source]):
    """Labelled images with the numbers of a model's outputs."""

    def __getitem__(self, record: int) -> Example:
        image, label = self.parent[record]
        return Example(image, int(self.labels[label]))


def by_name(source: Data, model: ModelNames, what: str, relabel: Relabel[Data]) -> Data:
    """Returns the data set with each label replaced by the output that has the name of its class.

    Args:
      source: any data set with some of the model's classes.
      model: names of the model's outputs.
      what: the data set, for messages.
      relabel: such as `Relabelled`, for records with one label.

    Raises:
      DataError: it has a class that the model was not trained on; both lists are shown.
    """
    names = class_names.of_outputs(source.class_names, len(source.class_names), what)
    outputs = model.outputs
    if any(name not in outputs for name in names):
        theirs, ours, strange, lacking = difference(source.class_names, list(outputs))
        raise DataError(
            f"{shown(what)} has classes that the model was not trained on: {strange}. Its classes: "
            f"{theirs}. Those of the model ({shown(model.where)}): {ours}. Not in the data: "
            f"{lacking}. Labels are matched by these names: rename or leave out what is unknown."
        )
    labels = np.asarray(
        [outputs[name] for name in names if name is not None], np.int64
    )  # [classes]
    if (labels == np.arange(len(labels))).all() and len(names) == len(model.names):
        return source
    return relabel(source, model.names, labels)


def of_model(
    source: Data,
    model: ModelNames | None,
    outputs: int,
    what: str,
    workdir: Path,
    relabel: Relabel[Data],
) -> tuple[Data, str]:
    """Labels data with the numbers of a trained model's outputs.

    Labels are matched by the names of their classes, or by number if the names are not known.

    Args:
      source: any data set with some of the model's classes.
      model: names of the model's outputs; None where they are not known.
      outputs: C.
      what: the data set, for messages.
      workdir: of the model, for messages.
      relabel: see `by_name`.

    Returns:
      The data, and a phrase that says how labels were matched.

    Raises:
      DataError: it has a class that the model was not trained on; or the names are not known, and
        the data set does not have C classes.
    """
    if model is not None:
        known = len(model.outputs)
        matched = by_name(source, model, what, relabel)
        return matched, f"by name, {source.num_classes} of {known} classes"
    if source.num_classes != outputs:
        raise DataError(
            f"{shown(workdir)} does not say the names of its {outputs} classes, and {shown(what)} "
            f"has {source.num_classes}: which label is which output cannot be known. Write the "
            f"names to {shown(workdir / FILE)}, one a line, in the order of the outputs."
        )
    return source, "by number: the names of the model's classes are not known"


def check_resume(meta: Mapping[str, Any], step: int, names: Names, workdir: Path) -> None:
    """Checks that a run resumes with the classes that it was started with.

    Args:
      meta: of the manifest of `step`.
      step: that the run resumes from.
      names: of the outputs, by the data set as it is now.
      workdir: of the run.

    Raises:
      ConfigError: a class came, went or was renamed; both lists are shown.
    """
    where = str(workdir / "checkpoints" / str(step))
    trained, file = class_names.from_meta(meta, where), workdir / FILE
    if trained is None and file.exists():
        text = read_small(file, error=ConfigError).decode(errors="replace")
        if text == "".join(f"{name}\n" for name in names if name is not None):
            return  # of an earlier version, which wrote names as they were
        trained = class_names.read(file, len(names), short=True, follow=False)
    if trained is None or trained.names == names:
        _warn_if_edited(file, names)
        return
    ours, theirs, new, gone = difference(_named(names), _named(trained.names))
    raise ConfigError(
        f"The classes of the data are other ones than those that the run in {shown(workdir)} was "
        f"trained on, and its outputs mean something else now. Classes of the data: {ours}. Of "
        f"the run ({shown(trained.where)}): {theirs}. New: {new}. Gone: {gone}. Put the classes "
        "back as they were, or use a new --workdir; --config.init_from starts one from these "
        "weights."
    )


def _named(names: Names) -> list[str]:
    return [name for name in names if name is not None]


def _warn_if_edited(file: Path, names: Names) -> None:
    """A resumed run writes its names again: warns that this replaces what a person wrote there."""
    with contextlib.suppress(UserError, UnicodeDecodeError):
        if not file.exists():
            return
        text = read_small(file, error=DataError).decode()
        if class_names.from_text(text) != list(names):
            saving.warn(
                f"{shown(file)} was changed since the run wrote it, and is written again with the "
                "names of the data. Keep names of your own in another file, for "
                f"`{commands.name('predict')} --class_names=FILE`."
            )


def head_order(there: ModelNames, names: Names, anew: str) -> np.ndarray | None:
    """Returns which output of another model each output here continues, int [C]; None when the
    order is the same.

    Args:
      there: names of the other model, with as many outputs.
      names: of the outputs here.
      anew: the setting with which the head starts anew, for the message.

    Raises:
      ConfigError: they are not the same classes; both lists are shown.
    """
    outputs, here = there.outputs, _named(names)
    if set(here) != set(outputs):
        ours, theirs, new, gone = difference(here, list(outputs))
        raise ConfigError(
            f"init_from: the outputs of that model ({shown(there.where)}) stand for other classes, "
            f"though there are as many. Classes here: {ours}. There: {theirs}. New: {new}. Gone: "
            f"{gone}. Its head is of no use for them: let it start anew by {anew}"
        )
    unnamed = iter(number for number, name in enumerate(there.names) if name is None)
    order = [next(unnamed) if name is None else outputs[name] for name in names]
    return None if order == sorted(order) else np.asarray(order)
