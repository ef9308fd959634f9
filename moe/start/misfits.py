"""Compares the leaves of a checkpoint with those of a model, by name and shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

_SHOWN = 12  # weights of one kind that the table lists


def are_averaged(stored: Iterable[str]) -> bool:
    """Whether a checkpoint holds moving averages of its weights, by the names in it. They are what
    its run evaluated, and what another run starts from.
    """
    return any(name.startswith("ema/") for name in stored)


@dataclasses.dataclass(frozen=True)
class Misfits:
    """Leaves of a checkpoint that do not fit a model: names, with shapes.

    Attributes:
      missing: in the model and not in the checkpoint.
      unexpected: in the checkpoint and not in the model.
      shapes: of another shape.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def table(self) -> str:
        """As lines to print."""
        kinds = {
            "missing": "in this model and not in the checkpoint",
            "unexpected": "in the checkpoint and not in this model",
            "shapes": "of another shape",
        }
        lines = []
        for kind, meaning in kinds.items():
            names = getattr(self, kind)
            if names:
                lines.append(f"  {len(names)} {meaning}:")
                lines += [f"    {name}" for name in names[:_SHOWN]]
                if len(names) > _SHOWN:
                    lines.append(f"    and {len(names) - _SHOWN} more")
        return "\n".join(lines)


def misfits(stored: Mapping[str, Any], wanted: Mapping[str, Any], kinds: Iterable[str]) -> Misfits:
    """Compares leaves by name and shape.

    Args:
      stored: `params/NAME`, `opt_state/..` -> anything with a shape, in the checkpoint.
      wanted: the same of this run.
      kinds: beginnings of the names that count.
    """
    kinds = tuple(kinds)
    theirs = {name: tuple(leaf.shape) for name, leaf in stored.items() if name.startswith(kinds)}
    ours = {name: tuple(leaf.shape) for name, leaf in wanted.items() if name.startswith(kinds)}
    both = [name for name in ours if name in theirs]
    return Misfits(
        [f"{name} {ours[name]}" for name in ours if name not in theirs],
        [f"{name} {theirs[name]}" for name in theirs if name not in ours],
        [f"{n} {theirs[n]} there, {ours[n]} here" for n in both if theirs[n] != ours[n]],
    )
