"""From the kind of model in a checkpoint to the kind that starts: which names are the same part.

A detector has the network of a classifier below `backbone.`, without its head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from trainlib.errors import CheckpointError
from trainlib.model.weights import Spec
from vitattn.models import ModelConfig
from vitattn.models.retinanet.config import RetinaNetConfig

BACKBONE = "backbone."
PLACES = "anchors"  # logical axis of predictors
# Keys that say which boxes a predictor starts from.
ANCHORS = ("anchors", "num_scales", "aspect_ratios", "anchor_scale")


@dataclasses.dataclass(frozen=True)
class Passage:
    """How names of the model here and of the checkpoint belong together.

    Attributes:
      inside: whether the checkpoint holds a classifier, whose network is the backbone here.
      anchors: how the anchors there differ; "" for no difference.
    """

    inside: bool = False
    anchors: str = ""

    @property
    def source(self) -> str:
        """What the checkpoint is of, where that is another kind of model."""
        return " of a classifier" if self.inside else ""

    def theirs(self, name: str) -> str:
        """Name in the checkpoint of a weight, or of a layer, here."""
        return name.removeprefix(BACKBONE) if self.inside else name

    def new(self, name: str, spec: Spec) -> str:
        """Why a weight here starts anew though nobody asked for it; "" if it does not."""
        if self.inside and not name.startswith(BACKBONE):
            return "no part of a classifier"
        return self.anchors if PLACES in spec.axes else ""


SAME = Passage()


def by_name(stored: Iterable[str]) -> dict[str, str]:
    """Name of a weight or statistic -> name in a checkpoint, of the moving averages if it has
    them."""
    stored = list(stored)
    averaged = any(name.startswith("ema/") for name in stored)
    kinds = ("ema/",) if averaged else ("params/", "model_state/")
    return {name.partition("/")[2]: name for name in stored if name.startswith(kinds)}


def between(
    stored: Iterable[str], specs: Iterable[str], saved: Mapping[str, Any], model: ModelConfig
) -> Passage:
    """The passage from a checkpoint to the model that starts.

    Args:
      stored: names in the checkpoint.
      specs: names of the weights here.
      saved: dotted key -> value of the configuration that the checkpoint was trained with; may be
        empty.
      model: what starts.

    Raises:
      CheckpointError: a detector for a classifier.
    """
    there = any(name.startswith(BACKBONE) for name in by_name(stored))
    here = any(name.startswith(BACKBONE) for name in specs)
    if there and not here:
        raise CheckpointError(
            "The checkpoint of init_from holds a detector, and this model classifies: a detector "
            "starts from a classifier, not the other way round. Give the classifier that it was "
            "started from itself."
        )
    if here and not there:
        return Passage(inside=True)
    return Passage(anchors=_other_anchors(saved, model))


def _other_anchors(saved: Mapping[str, Any], model: ModelConfig) -> str:
    """How the anchors of another detector differ from those of `model`."""
    if not isinstance(model, RetinaNetConfig):
        return ""
    for key in ANCHORS:
        here, there = getattr(model, key), saved.get(f"model.{key}")
        there = tuple(there) if isinstance(there, list) else there
        if there is not None and there != here:
            return f"other anchors: model.{key}={there} there"
    return ""
