"""What configuration files share: variants by name, lengths in epochs, recipes, published figures.

Recipes are those of the appendix of arXiv 1904.09925 and of section 4 of arXiv 1906.05909; what a
paper leaves open is marked as assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib.config import override
from trainlib.errors import one_of

IMAGENET_TRAIN = 1_281_167
CIFAR_TRAIN = 50_000

Variant = Callable[[ConfigDict], None]

# Fields of a model that change how it trains, not which row of a table it is.
NOT_IN_TABLES = ("dtype", "bn_decay", "bn_eps", "zero_init", "dropout")


def steps_of(epochs: float, examples: int, batch_size: int) -> int:
    """Steps that read `epochs` times `examples`, rounded to the nearest."""
    return round(epochs * examples / batch_size)


def pick(
    file: str,
    variant: str,
    variants: Mapping[str, Variant],
    config: ConfigDict,
) -> ConfigDict:
    """Applies the variant that was asked for.

    Raises:
      ConfigError: there is no such variant; names those that are.
    """
    if variant:
        if variant not in variants:
            raise one_of("variant", variant, variants, file)
        variants[variant](config)
        config.name = f"{config.name}:{variant}"
    return config


def sets(**values: Any) -> Variant:
    """A variant that sets keys; `__` stands for the dot: sets(model__gate="se")."""

    def apply(config: ConfigDict) -> None:
        for key, value in values.items():
            override(config, key.replace("__", "."), value, "variant")

    return apply


def as_is(config: ConfigDict) -> None:
    """A variant that changes nothing more: what it is was decided when it was built."""


def cite(config: ConfigDict, paper: str) -> ConfigDict:
    """Fills in what `paper` (its arXiv id) prints for exactly this model, and nothing for another.

    The source stands in `vitattn.papers`, so a variant cannot keep the score of its base.
    """
    from vitattn import papers

    built = _table_row(config.model)
    rows = [row for row in papers.published() if row.source.startswith(paper)]
    row = next((row for row in rows if _table_row(row.model) == built), None)
    if row:
        config.published.top1, config.published.top5 = row.top1, row.top5
        config.published.params = f"{row.params}M" if row.params else ""
        config.published.gflops = float(row.gflops or 0)
        config.published.source = f"arXiv {row.source}"
    return config


def _table_row(model: Mapping[str, Any]) -> dict[str, Any]:
    from vitattn.models import configure

    fields = dataclasses.asdict(configure(model))
    kept = {key: value for key, value in fields.items() if key not in NOT_IN_TABLES}
    return {"name": model["name"], **kept}


def digits(config: ConfigDict) -> None:
    """1,797 real handwritten digits of 8x8 pixels (scikit-learn), on a laptop's CPU."""
    config.data.source = "digits"
    config.target = "v5e-4"
    config.data.augment = "shift"
    config.data.eval_crop = 1.0
    config.model.num_classes = 10
    config.model.image_size = 8
    if "stem" in config.model:
        config.model.stem = "small_image"
    config.model.dtype = "float32"
    config.model.bn_decay = 0.9
    config.steps = 300
    config.batch_size = 96
    config.eval_every = 50
    config.checkpoint.every = 50
    config.log_every = 1
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup_steps = 30
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.label_smoothing = 0.1
    config.ema_decay = 0.98


def small_digits(config: ConfigDict) -> None:
    """Digits with one block a stage and a quarter of the width; attention with 2 heads."""
    digits(config)
    config.model.blocks = (1, 1, 1, 1)
    config.model.width = 0.25
    if config.model.attention.kind != "none":
        config.model.attention.num_heads = 2
    if config.model.attention.kind == "augmented":
        config.model.attention.min_key_depth = 4


def wide_digits(config: ConfigDict) -> None:
    """Digits with a wide network of depth 10 and widening 2; attention with 2 heads."""
    digits(config)
    config.model.depth, config.model.widening = 10, 2
    if config.model.attention.kind != "none":
        config.model.attention.num_heads, config.model.attention.min_key_depth = 2, 4


def mnasnet_digits(config: ConfigDict) -> None:
    """Digits with a quarter of the width and one block a row, two where the last attention is."""
    digits(config)
    config.model.width = 0.25
    config.model.blocks = (1, 1, 1, 1, 1, 2, 1)


def small_cifar100(config: ConfigDict) -> None:
    """CIFAR-100 instead of digits with the same recipe, for minutes: 2 epochs, stages at 8 to 1
    pixels.

    The stem strides by 4 as on ImageNet; at full resolution a step would cost 16 times as much.
    """
    config.data.source = "cifar100"
    config.data.augment = "flip_crop"
    config.model.num_classes = 100
    config.model.image_size = 32
    config.model.stem = "conv"
    config.steps = 800
    config.batch_size = 128
    config.eval_every = config.checkpoint.every = 200
    config.schedule.warmup_steps = 80


def _imagenet(config: ConfigDict, epochs: int, batch_size: int) -> float:
    """Length and rhythm of a run on ImageNet; returns the steps of an epoch."""
    epoch = IMAGENET_TRAIN / batch_size
    config.batch_size = batch_size
    config.target = f"v5e-{batch_size // 64}"  # 64 images a chip
    config.steps = steps_of(epochs, IMAGENET_TRAIN, batch_size)
    config.model.dtype = "bfloat16"
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"
    config.log_every = 50
    return epoch


