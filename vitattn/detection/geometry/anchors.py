"""Anchors: the boxes that a RetinaNet (arXiv 1708.02002, section 4) refines and classifies.

Letters: H, W the network's image in pixels; h, w a map of the pyramid, A anchors of a location,
N anchors of all levels. Level l has stride s = 2^l and anchors of size anchor_scale * s * 2^(i / S)
for i of S octave scales, in each aspect ratio r (width over height). In two styles:

    "centred"      as the public TPU code: the centre of location k is (k + 1/2) s; sides are
                   size * r^(-1/2) and size * r^(1/2), so that the area does not depend on r; a
                   location's anchors are numbered scale * ratios + ratio.
    "torchvision"  as its AnchorGenerator: sizes are cut to whole numbers, half sides rounded to
                   whole numbers (halves to even), the centre of location k is k s, and a
                   location's anchors are numbered ratio * scales + scale.

The order over the image is level, row, column, anchor of the location.
"""

from __future__ import annotations

import functools

import numpy as np

from vitattn.models.retinanet.config import RetinaNetConfig


@functools.lru_cache(maxsize=64)
def level_anchors(config: RetinaNetConfig, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Anchors of each level, f32 [h, w, A, 4], lowest level first, for images of `size` (H, W).

    They are read-only, and kept for the next call.
    """
    return tuple(_of_level(config, size, 2**level) for level in config.levels)


@functools.lru_cache(maxsize=64)
def anchors(config: RetinaNetConfig, size: tuple[int, int]) -> np.ndarray:
    """All anchors of images of `size` (H, W), f32 [N, 4], read-only."""
    every = np.concatenate([level.reshape(-1, 4) for level in level_anchors(config, size)])
    every.setflags(write=False)
    return every


def _of_level(config: RetinaNetConfig, size: tuple[int, int], stride: int) -> np.ndarray:
    half = _half_sides(config, stride)  # [A, 2]
    first = 0.5 if config.anchors == "centred" else 0.0
    rows, columns = (stride * (np.arange(side // stride) + first) for side in size)
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)[:, :, None]  # [h, w, 1, 2]
    boxes = np.concatenate((centres - half, centres + half), -1).astype(np.float32)
    boxes.setflags(write=False)
    return boxes


def _half_sides(config: RetinaNetConfig, stride: int) -> np.ndarray:
    """Half heights and widths of a location's anchors, [A, 2]."""
    sizes = config.anchor_scale * stride * 2.0 ** (np.arange(config.num_scales) / config.num_scales)
    ratios = np.asarray(config.aspect_ratios)  # width over height
    if config.anchors == "centred":
        stretch = np.stack((ratios**-0.5, ratios**0.5), -1)  # of heights, of widths
        return (sizes[:, None, None] * stretch).reshape(-1, 2) / 2
    # In float32, as there: what rounds up in one type may round down in another.
    taller = np.sqrt((1 / ratios).astype(np.float32))
    stretch = np.stack((taller, 1 / taller), -1)[:, None]
    return np.round(stretch * np.floor(sizes).astype(np.float32)[:, None] / 2).reshape(-1, 2)
