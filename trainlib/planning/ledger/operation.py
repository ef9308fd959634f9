"""What a ledger says of one operation of a compiled program, and of a group of them."""

from __future__ import annotations

import dataclasses

from trainlib.chips import Chip

# What an operation does, the coarsest division of a step.
KINDS = (
    *("product", "elementwise", "reduction", "copy", "convert", "gather", "scatter", "sort"),
    *("kernel", "collective", "random", "other"),
)
# Where the time of an operation comes from, the most trusted first.
BASES = (
    "compiler",  # `estimated_cycles` of the optimised HLO
    "bundles",  # VLIW bundles of a Pallas kernel, or its products or bytes where those take longer
    "links",  # bytes of a collective over the links of its mesh axes
    "bytes",  # a bound: bytes through HBM at the bandwidth, for what carries no estimate
    "none",  # takes no time of its own: bitcasts, tuples, parameters
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of the optimised HLO that runs, inside a loop as often as the loop turns.

    Figures are of one run; `times` says how often it runs in one execution of the program.

    Attributes:
      name: of the HLO instruction, unique in a program.
      opcode: of the HLO instruction: fusion, copy-start, custom-call.
      kind: one of `KINDS`.
      computation: of the HLO that it stands in: the entry, or the body of a loop.
      times: how often it runs in one execution of the program.
      seconds: that it takes alone.
      basis: one of `BASES`: where `seconds` comes from.
      cycles: the compiler's estimate; None where it makes none.
      hbm_bytes: read and written through HBM, with the padding of its tiles.
      vmem_bytes: read and written in memory on the chip, padded likewise.
      flops: multiply-adds count two.
      narrow: "int8" or "fp8" where its products are of such numbers, which have a peak of their
        own (`Chip.peak`).
      op: the name in the traced program, `jit(step)/transpose(jvp(stage1))/conv_general_dilated`.
      layer: the named scopes of `op`, without those that JAX adds: `stage1/block0/conv1`.
      source: file:line of the user's code that it comes from; "" where it is not known.
      phase: of a training step, "forward", "backward", "recomputed" or "update" (the rest); all
        of a program without gradients is "forward".
      axes: mesh axes of a collective.
      wire_bytes: that one device sends.
      notes: what its figures assume or leave out, a sentence each.
    """

    name: str
    opcode: str
    kind: str
    computation: str
    times: int
    seconds: float
    basis: str
    cycles: int | None = None
    hbm_bytes: int = 0
    vmem_bytes: int = 0
    flops: float = 0.0
    op: str = ""
    layer: str = ""
    source: str = ""
    phase: str = "forward"
    axes: tuple[str, ...] = ()
    wire_bytes: float = 0.0
    notes: tuple[str, ...] = ()
    narrow: str = ""

    @property
    def total_seconds(self) -> float:
        """Of all its runs."""
        return self.times * self.seconds

    @property
    def total_hbm_bytes(self) -> int:
        """Of all its runs."""
        return self.times * self.hbm_bytes

    def at_peak(self, chip: Chip) -> float:
        """Seconds of the FLOPs of all its runs at the peak of a chip."""
        return self.times * self.flops / chip.peak(self.narrow)


@dataclasses.dataclass(frozen=True)
class Group:
    """Operations that share a layer, an op, a source line or a kind; figures of all their runs.

    Attributes:
      name: what they share.
      operations: how many.
      seconds: their sum, nothing overlapped.
      hbm_bytes: through HBM.
      flops: of arithmetic.
      share: of the seconds of all operations.
    """

    name: str
    operations: int
    seconds: float
    hbm_bytes: int
    flops: float
    share: float


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a program does without need, as a person would name it.

    Attributes:
      kind: "layout copy", "copy", "unfused convert", "rematerialised", "padding", "uncounted",
        "left out".
      seconds: that it takes.
      hbm_bytes: that it moves.
      operations: names of the instructions.
      layer: where.
      text: one sentence: what, where, how much.
    """

    kind: str
    seconds: float
    hbm_bytes: int
    operations: tuple[str, ...]
    layer: str
    text: str
