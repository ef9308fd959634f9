"""A small RetinaNet with convolution, augmented and stand-alone attention in its backbone: equal
budgets, to see on 2 CPU cores that each of them finds objects on real photographs.

    make reproduce-detection BCCD=DIR    # all of them, three seeds each, a table and a picture
    python -m launch.train --config=configs/reproduce_detection.py:sasa --workdir=DIR \
        --config.data.source=coco:BCCD/instances_train.json --config.data.images=BCCD/images \
        --config.data.eval_json=BCCD/instances_test.json

Data: blood cells (BCCD, MIT licence) as COCO json: 205 photographs of 640 x 480 pixels to train on,
87 to choose a recipe by, 72 to report; red and white cells and platelets.
Models: images of 256 x 192 pixels, one bottleneck block a stage, a quarter of the width, pyramid
P3 to P5 and heads of 64 channels, two layers a head, 6 anchors from 16 pixels on. Stand-alone
attention: 7x7 windows and 4 heads in all stages behind a convolutional stem. Augmented: kappa =
upsilon = 0.25, 4 heads of key depth 4 at least, in conv3_x to conv5_x at the resolution of their
maps. One recipe for all.

Published: nothing at this size; the papers' claims are about COCO.
Measured here: AP50 79.9, 79.2 and 80.3 % with convolution, augmented and stand-alone attention, the
means of three seeds, in 36 CPU minutes on 2 cores; benchmarks/results/2026-11-29_detection_bccd.md
also says how the recipe was chosen.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from vitattn.config import default_config

VARIANTS = {
    "conv": {},
    "aa": {
        "model.attention.kind": "augmented",
        "model.attention.num_heads": 4,
        "model.attention.kappa": 0.25,
        "model.attention.upsilon": 0.25,
        "model.attention.min_key_depth": 4,
        "model.attention.downsample": (),
    },
    "sasa": {"model.attention.kind": "local", "model.attention.num_heads": 4},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, aa, sasa."""
    config = default_config("retinanet", task="detection")
    config.name = "reproduce_detection"

    config.model.depth = 26
    config.model.blocks = (1, 1, 1, 1)
    config.model.width = 0.25
    config.model.features = 64
    config.model.head_layers = 2
    config.model.max_level = 5
    config.model.anchor_scale = 2.0
    config.model.image_size = (192, 256)
    config.model.num_classes = 3
    config.model.dtype = "float32"
    config.model.bn_decay = 0.9

    config.data.augment = "jitter"
    config.data.flip_vertical = 0.5
    config.data.max_boxes = 40
    config.data.workers = 0  # a process that imports all of this costs as much as it saves
    config.detection.background_iou = 0.4
    config.detection.candidates = 300
    config.detection.max_detections = 100

    config.batch_size = 4
    config.steps = 600
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup_steps = 100
    config.ema_decay = 0.99

    config.target = "v5e-4"
    config.log_every = 10
    config.eval_every = 600
    config.checkpoint.every = 600

    return pick(config, variant, VARIANTS, __file__)
