"""Our weights under other people's names: tables of pairs, and what to do with a table.

A `Layout` states, tensor by tensor, where a tensor of another library lies in our weights: the
leaf, the index into its stacked dimensions, and a change of form (transposed, heads split, ...).
One table serves both directions. Our leaves are stacks of layers and experts, so one leaf is many
tensors elsewhere; leaves are read one at a time and never kept.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import CheckpointError, ConfigError, shown
from trainlib.model.weights import Spec
from trainlib.run.progress import summary

SHOWN = 6  # names of one kind that are printed


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of form and its inverse, on NumPy arrays (`out` also on abstract ones).

    Attributes:
      out: ours -> theirs.
      back: theirs -> ours; raises CheckpointError for values that ours cannot be.
    """

    out: Callable[[Any], Any]
    back: Callable[[Any], Any]


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(lambda x: x.swapaxes(-1, -2), lambda x: x.swapaxes(-1, -2))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the other library.

    Attributes:
      theirs: its name.
      ours: name of our leaf.
      index: where in the leaf it lies.
      transform: `theirs = transform.out(leaf[index])`.
      copy: it repeats what another entry holds; on import it may be absent, but not different.
      written: False for a copy that is accepted on import and left out on export.
    """

    theirs: str
    ours: str
    index: tuple[int | slice, ...] = ()
    transform: Transform = SAME
    copy: bool = False
    written: bool = True


@dataclasses.dataclass(frozen=True)
class Layout:
    """A table and what goes with it.

    Attributes:
      title: for people, such as "Hugging Face T5 v1.1".
      entries: each element of each leaf is in exactly one entry that is no copy.
      files: name -> text of files that stand beside the weights.
      ignored: regular expressions of names that may be there and say nothing.
      notes: what the other side does differently, one line each.
      form: whose names they are: own, hf, torchvision or t5x.
    """

    title: str
    entries: tuple[Entry, ...]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    form: str = "own"

    def by_leaf(self, *, written: bool = False) -> dict[str, list[Entry]]:
        """Our name -> its entries; with `written`, those of an export alone."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.written or not written:
                found.setdefault(entry.ours, []).append(entry)
        return found


def own_layout(specs: Mapping[str, Spec], files: Mapping[str, str]) -> Layout:
    """Our own names and shapes."""
    return Layout("own names", tuple(Entry(name, name) for name in specs), files)


def slots(shape: tuple[int, ...], index: tuple[int | slice, ...]) -> tuple[int, ...]:
    """Shape of `leaf[index]`, for an index of numbers and whole slices."""
    rest = shape[len(index) :]
    return *(n for n, i in zip(shape, index, strict=False) if isinstance(i, slice)), *rest


