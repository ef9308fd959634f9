"""x."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from vitattn.config import default_config

AUGMENTED = {
    "model.attention.kind": "augmented",
    "model.attention.stages": (3, 4),
    "model.attention.num_heads": 4,
    "model.attention.kappa": 0.25,
    "model.attention.upsilon": 0.25,
    "model.attention.min_key_depth": 4,
    "model.attention.downsample": (),
}
STANDALONE = {
    "model.attention.kind": "local",
    "model.attention.stages": (4,),
    "model.attention.num_heads": 4,
}
VARIANTS = {
    "conv": {},
    "aa": AUGMENTED,
    "aa_none": AUGMENTED | {"model.attention.position": "none"},
    "sasa": STANDALONE,
    "sasa_none": STANDALONE | {"model.attention.position": "none"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, aa, aa_none, sasa, sasa_none."""
    config = default_config("resnet")
    config.name = "reproduce_fashion"

    config.model.depth = 26
    config.model.blocks = (1, 2, 2)
    config.model.width = 0.25
    config.model.stem = "strided"
    config.model.image_size = 28
    config.model.num_classes = 10
    config.model.dtype = "float32"
    config.model.bn_decay = 0.9

    config.data.source = "fashion_mnist"
    config.data.augment = "flip_crop"
    config.data.mean = (0.0,) * 3
    config.data.std = (0.353,) * 3
    config.data.eval_crop = 1.0

    config.batch_size = 128
    config.steps = 3750
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup_steps = 200
    config.label_smoothing = 0.05
    config.ema_decay = 0.99

    config.target = "v5e-4"
    config.log_every = 50
    config.eval_every = 470
    config.checkpoint.every = 470

    return pick(config, variant, VARIANTS, __file__)
