"""Plain data becomes a configuration, or an error that names the key."""

import dataclasses
from typing import ClassVar

import pytest
from ml_collections import ConfigDict

from trainlib.errors import ConfigError
from vitattn.layers.augmented import AugmentedConfig
from vitattn.models import build, configure
from vitattn.models.fields import from_data


@dataclasses.dataclass(frozen=True)
class Left:
    kind: ClassVar[str] = "left"
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Right:
    kind: ClassVar[str] = "right"
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Whole:
    size: int | tuple[int, int] = 3
    rate: float = 1.0
    flag: bool = False
    part: Left | Right | None = None


def test_values_are_taken_and_converted():
    whole = from_data(Whole, {"size": [3, 4], "rate": 2, "part": {"kind": "right"}}, "model")
    assert whole == Whole(size=(3, 4), rate=2.0, part=Right())
    assert type(whole.rate) is float
    assert from_data(Whole, {"part": {"kind": "none"}}, "model") == Whole()
    assert from_data(Whole, {"part": None}, "model") == Whole()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sise": 3}, "model.sise .*Did you mean 'size'"),
        ({"size": "3"}, "model.size='3' is not allowed.*a whole number, or a pair"),
        ({"size": True}, "model.size=True"),
        ({"rate": "fast"}, "model.rate"),
        ({"flag": 1}, "model.flag"),
        ({"part": {"kind": "rigt"}}, "model.part.kind.*Did you mean 'right'"),
        ({"part": {"count": 1}}, "model.part.kind"),
        ({"part": {"kind": "right", "rate": 0.5}}, "model.part.rate"),
        ({"part": 3}, "model.part"),
    ],
)
def test_errors_name_the_key(data, message):
    with pytest.raises(ConfigError, match=message):
        from_data(Whole, data, "model")


def test_models_are_chosen_by_name():
    config = ConfigDict(
        {"name": "resnet", "depth": 34, "attention": {"kind": "augmented", "stages": (4, 5)}}
    )
    resolved = configure(config)
    assert resolved.depth == 34
    assert resolved.attention == AugmentedConfig(stages=(4, 5))
    with pytest.raises(ConfigError, match="Did you mean 'resnet'"):
        build({"name": "resnets"})
    with pytest.raises(ConfigError, match="no name"):
        build({"depth": 50})
