"""Names of the classes of data sets that are the same everywhere, in the order of their labels."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

DIGITS = tuple("0123456789")

# The fine labels of CIFAR-100, as its archive lists them.
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_FINE.split())


def synthetic(classes: int) -> tuple[str, ...]:
    """Of made-up images."""
    return tuple(f"class {number}" for number in range(classes))


@functools.cache
def imagenet() -> tuple[str, ...]:
    """ImageNet's WordNet numbers as TFDS counts them, from its file, without its import; empty
    where that is not installed.
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    for place in (package.submodule_search_locations if package else None) or []:
        file = Path(place) / "datasets" / "imagenet2012" / "labels.txt"
        if file.is_file():
            return tuple(file.read_text().split())
    return ()


def official(source: str) -> tuple[str, ...]:
    """The names that `data.source` fixes by itself; empty for folders, whose classes are what lies
    in them.
    """
    name, _, argument = source.partition(":")
    if name == "synthetic" and argument.isdecimal() and len(argument) < 7:
        return synthetic(int(argument))
    fixed = {"digits": lambda: DIGITS, "cifar100": lambda: CIFAR100, "imagenet": imagenet}
    fixed["synthetic"] = lambda: () if argument else synthetic(1000)
    return fixed[name]() if name in fixed else ()
