"""Post-processing against plain NumPy: all pairs sorted, every box decoded, a loop for the rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vitattn.detection.answers.test_nms import by_loops
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from vitattn.detection.answers.postprocess import Options, detect
from vitattn.detection.geometry.anchors import level_anchors
from vitattn.detection.geometry.boxes import clip, decode
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import Level

CONFIG = RetinaNetConfig(image_size=64, max_level=6, num_classes=3)  # 384, 96, 24, 6 anchors
BATCH = 3


def levels_of(rng, config, draw):
    """What a network might say: `draw(rng, shape)` makes the logits."""
    per, size = config.num_anchors, config.map_sizes
    return tuple(
        Level(
            jnp.asarray(draw(rng, (BATCH, h, w, per * config.num_classes)), jnp.float32),
            jnp.asarray(rng.normal(0, 0.5, (BATCH, h, w, per * 4)), jnp.float32),
        )
        for h, w in size
    )


def plainly(levels, config, options):
    """What `detect` returns, for one image after the other, in NumPy."""
    found = []
    for image in range(len(levels[0].classes)):
        boxes, keys, classes = [], [], []
        for level, anchors in zip(levels, level_anchors(config, config.size), strict=True):
            logits = np.asarray(level.classes[image]).reshape(-1)
            offsets = np.asarray(level.boxes[image]).reshape(-1, 4)
            best = np.argsort(-logits, kind="stable")[: options.candidates]
            anchor = best // config.num_classes
            decoded = decode(
                jnp.asarray(offsets[anchor]), jnp.asarray(anchors.reshape(-1, 4)[anchor])
            )
            boxes.append(np.asarray(clip(decoded, *config.size)))
            keys.append(logits[best])
            classes.append(best % config.num_classes)
        boxes, keys, classes = map(np.concatenate, (boxes, keys, classes))
        scores = np.asarray(jax.nn.sigmoid(keys))
        left = np.where(scores > options.score_threshold, keys, -np.inf)
        kept = by_loops(boxes, left, classes, options.nms_iou, options.max_detections)
        found.append([(boxes[n], scores[n], classes[n]) if n >= 0 else None for n in kept])
    return found


def agree(got, want):
    for image, detections in enumerate(want):
        for place, one in enumerate(detections):
            box, score, label = (got[n][image, place] for n in ("boxes", "scores", "classes"))
            if one is None:
                assert (label, score, *box) == (-1, 0, 0, 0, 0, 0)
            else:
                np.testing.assert_allclose(box, one[0], atol=1e-3)
                assert (label, score) == (one[2], pytest.approx(one[1], rel=1e-5))


DRAWS = {
    "any": lambda rng, shape: rng.normal(-2, 2, shape),
    "ties": lambda rng, shape: rng.integers(-4, 3, shape),
    "alike": lambda rng, shape: np.full(shape, 0.25),
    "saturated": lambda rng, shape: rng.normal(0, 60, shape),
    "none": lambda rng, shape: rng.normal(-9, 1, shape),
}


OPTIONS = Options(candidates=40, max_detections=5)
LEVELS = levels_of(np.random.default_rng(7), CONFIG, DRAWS["ties"])


@pytest.mark.sample(4)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("candidates", [1, 30, 500])
def test_detections_are_those_of_the_plain_way(draw, candidates):
    options = Options(candidates=candidates, max_detections=20)
    levels = levels_of(np.random.default_rng(candidates), CONFIG, DRAWS[draw])
    got = jax.jit(lambda *ls: detect(ls, CONFIG, options))(*levels)
    assert got["boxes"].dtype == got["scores"].dtype == jnp.float32
    assert got["classes"].dtype == jnp.int32
    assert got["finite"].all()
    agree(got, plainly(levels, CONFIG, options))
    assert (np.diff(got["scores"]) <= 0).all()
    if draw == "none":
        assert (np.asarray(got["classes"]) == -1).all()


@pytest.mark.thorough
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["classes", "boxes"])
def test_a_number_that_is_not_finite_is_seen_wherever_it_stands(value, part):
    run = jax.jit(lambda *ls: detect(ls, CONFIG, Options(max_detections=5)))
    levels = levels_of(np.random.default_rng(0), CONFIG, DRAWS["none"])
    sound = run(*levels)
    for at, level in enumerate(levels):
        broken = getattr(level, part).at[1, -1, -1, -1].set(value)
        got = run(*levels[:at], level._replace(**{part: broken}), *levels[at + 1 :])
        assert got["finite"].tolist() == [True, False, True]
        assert np.isnan(got["scores"][1]).all()
        for image in (0, 2):
            np.testing.assert_array_equal(got["boxes"][image], sound["boxes"][image])
            np.testing.assert_array_equal(got["scores"][image], sound["scores"][image])


@pytest.mark.thorough
def test_eight_devices_each_thin_out_their_own_images():
    levels = [Level(*(jnp.tile(m, (3, 1, 1, 1))[:8] for m in level)) for level in LEVELS]
    rules = {"batch": ("replica", "data")}
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])
    spread = jax.device_put(levels, batch_sharding(rules, mesh))
    run = functools.partial(detect, config=CONFIG, options=OPTIONS)
    with activate(mesh, rules):
        compiled = jax.jit(run).lower(spread).compile()
    for name, value in jax.jit(run)(levels).items():
        np.testing.assert_array_equal(compiled(spread)[name], value)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in str(compiled.as_text())


@pytest.mark.slow
def test_without_jit_it_is_the_same():
    options = dataclasses.replace(OPTIONS, max_detections=2)
    with jax.disable_jit():
        got = detect(LEVELS, CONFIG, options)
    for name, value in jax.jit(lambda ls: detect(ls, CONFIG, options))(LEVELS).items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-4)


@pytest.mark.thorough
def test_fewer_pairs_than_candidates_and_places():
    config = RetinaNetConfig(image_size=(32, 64), max_level=5, num_classes=1, aspect_ratios=(1,))
    levels = levels_of(np.random.default_rng(5), config, DRAWS["ties"])
    options = Options(score_threshold=0.3, candidates=10**4, max_detections=100, nms_iou=0.9)
    agree(jax.jit(lambda ls: detect(ls, config, options))(levels), plainly(levels, config, options))
