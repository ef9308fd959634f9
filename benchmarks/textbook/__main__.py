"""Plain networks against their textbook forms, by the account of the TPU's compiler.

    python -m benchmarks.textbook [--networks=resnet50,mnasnet] [--targets=v5e-1,v6e-1]

Compiles the train step of each network and that of its peer in flax.linen and optax.sgd in one
process, and prints what the ledger (`trainlib.planning.ledger`) says of both and their ratios: time
of all operations one after another, predicted time of the schedule, bytes through HBM, temporaries.
Target: no ratio above 1. No TPU is needed; each compilation takes minutes of one core. Nothing is
measured on a device.
"""

from __future__ import annotations

import argparse

import jax

from benchmarks.textbook.networks import NETWORKS, TARGETS, figures, ours, textbook
from trainlib import chips
from trainlib.planning.ledger.ledger import compiler_version


def main() -> None:
    """Prints a table, a row for each network and target."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    print(
        f"By the account of libtpu {compiler_version()} (jax {jax.__version__}), nothing measured"
    )
    print("| network | target | figure | ours | textbook | ratio |\n|---|---|---|---|---|---|")
    for network in options.networks.split(","):
        for target in options.targets.split(","):
            one = figures(ours(network, chips.target(target)))
            other = figures(textbook(network, target))
            for name, value in one.items():
                ratio = value / other[name]
                row = (network, target, name, f"{value:.2f}", f"{other[name]:.2f}", f"{ratio:.3f}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
