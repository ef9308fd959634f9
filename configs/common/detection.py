"""Variants that every detector of `configs/` has: one's own data, and a first run without any."""

from __future__ import annotations

from typing import Any

from vitattn.models.retinanet.config import frozen_stages

# One's own images and COCO json, from ImageNet weights: --config.data.source=coco:TRAIN.json
# --config.model.num_classes=N --config.init_from=WEIGHTS. The rate is that of 64 images scaled to
# 8, and the stem and first stage stay as they were trained, as in public fine-tuning.
OWN: dict[str, Any] = {
    "optimizer.frozen": frozen_stages(2),
    "batch_size": 8,
    "epochs": 24,
    "schedule.name": "cosine",
    "schedule.learning_rate": 0.01,
    "schedule.warmup_steps": 100,
    "schedule.warmup_start": 0.001,
    "ema_decay": 0.99,
    "eval_every": 200,
    "checkpoint.every": 200,
    "log_every": 10,
    "target": "v5e-4",
}

# The same from torchvision's COCO weights, which `launch.import_weights` brings: of its first
# RetinaNet, whose norms are frozen and add no epsilon to their variances, and of its second.
_ANCHORS = {
    "model.anchors": "torchvision",
    "model.num_scales": 3,
    "model.aspect_ratios": (2.0, 1.0, 0.5),
    "model.pyramid_norm": "none",
}
TORCHVISION: dict[str, Any] = OWN | _ANCHORS
TORCHVISION |= {"model.norm": "frozen", "model.bn_eps": 1e-24, "model.head_norm": "none"}
TORCHVISION_V2: dict[str, Any] = OWN | _ANCHORS
TORCHVISION_V2 |= {"model.p6_from": "c5", "model.bn_eps": 1e-5, "model.head_norm": "group"}

# Drawn shapes on two photographs, in minutes on 2 CPU cores: a narrow network of few blocks without
# P6 and P7, and anchors as small as the shapes are.
SHAPES: dict[str, Any] = {
    "data.source": "shapes",
    "model.blocks": (1, 1, 1, 1),
    "model.width": 0.25,
    "model.features": 64,
    "model.head_layers": 1,
    "model.max_level": 5,
    "model.anchor_scale": 3.0,
    "model.image_size": (128, 160),
    "model.num_classes": 4,
    "model.dtype": "float32",
    "model.bn_decay": 0.9,
    "batch_size": 8,
    "eval_batch_size": 16,
    "steps": 1000,
    "schedule.name": "cosine",
    "schedule.learning_rate": 0.05,
    "schedule.warmup_steps": 50,
    "ema_decay": 0.99,
    "eval_every": 250,
    "checkpoint.every": 250,
    "log_every": 1,
    "target": "v5e-4",
}
