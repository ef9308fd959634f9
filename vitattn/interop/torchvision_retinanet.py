"""torchvision's RetinaNets: their names, how a file of weights tells which one it is, and what
their format cannot hold.

A anchors of a place, C classes, F channels of the pyramid.

`retinanet_resnet50_fpn` (v1) has no normalisation in pyramid and heads and takes P6 from P5;
`retinanet_resnet50_fpn_v2` has group normalisation in the heads and takes P6 from C5. Their
predictors give [A * C, F, 3, 3] and [A * 4, F, 3, 3] with the anchor as the outer part; ours are
[3, 3, F, A, C] and [3, 3, F, A, 4]. Their offsets of a box are (x, y, width, height), ours (y, x,
height, width). Anchors, sizes of images and the epsilon of norms stand in no file. Torch before
0.13 wrote other names of the pyramid and the towers, which are read as well.

The COCO weights of v1 were trained with norms that add no epsilon, which torchvision mends after it
has read them. A model of frozen norms whose epsilon is below `NOTHING` is such a one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trainlib.errors import CheckpointError, ConfigError, shown
from trainlib.formats.layout import (
    Entry,
    Layout,
    Transform,
    prefix_before,
    strip_advice,
)
from vitattn.interop import torchvision_names as resnet
from vitattn.interop.torchvision_names import EPS, KERNEL, PREPROCESSING, Shapes
from vitattn.models import configure
from vitattn.models.retinanet.config import RetinaNetConfig

BODY, FPN, HEAD = "backbone.body.", "backbone.fpn.", "head."
HEADS = {  # theirs -> ours, predictor of theirs
    "classification_head": ("classes", "cls_logits"),
    "regression_head": ("boxes", "bbox_reg"),
}
NOTHING = 1e-12  # an epsilon that no running variance of a ResNet feels
ANCHORS = {  # what torchvision's default generator is in our keys
    "anchors": "torchvision",
    "num_scales": 3,
    "aspect_ratios": (2.0, 1.0, 0.5),
    "anchor_scale": 4.0,
}
LAYERS, RATIOS = 4, len(ANCHORS["aspect_ratios"])
PLACED = ANCHORS["num_scales"] * RATIOS  # A
COCO_CLASSES = 91  # COCO's category numbers, with 0 as the background
GROUPS = 32
_OLD = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), 1),
    (re.compile(r"^(head\.\w+_head\.conv)\.(\d)\.(weight|bias)$"), 2),
)
_SHARED = "backbone.fpn.inner_blocks."  # detectors on a feature pyramid have these names
_OTHERS = {  # a part of a name -> the detector that has it
    "roi_heads.keypoint": "a Keypoint R-CNN",
    "roi_heads.mask": "a Mask R-CNN",
    "roi_heads.": "a Faster R-CNN",
    "bbox_ctrness": "an FCOS",
    "module_list.": "an SSD",
}


# ------------------------------------------------------------------------------ changes of form
@functools.lru_cache
def _kernel(anchors: int, *, turned: bool) -> Transform:
    """[3, 3, F, A, n] <-> [A * n, F, 3, 3]; `turned` exchanges y and x, height and width."""
    order = [1, 0, 3, 2] if turned else slice(None)

    def out(x: Any) -> Any:
        x = x[..., order].transpose(3, 4, 2, 0, 1)
        return x.reshape(-1, *x.shape[2:])

    def back(x: Any) -> Any:
        x = x.reshape(anchors, -1, *x.shape[1:])
        return x.transpose(3, 4, 2, 0, 1)[..., order]

    return Transform(out, back)


@functools.lru_cache
def _bias(anchors: int, *, turned: bool) -> Transform:
    """[A, n] <-> [A * n]."""
    order = [1, 0, 3, 2] if turned else slice(None)
    return Transform(
        lambda x: x[..., order].reshape(-1), lambda x: x.reshape(anchors, -1)[..., order]
    )


# ---------------------------------------------------------------------------------- the table
def layout(config: ConfigDict, facts: Mapping[str, Any]) -> Layout:
    """The table of a RetinaNet.

    Args:
      config: of the model.
      facts: how images are normalised (`interop.serving.image_facts`), written beside the weights.

    Raises:
      ConfigError: the model is none of torchvision's.
    """
    model = configure(config.model)
    wrong = obstacles(model)
    if wrong or not isinstance(model, RetinaNetConfig):
        raise ConfigError(
            "torchvision's names are those of its RetinaNets, which have no "
            f"{'; no '.join(wrong)}. Use --names=own."
        )
    variances = resnet.variance(model.bn_eps, their_eps(model))
    entries = resnet.body_entries(model.backbone, variances, BODY, "backbone.")
    entries += [*_pyramid(), *_heads(model)]
    image = dict(facts) | {"size": list(model.size), "axes": "[batch, 3, height, width]"}
    return Layout(
        "torchvision RetinaNet",
        tuple(entries),
        {PREPROCESSING: json.dumps(image, indent=2) + "\n"},
        (r"\.num_batches_tracked$",),
        _notes(model, facts),
        "torchvision",
    )


def their_eps(model: RetinaNetConfig) -> float:
    """What torchvision's norms add to the variances of the model."""
    return 0.0 if model.norm == "frozen" and model.bn_eps < NOTHING else EPS


