"""Train steps of plain networks on one chip, ours and the textbook's, as the ledger has them.

Ours also checks that its gradients are finite, weighs its examples, and counts its metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from benchmarks.textbook import linen_peers
from configs.common import load
from launch import families
from trainlib.chips import Target
from trainlib.planning import compile as planning
from trainlib.planning.ledger import Ledger, ledger_of
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
