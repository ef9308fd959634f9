"""Held-out texts with their truth, and what a checkpoint makes of them: gaps that it fills after
span corruption, words that it expects next in a language model, answers after fine-tuning.
"""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from moe import plan as plan_lib
from moe.samples import answers, gaps, next_words
from trainlib.formats.load import load_weights
from trainlib.report.samples import Samples
from trainlib.sharding.mesh import make_mesh


def take(config: ConfigDict, workdir: Path, at_step: int | None, count: int) -> Samples:
    """Asks a checkpoint about held-out texts, on one device whatever mesh it was trained on.

    Args:
      config: the configuration of the run.
      workdir: where its checkpoints are.
      at_step: which step; None is the newest.
      count: how many texts, at most.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: nothing is held out, or a value that cannot work.
      DataError: the data is not there or cannot be used.
      NumericAbort: the model gives NaN.
    """
    plan = plan_lib.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    if config.task == "finetune":
        kind = answers
    else:
        kind = gaps if plan.model.kind == "encoder_decoder" else next_words
    asked = kind.Asked(plan, count)  # what is wrong with the data is found out first
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    found, about = asked.answered(loaded.weights)
    return Samples(loaded.step, about, tuple(found))
