"""The ledger of a compiled program: what each operation takes, and sums of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib import chips
from trainlib.chips import Chip, Target
from trainlib.errors import ConfigError
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import findings
from trainlib.planning.ledger.account import Account
from trainlib.planning.ledger.links import Links
from trainlib.planning.ledger.memory import MemoryOverTime, over_time
from trainlib.planning.ledger.operation import Finding, Group, Operation
from trainlib.planning.ledger.schedule import (
    Schedule,
    at_bandwidth,
    of_longest_branches,
    schedule,
)
from trainlib.sharding.compiler import options
from trainlib.sharding.topology import devices

GROUPINGS = ("layer", "op", "source", "kind")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a compiled program does on one device, by the compiler's own account.

    Attributes:
      target: name of what it was compiled for.
      chip: None where it is not known, as for a CPU: then no operation has a time.
      operations: every instruction that may run, in the order of its schedule; those of branches
        that are not the longest of their conditional 0 times.
      temporaries: bytes of memory for what lives between operations.
      compiler: version of libtpu; figures of two versions are not to be compared.
      program: the text that was read.
      links: between its devices; None where they are not known.
    """

    target: str
    chip: Chip | None
    operations: tuple[Operation, ...]
    temporaries: int
    compiler: str
    program: Program = dataclasses.field(repr=False, compare=False)
    links: Links | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """The time of all operations, one after the other."""
        return sum(one.total_seconds for one in self.operations)

    @property
    def hbm_bytes(self) -> int:
        """Read and written through HBM, with the padding of tiles."""
        return sum(one.total_hbm_bytes for one in self.operations)

    @property
    def vmem_bytes(self) -> int:
        """Read and written in memory on the chip, padded likewise."""
        return sum(one.times * one.vmem_bytes for one in self.operations)

    @property
    def flops(self) -> float:
        """Of arithmetic; multiply-adds count two."""
        return sum(one.times * one.flops for one in self.operations)

    @cached_property
    def schedule(self) -> Schedule:
        """When each operation runs; its `seconds` are the prediction. Without a chip, all 0."""
        if self.chip is None or self.links is None:
            return Schedule(0.0, 0.0, {}, {}, {}, ())
        by_name = {one.name: one for one in self.operations}
        return schedule(self.program, by_name, self.links, self.chip)

    @cached_property
    def seconds_at_bandwidth(self) -> float:
        """Predicted seconds if operations that only stream ran at the bandwidth of the memory: the
        least that `schedule.seconds` may turn out to be for what the compiler prices too high.
        """
        if self.chip is None or self.links is None:
            return 0.0
        faster = at_bandwidth(self.operations, self.chip)
        return schedule(self.program, faster, self.links, self.chip).seconds

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What the program does without need, the longest first."""
        return findings.find(self.program, self.operations, self.chip)

    @cached_property
    def memory(self) -> MemoryOverTime:
        """What is alive in HBM along the schedule."""
        return over_time(self.program)

    @property
    def uncounted(self) -> tuple[Operation, ...]:
        """Operations that the compiler makes no estimate of, bounded by their bytes."""
        return tuple(filter(findings.is_uncounted, self.operations))

    def by(self, what: str) -> list[Group]:
        """Operations added up by their "layer", "op", "source" or "kind", the longest first.

        Raises:
          ValueError: another grouping.
        """
        if what not in GROUPINGS:
            raise ValueError(f"by={what!r}; known: {', '.join(GROUPINGS)}")
        members: dict[str, list[Operation]] = defaultdict(list)
        for one in self.operations:
            members[getattr(one, what) or "(unnamed)"].append(one)
        whole = self.seconds or 1.0
        groups = []
        for name, found in members.items():
            seconds = sum(one.total_seconds for one in found)
            groups.append(
                Group(
                    name=name,
                    operations=len(found),
                    seconds=seconds,
                    hbm_bytes=sum(one.total_hbm_bytes for one in found),
                    flops=sum(one.times * one.flops for one in found),
                    share=seconds / whole,
                )
            )
        return sorted(groups, key=lambda group: (-group.seconds, -group.hbm_bytes))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the program, as JSON holds it."""
        return {
            "target": self.target,
            "chip": self.chip.name if self.chip else None,
            "compiler": self.compiler,
            "seconds": self.seconds,
            "schedule": self.schedule.to_dict(),
            "hbm_bytes": self.hbm_bytes,
            "vmem_bytes": self.vmem_bytes,
            "flops": self.flops,
            "temporaries": self.temporaries,
            "operations": [dataclasses.asdict(one) for one in self.operations],
            "findings": [dataclasses.asdict(one) for one in self.findings],
        }


