"""The operations of a compiled program, one for each instruction that runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

from trainlib.chips import Chip
from trainlib.planning.hlo import KINDS as COLLECTIVES
from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.kernels import Kernel, kernels
from trainlib.planning.ledger import names
from trainlib.planning.ledger.arithmetic import Arithmetic
from trainlib.planning.ledger.links import Links
from trainlib.planning.ledger.operation import Operation
from trainlib.planning.ledger.traffic import FREE, FREE_CALLS, Movement, Traffic

_COPIES = {
    *("copy", "copy-start", "slice", "slice-start", "transpose", "reshape", "pad", "concatenate"),
    *("broadcast", "reverse", "dynamic-slice", "dynamic-update-slice", "bitcast-convert", "iota"),
    *("dynamic-slice-start", "dynamic-update-slice-start", "bitcast"),
}
_REDUCTIONS = {"reduce", "reduce-window"}
_RANDOM = {"rng", "rng-bit-generator", "rng-get-and-update-state"}
# Bandwidth of the memory of a core over that of HBM: about 18 TB/s on v5e, as others measured
# (jax-ml.github.io/scaling-book, "How to think about TPUs").
_VMEM_SPEED = 20
# Cycles for each of single numbers, by the final bundles of v5e: 65 x 1,722 for a scatter of
# 16,384 of them, 0.067 ms for a gather of 20,480.
_CYCLES_A_NUMBER = {"scatter": 6.7, "gather": 4.9}
_ONE_BY_ONE = re.compile(r"\bslice_sizes=\{1(?:,1)*\}")
_DIMENSION = re.compile(r"\bdimensions=\{(\d+)\}")
_REACH = 64  # instructions that are asked for the name of one without


def kind_of(opcode: str) -> str:
    """One of `operation.KINDS`, of an opcode that is no fusion."""
    base = opcode.removesuffix("-start").removesuffix("-done")
    if base in COLLECTIVES or base in ("send", "recv"):
        return "collective"
    if opcode in ("convolution", "dot"):
        return "product"
    if opcode in _COPIES:
        return "copy"
    if opcode in _REDUCTIONS:
        return "reduction"
    if opcode in _RANDOM:
        return "random"
    if opcode in ("convert", "gather", "sort"):
        return opcode
    if opcode in ("scatter", "select-and-scatter"):
        return "scatter"
    return "other" if opcode == "custom-call" else "elementwise"


# What a fusion is called after, when it holds several: the first of these.
_WEIGHT = (
    *("collective", "product", "sort", "scatter", "gather", "random", "reduction", "elementwise"),
    *("convert", "copy", "other"),
)


def _bound(line: Instruction, traffic: Traffic, chip: Chip, single: float) -> float:
    """Seconds that what an instruction moves takes at least.

    A sort compares and exchanges in place, [k (k + 1)] / 2 times for 2^k elements. A scatter and a
    gather of single numbers move one after the other.

    Against the final bundles that libtpu 0.0.42 makes for v5e, the bound is the whole time of the
    select-and-scatter of a max pool (0.565 of 0.56 ms), 0.75 to 1.1 of gathers of 1,024 to 5,120
    numbers a row, and a quarter of sorts.

    Args:
      line: the instruction.
      traffic: of it.
      chip: that runs it.
      single: cycles in which it scatters and gathers single numbers.
    """
    passes = 1
    if line.opcode == "sort" and (found := _DIMENSION.search(line.rest)):
        depth = max(1, line.arrays[0].shape[int(found[1])] - 1).bit_length()
        passes = depth * (depth + 1) // 2
    on_chip = passes * traffic.vmem / (_VMEM_SPEED * chip.hbm_bandwidth)
    numbers = single / chip.clock if chip.clock else 0.0
    return max(traffic.hbm / chip.hbm_bandwidth, on_chip, numbers)


def _opaque(line: Instruction, basis: str, seconds: float) -> tuple[str, ...]:
    """What the figures of a custom call leave out, which no text of the program tells."""
    target = line.custom_call_target
    if not target or basis != "bytes" or not seconds:
        return ()
    return (f"What {target} computes is not counted: it takes at least what its bytes need.",)


class Account:
    """Makes the operations of a program.

    Args:
      program: that was compiled.
      chip: that it was compiled for; None where it has no clock to speak of.
      links: between its devices; None where they are not known, and then collectives are bound by
        their bytes.
    """

    def __init__(self, program: Program, chip: Chip | None, links: Links | None = None):
        self._program, self._chip, self._links = program, chip, links
        self._movement, self._arithmetic = Movement(program), Arithmetic(program)
        self._kinds: dict[str, str] = {}
        self._arguments = {
            line.op_name
            for line in program.computations.get(program.entry, ())
            if line.opcode == "parameter"
        }
        self._rest = "update" if program.has_gradients else "forward"

    def operations(self) -> Iterable[Operation]:
        """In the order of the schedule, computation by computation, the entry first."""
        times = self._program.times
        for computation in self._program.executed:
            attribution = Attribution(self._program, computation, self._arguments)
            for line in self._program.computations[computation]:
                if line.opcode in FREE or line.custom_call_target in FREE_CALLS:
                    continue
                yield self._operation(line, computation, times.get(computation, 0), attribution)

    def _operation(
        self, line: Instruction, computation: str, times: int, attribution: Attribution
    ) -> Operation:
        kernel = self._kernels.get(line.name)
        if kernel is not None:
            traffic = Traffic(kernel.hbm_bytes, kernel.vmem_bytes)
            seconds, cycles = kernel.seconds, kernel.bundles
            basis = "bytes" if cycles is None else "bundles"
        else:
            traffic = self._movement.traffic(line, computation)
            seconds, cycles, basis = self._estimate(line, computation, traffic)
        transfer = self._links.transfer(self._program, line) if self._links else None
        if transfer is not None:
            seconds, basis = max(seconds, transfer.seconds), "links"
        op, layer, source = attribution.of(line)
        return Operation(
            name=line.name,
            opcode=line.opcode,
            kind=self.kind(line),
            computation=computation,
            times=times,
            seconds=seconds,
            basis=basis,
            cycles=cycles,
            hbm_bytes=traffic.hbm,
            vmem_bytes=traffic.vmem,
            flops=kernel.flops if kernel else self._arithmetic.flops(line, computation),
            op=op,
            layer=layer,
            source=source,
            phase=names.phase(op) or self._rest,
            axes=transfer.axes if transfer else (),
            wire_bytes=transfer.wire_bytes if transfer else 0.0,
            notes=kernel.notes if kernel else _opaque(line, basis, seconds),
            narrow="" if kernel else self._arithmetic.narrow(line, computation),
        )

    @cached_property
    def _kernels(self) -> dict[str, Kernel]:
        return kernels(self._program, self._chip) if self._chip and self._chip.clock else {}

    def _estimate(
        self, line: Instruction, computation: str, traffic: Traffic
    ) -> tuple[float, int | None, str]:
        """(seconds, cycles, basis) of what is no kernel, alone on its device."""
        cycles = line.cycles
        if self._chip is None:
            return 0.0, cycles, "bytes"
        if cycles is not None and self._chip.clock:
            return cycles / self._chip.clock, cycles, "compiler"
        return _bound(line, traffic, self._chip, self._single(line, computation)), cycles, "bytes"

    def _single(self, line: Instruction, computation: str) -> float:
        """Cycles of the single numbers that an instruction scatters and gathers, itself or in its
        fusion, however deep.
        """
        if line.opcode == "fusion":
            body = next(iter(line.called), "")
            lines = self._program.by_name.get(body, {})
            return sum(self._single(part, body) for part in lines.values())
        if line.opcode == "scatter" and "update_window_dims={}" in line.rest:
            moved = self._program.by_name[computation].get(line.operands[-1])
        elif line.opcode == "gather" and _ONE_BY_ONE.search(line.rest):
            moved = line
        else:
            return 0.0
        return _CYCLES_A_NUMBER[line.opcode] * moved.arrays[0].elements if moved else 0.0

    def kind(self, line: Instruction) -> str:
        """One of `operation.KINDS`."""
        if line.custom_call_target == "tpu_custom_call":
            return "kernel"
        if line.opcode not in ("fusion", "async-start"):
            return kind_of(line.opcode)
        body = next((c for c in line.called if c in self._program.computations), "")
        if body not in self._kinds:
            lines = self._program.computations.get(body, ())
            inner = {
                self.kind(part)
                for part in lines
                if part.opcode not in FREE and part.opcode != "broadcast"
            }
            # A fusion that a collective goes on beside does what else it does.
            starts = any(part.custom_call_target == "AsyncCollectiveStart" for part in lines)
            if not starts and any("chain_id=" in part.rest for part in lines):
                inner = inner - {"collective", "other"} or {"collective"}
            self._kinds[body] = next((kind for kind in _WEIGHT if kind in inner), "copy")
        return self._kinds[body]


class Attribution:
    """Says where instructions of one computation come from.

    One without a name of its own belongs to what it is made for, else to what made it, else to the
    layer whose weight it is of.

    Args:
      program: that the computation is part of.
      computation: its name.
      arguments: names of arguments of the program, which name no operation.
    """

    def __init__(self, program: Program, computation: str, arguments: set[str]):
        self._program, self._arguments = program, arguments
        self._lines = program.by_name[computation]
        self._users: dict[str, list[str]] = defaultdict(list)
        for line in self._lines.values():
            for name in line.operands:
                self._users[name].append(line.name)
        self._makers = {line.name: line.operands for line in self._lines.values()}
        self._own: dict[str, tuple[str, int]] = {}

    def of(self, line: Instruction) -> tuple[str, str, str]:
        """(op, layer, source)."""
        op, frame = self._named(line)
        if not op:
            op, frame = self._near(line, self._users) or self._near(line, self._makers) or ("", 0)
        frames = self._program.frames.stack(frame)
        layer = names.layer(op, frames)
        if not op:
            made_of = (self._lines[name].op_name for name in line.operands if name in self._lines)
            layer = next(filter(None, map(names.layer_of_argument, made_of)), "")
        return op, layer or names.UNNAMED, names.source(frames)

    def _near(self, line: Instruction, edges: Mapping[str, list[str]]) -> tuple[str, int] | None:
        """What the nearest instruction with a name states, along users or operands."""
        waiting, seen = [line.name], {line.name}
        for name in waiting:
            for other in edges.get(name) or ():
                if other in seen or other not in self._lines or len(seen) > _REACH:
                    continue
                seen.add(other)
                found = self._named(self._lines[other])
                if found[0]:
                    return found
                waiting.append(other)
        return None

    def _named(self, line: Instruction) -> tuple[str, int]:
        """(op, frame) that an instruction or, for a fusion, its root or its largest part states."""
        if line.name not in self._own:
            self._own[line.name] = self._stated(line)
        return self._own[line.name]

    def _stated(self, line: Instruction) -> tuple[str, int]:
        if line.opcode in ("parameter", "constant"):
            return "", 0
        op = line.op_name
        if op and op not in self._arguments:
            return op, line.frame
        if line.opcode != "fusion":
            return "", 0
        parts = self._program.computations.get(next(iter(line.called), ""), [])
        named = [part for part in parts if part.op_name and part.opcode != "parameter"]
        if not named:
            return "", 0
        chosen = max(named, key=lambda part: (part.root, sum(a.bytes for a in part.arrays)))
        return chosen.op_name, chosen.frame
