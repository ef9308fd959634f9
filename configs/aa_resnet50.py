"""AA-ResNet-50 on ImageNet: attention-augmented convolution in the last three stages (arXiv
1904.09925).

    python -m launch.train --config=configs/aa_resnet50.py --workdir=DIR --config.data.dir=TFDS_DIR
    python -m launch.train --config=configs/aa_resnet50.py:digits --workdir=runs/aa_resnet50_digits

Published (table 2): top-1 77.7 %, top-5 93.8 %, 25.8 M parameters, 8.3 GFLOP; built here:
25,809,392 parameters. Recipe (appendix): 100 epochs, SGD with momentum 0.9, weight decay 1e-4, rate
0.128 per 256 images, 5 % linear warm-up, a tenth at epochs 30, 60, 80 and 90, Inception
augmentation. Hardware: 8 V100 in the paper; a TPU v3-8 or larger here. The ImageNet run has not
been made with this code: no score of ours stands here.

Variant `digits`: the same network on 1,797 handwritten digits of 8x8 pixels, in minutes on 2 CPU
cores. Measured here: see README.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from vitattn.config import default_config


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits."""
    config = default_config("resnet", attention="augmented")
    config.name = "aa_resnet50"
    config.model.depth = 50
    common.imagenet_resnet(config)
    config.published.top1, config.published.top5 = 77.7, 93.8
    config.published.params, config.published.gflops = "25.8M", 8.3
    config.published.source = "arXiv 1904.09925 table 2"
    return common.pick(__file__, variant, {"digits": common.digits}, config)