@functools.lru_cache(maxsize=4096)
def _shape_out(transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(transform.out, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


def their_shape(entry: Entry, spec: Spec) -> tuple[int, ...]:
    """Shape of the tensor of an entry."""
    return _shape_out(entry.transform, slots(spec.shape, entry.index))


@dataclasses.dataclass(frozen=True)
class Match:
    """How a file fits a layout; the lists hold one line each, fit to print."""

    mapped: dict[str, tuple[int, ...]]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    prefix: str = ""  # what stands before the names that are missing

    def table(self, title: str) -> str:
        """The four kinds as text."""
        size = sum(int(np.prod(shape)) for shape in self.mapped.values())
        rows: list[tuple[str, Any]] = [("mapped", f"{len(self.mapped)} tensors, {size:,} numbers")]
        for label in ("missing", "unexpected", "misshaped"):
            names = getattr(self, label)
            rows.append((label.replace("misshaped", "mis-shaped"), str(len(names)) or "none"))
            rows += [("", name) for name in names[:SHOWN]]
            if len(names) > SHOWN:
                rows.append(("", f"and {len(names) - SHOWN} more"))
        return summary(title, rows)

    def check(self, path: object) -> None:
        """Refuses anything but a full match.

        Raises:
          CheckpointError: something is missing, unexpected or mis-shaped.
        """
        wrong = {
            "missing": self.missing,
            "mis-shaped": self.misshaped,
            "unexpected": self.unexpected,
        }
        found = [f"{len(names)} {kind} ({names[0]})" for kind, names in wrong.items() if names]
        if found and self.prefix:
            raise CheckpointError(
                f"{shown(path)} does not fit the model: {', '.join(found)}."
                f"{strip_advice(self.prefix)}"
            )
        if found:
            raise CheckpointError(
                f"{path} does not fit the model: {', '.join(found)}. Set the model's keys by "
                "--config.model.KEY=VALUE if they were guessed wrongly; leave names out that do "
                "not matter by --ignore=REGEX."
            )


def match(
    layout: Layout,
    specs: Mapping[str, Spec],
    there: Mapping[str, tuple[int, ...]],
    ignore: Sequence[str] = (),
) -> Match:
    """Compares what a file holds with what a layout needs.

    Args:
      layout: the table.
      specs: our weights.
      there: name -> shape in the file.
      ignore: regular expressions of names that may stay unread.

    Raises:
      ConfigError: a pattern that is no regular expression.
    """
    lacking = [e.theirs for e in layout.entries if not e.copy and e.theirs not in there]
    result = Match({}, [], [], [], prefix_before(lacking, there))
    for entry in layout.entries:
        shape = their_shape(entry, specs[entry.ours])
        if entry.theirs not in there:
            if not entry.copy:
                result.missing.append(f"{entry.theirs} {shape}, for {entry.ours}")
        elif there[entry.theirs] == shape:
            result.mapped[entry.theirs] = shape
        else:
            result.misshaped.append(f"{entry.theirs}: {there[entry.theirs]} there, {shape} here")
    known = {entry.theirs for entry in layout.entries}
    try:
        unread = [re.compile(pattern) for pattern in (*layout.ignored, *ignore)]
    except re.error as error:
        raise ConfigError(f"--ignore is no list of regular expressions: {error}.") from None
    for name, shape in there.items():
        if name not in known and not any(pattern.search(name) for pattern in unread):
            result.unexpected.append(f"{name} {shape}")
    return result


def prefix_before(names: Iterable[str], there: Iterable[str]) -> str:
    """What stands in a file before most of `names`, such as "module."; "" for nothing."""
    wanted, found = set(names), list(there)
    some = min(wanted, key=len, default="")
    for name in found if some else ():
        prefix = name.removesuffix(some)
        if prefix != name and prefix.endswith((".", "/")):
            held = {other.removeprefix(prefix) for other in found if other.startswith(prefix)}
            if 2 * len(wanted & held) > len(wanted):
                return prefix
    return ""


def strip_advice(prefix: str) -> str:
    """A sentence for names that begin with something of another program's; "" for no prefix."""
    if not prefix:
        return ""
    return (
        f" Its names begin with '{shown(prefix, 80)}', which some program put before them: take "
        f"it off by --strip_prefix={shown(prefix, 80)}"
    )


def cast(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`value` in another type, as it is where it has this one.

    Raises:
      ConfigError: a finite value would become infinite; names the tensor and the value.
    """
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        result = value.astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        lost = ~np.isfinite(result) & np.isfinite(value)
        if lost.any():
            largest = float(np.abs(value[lost].astype(np.float64)).max())
            raise ConfigError(
                f"--dtype: {int(lost.sum()):,} of {value.size:,} values of {shown(name)} do not "
                f"fit into {dtype.name}, whose largest is {float(jnp.finfo(dtype).max):.4g}: they "
                f"would become infinite (the largest is {largest:.4g}). "
                f"{'Use --dtype=bf16 or f32' if dtype.name == 'float16' else 'Use --dtype=f32'}."
            )
    return result


def give(entries: Iterable[Entry], leaf: np.ndarray, dtype: np.dtype | None) -> Iterator:
    """(their name, array) of each entry of one leaf, in `dtype` (None: as it is).

    Raises:
      ConfigError: values do not fit into it.
    """
    for entry in entries:
        piece = np.asarray(entry.transform.out(leaf[entry.index]))
        yield entry.theirs, piece if dtype is None else cast(piece, dtype, entry.ours)


def take(
    entries: Iterable[Entry], spec: Spec, there: Mapping[str, Any], read: Callable[[str], Any]
) -> np.ndarray:
    """One of our leaves, filled from the other library's tensors.

    Args:
      entries: those of the leaf, after `match` found them.
      spec: of the leaf; values are converted to its dtype.
      there: names that the file has.
      read: name -> array.

    Raises:
      CheckpointError: copies that differ, or values that are NaN or infinite.
    """
    leaf = np.empty(spec.shape, spec.dtype)
    for entry in sorted(entries, key=lambda entry: entry.copy):
        if entry.copy and entry.theirs not in there:
            continue
        with np.errstate(over="ignore"):
            value = np.asarray(entry.transform.back(read(entry.theirs))).astype(spec.dtype)
        if jnp.issubdtype(spec.dtype, jnp.floating) and not np.isfinite(value).all():
            raise CheckpointError(
                f"{shown(entry.theirs)} holds {int((~np.isfinite(value)).sum()):,} values of "
                f"{value.size:,} that are NaN or infinite, or too large for {spec.dtype}. Nothing "
                "was imported: such weights answer nothing. Take them from an earlier step of the "
                "run that made them, or from an undamaged copy of the file."
            )
        if not entry.copy:
            leaf[entry.index] = value
        elif not np.array_equal(leaf[entry.index], value, equal_nan=True):
            raise CheckpointError(
                f"{entry.theirs} differs from the other copy of {entry.ours}: this model shares "
                "one and cannot hold both."
            )
    return leaf


def check_libraries(kind: str, needed: Mapping[str, Sequence[str]]) -> None:
    """Refuses `--check`, before weights are read, where nothing can be compared.

    Args:
      kind: of the import.
      needed: kind that can be compared -> packages that it takes.

    Raises:
      ConfigError: it is not among these, or a package is not installed.
    """
    if kind not in needed:
        raise ConfigError(
            f"--check has no other library for --format={kind}; it has for {', '.join(needed)}. "
            "Leave it out."
        )
    missing = [name for name in needed[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--check needs {' and '.join(needed[kind])}, and {' and '.join(missing)} is not "
            f"installed: pip install {' '.join(missing)}, or leave --check out."
        )


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Weights of another library that were opened.

    Attributes:
      config: what is known of it as a configuration of ours.
      kind: of the family's `layout`.
      names: of the same.
      shapes: tensor -> shape.
      read: tensor -> array.
      notes: what was assumed because no file says it, one line each.
      files: name -> text of files to write beside the weights, unless a person gives others.
    """

    config: ConfigDict
    kind: str
    names: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
