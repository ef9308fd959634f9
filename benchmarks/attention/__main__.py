"""Attention paths on a TPU that need not be here: `python -m benchmarks.attention`.

    python -m benchmarks.attention [--path=augmented/half_14,t5] [--target=v5e-1,v6e-1] [--plain]

Forward and backward pass of each path, compiled for one chip. Prints a table of what the compiler
and the ledger say: time beside floor and goal, bytes through HBM over the least, temporaries over
outputs. A path may be named by the beginning of its name; `--plain` compiles the same functions
without kernels, as other platforms have them, which takes minutes a path. Nothing is run.
"""

from __future__ import annotations

import argparse
import importlib

import jax

from benchmarks.attention.cases import Case
from benchmarks.attention.measure import HEADER, cells, measure
from trainlib.errors import one_of
from trainlib.planning.ledger.ledger import compiler_version

FAMILIES = ("augmented", "windowed", "detection", "t5")


def cases(names: str) -> list[Case]:
    """The cases of these names, or of names that begin so, comma between; "" for all.

    Raises:
      ConfigError: a name that no case begins with.
    """
    modules = (importlib.import_module(f"benchmarks.attention.{name}") for name in FAMILIES)
    known: list[Case] = [case for module in modules for case in module.CASES]
    found = []
    for name in filter(None, names.split(",")):
        matching = [case for case in known if case.path.startswith(name)]
        if not matching:
            raise one_of("--path", name, [case.path for case in known])
        found += matching
    return found or known


def main() -> None:
    """Prints a row for each path and target."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--path", default="", help="names, or beginnings of them")
    parser.add_argument("--target", default="v5e-1")
    parser.add_argument("--plain", action="store_true", help="without kernels")
    options = parser.parse_args()
    print(
        f"By the account of libtpu {compiler_version()} (jax {jax.__version__}), nothing measured"
    )
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for case in cases(options.path):
        for target in options.target.split(","):
            row = measure(case, target, "plain" if options.plain else "auto")
            print(f"| {' | '.join(cells(row))} |", flush=True)


if __name__ == "__main__":
    main()
