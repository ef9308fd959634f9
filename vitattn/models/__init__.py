"""Models by name: `build(config)` turns plain data into a module.

    model = build({"name": "resnet", "depth": 50, "num_classes": 10}, rngs=nnx.Rngs(0))
    logits = model(images)  # [B, 224, 224, 3] -> [B, 10]

Without `rngs` the model has no arrays yet: `trainlib.model.weights.abstract` takes it apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from trainlib.errors import ConfigError, one_of
from vitattn.models.fields import from_data
from vitattn.models.mnasnet import MnasNet, MnasNetConfig
from vitattn.models.resnet.config import ResNetConfig
from vitattn.models.resnet.network import ResNet
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import RetinaNet
from vitattn.models.wide_resnet import WideResNet, WideResNetConfig

Model = MnasNet | ResNet | RetinaNet | WideResNet
ModelConfig = MnasNetConfig | ResNetConfig | RetinaNetConfig | WideResNetConfig

MODELS: dict[str, tuple[type[ModelConfig], Callable[..., Model]]] = {
    "mnasnet": (MnasNetConfig, MnasNet),
    "resnet": (ResNetConfig, ResNet),
    "retinanet": (RetinaNetConfig, RetinaNet),
    "wide_resnet": (WideResNetConfig, WideResNet),
}
_MODEL_OF = dict(MODELS.values())


def configure(config: Mapping[str, Any]) -> ModelConfig:
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


def from_config(config: ModelConfig, *, rngs: nnx.Rngs | None = None) -> Model:
    """The model of a resolved configuration; see `build`."""
    return _MODEL_OF[type(config)](config, rngs=rngs)


def build(config: Mapping[str, Any], *, rngs: nnx.Rngs | None = None) -> Model:
    """Plain data -> model, called as `model(images, train=...)`.

    Args:
      config: see `configure`.
      rngs: keys for arrays at once, for use as any Flax module; None declares the weights only
        (`trainlib.model.weights`).

    Raises:
      ConfigError: as `configure` does.
    """
    return from_config(configure(config), rngs=rngs)
