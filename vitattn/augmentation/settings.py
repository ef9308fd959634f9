"""The keys of the section `data` that turn these augmentations on, and what they become.

Ranges that a paper recommends stand beside their keys; all of them are off by default.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from trainlib.errors import ConfigError
from trainlib.keys import Kind, choice, key, number, pair, whole
from vitattn.augmentation.erasing import FILLS, Erasing
from vitattn.augmentation.mixing import Mixing
from vitattn.augmentation.rand_augment import MOST, RandAugment


def _alpha() -> Kind:
    """Of Beta(alpha, alpha); what is smaller or larger is 0 or 1, or one half, to float32."""
    return number(0.001, 1000, also={0: "off"})


KEYS: dict[str, tuple[Any, str]] = {
    "mixup": key(
        0.0,
        "mixes images and labels of two examples: alpha of their shares Beta(alpha, alpha), 0.2 in "
        "the paper (arXiv 1710.09412) for ImageNet and 1.0 for CIFAR; 0 = off",
        _alpha(),
    ),
    "cutmix": key(
        0.0,
        "pastes a rectangle of another example, and mixes labels by its area: alpha of the shares, "
        "1.0 in the paper (arXiv 1905.04899); 0 = off",
        _alpha(),
    ),
    "mix_probability": key(
        1.0, "probability that an image is mixed, where mixup or cutmix is on", number(0, 1)
    ),
    "cutmix_probability": key(
        0.5, "share of cutmix among mixed images, where both are on", number(0, 1)
    ),
    "rand_augment": key(
        0,
        "operations of RandAugment (arXiv 1909.13719) an image; 2 in the paper for ResNet-50; "
        "0 = off",
        whole(0, 100),
    ),
    "rand_augment_magnitude": key(
        9.0, "strength of the operations, 0 to 10; 9 in the paper for ResNet-50", number(0, MOST)
    ),
    "rand_augment_deviation": key(
        0.0,
        "standard deviation of the strength of each operation; 0 as in the paper",
        number(0, 100),
    ),
    "erase": key(
        0.0,
        "probability that an image loses a random rectangle (arXiv 1708.04896), 0.5 in the paper; "
        "0 = off",
        number(0, 1),
    ),
    "erase_area": key(
        (0.02, 0.4),
        "least and largest area of the rectangle, over that of the image",
        pair(number(above=0, high=1)),
    ),
    "erase_aspect": key(
        (0.3, 3.3), "least and largest height over width of the rectangle", pair(number(0.01, 100))
    ),
    "erase_fill": key(
        "pixel",
        "what is written there: pixel (a random colour for each) or constant (the mean colour)",
        choice(*FILLS),
    ),
    "repeats": key(
        1,
        "how often a batch holds each of its records, augmented differently (arXiv 1901.09335); "
        "divides batch_size",
        whole(1, 1000),
    ),
}


class Chosen(NamedTuple):
    """What a configuration asks for; None is off."""

    rand_augment: RandAugment | None = None
    erasing: Erasing | None = None
    mixing: Mixing | None = None


OFF = Chosen()
# Key -> those of which one at least has to be on, or the key does nothing.
_SWITCHES = {
    "mix_probability": ("mixup", "cutmix"),
    **dict.fromkeys(("rand_augment_magnitude", "rand_augment_deviation"), ("rand_augment",)),
    **dict.fromkeys(("erase_area", "erase_aspect", "erase_fill"), ("erase",)),
}


def mixes(config: ConfigDict) -> bool:
    """Whether training batches of the section `data` hold mixed images."""
    return bool(config.mixup or config.cutmix)


def chosen(config: ConfigDict, seed: int) -> Chosen:
    """Returns what the section `data` asks for.

    Args:
      config: the `data` section of a configuration.
      seed: of the draws.

    Raises:
      ConfigError: a range ends before it begins.
    """
    for name in ("erase_area", "erase_aspect"):
        least, most = getattr(config, name)
        if least > most:
            raise ConfigError(
                f"data.{name}={least:g},{most:g}: the smaller number comes first. Use "
                f"--config.data.{name}={most:g},{least:g}."
            )
    area, aspect = tuple(config.erase_area), tuple(config.erase_aspect)
    layers, magnitude = config.rand_augment, config.rand_augment_magnitude
    shares = config.mixup, config.cutmix, config.mix_probability, config.cutmix_probability
    return Chosen(
        RandAugment(layers, magnitude, config.rand_augment_deviation) if layers else None,
        Erasing(config.erase, area, aspect, config.erase_fill) if config.erase else None,
        Mixing(*shares, seed) if mixes(config) else None,
    )


def check(config: ConfigDict, batch_size: int, hosts: int = 1) -> None:
    """Refuses batches that cannot be made.

    Args:
      config: the `data` section of a configuration.
      batch_size: over all hosts.
      hosts: that share it.

    Raises:
      ConfigError: a range ends before it begins, a key does nothing, the batch cannot hold each
        record so often, or has no pairs to mix.
    """
    chosen(config, 0)
    _check_switches(config)
    repeats, share = config.repeats, batch_size // hosts
    if batch_size % repeats:
        raise ConfigError(
            f"batch_size={batch_size} is no multiple of data.repeats={repeats}: a batch holds each "
            f"of its records so often. Use --config.batch_size={_nearest(batch_size, repeats)}."
        )
    if not mixes(config):
        return
    name = "mixup" if config.mixup else "cutmix"
    if share % 2:
        where = f" of each of {hosts} hosts" if hosts > 1 else ""
        raise ConfigError(
            f"data.{name}={getattr(config, name):g} mixes images in pairs, and the {share} images"
            f"{where} are an odd number of them. Use a batch_size that is a multiple of "
            f"{2 * hosts}, or data.{name}=0."
        )
    if batch_size == repeats:
        raise ConfigError(
            f"data.repeats={repeats} fills the batch of {batch_size} with one record, and "
            f"data.{name}={getattr(config, name):g} would mix it with itself. Use fewer repeats, a "
            f"larger batch_size, or data.{name}=0."
        )


def _check_switches(config: ConfigDict) -> None:
    """Refuses keys that were set for an augmentation that is off."""
    for name, switches in _SWITCHES.items():
        value, default = getattr(config, name), KEYS[name][0]
        if value != default and not any(getattr(config, switch) for switch in switches):
            raise ConfigError(
                f"data.{name}={value} changes nothing while "
                f"{' and '.join(f'data.{switch}=0' for switch in switches)}, which is off. Turn "
                f"it on with --config.data.{switches[0]}, or leave data.{name} at {default}."
            )
    if config.cutmix_probability != KEYS["cutmix_probability"][0] and not (
        config.mixup and config.cutmix
    ):
        raise ConfigError(
            f"data.cutmix_probability={config.cutmix_probability:g} divides mixed images between "
            "data.mixup and data.cutmix, and they are not both on. Set both, or leave it at "
            f"{KEYS['cutmix_probability'][0]:g}."
        )


def _nearest(size: int, divisor: int) -> int:
    """The nearest multiple of `divisor`, at least once."""
    return max(1, round(size / divisor)) * divisor