def imagenet_resnet(config: ConfigDict) -> None:
    """Residual networks of arXiv 1904.09925: 100 epochs, a tenth of the rate at 30, 60, 80 and 90.

    Batch 1024 is assumed: the paper takes the largest of 32 to 256 a worker that fits on 8 V100.
    """
    epoch = _imagenet(config, 100, 1024)
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.128 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)
    config.schedule.boundaries = tuple(round(epoch * e) for e in (30, 60, 80, 90))
    config.optimizer.weight_decay = 1e-4


def imagenet_standalone(config: ConfigDict) -> None:
    """Stand-alone attention, arXiv 1906.05909: 130 epochs of batch 4096, warm-up and cosine.

    Assumed: momentum 0.9, weight decay 1e-4, label smoothing 0.1, random crops and flips.
    """
    epoch = _imagenet(config, 130, 4096)
    config.data.augment = "inception_crop"
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1.6
    config.schedule.warmup_steps = round(10 * epoch)
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.label_smoothing = 0.1
    config.model.bn_decay = 0.9999
    config.ema_decay = 0.9999


def imagenet_mnasnet(config: ConfigDict, *, augmented: bool) -> None:
    """MnasNet: 350 epochs of RMSProp, rate 0.016 per 256 images, times 0.97 each 2.4 epochs.

    With attention the rate is halved and decays more slowly, to the same final rate (arXiv
    1904.09925, appendix). Batch 1024, 5 epochs of warm-up and crops and flips as in the network's
    public code.
    """
    epoch = _imagenet(config, 350, 1024)
    config.data.augment = "inception_crop"
    config.optimizer.name = "rmsprop"
    config.optimizer.weight_decay = 1e-5
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.schedule.name = "exponential"
    config.schedule.learning_rate = 0.016 * config.batch_size / 256
    config.schedule.warmup_steps = round(5 * epoch)
    config.schedule.decay_rate = 0.97
    config.schedule.decay_steps = round(2.4 * epoch)
    if augmented:
        decays = config.steps // config.schedule.decay_steps
        config.schedule.learning_rate /= 2
        config.schedule.decay_rate *= 2 ** (1 / decays)


def cifar100(config: ConfigDict, *, augmented: bool) -> None:
    """Wide residual networks of arXiv 1904.09925 on CIFAR-100: 500 epochs, warm-up, cosine."""
    config.data.source = "cifar100"
    config.target = "v5e-4"
    config.data.augment = "flip_crop"
    config.data.eval_crop = 1.0
    config.batch_size = 256 if augmented else 1024
    epoch = CIFAR_TRAIN / config.batch_size
    config.steps = steps_of(500, CIFAR_TRAIN, config.batch_size)
    config.model.dtype = "bfloat16"
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.2 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)
    config.optimizer.weight_decay = 5e-4 if augmented else 2e-4
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(5 * epoch)
    config.checkpoint.best = "top1"
    config.log_every = 50


MNASNET_VARIANTS: dict[str, Variant] = {
    "digits": mnasnet_digits,
    **{f"width{percent:03}": sets(model__width=percent / 100) for percent in (75, 125, 140)},
}


def holdout(config: ConfigDict) -> None:
    """Tuning as in arXiv 1906.05909: 4 % of the training images are kept out, and evaluated on."""
    config.data.holdout = 0.04
    config.data.eval_split = "holdout"


# The ablations of arXiv 1906.05909, tables 3 to 7, its widths, and what goes beyond it.
STANDALONE_VARIANTS: dict[str, Variant] = {
    "digits": small_digits,
    "holdout": holdout,
    "conv": as_is,
    "halo": as_is,
    "full": sets(model__stem="attention"),
    "stem_plain": sets(model__stem="attention_plain"),
    "stem_conv": sets(model__stem="attention_conv"),
    "position_only": sets(model__attention__position_only=True),
    **{f"position_{kind}": sets(model__attention__position=kind) for kind in ("none", "sine")},
    **{f"window{side}": sets(model__attention__window=side) for side in (3, 5, 9, 11)},
    **{
        f"stages{groups}": sets(model__attention__stages=tuple(int(g) for g in groups))
        for groups in ("345", "45", "5", "2", "23", "234")
    },
    **{f"width{percent:03}": sets(model__width=percent / 100) for percent in (25, 50, 75)},
}


def standalone(
    file: str, name: str, depth: int, variant: str, variants: Mapping[str, Variant]
) -> ConfigDict:
    """A residual network of arXiv 1906.05909 on ImageNet.

    Args:
      file, name: of the configuration.
      depth: of the network.
      variant: the one that was asked for.
      variants: those that there are; `conv` and `halo` have no attention, and another kind of it.
    """
    from vitattn.config import default_config
    from vitattn.papers import STANDALONE

    kind = {"conv": "none", "halo": "halo"}.get(variant, "local")
    config = default_config("resnet", attention=kind)
    config.name = name
    config.model.depth = depth
    imagenet_standalone(config)
    return cite(pick(file, variant, variants, config), STANDALONE)


def augmented(
    file: str,
    name: str,
    depth: int,
    variant: str,
    variants: Mapping[str, Variant],
    **attention: float,
) -> ConfigDict:
    """A residual network of arXiv 1904.09925 on ImageNet.

    Args:
      file, name: of the configuration.
      depth: of the network.
      variant: the one that was asked for.
      variants: those that there are; `conv` and `se` are networks without attention.
      **attention: options of the attention.
    """
    from vitattn.config import default_config
    from vitattn.papers import AUGMENTED

    plain = variant in ("conv", "se")
    config = default_config("resnet", attention="none" if plain else "augmented")
    config.name = name
    config.model.depth = depth
    if not plain:
        config.model.attention.update(attention)
    imagenet_resnet(config)
    return cite(pick(file, variant, variants, config), AUGMENTED)
