"""Models by name: `build(config)` turns plain data into a module that has no arrays yet."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from trainlib.errors import ConfigError, one_of
from vitattn.models.config import ResNetConfig
from vitattn.models.fields import from_data
from vitattn.models.mnasnet import MnasNet, MnasNetConfig
from vitattn.models.resnet import ResNet
from vitattn.models.wide_resnet import WideResNet, WideResNetConfig

ModelConfig = MnasNetConfig | ResNetConfig | WideResNetConfig

MODELS = {
    "mnasnet": (MnasNetConfig, MnasNet),
    "resnet": (ResNetConfig, ResNet),
    "wide_resnet": (WideResNetConfig, WideResNet),
}


def configure(config: Mapping) -> ModelConfig:
    """Plain data -> the frozen configuration of the model that `config["name"]` asks for.

    Args:
      config: a mapping or `ConfigDict`: "name" (a key of `MODELS`) and fields of that model's
        configuration; fields that are absent have their defaults.

    Raises:
      ConfigError: unknown name or field, value of a wrong type or outside its range.
    """
    data = dict(config.items())
    if "name" not in data:
        raise ConfigError(f"model has no name. Allowed: {', '.join(sorted(MODELS))}.")
    name = data.pop("name")
    if name not in MODELS:
        raise one_of("model.name", name, MODELS)
    return from_data(MODELS[name][0], data, "model")


def build(config: Mapping) -> nnx.Module:
    """Plain data -> model, called as `model(images, train=...)`; see `configure` for the data."""
    resolved = configure(config)
    return dict(MODELS.values())[type(resolved)](resolved)
