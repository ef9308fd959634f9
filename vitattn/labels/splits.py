"""What a training run of any task reads: two splits of a data set, and what its labels mean."""

from __future__ import annotations

import dataclasses
from typing import Generic

from vitattn.data.source import AnySource
from vitattn.labels.class_names import Names


@dataclasses.dataclass(frozen=True)
class Splits(Generic[AnySource]):
    """The splits of a training run, labelled with the numbers of the model's C outputs.

    Attributes:
      train: the training split.
      held_out: the split that is evaluated on, with the labels of the training split.
      names: of the classes that the outputs stand for, [C].
    """

    train: AnySource
    held_out: AnySource
    names: Names
