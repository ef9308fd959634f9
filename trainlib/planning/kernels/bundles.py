"""Counts the VLIW bundles of kernels, one a cycle, from the compiler's own dump.

A dumped program lists its bundles in order, with the depth of loops that each lies in. What the
text tells of a loop and of what a branch passes over:

    0x58 LB: >> { .. %s1 = sadd.s32 1, %s2 ;; %s2 = sphi %s0, %s1 .. }       its first bundle
    0x5c   : >> { .. %p = scmp.ge.s32.totalorder %s1, 32 /* loop exit test */ }
    0x121  : >> { .. sbr.rel (!%p) target = $region95 }                      back to the first
    0x122  : >> { .. }                                                  and some that still run
    0x140  : > { .. sbr.rel (%p) target = $region44 }                        over what follows
    0x180 PF: > { .. /* Start/End empty region 44 */ }                       to here

Bundles wait where data is not there yet, which is not seen here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import trainlib
from trainlib.planning.kernels import dump

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*([> ]*)\{(\})?")
_BRANCH = re.compile(r"sbr\.rel \((!?)%(\w+)\) target = \$region(\d+)")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_TEST = re.compile(r"%(\w+) = scmp\.ge\.s32\.totalorder (?:\(!?%\w+\), )?%(\w+), (%?)(\w+)")
_ADD = re.compile(r"%(\w+) = sadd\.s32 (?:\(!?%\w+\), )?(\d+), %(\w+)")
_PHI = re.compile(r"%(\w+) = sphi %(\w+), %(\w+)")
_MOVE = re.compile(r"%(\w+) = smov (?:\(!?%\w+\), )?(\d+)\b")
# Turns of the grid's loop beyond its steps, which fetch the first block and write the last.
_PIPELINE = 2


@dataclasses.dataclass
class Part:
    """A loop of a dumped program, what a branch may pass over, or the program itself.

    Attributes:
      kind: "loop", "branch" or "program".
      depth: of loops that it lies in, itself one of them.
      own: bundles in it and in no part inside it.
      turns: of a loop, where the text says how many.
      end: number of the bundle that follows a branch's part.
      inside: parts in it, in order.
    """

    kind: str
    depth: int
    own: int = 0
    turns: int | None = None
    end: int = 0
    inside: list[Part] = dataclasses.field(default_factory=list)

    def all(self, kind: str) -> Iterator[Part]:
        """The parts of a kind in it at any depth, in order."""
        for part in self.inside:
            if part.kind == kind:
                yield part
            yield from part.all(kind)

    @property
    def size(self) -> int:
        """Bundles in it, each once."""
        return self.own + sum(part.size for part in self.inside)

    @property
    def guards_a_loop(self) -> bool:
        """Whether it is the branch over a loop that may not turn at all."""
        return self.kind == "branch" and [part.kind for part in self.inside] == ["loop"]


def _bundles(text: str) -> list[tuple[re.Match[str], str]]:
    """(head, text) of each bundle; its comments may go over several lines."""
    found: list[tuple[re.Match[str], str]] = []
    for line in text.splitlines():
        head = _BUNDLE.match(line)
        if head:
            found.append((head, line))
        elif found:
            found[-1] = found[-1][0], found[-1][1] + line
    return found


def parse(text: str) -> Part:
    """The parts of a dump; the program itself is one of depth 0."""
    counters = _Counters(text)
    listed = _bundles(text)
    starts = {m[1]: n for n, (_, line) in enumerate(listed) for m in _REGION.finditer(line)}
    program = Part("program", 0)
    stack, closing = [program], False
    for number, (head, line) in enumerate(listed):
        mark, depth, empty = head[1], head[2].count(">"), head[3] is not None
        loop = next(part for part in reversed(stack) if part.kind != "branch")
        # An empty bundle prints no depth. A shallower one inside a loop is of code around it that
        # was moved there; after the branch back it is the first that follows the loop.
        if closing and (mark or (not empty and depth < loop.depth)):
            del stack[stack.index(loop) :]
            closing = False
        while stack[-1].kind == "branch" and stack[-1].end <= number:
            stack.pop()
        if mark == "LB":
            _open(stack, Part("loop", depth))
        stack[-1].own += 1
        for negated, predicate, target in _BRANCH.findall(line):
            end = starts.get(target, 0)
            if end > number:
                _open(stack, Part("branch", depth, end=end))
            elif negated and predicate in counters.tests and stack[-1].depth:
                loop = next(part for part in reversed(stack) if part.kind != "branch")
                loop.turns, closing = counters.turns(predicate), True
    return program


def _open(stack: list[Part], part: Part) -> None:
    stack[-1].inside.append(part)
    stack.append(part)


class _Counters:
    """The counters of a dump's loops."""

    def __init__(self, text: str):
        self._adds = {m[1]: (int(m[2]), m[3]) for m in _ADD.finditer(text)}
        self._phis = {m[1]: m[2] for m in _PHI.finditer(text)}
        self._moves = {m[1]: int(m[2]) for m in _MOVE.finditer(text)}
        self.tests = {m[1]: (m[2], None if m[3] else int(m[4])) for m in _TEST.finditer(text)}

    def turns(self, predicate: str) -> int | None:
        """Of the loop that ends by a predicate."""
        counter, bound = self.tests[predicate]
        if bound is None:
            return None
        step, old = self._adds.get(counter, (1, ""))
        start = self._moves.get(self._phis.get(old, ""), 0)
        return -(-(bound - start) // step)


def total(
    program: Part,
    steps: int,
    loops: Sequence[float | None],
    branches: Sequence[float | None],
) -> tuple[int, tuple[str, ...]]:
    """Bundles that run on one core.

    Args:
      program: from `parse`.
      steps: of the grid, on one core.
      loops: turns of the loops of the kernel's body, in order, where the dump does not tell.
      branches: how often its blocks under conditions run, of once.

    Returns:
      their number, and what was assumed.
    """
    outer = (part for part in program.all("loop") if part.depth == 1 and _is_grid(part, steps))
    grid = next(outer, program) if steps > 1 else program
    # In the grid's loop the body is what is passed over while the first block is fetched.
    body = max((p for p in grid.inside if p.kind == "branch"), key=lambda p: p.size, default=grid)
    body = body if grid is not program else program
    shares = {id(grid): float(steps) if grid is not program else 1.0}
    for kind, values in (("loop", loops), ("branch", branches)):
        parts = [part for part in body.all(kind) if not part.guards_a_loop]
        if len(parts) == len(values):
            shares.update((id(p), v) for p, v in zip(parts, values, strict=True) if v is not None)
    notes: dict[str, None] = {}

    def count(part: Part) -> float:
        share = shares.get(id(part))
        if share is None and part.kind == "loop" and part.turns is not None:
            share = part.turns
        elif share is None and part.kind == "loop":
            notes["Bundles of a loop whose turns are not known are counted once."] = None
        elif share is None and part in inside:
            notes["Bundles under a condition are counted as if it held."] = None
        return (1.0 if share is None else share) * (part.own + sum(map(count, part.inside)))

    inside = [part for part in body.all("branch") if not part.guards_a_loop]
    return round(count(program)), tuple(notes)


def _is_grid(part: Part, steps: int) -> bool:
    return part.turns is None or 0 <= part.turns - steps <= _PIPELINE


def dumps(calls: Sequence[dict[str, Any]], target: str) -> list[tuple[str, str]]:
    """Compiles kernels alone.

    Args:
      calls: see `dump.compile_alone`.
      target: of one chip, as in `trainlib.chips.target`.

    Returns:
      for each its dump, or "" and why there is none.
    """
    with tempfile.TemporaryDirectory(prefix="bundles") as name:
        folder, dumped = Path(name), Path(name) / "dumped"
        dumped.mkdir()
        environment = os.environ | {
            "LIBTPU_INIT_ARGS": dump.FLAGS.format(folder=dumped),
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is read from a cache is not dumped
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(trainlib.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        request = {"folder": name, "dumped": str(dumped), "target": target, "calls": list(calls)}
        done = subprocess.run(
            [sys.executable, "-m", dump.__name__],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
        )
        failed = (done.stderr.strip().splitlines() or ["its compiler ended"])[-1]
        return [_dump_of(folder, number, failed) for number in range(len(calls))]


def _dump_of(folder: Path, number: int, failed: str) -> tuple[str, str]:
    written, error = folder / f"{number}.txt", folder / f"{number}.error"
    if written.exists():
        return written.read_text(errors="replace"), ""
    return "", error.read_text() if error.exists() else failed
