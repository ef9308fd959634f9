"""What configuration files share: variants by name, lengths in epochs, the digits recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from trainlib.errors import one_of

IMAGENET_TRAIN = 1_281_167


def steps_of(epochs: float, examples: int, batch_size: int) -> int:
    """Steps that read `epochs` times `examples`, rounded to the nearest."""
    return round(epochs * examples / batch_size)


def pick(
    file: str,
    variant: str,
    variants: Mapping[str, Callable[[ConfigDict], None]],
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


def digits(config: ConfigDict) -> None:
    """1,797 real handwritten digits of 8x8 pixels (scikit-learn), on a laptop's CPU."""
    config.data.source = "digits"
    config.data.augment = "shift"
    config.data.eval_crop = 1.0
    config.model.num_classes = 10
    config.model.image_size = 8
    config.model.stem = "small_image"
    config.model.dtype = "float32"
    config.steps = 250
    config.log_every = 1
    config.batch_size = 96
    config.eval_every = 50
    config.checkpoint.every = 50
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup_steps = 30
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.label_smoothing = 0.1
    config.ema_decay = 0.98


def imagenet_resnet(config: ConfigDict) -> None:
    """The ResNet recipe of arXiv 1904.09925 (appendix) on ImageNet."""
    epoch = IMAGENET_TRAIN / 1024
    config.batch_size = 1024
    config.steps = steps_of(100, IMAGENET_TRAIN, config.batch_size)
    config.model.dtype = "bfloat16"
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.128 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)
    config.schedule.boundaries = tuple(round(epoch * e) for e in (30, 60, 80, 90))
    config.optimizer.weight_decay = 1e-4
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"
    config.log_every = 50