def compiler_version() -> str:
    """Of libtpu; "" where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return ""


def ledger_of_compiled(
    compiled: Any,
    mesh_shape: Mapping[str, int],
    target: Target | None,
    text: str | None = None,
    placed_on: Sequence[Any] | None = None,
) -> Ledger:
    """The ledger of a `jax.stages.Compiled`.

    Args:
      compiled: the program.
      mesh_shape: axis -> size, in the order in which devices are numbered.
      target: that it was compiled for; None for what is no accelerator.
      text: `compiled.as_text()`, where it was already made.
      placed_on: the devices of the mesh, in its order.
    """
    program = Program(compiled.as_text() if text is None else text, mesh_shape)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return ledger_of_program(program, target, temporaries, placed_on)


def ledger_of_program(
    program: Program,
    target: Target | None,
    temporaries: int = 0,
    placed_on: Sequence[Any] | None = None,
) -> Ledger:
    """The ledger of a parsed program; `temporaries` are bytes that its text does not tell, and
    `placed_on` are the devices of its mesh, without which a collective has all links to itself.
    """
    chip = target.chip if target else None
    links = Links(target, placed_on) if target else None
    operations = {one.name: one for one in Account(program, chip, links).operations()}
    if chip and links:
        program, operations = of_longest_branches(program, operations, links, chip)
    return Ledger(
        target=target.name if target else "",
        chip=chip,
        operations=tuple(operations.values()),
        temporaries=temporaries,
        compiler=compiler_version(),
        program=program,
        links=links,
    )


def ledger_of(fn: Callable[..., Any], *shapes: Any, target: str = "v5e-1", **named: Any) -> Ledger:
    """Compiles a function for a target that need not be here, and counts what it does.

    Args:
      fn: a function of arrays, jitted or not.
      *shapes: pytrees of `jax.ShapeDtypeStruct`, or of arrays; on targets of several devices with
        shardings on a mesh of `trainlib.sharding.topology.devices(target)`. Values of Python are
        given on as they are: `jax.jit` makes scalars of them, or knows them as static.
      target: as in `trainlib.chips.target`; "v5e-1" is one chip.
      **named: arguments by name, like `shapes`.

    Raises:
      ConfigError: an unknown target, shapes on a mesh of other devices, or libtpu is not installed.
      jax.errors.JaxRuntimeError: the program does not compile, or does not fit.
    """
    wanted = chips.target(target)
    described = devices(wanted)
    mesh = _mesh_of((shapes, named)) or Mesh(np.array(described[:1]), ("data",))
    _check_mesh(mesh, described, wanted)
    arguments, by_name = jax.tree.map(lambda leaf: _placed(leaf, mesh), (shapes, named))
    # Layers choose what to compute by the devices of the ambient mesh.
    with jax.set_mesh(mesh):
        compiled = _jitted(fn).lower(*arguments, **by_name).compile(options(mesh))
    return ledger_of_compiled(compiled, mesh.shape, wanted, placed_on=list(mesh.devices.flat))


def _jitted(fn: Callable[..., Any]) -> Any:
    """A function that can be lowered; JAX keeps weak references, which NumPy's functions refuse."""
    if hasattr(fn, "lower"):
        return fn
    try:
        weakref.ref(fn)
    except TypeError:
        return jax.jit(functools.partial(fn))
    return jax.jit(fn)


def _mesh_of(shapes: Any) -> Mesh | None:
    for leaf in jax.tree.leaves(shapes):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(leaf, jax.ShapeDtypeStruct) and isinstance(sharding, NamedSharding):
            return sharding.mesh if isinstance(sharding.mesh, Mesh) else None
    return None


def _check_mesh(mesh: Mesh, described: Sequence[Any], target: Target) -> None:
    """Refuses a mesh of other devices: the program would be compiled for those, and its times be
    told of the target.

    Raises:
      ConfigError: what the mesh is of, and which devices it should have.
    """
    first = mesh.devices.flat[0]
    if _places(first.client.devices()) == _places(described):
        return
    raise ConfigError(
        f"The shapes are on a mesh of {first.client.device_count()} x {first.device_kind} that is "
        f"not {target.name}, {len(described)} x {described[0].device_kind}. Make the mesh of "
        f"trainlib.sharding.topology.devices(chips.target('{target.name}')), or name the target "
        "that it is of."
    )


def _places(found: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What tells two slices apart: a description that is asked for again has equal devices, not the
    same ones.
    """
    return [
        (one.device_kind, one.id, tuple(getattr(one, "coords", None) or ()))
        for one in sorted(found, key=lambda one: one.id)
    ]


def _placed(shape: Any, mesh: Mesh) -> Any:
    if not (hasattr(shape, "shape") and hasattr(shape, "dtype")):
        return shape
    sharding = shape.sharding if isinstance(shape, jax.ShapeDtypeStruct) else None
    return jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=sharding or NamedSharding(mesh, P())
    )
