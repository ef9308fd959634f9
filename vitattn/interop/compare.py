"""`launch.import_weights --check` for images: the imported model beside torchvision's own.

B images, N anchors of all levels, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats.safetensors import Reader
from trainlib.model import weights as nn
from vitattn.detection.geometry.anchors import anchors
from vitattn.detection.geometry.boxes import decode
from vitattn.interop import torchvision_names, torchvision_retinanet
from vitattn.models import build, configure
from vitattn.models.retinanet.config import RetinaNetConfig

TOLERANCE = 1e-3  # of the largest logit
BOX_TOLERANCE = 0.05  # pixels, of a corner of a box
DETECTOR_SIZE = (256, 384)  # of the image on which detectors are compared, in pixels


def compare(config: ConfigDict, params: nn.Arrays, path: Path) -> str:
    """One line with the largest difference to torchvision's model, of logits and boxes.

    Args:
      config: of the imported model.
      params: name -> weight or statistic.
      path: the file that it was imported from.

    Raises:
      ConfigError: torchvision has no such model.
      CheckpointError: they differ by more than rounding.
    """
    if isinstance(configure(config.model), RetinaNetConfig):
        return _detectors(config, params, path)
    return _classifiers(config, params, path)


def _forward(config: ConfigDict, params: nn.Arrays, images: np.ndarray) -> Any:
    """What our model gives for images f32 [B, H, W, 3]."""
    model = nn.abstract(build(config.model))
    parts = ({name: params[name] for name in kind} for kind in (model.params, model.model_state))

    def forward(params: nn.Arrays, model_state: nn.Arrays, images: jax.Array) -> Any:
        return model.bind(params, model_state)(images, train=False)

    return jax.device_get(jax.jit(forward)(*parts, images))


def _checked(line: str, difference: float, most: float) -> str:
    if not difference <= most:
        raise CheckpointError(f"The imported model is another one: {line}.")
    return line


def _logits(ours: np.ndarray, theirs: np.ndarray) -> str:
    """A line on two arrays of logits of one shape."""
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    line = f"largest difference of logits to torchvision {difference:.2e}, of {largest:.3g}"
    return _checked(line, difference, TOLERANCE * max(1.0, largest))


def _classifiers(config: ConfigDict, params: nn.Arrays, path: Path) -> str:
    import torch

    # The type checker takes this folder's file of the same name for the library.
    from torchvision import models  # pyright: ignore[reportAttributeAccessIssue]

    missing = torchvision_names.not_there(configure(config.model))
    if missing:
        raise ConfigError(f"--check: torchvision has no ResNet {missing}. Leave it out.")
    depth, size = config.model.depth, configure(config.model).size
    theirs = getattr(models, f"resnet{depth}")(num_classes=config.model.num_classes)
    theirs.load_state_dict(_tensors(path))
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    return _logits(np.asarray(_forward(config, params, images)), expected)


def _tensors(path: Path) -> dict[str, Any]:
    import torch

    reader = Reader(path)
    return {name: torch.from_numpy(reader.read(name).astype("f4")) for name in reader.tensors}


# ---------------------------------------------------------------------------------- detectors
def retinanet(model: RetinaNetConfig) -> Any:
    """torchvision's RetinaNet with fresh weights for a configuration, to evaluate.

    Raises:
      ConfigError: torchvision has no function for it.
    """
    from torch import nn
    from torchvision.models import detection  # pyright: ignore[reportMissingImports]

    missing = torchvision_retinanet.not_there(model)
    if missing:
        raise ConfigError(f"--check: torchvision has no RetinaNet {missing}. Leave it out.")
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name=f"resnet{model.depth}",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=_coarse(model),
    )
    head = None
    if model.head_norm == "group":
        groups = torchvision_retinanet.GROUPS
        head = detection.retinanet.RetinaNetHead(
            256,
            torchvision_retinanet.PLACED,
            model.num_classes,
            norm_layer=lambda channels: nn.GroupNorm(groups, channels),
        )
    generator = detection.retinanet._default_anchorgen()
    theirs = detection.RetinaNet(
        backbone, model.num_classes, anchor_generator=generator, head=head
    ).eval()
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = torchvision_retinanet.their_eps(model)
    return theirs


def _coarse(model: RetinaNetConfig) -> Any:
    """torchvision's levels beyond the backbone."""
    from torchvision.ops.feature_pyramid_network import (  # pyright: ignore[reportMissingImports]
        LastLevelP6P7,
    )

    wide = 2048 if model.backbone.bottleneck else 512
    return LastLevelP6P7(wide if model.p6_from == "c5" else 256, 256)


def _detectors(config: ConfigDict, params: nn.Arrays, path: Path) -> str:
    """Logits, and boxes of all anchors, on noise."""
    import torch

    model = configure(config.model)
    assert isinstance(model, RetinaNetConfig)
    theirs = retinanet(model)
    theirs.load_state_dict(_tensors(path))
    height, width = DETECTOR_SIZE
    images = np.random.default_rng(0).normal(size=(1, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        maps = list(theirs.backbone(inputs).values())
        outputs = theirs.head(maps)
        image_list = _image_list(inputs, (height, width))
        (placed,) = theirs.anchor_generator(image_list, maps)
        offsets = outputs["bbox_regression"][0]
        corners = theirs.box_coder.decode_single(offsets, placed).numpy()
    levels = _forward(config, params, images)
    classes = np.concatenate([level.classes.reshape(-1, model.num_classes) for level in levels])
    line = _logits(classes, outputs["cls_logits"][0].numpy())
    moved = np.concatenate([level.boxes.reshape(-1, 4) for level in levels])
    placed_here = jnp.asarray(anchors(model, DETECTOR_SIZE))
    boxes = np.asarray(decode(jnp.asarray(moved), placed_here))
    # By the size of the box: huge ones of random weights are exact to as many digits, not pixels.
    large = np.maximum(1, np.abs(corners).max(1, keepdims=True) / max(DETECTOR_SIZE))
    difference = float((np.abs(boxes[:, [1, 0, 3, 2]] - corners) / large).max())
    line += f"; of the corners of {len(boxes):,} boxes {difference:.2e} pixels"
    return _checked(line, difference, BOX_TOLERANCE)


def _image_list(images: Any, size: tuple[int, int]) -> Any:
    from torchvision.models.detection.image_list import (  # pyright: ignore[reportMissingImports]
        ImageList,
    )

    return ImageList(images, [size])
