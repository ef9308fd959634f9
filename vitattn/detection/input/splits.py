"""The splits that a detector is trained and evaluated on, with the numbers of the model's outputs
as classes of their boxes.

C outputs of the model, of which some may have no class.
"""

from __future__ import annotations

from pathlib import Path

import jax

from trainlib.data.batches import Batches
from trainlib.step.plan import Plan
from vitattn.data import check_classes
from vitattn.detection.data.catalog import make_source
from vitattn.detection.data.source import BoxedSource, relabelled
from vitattn.detection.data.truth import check_truth
from vitattn.detection.input import pipeline
from vitattn.labels import class_names, matching
from vitattn.labels.class_names import ModelNames
from vitattn.labels.splits import Splits
from vitattn.models import ModelConfig


def open_training(plan: Plan[ModelConfig]) -> Splits[BoxedSource]:
    """Opens the splits of a training run, and checks that they fit the model and each other, and
    that the evaluation split can be evaluated on: that is found out before hours of training.

    Raises:
      DataError: a split is absent, has more classes than the model has outputs, the evaluation
        split has a class that the training split lacks, or no box to be found.
      ConfigError: what evaluation needs is not installed.
    """
    config = plan.config.data
    train = make_source(config, "train")
    held_out = make_source(config, config.eval_split)
    check_classes(train, plan.model.num_classes)
    names = class_names.of_outputs(train.class_names, plan.model.num_classes, config.source)
    trained = ModelNames(names, "the training data")
    where = f"the split {config.eval_split}"
    held_out = matching.by_name(held_out, trained, where, relabelled)
    check_truth(held_out)
    return Splits(train, held_out, names)


def open_evaluation(
    plan: Plan[ModelConfig], names: ModelNames | None, workdir: Path
) -> tuple[BoxedSource, str]:
    """Opens the evaluation split for a model that is trained already.

    Args:
      plan: of the model.
      names: of its outputs; None where they are not known.
      workdir: of the model, for messages.

    Returns:
      The split, and a phrase that says how its classes were matched with the outputs.

    Raises:
      DataError: the split is absent, its classes cannot be matched, or it has no box to be found.
      ConfigError: what evaluation needs is not installed.
    """
    config = plan.config.data
    source = make_source(config, config.eval_split)
    outputs = plan.model.num_classes
    what = (config.eval_split == "test" and config.eval_json) or config.source
    matched = matching.of_model(source, names, outputs, what, workdir, relabelled)
    check_truth(matched[0])
    return matched


def train_batches(plan: Plan[ModelConfig], source: BoxedSource, start: int) -> Batches:
    """Returns this process's training batches from number `start` on, without end."""
    config = plan.config
    process = jax.process_index(), jax.process_count()
    return pipeline.train_batches(
        source, config.data, config.batch_size, config.seed, start, *process, plan.model.size
    )
