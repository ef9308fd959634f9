"""Which blocks are sparse, as others list them, in our keys of `model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainlib.errors import ConfigError


def placement(sparse: Mapping[str, tuple[int, ...]], blocks: Mapping[str, int]) -> dict[str, Any]:
    """Keys of `model` that put the sparse blocks there.

    Args:
      sparse: stack -> numbers of its sparse blocks, ascending; at least one in all.
      blocks: stack -> number of its blocks.

    Raises:
      ConfigError: they stand at no even distances, or differently in both stacks.
    """
    periods = {stack: _period(stack, at, blocks[stack]) for stack, at in sparse.items() if at}
    if not periods:
        raise ConfigError(
            "no layer of either stack is sparse, so this is a dense model under the name of a "
            "sparse one, and it is not read."
        )
    keys: dict[str, Any] = {
        "sparse_stacks": "all" if len(periods) == len(sparse) else "".join(periods),
        "sparse_period": next(iter(periods.values()))[0],
        "sparse_offset": _offset(periods),
        "partial_period": any(blocks[stack] % period for stack, (period, _) in periods.items()),
    }
    if len(periods) > 1 and periods["decoder"][0] != keys["sparse_period"]:
        keys["decoder_sparse_period"] = periods["decoder"][0]
    return keys


def _period(stack: str, at: tuple[int, ...], blocks: int) -> tuple[int, int]:
    """(blocks of a period, index of the sparse one in it)."""
    first, last = at[0], at[-1]
    gap = at[1] - first if len(at) > 1 else blocks
    if at != tuple(range(first, blocks, gap)) or first >= gap:
        raise ConfigError(
            f"the sparse layers {', '.join(map(str, at))} of {blocks} of the {stack} stand at no "
            f"even distances up to its end (the last is {last}), and such a model is not read."
        )
    return gap, first


def _offset(periods: Mapping[str, tuple[int, int]]) -> int:
    """One offset for all stacks; in a stack of shorter periods it means the last block."""
    offsets = sorted({offset for _, offset in periods.values()})
    if len(offsets) == 1 or all(offset == period - 1 for period, offset in periods.values()):
        return offsets[0] if len(offsets) == 1 else -1
    offset = offsets[-1]
    if any(min(offset, period - 1) != actual for period, actual in periods.values()):
        raise ConfigError(
            f"the first sparse layer is number {' and '.join(map(str, offsets))} of the stacks, "
            "and such a model is not read: read are stacks that begin alike."
        )
    return offset
