"""Weights of this family in the formats of others: our own names, torchvision's ResNets, StableHLO.

torchvision stores convolutions [out, in, height, width] and matrices [out, in]; ours are
[height, width, in, out] and [in, out]. Its ResNets have the stride in the 3x3 convolution,
symmetric padding and the epsilon 1e-5, as ours: the same weights give the same logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from trainlib import config as settings
from trainlib import nn
from trainlib.errors import CheckpointError, ConfigError, one_of
from trainlib.interchange import SAME, TRANSPOSED, Entry, Foreign, Layout, Transform, own_layout
from trainlib.safetensors_io import Reader
from trainlib.weights import RECORD, is_export
from vitattn import class_names
from vitattn import config as config_lib
from vitattn.models import build, configure
from vitattn.models.resnet_config import DEPTHS, STAGES, ResNetConfig

START = ""  # nothing beside init_from
NAMES = ("auto", "own", "torchvision")
KERNEL = Transform(lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0))
MOST_LAYERS = 2000
COMPARED = {"torchvision": ("torch", "torchvision")}  # format -> what a comparison takes
TOLERANCE = 1e-3  # of the largest logit
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def abstract(config: ConfigDict) -> nn.Abstract:
    """The model of a configuration, without arrays."""
    return nn.abstract(build(config.model))


def layout(config: ConfigDict, kind: str, names: str = "auto", dtype: str = "float32") -> Layout:
    """The table of an export or import.

    Args:
      config: of the model.
      kind: "safetensors"; there is no other format of vision weights.
      names: of `NAMES`; "auto" is our own.
      dtype: not needed: no file says it twice.

    Raises:
      ConfigError: the model cannot be written so.
    """
    del dtype
    if kind != "safetensors":
        raise ConfigError(
            f"--format={kind} is for language models; vision models are exported as safetensors or "
            "stablehlo."
        )
    if names not in NAMES:
        raise one_of("--names", names, NAMES)
    if names == "torchvision":
        return torchvision_layout(config)
    model = abstract(config)
    specs = {**model.params, **model.model_state}
    return own_layout(specs, {"config.json": settings.to_json(config)})


def torchvision_layout(config: ConfigDict) -> Layout:
    """The table of a plain ResNet.

    Raises:
      ConfigError: the model is another one.
    """
    model = configure(config.model)
    plain = isinstance(model, ResNetConfig) and not (
        model.attention or model.gate != "none" or model.stem != "conv" or model.width != 1
    )
    if not plain:
        raise ConfigError(
            "torchvision's names are those of plain ResNets: model.name=resnet with model.stem="
            "conv, model.width=1, no attention and no gate. Use --names=own."
        )
    entries: list[Entry] = []

    def normed(conv: str, norm: str, our_conv: str, our_norm: str) -> None:
        entries.append(Entry(f"{conv}.weight", f"{our_conv}.kernel", (), KERNEL))
        for theirs, ours in _NORM.items():
            entries.append(Entry(f"{norm}.{theirs}", f"{our_norm}.{ours}"))

    normed("conv1", "bn1", "stem.conv", "stem.norm")
    for number, (stage, count) in enumerate(zip(STAGES, _blocks(model), strict=True), 1):
        for block in range(count):
            theirs, ours = f"layer{number}.{block}", f"conv{stage}_x.{block}"
            for i in range(1, 4 if model.bottleneck else 3):
                normed(f"{theirs}.conv{i}", f"{theirs}.bn{i}", f"{ours}.conv{i}", f"{ours}.norm{i}")
            if block == 0 and (model.bottleneck or number > 1):
                down, shortcut = f"{theirs}.downsample", f"{ours}.shortcut"
                normed(f"{down}.0", f"{down}.1", f"{shortcut}.conv", f"{shortcut}.norm")
    entries.append(Entry("fc.weight", "head.kernel", (), TRANSPOSED))
    entries.append(Entry("fc.bias", "head.bias", (), SAME))
    return Layout("torchvision ResNet", tuple(entries), {}, (r"\.num_batches_tracked$",))


def _blocks(model: ResNetConfig) -> tuple[int, ...]:
    return model.blocks or DEPTHS[model.depth][1]


def check_size(config: ConfigDict) -> None:
    """Refuses a configuration from a file of weights whose model would take for ever to build.

    Raises:
      CheckpointError: more layers than any model has.
    """
    for key in ("blocks", "depth"):
        value = config.model.get(key, 0)
        if sum(value if isinstance(value, tuple | list) else [value]) > MOST_LAYERS:
            raise CheckpointError(
                f"config.json: model.{key}={str(value)[:60]} is more than {MOST_LAYERS} layers."
            )


def open_foreign(kind: str, path: Path) -> Foreign:
    """Opens a safetensors file, or a directory with one, in torchvision's names.

    Raises:
      CheckpointError: damaged, hostile, or no ResNet.
    """
    del kind
    reader = Reader(path)
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    found = [re.fullmatch(r"layer([1-4])\.(\d{1,3})\.conv1\.weight", name) for name in shapes]
    blocks = [len({m[2] for m in found if m and m[1] == str(number)}) for number in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in shapes
    head = shapes.get("fc.weight", ())
    if not all(blocks) or len(head) != 2:
        raise CheckpointError(f"{path} holds no ResNet in torchvision's names.")
    depths = {value: depth for depth, value in DEPTHS.items()}
    depth = depths.get((bottleneck, tuple(blocks)))
    config = config_lib.default_config("resnet")
    config.name = f"torchvision_resnet{depth or ''}"
    config.model.depth = depth or (50 if bottleneck else 18)
    if depth is None:
        config.model.blocks = tuple(blocks)
    check_size(config)
    config.model.num_classes = head[0]
    return Foreign(config, "safetensors", "torchvision", shapes, reader.read)


def beside(config: ConfigDict, workdir: Path, step: int) -> dict[str, str]:
    """Files that go along with the weights of a run, or of an export: name -> text.

    Raises:
      CheckpointError: no such step.
      DataError: the names of the classes do not fit.
    """
    number = None if is_export(workdir) else step
    kept = class_names.of_model(workdir, number, configure(config.model).num_classes)[1]
    return {class_names.FILE: class_names.to_text(kept.names)} if kept else {}


def to_import(config: ConfigDict, path: Path, names: Path | None) -> dict[str, str]:
    """Files that an import writes beside its weights: name -> text.

    Args:
      config: of the model.
      path: the weights; an export of ours has the names of its classes beside them.
      names: a file with others, or None.

    Raises:
      DataError: the names do not fit.
    """
    outputs = configure(config.model).num_classes
    place = path if path.is_dir() else path.parent
    if names is not None:
        kept = class_names.read(names, outputs)
    else:  # what lies beside a single file is only then ours when an export says so
        ours = path.is_dir() or (place / RECORD).is_file()
        kept = class_names.find(place, "", {}, outputs) if ours else None
    return {class_names.FILE: class_names.to_text(kept.names)} if kept else {}


def serving(
    config: ConfigDict,
) -> tuple[Callable[..., jax.Array], dict[str, tuple[tuple, str]], dict[str, Any]]:
    """The evaluation forward as a pure function, for export.

    Returns:
      `(params, model_state, {"image": [B, H, W, 3]}) -> float32 logits [B, classes]`; the inputs:
      name -> (shape, dtype), where a dimension "batch" is free; what a caller must know of them.
    """
    from vitattn.predict import source_statistics  # which imports this module

    model = abstract(config)
    height, width = configure(config.model).size

    def forward(params: nn.Arrays, model_state: nn.Arrays, inputs: nn.Arrays) -> jax.Array:
        return model.bind(params, model_state)(inputs["image"], train=False)

    mean, std = source_statistics(config.data)
    facts = {
        "image": "(RGB / 255 - mean) / std",
        "mean": [float(value) for value in config.data.mean or mean],
        "std": [float(value) for value in config.data.std or std],
    }
    return forward, {"image": (("batch", height, width, 3), "float32")}, facts


def compare(config: ConfigDict, weights: nn.Arrays, path: Path) -> str:
    """One line with the largest difference of the logits to torchvision's model.

    Raises:
      ConfigError: torchvision has no such model.
      CheckpointError: they differ by more than rounding.
    """
    import torch
    import torchvision

    if config.model.blocks:
        raise ConfigError(
            f"--check: torchvision has no ResNet of {config.model.blocks} blocks. Leave it out."
        )
    depth, size = config.model.depth, configure(config.model).size
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=config.model.num_classes)
    reader = Reader(path)
    values = {name: torch.from_numpy(reader.read(name).astype("f4")) for name in reader.tensors}
    theirs.load_state_dict(values)
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    model = abstract(config)
    params = {name: weights[name] for name in model.params}
    statistics = {name: weights[name] for name in model.model_state}
    forward, *_ = serving(config)
    found = np.asarray(jax.jit(forward)(params, statistics, {"image": image}))
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    line = f"largest difference of logits to torchvision {difference:.2e}, of {largest:.3g}"
    if not difference <= TOLERANCE * max(1.0, largest):
        raise CheckpointError(f"The imported model is another one: {line}.")
    return line
