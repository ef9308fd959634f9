"""torchvision's ResNets: their names, how a file of weights tells which one it is, and what their
format cannot hold. The ResNet in its detectors has the same names behind a prefix; `body_entries`
and `set_body` are of both.

torchvision stores convolutions [out, in, height, width] and matrices [out, in]; ours are
[height, width, in, out] and [in, out]. Its ResNets have the stride in the 3x3 convolution and
symmetric padding, as ours: the same weights give the same logits. Their epsilon is 1e-5 and stands
in no file, so another one of ours is added to the variances: var + eps stays what it is.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import CheckpointError, ConfigError, shown
from trainlib.formats.layout import (
    SAME,
    TRANSPOSED,
    Entry,
    Layout,
    Transform,
    prefix_before,
    strip_advice,
)
from vitattn.models import configure
from vitattn.models.resnet.config import DEPTHS, STAGE_WIDTHS, STAGES, ResNetConfig

PREPROCESSING = "preprocessing.json"
KERNEL = Transform(lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0))
EPS = 1e-5  # torch.nn.BatchNorm2d's
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_SUPPORTED = (
    "Read are ResNets of basic or bottleneck blocks at one width throughout (resnet18 to "
    "resnet152, any number of blocks, any width)."
)
Shapes = Mapping[str, tuple[int, ...]]


@functools.lru_cache
def variance(eps: float, theirs: float = EPS) -> Transform:
    """Running variances for an epsilon of ours that is another one than torch's."""
    if eps == theirs:
        return SAME
    # In float64: the difference itself must not be rounded to the spacing of a large variance.
    more = eps - theirs

    def moved(x: Any, by: float) -> Any:
        return (x.astype(np.float64) + by).astype(x.dtype) if isinstance(x, np.ndarray) else x

    return Transform(lambda x: moved(x, more), lambda x: moved(x, -more))


def layout(config: ConfigDict, facts: Mapping[str, Any]) -> Layout:
    """The table of a plain ResNet.

    Args:
      config: of the model.
      facts: how images are normalised (`interop.serving.image_facts`), written beside the weights.

    Raises:
      ConfigError: the model is another one.
    """
    model = configure(config.model)
    wrong = obstacles(model)
    if wrong or not isinstance(model, ResNetConfig):
        raise ConfigError(
            f"torchvision's names are those of plain ResNets, which have no {'; no '.join(wrong)}. "
            "Use --names=own."
        )
    entries = body_entries(model, variance(model.bn_eps))
    entries.append(Entry("fc.weight", "head.kernel", (), TRANSPOSED))
    entries.append(Entry("fc.bias", "head.bias", (), SAME))
    image = dict(facts) | {"size": list(model.size), "axes": "[batch, 3, height, width]"}
    return Layout(
        "torchvision ResNet",
        tuple(entries),
        {PREPROCESSING: json.dumps(image, indent=2) + "\n"},
        (r"\.num_batches_tracked$",),
        _notes(model, facts),
        "torchvision",
    )


def body_entries(
    model: ResNetConfig, variances: Transform, theirs: str = "", ours: str = ""
) -> list[Entry]:
    """The table of a plain ResNet without its head.

    Args:
      model: what it is.
      variances: how their running variances become ours.
      theirs: what stands before torchvision's names, such as "backbone.body.".
      ours: what stands before ours.
    """
    entries: list[Entry] = []

    def normed(conv: str, norm: str, our_conv: str, our_norm: str) -> None:
        entries.append(Entry(f"{theirs}{conv}.weight", f"{ours}{our_conv}.kernel", (), KERNEL))
        for part, our_part in _NORM.items():
            form = variances if part == "running_var" else SAME
            name = f"{ours}{our_norm}.{our_part}"
            entries.append(Entry(f"{theirs}{norm}.{part}", name, (), form))

    normed("conv1", "bn1", "stem.conv", "stem.norm")
    for number, (stage, count) in enumerate(model.blocks_of.items(), 1):
        for block in range(count):
            there, here = f"layer{number}.{block}", f"conv{stage}_x.{block}"
            for i in range(1, 4 if model.bottleneck else 3):
                normed(f"{there}.conv{i}", f"{there}.bn{i}", f"{here}.conv{i}", f"{here}.norm{i}")
            if block == 0 and (model.bottleneck or number > 1):
                down, shortcut = f"{there}.downsample", f"{here}.shortcut"
                normed(f"{down}.0", f"{down}.1", f"{shortcut}.conv", f"{shortcut}.norm")
    return entries


