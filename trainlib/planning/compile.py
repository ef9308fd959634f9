"""Compiles the train step of a plan for devices that are not here, on any machine.

XLA's compiler for TPUs comes with libtpu and needs no TPU: it is asked for the devices of a target
(`trainlib.chips`), the plan is made on their mesh, and the step, the same object that trains, is
lowered from shapes and compiled. No array is ever made: a step of 269 billion parameters takes
minutes and a few GiB.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import sys
import time
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh
from ml_collections import ConfigDict

from trainlib.chips import GIB, Target
from trainlib.errors import ConfigError
from trainlib.model import flops
from trainlib.planning import hlo
from trainlib.planning.ledger import Ledger, ledger_of_compiled
from trainlib.sharding.mesh import AXES, make_mesh
from trainlib.sharding.topology import captured_errors, devices
from trainlib.step.memory import device_bytes
from trainlib.step.plan import Plan

# Operations that are alike share their machine code. The optimised program is the same to the last
# letter, but to link it takes less than half of the memory: the compiler of TPUs otherwise writes
# the code of an operation as often as it stands in the program.
_SHARED_CODE: dict[str, str | bool] = {"xla_tpu_enable_deduplicated_calls": True}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler plans them.

    Attributes:
      arguments: state and batch; the new state takes the place of the old.
      temporaries: everything else that is alive at once.
      peak: the compiler's own figure of what is used at the worst moment.
      code: the program; on a TPU it is larger where operations are alike, as they share it here.
      host: what a policy of recomputation keeps in the memory of the host, for each device.
    """

    arguments: int
    temporaries: int
    peak: int
    code: int
    host: int

    @property
    def total(self) -> int:
        """What must fit: the larger of both figures. Small temporaries that live on the chip are in
        the peak alone, and a peak leaves out what lies between arrays.
        """
        return max(self.arguments + self.temporaries, self.peak)


@dataclasses.dataclass(frozen=True)
class Shortfall:
    """Why a program does not fit, in the words of the compiler.

    Attributes:
      required: bytes that it needs on one device.
      available: bytes that programs may use there.
    """

    required: float
    available: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What a compilation says. `memory` or `shortfall` is there, not both.

    Attributes:
      memory: of a program that fits.
      shortfall: of one that does not.
      program: the compiled HLO; None when it does not fit.
      ledger: of the operations of the program; None when it does not fit.
      flops: of one step on all devices, recomputation included.
      batch_bytes: of a batch, on one device.
      seconds: of tracing, lowering and compiling.
      host_bytes: the most memory that this process has held.
      warnings: of the partitioner, about arrays copied whole to every device.
      largest: the largest arrays of the traced program, see `largest_values`.
    """

    memory: Memory | None
    shortfall: Shortfall | None
    program: hlo.Program | None
    ledger: Ledger | None
    flops: float
    batch_bytes: int
    seconds: float
    host_bytes: int
    warnings: tuple[str, ...]
    largest: tuple[tuple[int, str], ...]


def mesh(config: ConfigDict, target: Target) -> Mesh:
    """The mesh that a configuration asks for, on a target.

    `mesh.replica` is at least the number of slices; `mesh.data=-1` takes what is left.

    Raises:
      ConfigError: the sizes do not multiply to the devices of the target.
    """
    asked = config.mesh.to_dict()
    sizes = {name: asked.get(name, 1) for name in AXES}
    if target.slices > 1 and sizes["replica"] == 1:
        sizes["replica"] = target.slices
    target_devices = devices(target)
    try:
        return make_mesh(**sizes, devices=target_devices)
    except ConfigError as error:
        raise ConfigError(
            f"--target={target.name} has {target.devices} devices ({target.chips} chips): {error}"
        ) from error


def compile_plan(
    plan: Plan[Any],
    train_step: Any,
    batch: dict[str, jax.ShapeDtypeStruct],
    target: Target | None = None,
) -> Result:
    """Traces, lowers and compiles the train step of a plan; a step that does not fit is a result.

    Args:
      plan: on the mesh of the target.
      train_step: the jitted step that trains, from `step.compile_train`.
      batch: a global batch as shapes with shardings.
      target: whose devices the mesh is made of; without it, operations have no times.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails for another reason.
    """
    start = time.monotonic()
    traced = train_step.trace(plan.abstract_state(), batch)
    body = traced.jaxpr.jaxpr
    work = 2.0 * flops.multiply_adds(body)
    memory = shortfall = ledger = None
    with captured_errors() as log:
        try:
            options = _SHARED_CODE if target and target.platform == "tpu" else None
            compiled = traced.lower().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            shortfall = read_shortfall(str(error))
            if shortfall is None:
                raise
        else:
            memory = _memory(compiled.memory_analysis())
            ledger = ledger_of_compiled(
                compiled, plan.mesh.shape, target, placed_on=list(plan.mesh.devices.flat)
            )
    unit = 1 if sys.platform == "darwin" else 1024  # a Mac counts bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    seconds = time.monotonic() - start
    warnings = tuple(hlo.involuntary(log[0]))
    largest = tuple(largest_values(body))
    return Result(
        memory=memory,
        shortfall=shortfall,
        program=ledger.program if ledger else None,
        ledger=ledger,
        flops=work,
        batch_bytes=device_bytes(batch),
        seconds=seconds,
        host_bytes=peak,
        warnings=warnings,
        largest=largest,
    )


def _memory(analysis: Any) -> Memory:
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        host=analysis.host_temp_size_in_bytes,
    )


_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40, "": 1}


def read_shortfall(message: str) -> Shortfall | None:
    """Reads the compiler's error of a program that does not fit; None when it is another error."""
    amount = r"([\d.]+)([KMGT]?)"
    match = re.search(
        rf"memory required for HLO temporaries \({amount}\) exceeds available HBM \({amount}\)",
        message,
    ) or re.search(rf"Used {amount} of {amount} hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or not match:
        return None
    # What it calls temporaries holds the arguments too: a program of one product shows it.
    required, available = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
    return Shortfall(required, available)


def largest_values(jaxpr: core.Jaxpr, count: int = 5) -> list[tuple[int, str]]:
    """The largest arrays that a traced program makes: (bytes of the whole array, what it is).

    Inside a shard_map these are the bytes on one device. Each shape and type is listed once.
    """
    sizes: dict[str, int] = {}

    def visit(body: core.Jaxpr, where: str) -> None:
        for equation in body.eqns:
            name = equation.primitive.name
            inside = where or (name if name == "shard_map" else "")
            for variable in equation.outvars:
                value: Any = variable.aval
                if getattr(value, "shape", None):
                    text = f"{value.dtype}{list(value.shape)} of {name}"
                    scope = " on one device" if where else ""
                    sizes.setdefault(text + scope, math.prod(value.shape) * value.dtype.itemsize)
            for value in equation.params.values():
                for part in flops.subjaxprs(value):
                    visit(part, inside)

    visit(jaxpr, "")
    shown: dict[str, tuple[int, str]] = {}
    for text, size in sorted(sizes.items(), key=lambda item: -item[1]):
        shown.setdefault(text.partition(" of ")[0], (size, text))
    return list(shown.values())[:count]
