"""How far the routing of one text moves from checkpoint to checkpoint.

Letters: T tokens of the rows, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from moe.data import eval_batches
from moe.data.sources.packing import batch_fields
from moe.data.sources.source import Source
from moe.models.architecture import Architecture
from moe.observatory import figures
from moe.observatory.watch import layers_of
from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, Sums

EvalStep = Callable[[Arrays, Arrays, Batch], tuple[Sums, dict[str, jax.Array]]]
Routes = Mapping[str, np.ndarray]  # STACK.BLOCK -> `figures.sent_to`


class Probe:
    """Routes the first held-out batch at each checkpoint, by the program that evaluates.

    Args:
      eval_step: `step.compile_eval(objective.make_evaluate(plan), plan)`.
      plan: of the run.
      source: the held-out split; None: nothing is compared.
    """

    def __init__(self, eval_step: EvalStep, plan: Plan[Architecture], source: Source | None):
        self._eval_step, self._plan = eval_step, plan
        options = plan.config.router
        self._layers = layers_of(plan.model) if options.log_every and options.probe_rows else []
        self._source = source if self._layers else None
        self._batch: dict[str, np.ndarray] | None = None
        self._before: Routes = {}

    def begin(self, weights: Arrays) -> None:
        """Notes the routing of the weights that the run resumes from."""
        self._before = self._routes(weights)

    def moved(self, weights: Arrays) -> dict[str, float]:
        """`router/STACK.BLOCK/churn` since the last call; nothing after the first one. To be called
        on every host.
        """
        before, self._before = self._before, self._routes(weights)
        return {
            layer.key("churn"): figures.churn(before[layer.name], self._before[layer.name])
            for layer in self._layers
            if layer.name in before
        }

    def _routes(self, weights: Arrays) -> Routes:
        if self._source is None:
            return {}
        plan = self._plan
        if self._batch is None:
            self._batch = _first_batch(plan, self._source)
        on_devices = step.put_batch(self._batch, plan.batch_sharding)
        _, chosen = self._eval_step(*plan.abstract.split(weights), on_devices)
        routes: dict[str, np.ndarray] = {}
        for stack, expert in jax.device_get(chosen).items():
            for block, of_block in zip(plan.model.sparse_blocks(stack), expert, strict=True):
                routing = plan.model.stack_routing(stack)
                assert routing is not None
                routes[f"{stack}.{block}"] = figures.sent_to(of_block, routing.num_experts)
        return routes


def _first_batch(plan: Plan[Architecture], source: Source) -> dict[str, np.ndarray]:
    """The first batch that evaluations see: this process's part of it."""
    config, (part, _) = plan.config, source.parts()[0]
    size = config.eval_batch_size or config.batch_size
    process = jax.process_index(), jax.process_count()
    with eval_batches(part, config.data, size, *process) as batches:
        batch = next(iter(batches))
    return {name: batch[name] for name in batch_fields(plan.model.kind)}
