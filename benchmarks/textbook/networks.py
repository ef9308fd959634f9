"""Plain networks against their textbook forms, by the account of the TPU's compiler.

    python -m benchmarks.textbook.networks [--networks=resnet50,mnasnet] [--targets=v5e-1,v6e-1]

Compiles the train step of each network and that of its peer in flax.linen and optax.sgd
(`benchmarks.textbook.linen_peers`) in one process, and prints what the ledger
(`trainlib.planning.ledger`) says of both and their ratios: time of all operations one after
another, predicted time of the schedule, bytes through HBM, temporaries. Target: no ratio above 1.
Ours also checks that its gradients are finite, weighs its examples, and counts its metrics. No TPU
is needed; each compilation takes minutes of one core. Nothing is measured on a device.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import jax

from benchmarks.textbook import linen_peers
from configs.common import load
from launch import families
from trainlib import chips
from trainlib.chips import Target
from trainlib.planning import compile as planning
from trainlib.planning.ledger import Ledger, ledger_of
from trainlib.planning.ledger.ledger import compiler_version
from trainlib.step.step import compile_train


class Size(NamedTuple):
    batch: int  # on one chip
    pixels: int


NETWORKS = {"resnet50": Size(64, 224), "wrn28_10": Size(128, 32), "mnasnet": Size(64, 224)}
TARGETS = ("v5e-1", "v6e-1")
# The recipes as far as the peer has them: plain SGD with momentum, no average of weights.
RECIPE = {"optimizer.name": "sgd", "ema_decay": "0.0", "model.dtype": "bfloat16"}


def ours(network: str, target: Target) -> Ledger:
    """The ledger of our train step on one chip."""
    config = load.from_flags(network, RECIPE | {"batch_size": str(NETWORKS[network].batch)}).config
    family = families.of(config)
    plan = family.plan.make(config, planning.mesh(config, target))
    step = compile_train(family.objective.make_loss(plan), plan)
    result = planning.compile_plan(plan, step, family.plan.abstract_batch(plan), target)
    if result.ledger is None:
        raise RuntimeError(f"The train step of {network} does not fit: {result.shortfall}.")
    return result.ledger


def textbook(network: str, target: str) -> Ledger:
    """The ledger of the peer's train step on one chip."""
    step, arguments = linen_peers.train_step(network, *NETWORKS[network])
    return ledger_of(jax.jit(step, donate_argnums=0), *arguments, target=target)


def figures(ledger: Ledger) -> dict[str, float]:
    """What is compared: name with its unit -> value."""
    return {
        "sum ms": 1e3 * ledger.seconds,
        "schedule ms": 1e3 * ledger.schedule.seconds,
        "HBM GB": ledger.hbm_bytes / 1e9,
        "temporaries GiB": (ledger.temporaries or 0) / 2**30,
    }


def main() -> None:
    """Prints a table, a row for each network and target."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    print(f"{compiler_version()}, jax {jax.__version__}: the compiler's account, nothing measured")
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