def _notes(model: ResNetConfig, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What the format does not hold, for people."""
    notes = [
        f"images are {facts['image']} with mean {facts['mean']} and std {facts['std']}; the same "
        f"stands in {PREPROCESSING}"
    ]
    if model.bn_eps != EPS:
        notes.append(
            f"running_var holds var + {model.bn_eps - EPS:.6g}, because torch adds {EPS} and this "
            f"model {model.bn_eps}; to train on in torch, set eps={model.bn_eps} and take it off"
        )
    missing = not_there(model)
    if missing:
        notes.append(f"torchvision.models has no ResNet {missing}; build one with these shapes")
    return tuple(notes)


def obstacles(model: Any) -> list[str]:
    """What keeps a model from being one of torchvision's ResNets, by key."""
    if not isinstance(model, ResNetConfig):
        return [f"model.name other than resnet ({type(model).__name__.removesuffix('Config')})"]
    asked = [
        (model.attention is None, "attention (model.attention)"),
        (model.gate == "none", f"gate (model.gate={model.gate})"),
        (model.stem == "conv", f"model.stem={model.stem}"),
        (len(model.stages) == len(STAGES), f"stages left out (model.blocks={model.blocks})"),
    ]
    return [text for fine, text in asked if not fine]


def not_there(model: Any) -> str:
    """What of a ResNet `torchvision.models` has no function for; "" where it has one."""
    if model.width != 1:
        return f"of width {model.width:g}"
    if model.blocks:
        return f"of {model.blocks} blocks"
    return f"of depth {model.depth}" if model.depth in (26, 38) else ""


def recognise(shapes: Shapes, path: Path, config: ConfigDict) -> None:
    """Sets the keys of a ResNet's configuration to what the tensors of a file are.

    Raises:
      CheckpointError: no ResNet in these names, or one that this package has not; says which.
    """
    depth = set_body(shapes, path, config)
    config.name = f"torchvision_resnet{depth or ''}"
    config.model.num_classes = shapes["fc.weight"][0]


def set_body(shapes: Shapes, path: Path, config: ConfigDict, *, head: bool = True) -> int | None:
    """Sets depth, blocks and width of a configuration to those of a ResNet.

    Args:
      shapes: of its tensors, in torchvision's names.
      path: of the file, for messages.
      config: with the keys `model.depth`, `model.blocks` and `model.width`.
      head: whether there has to be a classifier.

    Returns:
      The depth, or None where `model.blocks` says it.

    Raises:
      CheckpointError: no ResNet in these names, or one that this package has not; says which.
    """
    names = [re.fullmatch(r"layer([1-4])\.(\d{1,3})\.conv1\.weight", name) for name in shapes]
    blocks = [len({m[2] for m in names if m and m[1] == str(number)}) for number in range(1, 5)]
    if not all(blocks) or len(shapes.get("conv1.weight", ())) != 4:
        raise CheckpointError(
            f"{shown(path)} holds no ResNet in torchvision's names{_first(shapes)}."
            f"{strip_advice(prefix_before(['layer1.0.conv1.weight', 'conv1.weight'], shapes))}"
        )
    _check_kind(shapes, path, head)
    bottleneck = "layer1.0.conv3.weight" in shapes
    depths = {value: depth for depth, value in DEPTHS.items()}
    depth = depths.get((bottleneck, tuple(blocks)))
    config.model.depth = depth or (50 if bottleneck else 18)
    if depth is None:
        config.model.blocks = tuple(blocks)
    config.model.width = shapes["conv1.weight"][0] / STAGE_WIDTHS[0]
    return depth


def _first(shapes: Shapes) -> str:
    names = [shown(name, 60) for name in list(shapes)[:3]]
    return f"; it holds {len(shapes)} tensors: {', '.join(names)}, .." if names else ""


def _check_kind(shapes: Shapes, path: Path, head: bool) -> None:
    """Refuses relatives of ResNet whose names are the same, by what their shapes say."""
    stem, inner = shapes["conv1.weight"], shapes["layer1.0.conv1.weight"]
    second, problem = shapes.get("layer1.0.conv2.weight", ()), ""
    if head and len(shapes.get("fc.weight", ())) != 2:
        problem = (
            "a ResNet without a head: there is no matrix fc.weight [classes, features]. Save the "
            "whole model, or add fc.weight and fc.bias of the number of classes that you want"
        )
    elif stem[1:] != (3, 7, 7):
        problem = (
            f"a ResNet whose first convolution is {stem[2]} x {stem[3]} on {stem[1]} channels. "
            "Stride and pooling of such a stem stand in no file, so it is not read; 7 x 7 on 3 "
            "channels is"
        )
    elif len(second) == 4 and second[1] not in (0, inner[0]):
        groups = inner[0] // second[1]
        problem = f"a ResNeXt (convolutions of {groups} groups), which this package has not"
    elif inner[0] != stem[0]:
        problem = (
            f"a Wide ResNet of torchvision's kind ({inner[0]} channels inside of the first block "
            f"after a stem of {stem[0]}), which this package has not: model.width is that of all "
            "layers"
        )
    if problem:
        raise CheckpointError(f"{shown(path)} holds {problem}. {_SUPPORTED}")
