"""ResNet-50 on ImageNet: the baseline of attention augmentation (arXiv 1904.09925), and the gates
that it is compared with.

    python -m launch.train --config=configs/resnet50.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/resnet50.py:digits --workdir=runs/resnet50_digits

Published (table 3): top-1 76.4 %, top-5 93.1 %, 25.6 M parameters, 8.2 GFLOP.
Built here: 25,557,032 parameters.
Recipe: that of the paper's appendix, written out below; what it leaves open is marked as assumed.
Hardware: 8 V100 in the paper; here a TPU v3-8 or larger slice, the same command on every host.
Never run on ImageNet with this code: no score of ours stands here, and hours are not known.

Variants:
  digits: the same network on 1,797 handwritten digits of 8x8 pixels.
  se, cbam, gala, gather_excite: a gate at the end of each residual branch. Published: SE 77.5 /
    93.7 %, 28.1 M; CBAM 77.4 %, 28.1 M; GALA 77.5 %, 29.4 M.
  bam: a gate after each stage but the last, 77.3 %, 25.9 M.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.cite import cite
from configs.common.variants import pick
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

# 1,797 handwritten digits of 8x8 pixels (scikit-learn), in minutes on 2 CPU cores.
DIGITS = {
    "data.source": "digits",
    "data.augment": "shift",
    "data.eval_crop": 1.0,
    "model.stem": "small_image",
    "model.image_size": 8,
    "model.num_classes": 10,
    "model.dtype": "float32",
    "model.bn_decay": 0.9,
    "batch_size": 96,
    "steps": 300,
    "optimizer.name": "sgd",
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "cosine",
    "schedule.learning_rate": 0.05,
    "schedule.warmup_steps": 30,
    "label_smoothing": 0.1,
    "ema_decay": 0.98,
    "eval_every": 50,
    "checkpoint.every": 50,
    "log_every": 1,
    "target": "v5e-4",
}

VARIANTS = {
    "digits": DIGITS,
    "se": {"model.gate": "se"},
    "bam": {"model.gate": "bam"},
    "cbam": {"model.gate": "cbam"},
    "gala": {"model.gate": "gala"},
    "gather_excite": {"model.gate": "gather_excite"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, and one for each gate."""
    config = default_config("resnet")
    config.name = "resnet50"

    config.model.depth = 50
    config.model.image_size = 224
    config.model.num_classes = 1000
    config.model.dtype = "bfloat16"  # assumed
    config.model.gate = "none"

    config.data.source = "imagenet"
    config.data.augment = "inception"  # crops, flips and colour
    config.data.eval_crop = 0.875

    config.batch_size = 1024  # assumed: the paper has 32 to 256 a worker, whatever fits on 8 V100
    epoch = 1_281_167 / config.batch_size  # in steps
    config.steps = round(100 * epoch)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.128 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)  # linear
    config.schedule.boundaries = tuple(round(epoch * e) for e in (30, 60, 80, 90))
    config.schedule.factors = (0.1,)
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    config.target = "v5e-16"  # 64 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), AUGMENTED)
