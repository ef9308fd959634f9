"""Evaluation over a whole split, and the command that runs it on a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from trainlib import checkpoint, metrics, optim, schedules, sharding, state, step
from trainlib import nn as nn_lib
from trainlib.mesh import make_mesh
from trainlib.progress import summary
from vitattn import classify
from vitattn import config as config_lib
from vitattn.data import check_classes, eval_batches, make_source
from vitattn.data.sources import Source
from vitattn.models import build, configure

MEASURED = ("loss", "top1", "top5")


def over_split(
    eval_step: Any,
    params: nn_lib.Arrays,
    model_state: nn_lib.Arrays,
    source: Source,
    config: ConfigDict,
    rows: NamedSharding,
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Loss, top-1 and top-5 (fractions) over every record of a split, and how many counted;
    `between` is called before each batch.
    """
    total = None
    size = config.eval_batch_size or config.batch_size
    place = jax.process_index(), jax.process_count()
    pixels = configure(config.model).size
    with eval_batches(source, config.data, size, *place, pixels) as batches:
        for batch in batches:
            between()
            on_device = step.put_batch({name: batch[name] for name in classify.FIELDS}, rows)
            sums = eval_step(params, model_state, on_device)
            total = metrics.merge(total, metrics.to_host(sums))
    assert total is not None
    return {**metrics.compute(total), "examples": int(total["top1"].count)}


def run(config: ConfigDict, workdir: Path, at_step: int | None = None) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on its evaluation split and prints the result.

    Args:
      config: the configuration of the run.
      workdir: where its checkpoints are.
      at_step: which step; None is the newest.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
    """
    mesh = make_mesh(config.mesh.replica, config.mesh.data)
    rules = config_lib.sharding_rules(config)
    config_lib.check(config, sharding.batch_parts(rules, mesh))
    source = make_source(config.data, config.data.eval_split)
    check_classes(source, configure(config.model).num_classes)
    for line in source.left_out:
        print(line)
    abstract = nn_lib.abstract(build(config.model))
    shardings = weight_shardings(abstract, config, mesh, rules)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    number = checkpoints.pick(at_step)
    params, model_state = read_weights(checkpoints, number, abstract, shardings)
    checkpoints.close()
    eval_step = step.compile_eval(classify.make_evaluate(abstract), shardings, mesh, rules)
    rows = sharding.batch_sharding(rules, mesh)
    result = over_split(eval_step, params, model_state, source, config, rows)
    result = {"step": number, "split": config.data.eval_split, **result}
    print(summary(f"{config.name} on {config.data.source}", table(result)))
    return result


def table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Rows of a printed result."""
    return [
        ("step", result["step"]),
        ("images", f"{result['examples']:,} ({result['split']} split)"),
        ("top-1", f"{100 * result['top1']:.2f} %"),
        ("top-5", f"{100 * result['top5']:.2f} %"),
        ("loss", f"{result['loss']:.4f}"),
    ]


def weight_shardings(
    abstract: nn_lib.Abstract, config: ConfigDict, mesh: Any, rules: sharding.Rules
) -> state.TrainState:
    """Shardings of the state that this configuration trains."""
    schedule = schedules.make_schedule(config.schedule, config.steps)
    optimizer = optim.make_optimizer(config.optimizer, schedule, abstract.params)
    return state.state_shardings(abstract, optimizer, mesh, rules, with_ema=bool(config.ema_decay))


def read_weights(
    checkpoints: checkpoint.Checkpoints,
    number: int,
    abstract: nn_lib.Abstract,
    shardings: state.TrainState,
) -> tuple[nn_lib.Arrays, nn_lib.Arrays]:
    """Reads weights and statistics of a step, the moving averages where the run keeps them."""
    specs = {**abstract.params, **abstract.model_state}
    places = {**shardings.params, **shardings.model_state}
    averaged = bool(shardings.ema)

    def stored_name(name: str) -> str:
        if averaged:
            return f"ema/{name}"
        return f"{'params' if name in abstract.params else 'model_state'}/{name}"

    wanted = {
        stored_name(name): jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=places[name])
        for name, s in specs.items()
    }
    read = checkpoints.restore_some(number, wanted)
    params = {name: read[stored_name(name)] for name in abstract.params}
    return params, {name: read[stored_name(name)] for name in abstract.model_state}
