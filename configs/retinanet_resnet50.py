r"""RetinaNet with a ResNet-50 on COCO: the baseline of attention augmentation (arXiv
1904.09925).

    python -m launch.train --config=configs/retinanet_resnet50.py --workdir=DIR \
        --config.data.dir=COCO
    python -m launch.train --config=configs/retinanet_resnet50.py:shapes --workdir=DIR

Published (table of COCO): AP 36.8 %, AP50 54.5 %, AP75 39.5 %, 33.4 M parameters, 182 GFLOP.
Built here: 33,420,404 parameters.
Recipe: 150 epochs from scratch, that of the paper's appendix as far as it is known, written out
  below; what is open is marked as assumed.
Hardware: 8 V100 or a slice of TPU v3; here a TPU v5e-16, the same command on every host.
Never run on COCO with this code: no score of ours stands here, and hours are not known.

Variants:
  shapes: drawn shapes on photographs, a small network, in minutes on 2 CPU cores; needs no data.
  own: one's own images and COCO json, from ImageNet weights: --config.data.source=coco:TRAIN.json
    --config.model.num_classes=N --config.init_from=WEIGHTS; docs/detection.md shows all of it.
  torchvision: the same from COCO weights of torchvision's retinanet_resnet50_fpn, imported.
  torchvision_v2: the same from those of retinanet_resnet50_fpn_v2.
  short: 12 epochs from ImageNet weights (--config.init_from=WEIGHTS), the usual short schedule.
  se: with squeeze-and-excitation, published AP 36.5 %.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.cite import cite
from configs.common.detection import OWN, SHAPES, TORCHVISION, TORCHVISION_V2
from configs.common.variants import pick
from vitattn.config import default_config
from vitattn.models.retinanet.config import frozen_stages
from vitattn.papers import AUGMENTED

# The short schedule of public code: 12 epochs, a tenth of the rate at 8 and at 11.
EPOCH = 118_287 / 64  # in steps
SHORT = {
    "steps": round(12 * EPOCH),
    "schedule.boundaries": (round(8 * EPOCH), round(11 * EPOCH)),
    "optimizer.frozen": frozen_stages(2),
}

VARIANTS = {
    "shapes": SHAPES,
    "own": OWN,
    "torchvision": TORCHVISION,
    "torchvision_v2": TORCHVISION_V2,
    "short": SHORT,
    "se": {"model.gate": "se"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: see above."""
    config = default_config("retinanet", task="detection")
    config.name = "retinanet_resnet50"

    config.model.depth = 50
    config.model.image_size = 640
    config.model.num_classes = 90  # COCO's category ids, ten of them without a class
    config.model.num_scales = 2  # with 3 ratios 6 anchors, as the published count shows
    config.model.p6_from = "p5"
    config.model.dtype = "bfloat16"  # assumed
    config.model.bn_decay = 0.997
    config.model.bn_eps = 1e-4

    config.data.source = "coco"
    config.data.augment = "jitter"
    config.data.jitter = (0.8, 1.2)  # [512, 768] of 640 pixels
    config.data.flip = 0.5
    config.detection.alpha = 0.25
    config.detection.gamma = 1.5
    config.detection.box_weight = 50.0
    config.detection.huber_delta = 0.1

    config.batch_size = 64
    epoch = 118_287 / config.batch_size  # in steps
    config.steps = round(150 * epoch)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.08
    config.schedule.warmup_steps = 500  # assumed
    config.schedule.warmup_start = 0.0067  # assumed
    config.schedule.boundaries = tuple(round(epoch * e) for e in (120, 140))
    config.schedule.factors = (0.1,)
    config.ema_decay = 0.0

    config.target = "v5e-16"  # 4 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "ap"

    config = pick(config, variant, VARIANTS, __file__)
    return config if variant == "own" else cite(config, AUGMENTED)
