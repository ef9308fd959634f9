"""Plans of configurations on targets, compiled, and the reports of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launch import families

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from trainlib.chips import Target
    from trainlib.planning.compile import Result
    from trainlib.step.plan import Plan

EXIT_DOES_NOT_FIT = 70


def planned(config: ConfigDict, name: str | None) -> tuple[Plan[Any], Target]:
    """The plan of a configuration on the mesh of a target, its own where none is named.

    Raises:
      ConfigError: a target, mesh or value that cannot work.
    """
    from trainlib import chips
    from trainlib.errors import ConfigError
    from trainlib.planning.compile import mesh

    if not (name or config.target):
        raise ConfigError(
            "--target is missing, and this configuration names none of its own: the pod to compile "
            "for, such as --target=v5e-16 (see --help)."
        )
    target = chips.target(name or config.target)
    return families.of(config).plan.make(config, mesh(config, target)), target


def check_mfu(mfu: float | None, target: Target) -> None:
    """Refuses an assumption where it would say nothing.

    Raises:
      ConfigError: `--mfu` for a target whose step time is predicted.
    """
    from trainlib.errors import ConfigError
    from trainlib.planning.step_time import is_predicted

    if mfu is not None and is_predicted(target):
        raise ConfigError(
            f"--mfu={mfu} is the assumption for targets without a prediction, GPUs. The step time "
            f"of {target.name} is predicted from the compiled program: leave --mfu out."
        )


def compiled(plan: Plan[Any], target: Target) -> tuple[dict[str, Any], Result]:
    """What the family says of a configuration, and the result of compiling its train step."""
    from trainlib.planning.compile import compile_plan
    from trainlib.step.step import compile_train

    family = families.of(plan.config)
    facts = family.describe.describe(plan.config)
    progress(f"compiling {plan.config.name} for {target.name} ...")
    train_step = compile_train(family.objective.make_loss(plan), plan)
    result = compile_plan(plan, train_step, family.plan.abstract_batch(plan), target)
    progress("")
    return facts, result


def compiled_report(plan: Plan[Any], target: Target, mfu: float | None = None) -> dict[str, Any]:
    """Compiles a plan and says what comes of it, see `trainlib.planning.report`."""
    from trainlib.planning.report import make_report

    facts, result = compiled(plan, target)
    return make_report(plan, target, facts, result, mfu)


def cached_reports(args: Any) -> Callable[[Plan, Target], dict[str, Any]]:
    """`compiled_report` that keeps its answers in `--cache`, by all that they depend on."""
    from launch.hosts.start import source_digest, versions
    from trainlib.config import flatten
    from trainlib.planning.search import Cache

    cache = Cache(args.cache)
    flags = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    code = {"code": source_digest(), **versions(), **flags}

    def report(plan: Plan[Any], target: Target) -> dict[str, Any]:
        check_mfu(args.mfu, target)
        key = [flatten(plan.config), target.name, args.mfu, code]
        return cache.get(key, lambda: compiled_report(plan, target, args.mfu))

    return report


def progress(text: str) -> None:
    """Shows what is being done on a terminal; "" takes it away."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
