"""RetinaNet: a residual network, a pyramid of its maps, and two heads on each level.

Letters: B batch, H W the image, h w the map of a level, A anchors a location, C classes.

Lin et al. 2017, arXiv 1708.02002. What the outputs mean for boxes is in `vitattn.detection`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

from trainlib.errors import InputError
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from vitattn.layers.norm import Weights
from vitattn.models.resnet.config import STAGES
from vitattn.models.resnet.network import Backbone
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.heads import Heads
from vitattn.models.retinanet.pyramid import Pyramid

Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only


class Level(NamedTuple):
    """What is predicted on one level of the pyramid.

    Attributes:
      classes: f32 [B, h, w, A * C], logits, anchor after anchor.
      boxes: f32 [B, h, w, A * 4], offsets y, x, h, w of each anchor.
    """

    classes: jax.Array
    boxes: jax.Array


class RetinaNet(Layer):
    """A detector of objects; its parts are `backbone`, `pyramid` and `heads`.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: RetinaNetConfig, *, rngs: Rngs = None):
        self.config = config
        self.backbone = Backbone(config.backbone, rngs=rngs)
        self.pyramid = Pyramid(config, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        weights: Weights = None,
    ) -> tuple[Level, ...]:
        """Images [B, H, W, 3] -> one `Level` for each level of the pyramid, the finest first.

        Args:
          images: of any float type, of a size that the coarsest level divides.
          train: normalise by the batch, and move or leave its statistics.
          key: of models that draw at random; nothing here does.
          weights: f32 [B], what each image counts in the statistics of training; None: all 1.

        Raises:
          InputError: images of another shape.
        """
        check_array("A RetinaNet", images, "B H W C", C=3)
        step = 2**self.config.max_level
        if images.shape[1] % step or images.shape[2] % step:
            raise InputError(
                f"A RetinaNet with levels up to {self.config.max_level} takes images whose sides "
                f"are multiples of {step}, and was given the shape {images.shape}. Pad them."
            )
        maps = self.backbone.features(images, train=train, weights=weights)
        maps = maps[self.config.min_level - STAGES[0] :]
        levels = self.pyramid(maps, train=train, weights=weights)
        classes, boxes = self.heads(levels, train=train, weights=weights)
        return tuple(Level(*level) for level in zip(classes, boxes, strict=True))
