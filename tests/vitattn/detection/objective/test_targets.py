"""Targets by level against matching in the order of predictions; what a TPU moves for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.tpu_compiler import needs_figures
from trainlib.planning.ledger import ledger_of
from vitattn.detection.geometry.anchors import anchors
from vitattn.detection.geometry.matching import match
from vitattn.detection.objective.objective import sums
from vitattn.detection.objective.targets import make_targets
from vitattn.detection.settings import DETECTION
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import Level

SETTINGS = ConfigDict({name: default for name, (default, *_) in DETECTION.items()})


def test_targets_lie_where_the_predictions_do():
    config = RetinaNetConfig(image_size=(128, 64), max_level=5, num_scales=1, anchor_scale=2.0)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (3, 5, 2))
    boxes = jnp.float32(np.concatenate((low, low + rng.uniform(5, 60, low.shape)), -1))
    classes = jnp.asarray(rng.integers(-1, 4, (3, 5)))
    counted = jnp.asarray([True, False, True])
    found = jax.jit(lambda *batch: make_targets(*batch, config, config.size, SETTINGS))(
        boxes, classes, counted
    )
    maps = [level.classes.shape for level in found.levels]
    assert maps == [(3, 16, 8, 3), (3, 8, 4, 3), (3, 4, 2, 3)]
    every = jnp.asarray(anchors(config, config.size))
    limits = {"foreground": SETTINGS.foreground_iou, "background": SETTINGS.background_iou}
    for image in (0, 2):
        plain = jax.jit(functools.partial(match, **limits))(every, boxes[image], classes[image])
        for name in ("classes", "boxes", "positive"):
            rows = [getattr(level, name)[image] for level in found.levels]
            rest = rows[0].shape[3:]
            together = jnp.concatenate([row.reshape(-1, *rest) for row in rows])
            np.testing.assert_allclose(together, getattr(plain, name), atol=1e-6)
    for level in found.levels:
        assert (level.classes[1] == -2).all()
        assert not level.positive[1].any()
    assert found.boxes == (classes[jnp.asarray([0, 2])] >= 0).sum()
    assert found.positives == sum(level.positive.sum() for level in found.levels)


@needs_figures
@pytest.mark.slow
def test_a_tpu_reads_the_logits_once_and_writes_their_gradient_once():
    """Matching, loss and gradient of 8 images of 256 pixels with 100 boxes, 90 classes.

    Without a table of overlaps: that alone would be 8 x 100 x 8,064 f32 values, 26 MB, twice the
    logits.
    """
    config = RetinaNetConfig(image_size=256, max_level=5)
    maps = [(8, *size) for size in config.map_sizes]
    logits = tuple(jax.ShapeDtypeStruct((*size, 540), jnp.bfloat16) for size in maps)
    offsets = tuple(jax.ShapeDtypeStruct((*size, 24), jnp.bfloat16) for size in maps)
    boxes = jax.ShapeDtypeStruct((8, 100, 4), jnp.float32)
    classes = jax.ShapeDtypeStruct((8, 100), jnp.int32)

    def loss(logits, offsets, boxes, classes):
        found = make_targets(boxes, classes, classes[:, 0] > -2, config, config.size, SETTINGS)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (logits, offsets))
        parts = sums([Level(*level) for level in zip(*wide, strict=True)], found.levels, SETTINGS)
        return (parts[0] + parts[1]) / (1 + found.positives)

    program = jax.value_and_grad(loss, argnums=(0, 1))
    ledger = ledger_of(program, logits, offsets, boxes, classes, target="v5e-1")
    size = 2 * sum(np.prod(logit.shape) for logit in logits)
    assert ledger.temporaries < 0.25 * size
    assert ledger.hbm_bytes < 3 * size
