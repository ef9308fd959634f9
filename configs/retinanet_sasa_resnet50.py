r"""RetinaNet with stand-alone self-attention in its ResNet-50 on COCO (arXiv 1906.05909).

    python -m launch.train --config=configs/retinanet_sasa_resnet50.py --workdir=DIR \
        --config.data.dir=COCO
    python -m launch.train --config=configs/retinanet_sasa_resnet50.py:shapes --workdir=DIR

Published (table of COCO, convolution stem): AP 36.8 %, AP50 54.6 %, AP75 39.3 %, 25.9 M
  parameters, 173 GFLOP.
Built here: 25,878,876 parameters.
Recipe: 150 epochs from scratch, that of the paper's appendix as far as it is known, written out
  below; what is open is marked as assumed.
Hardware: TPU v3 in the paper; here a TPU v5e-16, the same command on every host.
Never run on COCO with this code: no score of ours stands here, and hours are not known.

Variants:
  shapes: drawn shapes on photographs, a small network, in minutes on 2 CPU cores; needs no data.
  own: one's own images and COCO json, from ImageNet weights: --config.data.source=coco:TRAIN.json
    --config.model.num_classes=N --config.init_from=WEIGHTS; docs/detection.md shows all of it.
  full: attention stem, published AP 36.2 %.
  heads: attention in the heads as well, 21,971,484 parameters, published AP 36.6 %; it is the
    reading that fits the published count.
  full_heads: both, published AP 36.6 %.
  heads_and_pyramid: attention in place of the 3x3 convolutions of the pyramid too, as the text of
    the paper has it; no published count fits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.cite import cite
from configs.common.detection import OWN, SHAPES
from configs.common.variants import pick
from vitattn.config import default_config
from vitattn.papers import STANDALONE

VARIANTS = {
    "shapes": SHAPES | {"model.attention.num_heads": 2},
    "own": OWN,
    "full": {"model.stem": "attention"},
    "heads": {"model.head_attention": "towers"},
    "full_heads": {"model.stem": "attention", "model.head_attention": "towers"},
    "heads_and_pyramid": {"model.head_attention": "towers_and_pyramid"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: see above."""
    config = default_config("retinanet", task="detection", attention="local")
    config.name = "retinanet_sasa_resnet50"

    config.model.depth = 50
    config.model.stem = "conv"
    config.model.attention.num_heads = 8
    config.model.attention.window = 7
    config.model.attention.position = "relative"
    config.model.attention.stages = (2, 3, 4, 5)
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
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.12
    config.schedule.warmup_steps = round(epoch)  # linear
    config.ema_decay = 0.0

    config.target = "v5e-16"  # 4 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "ap"

    config = pick(config, variant, VARIANTS, __file__)
    return config if variant == "own" else cite(config, STANDALONE)
