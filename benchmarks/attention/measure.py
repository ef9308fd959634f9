"""What the ledger says of a case of `benchmarks.attention.cases`."""

from __future__ import annotations

import dataclasses
import time

import jax

from benchmarks.attention.cases import Case, size_of
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.kernels import use_kernels


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one case on one target.

    Attributes:
      case: that was compiled.
      target: for which.
      milliseconds: of all operations, one after another; each is the larger of its cycles and its
        bytes over the bandwidth.
      kernels: milliseconds of the Pallas kernels among them.
      hbm_bytes: read and written, with the padding of tiles.
      least: bytes, see `Case.least`.
      temporaries: bytes alive between operations.
      outputs: bytes of value and gradients.
      compile_seconds: CPU seconds of tracing, compiling and reading the program.
    """

    case: Case
    target: str
    milliseconds: float
    kernels: float
    hbm_bytes: int
    least: int
    temporaries: int
    outputs: int
    compile_seconds: float

    @property
    def bytes_over_least(self) -> float:
        return self.hbm_bytes / self.least

    @property
    def temporaries_over_outputs(self) -> float:
        return self.temporaries / self.outputs


def measure(case: Case, target: str, kernels: str = "auto") -> Row:
    """Compiles a case.

    Args:
      case: what.
      target: a chip, such as "v5e-1".
      kernels: "plain" compiles it without kernels; see `trainlib.sharding.kernels`.

    Raises:
      ConfigError: an unknown target, or libtpu is not installed.
      jax.errors.JaxRuntimeError: it does not compile, or does not fit.
    """
    program = case.make()
    started = time.process_time()
    with use_kernels(kernels):
        ledger = ledger_of(program.function, *program.shapes, target=target)
    seconds = time.process_time() - started
    outputs = size_of(jax.eval_shape(program.function, *program.shapes))
    inside = sum(one.total_seconds for one in ledger.operations if one.kind == "kernel")
    return Row(
        case=case,
        target=target,
        milliseconds=1e3 * ledger.seconds,
        kernels=1e3 * inside,
        hbm_bytes=ledger.hbm_bytes,
        least=case.least or size_of(program.shapes) + outputs,
        temporaries=ledger.temporaries,
        outputs=outputs,
        compile_seconds=seconds,
    )


HEADER = (
    *("path", "chip", "ms", "of it kernels", "floor", "goal", "aim"),
    *("HBM MB", "over least", "temporaries over outputs", "compile CPU s"),
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table prints it, in the order of `HEADER`."""
    case = row.case
    # Goals are set for one chip.
    goal, aim = (case.goal, case.aim) if row.target == "v5e-1" else (None, None)

    def limit(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    met = "" if goal is None else (" (met)" if row.milliseconds <= goal else " (missed)")
    return (
        *(case.path, row.target, f"{row.milliseconds:.3f}", f"{row.kernels:.3f}"),
        *(limit(case.floor.get(row.target)), limit(goal) + met, limit(aim)),
        *(f"{row.hbm_bytes / 1e6:.1f}", f"{row.bytes_over_least:.2f}"),
        *(f"{row.temporaries_over_outputs:.2f}", f"{row.compile_seconds:.0f}"),
    )
