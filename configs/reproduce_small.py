"""ResNet-26 with convolution, stand-alone and augmented attention at a quarter of the width: equal
budgets, to see on a laptop that each of them learns.

    make reproduce-small                    # all of them, three seeds each, a table and a plot
    python -m launch.train --config=configs/reproduce_small.py:standalone --workdir=DIR

Models: blocks 1, 2, 4, 1 as ResNet-26, widths 16, 32, 64, 128, a 3x3 stem without pooling
(on CIFAR-100 a 7x7 one with stride and pooling, so that stages start at 8 pixels as on digits).
Stand-alone attention: 7x7 windows, 4 heads, in all stages. Augmented: kappa = upsilon = 0.25, 4
heads of key depth 4 at least, in conv3_x to conv5_x, at the resolution of their maps. One recipe
for all, not tuned for any: SGD with Nesterov momentum, rate 0.05, warm-up and cosine, weight decay
5e-4, label smoothing 0.1, average of weights.

Published: nothing at this size, so nothing to compare with; the papers' claims are about ImageNet.
Hardware: 2 CPU cores. The command prints and draws what it measures; no figure is kept here.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from vitattn.config import default_config

KINDS = {"conv": "none", "standalone": "local", "augmented": "augmented"}
VARIANTS = {
    f"{prefix}{kind}": change
    for prefix, change in (("", recipes.as_is), ("cifar100_", recipes.small_cifar100))
    for kind in KINDS
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, standalone, augmented, and each after cifar100_."""
    kind = KINDS.get(variant.removeprefix("cifar100_"), "none")
    config = default_config("resnet", attention=kind)
    config.name = "reproduce_small"
    config.model.depth = 26
    config.model.width = 0.25
    recipes.digits(config)
    config.steps = 500
    if kind != "none":
        config.model.attention.num_heads = 4
    if kind == "augmented":
        config.model.attention.update(kappa=0.25, upsilon=0.25, min_key_depth=4, downsample=())
    return recipes.pick(__file__, variant, VARIANTS, config)