def _conv(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", f"{ours}.kernel", (), KERNEL)
    yield Entry(f"{theirs}.bias", f"{ours}.bias")


def _pyramid() -> Iterator[Entry]:
    for number in range(3):
        yield from _conv(f"{FPN}inner_blocks.{number}.0", f"pyramid.lateral.{number}")
        yield from _conv(f"{FPN}layer_blocks.{number}.0", f"pyramid.output.{number}")
    for number in range(2):
        yield from _conv(f"{FPN}extra_blocks.p{6 + number}", f"pyramid.coarse.{number}")


def _heads(model: RetinaNetConfig) -> Iterator[Entry]:
    grouped = model.head_norm == "group"
    for head, (part, predictor) in HEADS.items():
        for number in range(model.head_layers):
            theirs, ours = f"{HEAD}{head}.conv.{number}", f"heads.{part}.tower.{number}"
            if grouped:
                yield Entry(f"{theirs}.0.weight", f"{ours}.conv.kernel", (), KERNEL)
                yield Entry(f"{theirs}.1.weight", f"{ours}.norm.scale")
                yield Entry(f"{theirs}.1.bias", f"{ours}.norm.bias")
            else:
                yield from _conv(f"{theirs}.0", f"{ours}.conv")
        theirs, ours = f"{HEAD}{head}.{predictor}", f"heads.{part}.predictor"
        turned = part == "boxes"
        yield Entry(f"{theirs}.weight", f"{ours}.kernel", (), _kernel(PLACED, turned=turned))
        yield Entry(f"{theirs}.bias", f"{ours}.bias", (), _bias(PLACED, turned=turned))


def obstacles(model: Any) -> list[str]:
    """What keeps a model from being one of torchvision's RetinaNets, by key."""
    if not isinstance(model, RetinaNetConfig):
        return [f"model.name other than retinanet ({type(model).__name__.removesuffix('Config')})"]
    fixed = {
        "pyramid_norm": "none",
        "head_attention": "none",
        "head_layers": LAYERS,
        "min_level": 3,
        "max_level": 7,
        **ANCHORS,
    }
    if model.head_norm == "group":
        fixed["bn_eps"] = EPS  # of the groups as well, and those have no variance to put it into
    found = resnet.obstacles(model.backbone)
    if model.head_norm not in ("none", "group"):
        found.append(f"model.head_norm={model.head_norm}")
    return found + [
        f"model.{key}={getattr(model, key)} (but {value})"
        for key, value in fixed.items()
        if getattr(model, key) != value
    ]


def not_there(model: RetinaNetConfig) -> str:
    """What of a RetinaNet torchvision has no function for; "" where it has one."""
    if model.features != 256:
        return f"of {model.features} features"
    missing = resnet.not_there(model.backbone)
    return f"on a ResNet {missing}" if missing else ""


def _notes(model: RetinaNetConfig, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What the format does not hold, for people."""
    notes = [
        f"images are {facts['image']} with mean {facts['mean']} and std {facts['std']}, which "
        f"torchvision's model does by itself; the same stands in {PREPROCESSING}"
    ]
    eps = their_eps(model)
    if not eps:
        notes.append(
            "the norms of the backbone add no epsilon: set eps = 0.0 on them after loading, as the "
            "model card does"
        )
    elif model.bn_eps != EPS:
        notes.append(
            f"running_var holds var + {model.bn_eps - EPS:.6g}, because torch adds {EPS} and this "
            f"model {model.bn_eps}; to train on in torch, set eps={model.bn_eps} and take it off"
        )
    missing = not_there(model)
    if missing:
        notes.append(f"torchvision has no function for a RetinaNet {missing}; build one")
    return tuple(notes)


# ------------------------------------------------------------------------------- recognition
def is_detector(shapes: Shapes) -> bool:
    """Whether a file holds one of torchvision's detectors, with or without something before its
    names."""
    marks = (_SHARED, "head.classification_head.", "roi_heads.")
    return any(mark in name for name in shapes for mark in marks)


def renewed(names: Mapping[str, Any]) -> dict[str, str]:
    """Name of today -> name in a file, which may be that of an earlier torchvision."""
    found = {}
    for name in names:
        now = name
        for pattern, parts in _OLD:
            if match := pattern.match(name):
                middle = "0" if parts == 1 else f"{int(match[2]) // 2}.0"
                now = f"{match[1]}.{middle}.{match[match.lastindex or 1]}"
        found[now] = name
    return found


def recognise(shapes: Shapes, path: Path, config: ConfigDict) -> tuple[str, ...]:
    """Sets the keys of a RetinaNet's configuration to what the tensors of a file are.

    Args:
      shapes: in the names of today (`renewed`).
      path: of the file, for messages.
      config: of `vitattn.config.default_config("retinanet")`.

    Returns:
      What was assumed, because it stands in no file: a line each.

    Raises:
      CheckpointError: no RetinaNet in these names, or one that this package has not; says which.
    """
    for mark, other in _OTHERS.items():
        if any(mark in name for name in shapes):
            raise _refused(path, f"{other}, which this package has not")
    lateral, p6 = f"{FPN}inner_blocks.0.0.weight", f"{FPN}extra_blocks.p6.weight"
    logits, boxes = (f"{HEAD}{head}.{name}.weight" for head, (_, name) in HEADS.items())
    needed = (lateral, p6, logits, boxes)
    if missing := [n for n in needed if len(shapes.get(n, ())) != 4 or 0 in shapes[n]]:
        prefix = strip_advice(prefix_before(needed, shapes))
        raise CheckpointError(
            f"{shown(path)} holds no RetinaNet in torchvision's names: there is no {missing[0]} "
            f"[out, in, height, width].{prefix}"
        )
    body = {n.removeprefix(BODY): shape for n, shape in shapes.items() if n.startswith(BODY)}
    depth = resnet.set_body(body, path, config, head=False)
    _check_form(shapes, path, shapes[boxes][0], shapes[logits][0])
    model = config.model
    grouped = f"{HEAD}classification_head.conv.0.1.weight" in shapes
    tracked = f"{BODY}bn1.num_batches_tracked" in shapes
    model.features, model.num_classes = shapes[lateral][0], shapes[logits][0] // PLACED
    model.p6_from = "p5" if shapes[p6][1] == model.features else "c5"
    model.pyramid_norm, model.head_norm = "none", "group" if grouped else "none"
    model.norm = "batch" if grouped or tracked else "frozen"
    model.bn_eps = EPS
    model.update(ANCHORS)
    config.name = f"torchvision_retinanet_resnet{depth or ''}_fpn{'_v2' * grouped}"
    notes = ["anchors are those of torchvision's default, which stand in no file"]
    if model.norm == "frozen" and model.num_classes == COCO_CLASSES:
        model.bn_eps = NOTHING**2
        notes.append(
            "the norms add no epsilon, as torchvision has it for its COCO weights; for weights "
            f"that were trained from ImageNet's give --config.model.bn_eps={EPS}"
        )
    return tuple(notes)


def _check_form(shapes: Shapes, path: Path, sides: int, logits: int) -> None:
    """Refuses RetinaNets that were built otherwise than torchvision's functions do."""
    levels = [name for name in shapes if re.match(r"backbone\.fpn\.inner_blocks\.\d+\.", name)]
    blocks = {name.split(".")[3] for name in levels}
    problem = ""
    if len(blocks) != 3:
        problem = f"a RetinaNet on {len(blocks)} stages; read are those on the last three"
    elif sides != 4 * PLACED or logits % PLACED:
        problem = (
            f"a RetinaNet of {sides / 4:g} anchors at a place, whose sizes stand in no file; read "
            f"are torchvision's {PLACED}"
        )
    if problem:
        raise _refused(path, problem)


def _refused(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)} holds {problem}. Read are torchvision's retinanet_resnet50_fpn and "
        "retinanet_resnet50_fpn_v2, on a ResNet of any depth, for any number of classes."
    )
