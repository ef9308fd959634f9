"""What each Pallas kernel of a compiled program takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from trainlib.chips import SLICES, Chip
from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.kernels import bundles
from trainlib.planning.kernels.mosaic import TARGET, Module, config_of
from trainlib.planning.kernels.work import Work, work

# Cores that share a device's kernels, where a dimension of the grid is parallel.
_CORES = {"v4": 2, "v5p": 2}
_VMEM = "1"  # the number of that memory in configurations of custom calls


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One run of a Pallas kernel.

    Bundles alone can lie below what the matrix unit needs, and know nothing of memory, so a kernel
    takes the longest of three times.

    Attributes:
      name: of the HLO instruction.
      function: name of the kernel in the program.
      bundles: of VLIW code that one core runs through, one a cycle; None where it did not compile
        alone.
      bundle_seconds: of `bundles` at the chip's clock.
      product_seconds: of its matrix products at the peak of the cores that run it.
      memory_seconds: of its blocks at the bandwidth of the HBM.
      flops: of its matrix products, multiply-adds count two.
      hbm_bytes: blocks fetched and written over the grid, in whole tiles.
      vmem_bytes: the same, of arrays that lie in memory on the chip.
      scoped_vmem: bytes of that memory that it holds while it runs.
      notes: what was assumed or left out, a sentence each.
    """

    name: str
    function: str
    bundles: int | None
    bundle_seconds: float
    product_seconds: float
    memory_seconds: float
    flops: float
    hbm_bytes: int
    vmem_bytes: int
    scoped_vmem: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self.bundle_seconds, self.product_seconds, self.memory_seconds)


def kernels(program: Program, chip: Chip) -> dict[str, Kernel]:
    """The Pallas kernels of a program for TPUs, by the names of their instructions.

    Each is compiled once more, alone, in another process (seconds, the first time), for its
    bundles. A program without kernels costs nothing.

    Args:
      program: compiled for `chip`.
      chip: a TPU.
    """
    lines = [
        (computation, line)
        for computation, listed in program.computations.items()
        for line in listed
        if line.custom_call_target == TARGET
    ]
    calls = [_call(program, computation, line) for computation, line in lines]
    texts = _dumps(calls, chip)
    return {
        line.name: _kernel(program, computation, line, chip, texts[call])
        for (computation, line), call in zip(lines, calls, strict=True)
    }


def _operands(program: Program, computation: str, line: Instruction) -> list[Any]:
    named = program.by_name[computation]
    return [array for name in line.operands for array in named[name].arrays]


def _call(program: Program, computation: str, line: Instruction) -> str:
    """What is compiled alone, as JSON; equal kernels have equal calls."""
    config = config_of(line)
    kept = {n: config[n] for n in ("custom_call_config", "scoped_memory_configs") if n in config}
    # Memories that arrays lie in, in the whole program; alone they lie elsewhere.
    kept["custom_call_config"] = {
        name: value for name, value in kept["custom_call_config"].items() if "colors" not in name
    }
    operands = _operands(program, computation, line)
    described = {
        "operands": [(array.kind, array.shape) for array in operands],
        "results": [(array.kind, array.shape) for array in line.arrays],
        "config": json.dumps(kept),
    }
    return json.dumps(described)


_known: dict[tuple[str, str], tuple[str, str]] = {}  # (chip, call) -> (dump, error)


def _dumps(calls: list[str], chip: Chip) -> dict[str, tuple[str, str]]:
    missing = [call for call in dict.fromkeys(calls) if (chip.name, call) not in _known]
    if missing:
        sides = len(SLICES[chip.name][0].split("x"))
        found = bundles.dumps(
            list(map(json.loads, missing)), f"{chip.name}:" + "x".join("1" * sides)
        )
        _known.update(zip(((chip.name, call) for call in missing), found, strict=True))
    return {call: _known[chip.name, call] for call in calls}


def _kernel(
    program: Program, computation: str, line: Instruction, chip: Chip, dumped: tuple[str, str]
) -> Kernel:
    config = config_of(line)
    cores = _CORES.get(chip.name, 1)
    name, sharing = line.name, 1
    try:
        module = Module(config)
        name, sharing = module.name, cores if any(module.parallel) else 1
        done = work(module, _operands(program, computation, line), line.arrays)
    except ValueError as error:
        said = str(error).split("\n")[0]
        done = Work(notes=(f"Its blocks and products are not counted: {said}",))
    count, notes = _bundles(done, sharing, dumped)
    scoped = [
        int(one["size"])
        for one in config.get("used_scoped_memory_configs", ())
        if one["memory_space"] == _VMEM
    ]
    return Kernel(
        name=line.name,
        function=name,
        bundles=count,
        bundle_seconds=(count or 0) / chip.clock,
        product_seconds=done.passes / (chip.flops * sharing / cores),
        memory_seconds=done.hbm_bytes / chip.hbm_bandwidth,
        flops=done.flops,
        hbm_bytes=done.hbm_bytes,
        vmem_bytes=done.vmem_bytes,
        scoped_vmem=sum(scoped),
        notes=(*done.notes, *notes),
    )


def _bundles(
    done: Work, sharing: int, dumped: tuple[str, str]
) -> tuple[int | None, tuple[str, ...]]:
    text, error = dumped
    if not text:
        return None, (f"Its bundles are not counted: {error}",)
    steps = -(-done.steps // sharing)
    return bundles.total(bundles.parse(text), steps, done.loops, done.branches)
