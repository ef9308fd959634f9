"""Evaluation of a classifier: every record of a split counts once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from trainlib.model import metrics
from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, Sums
from vitattn.classification import objective
from vitattn.data import Source, eval_batches
from vitattn.models import ModelConfig

# Fields of an `Evaluation` by which the best checkpoint can be chosen.
MEASURED = ("loss", "top1", "top5")
WRITES_PREDICTIONS = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured over a split.

    Attributes:
      loss: mean cross entropy in nats.
      top1: fraction of the images whose class is the likeliest one.
      top5: fraction of the images whose class is among the five likeliest.
      examples: images that counted.
    """

    loss: float
    top1: float
    top5: float
    examples: int

    def flat(self) -> dict[str, float]:
        """Returns name -> number, as metric files and checkpoints hold them."""
        return dataclasses.asdict(self)

    def phrase(self) -> str:
        """Returns the result as part of a line of progress."""
        return (
            f"top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, "
            f"loss {self.loss:.4f} on {self.examples:,} images"
        )

    def rows(self, config: ConfigDict) -> list[tuple[str, str]]:
        """Returns the rows of a printed summary: label, text."""
        return [
            ("top-1", f"{100 * self.top1:.2f} %"),
            ("top-5", f"{100 * self.top5:.2f} %"),
            ("loss", f"{self.loss:.4f}"),
            ("evaluated on", f"{self.examples:,} images ({config.data.eval_split} split)"),
        ]

    def write(self, directory: Path) -> dict[str, Path]:
        """Writes nothing: the numbers are all there is."""
        return {}


def over_split(
    eval_step: Callable[[Arrays, Arrays, Batch], Sums],
    params: Arrays,
    model_state: Arrays,
    source: Source,
    plan: Plan[ModelConfig],
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluates weights on every record of a split, on all processes together.

    Args:
      eval_step: `step.compile_eval(make_evaluate(plan), plan)`.
      params: weights.
      model_state: running statistics.
      source: the split.
      plan: of the model.
      between: called before each batch.
    """
    config, total = plan.config, None
    size = config.eval_batch_size or config.batch_size
    process = jax.process_index(), jax.process_count()
    with eval_batches(source, config.data, size, *process, plan.model.size) as batches:
        for batch in batches:
            between()
            arrays = step.put_batch(
                {name: batch[name] for name in objective.FIELDS}, plan.batch_sharding
            )
            total = metrics.merge(total, metrics.to_host(eval_step(params, model_state, arrays)))
    assert total is not None
    return Evaluation(**metrics.compute(total), examples=int(total["top1"].count))
