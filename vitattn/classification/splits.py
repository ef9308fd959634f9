"""The splits that a classifier is trained and evaluated on, labelled with its outputs' numbers.

C outputs of the model, of which the last may have no class.
"""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from trainlib.data.batches import Batches
from trainlib.step.plan import Plan
from vitattn import data
from vitattn.augmentation import settings as augmentation
from vitattn.data import Source
from vitattn.data.unlabelled import Unlabelled
from vitattn.images.size import Size
from vitattn.labels import class_names, matching
from vitattn.labels.class_names import ModelNames
from vitattn.labels.matching import Relabelled
from vitattn.labels.splits import Splits
from vitattn.models import ModelConfig


def open_training(plan: Plan[ModelConfig]) -> Splits[Source]:
    """Opens the splits of a training run, and checks that the model and the settings fit them.

    Raises:
      DataError: a split is absent, has more classes than the model has outputs, or the evaluation
        split has a class that the training split lacks.
      ConfigError: a value of the `data` section cannot work, on so many processes.
    """
    config = plan.config.data
    train = data.make_source(config, "train")
    held_out = data.make_source(config, config.eval_split)
    data.check_classes(train, plan.model.num_classes)
    names = class_names.of_outputs(train.class_names, plan.model.num_classes, config.source)
    trained = ModelNames(names, "the training data")
    where = f"the split {config.eval_split}"
    held_out = matching.by_name(held_out, trained, where, Relabelled)
    data.check_settings(train, config, plan.model.size)
    augmentation.check(config, plan.config.batch_size, jax.process_count())
    return Splits(train, held_out, names)


def open_evaluation(
    plan: Plan[ModelConfig], names: ModelNames | None, workdir: Path
) -> tuple[Source, str]:
    """Opens the evaluation split for a model that is trained already.

    Args:
      plan: of the model.
      names: of its outputs; None where they are not known.
      workdir: of the model, for messages.

    Returns:
      The split, and a phrase that says how its labels were matched with the outputs.

    Raises:
      DataError: the split is absent, or its labels cannot be matched.
    """
    config = plan.config.data
    source = data.make_source(config, config.eval_split)
    outputs = plan.model.num_classes
    return matching.of_model(source, names, outputs, config.source, workdir, Relabelled)


def train_batches(plan: Plan[ModelConfig], source: Source, start: int) -> Batches:
    """Returns this process's training batches from number `start` on, without end."""
    config = plan.config
    process = jax.process_index(), jax.process_count()
    return data.train_batches(
        source, config.data, config.batch_size, config.seed, start, *process, plan.model.size
    )


def image_batches(
    source: Unlabelled, config: ConfigDict, batch_size: int, image_size: Size
) -> Batches:
    """Returns batches of images without labels, once and in order, of this process alone."""
    return data.eval_batches(source, config, batch_size, 0, 1, image_size)
