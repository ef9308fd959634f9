"""The loss of a batch against a plain reference; what does not count; microbatches; devices."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from tests.vitattn.detection.objective.test_losses import focal_reference
from trainlib.model.layer import Layer
from trainlib.model.weights import abstract, initialise
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step
from trainlib.step.train_state import TrainState
from vitattn.detection.geometry.anchors import anchors
from vitattn.detection.geometry.matching import match
from vitattn.detection.objective import objective
from vitattn.layers.conv import Conv
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import Level

SIZE, CLASSES, ROWS = (32, 64), 3, 6
CONFIG = RetinaNetConfig(
    min_level=4, max_level=5, anchor_scale=1.0, image_size=SIZE, num_classes=CLASSES
)
ANCHORS = CONFIG.num_anchors
SETTINGS = {
    "alpha": 0.25,
    "gamma": 1.5,
    "box_weight": 50.0,
    "huber_delta": 0.1,
    "foreground_iou": 0.5,
    "background_iou": 0.4,
}


class Network(Layer):
    """Predictors alone, on strided pixels."""

    def __init__(self):
        for stride in (16, 32):
            for name, outputs in (("classes", CLASSES), ("boxes", 4)):
                layer = Conv(3, ANCHORS * outputs, 3, stride)
                setattr(self, f"{name}_{stride}", layer)

    def __call__(self, images, *, train=False, key=None, weights=None):
        return tuple(
            Level(*(getattr(self, f"{name}_{stride}")(images) for name in ("classes", "boxes")))
            for stride in (16, 32)
        )


def make_plan(**settings) -> Any:
    config = {"batch_size": 8, "microbatches": 1, "data": {"max_boxes": ROWS}}
    return SimpleNamespace(
        config=ConfigDict(config | {"detection": SETTINGS} | settings),
        model=CONFIG,
        abstract=abstract(Network()),
        batch_sharding=None,
    )


def make_batch(images=8, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 24, (images, ROWS, 2)) * (1, 2)
    boxes = np.concatenate((low, low + rng.uniform(4, 30, low.shape)), -1)
    classes = rng.integers(-1, CLASSES, (images, ROWS))
    classes[1] = -1  # an image without boxes
    weight = np.ones(images)
    weight[2] = 0
    return {
        "image": rng.normal(size=(images, *SIZE, 3)).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "classes": classes.astype(np.int32),
        "counts": np.tile(np.asarray((10, 3, 2, 1), np.int32), (images, 1)),
        "weight": weight.astype(np.float32),
    }


def weights_of(plan):
    return initialise(plan.abstract.params, jax.random.key(0))


def run(batch, **settings):
    """Loss, outputs and gradient of one call."""
    plan = make_plan(**settings)
    loss = jax.value_and_grad(objective.make_loss(plan), has_aux=True)
    (value, out), gradient = jax.jit(loss)(weights_of(plan), {}, batch, jax.random.key(0))
    return value, out, gradient


def reference(batch, settings):
    """Sum over images of both losses, and positives: all anchors in one array, float64."""
    plan = make_plan()
    model = plan.abstract.bind(weights_of(plan), {})
    levels = model(jnp.asarray(batch["image"]))
    logits = np.concatenate([x.classes.reshape(len(x.classes), -1, CLASSES) for x in levels], 1)
    offsets = np.concatenate([x.boxes.reshape(len(x.boxes), -1, 4) for x in levels], 1)
    classes = boxes = positives = 0
    for image in np.flatnonzero(batch["weight"]):
        found = match(
            jnp.asarray(anchors(CONFIG, SIZE)),
            jnp.asarray(batch["boxes"][image]),
            jnp.asarray(batch["classes"][image]),
            foreground=settings["foreground_iou"],
            background=settings["background_iou"],
        )
        kinds = np.asarray(found.classes)
        classes += focal_reference(logits[image], kinds, settings["alpha"], settings["gamma"])[
            0
        ].sum()
        d = np.abs(offsets[image].astype(float) - found.boxes)[np.asarray(found.positive)]
        delta = settings["huber_delta"]
        boxes += np.where(d <= delta, d**2 / 2, delta * (d - delta / 2)).sum()
        positives += len(d)
    return classes, boxes, positives


@pytest.mark.slow
def test_the_loss_is_that_of_the_formula():
    batch = make_batch()
    classes, boxes, positives = reference(batch, SETTINGS)
    value, out, _ = run(batch)
    assert positives > 20
    np.testing.assert_allclose(out.count, positives + 1)
    np.testing.assert_allclose(value, (classes + 50 * boxes / 4) / (positives + 1), rtol=1e-5)
    figures = {name: float(total / count) for name, (total, count) in out.metrics.items()}
    np.testing.assert_allclose(figures["loss_classes"] + figures["loss_boxes"], value, rtol=1e-5)
    np.testing.assert_allclose(figures["positives"], positives / 7, rtol=1e-6)
    assert 0 <= figures["boxes_missed"] < 0.2
    names = ("boxes_outside", "boxes_thin", "boxes_beyond")
    np.testing.assert_allclose([figures[name] for name in names], (0.3, 0.2, 0.1), rtol=1e-6)


@pytest.mark.thorough
def test_images_of_weight_0_count_nowhere():
    batch, broken = make_batch(), make_batch()
    for name in ("image", "boxes"):
        broken[name][2] = np.nan
    without = {name: np.delete(value, 2, 0) for name, value in batch.items()}
    value, out, _gradient = run(broken)
    expected, expected_out, expected_gradient = run(without)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["positives"], expected_out.metrics["positives"])
    for name, part in expected_gradient.items():
        np.testing.assert_allclose(part, run(batch)[2][name], rtol=1e-4, atol=1e-5)


def test_a_batch_without_boxes():
    batch = make_batch()
    batch["classes"][:] = -1
    value, out, gradient = run(batch)
    assert out.count == 1
    assert np.isfinite(value)
    assert value > 0
    assert all(np.isfinite(part).all() for part in gradient.values())
    assert not any(gradient[name].any() for name in gradient if "boxes" in name)
    batch["weight"][:] = 0
    value, _, gradient = run(batch)
    assert value == 0
    assert not any(part.any() for part in gradient.values())


def updated(plan, batch, mesh, microbatches):
    """Weights and metrics after one step of plain descent."""
    optimizer, weights = optax.sgd(1.0), weights_of(plan)
    train = step.make_train_step(
        objective.make_loss(plan), optimizer, seed=0, microbatches=microbatches
    )
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, weights, {}, optimizer.init(weights), {}, jnp.zeros(2, jnp.int32))
    rows, whole = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())
    run = jax.jit(train, in_shardings=(whole, rows), out_shardings=whole)
    after, sums = run(state, step.put_batch(batch, rows))
    return after.params, {name: float(total / count) for name, (total, count) in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "microbatches"), [(8, 1), (1, 4), (4, 2)])
def test_devices_and_microbatches_give_the_step_of_one(devices, microbatches):
    """Images have from none to many positives, so that no mean of means would be right."""
    batch = make_batch()
    one = updated(make_plan(), batch, make_mesh(data=1, devices=jax.devices()[:1]), 1)
    plan = make_plan(microbatches=microbatches)
    many = updated(
        plan, batch, make_mesh(data=devices, devices=jax.devices()[:devices]), microbatches
    )
    for name, figure in one[1].items():
        np.testing.assert_allclose(many[1][name], figure, rtol=1e-5, err_msg=name)
    for name, weight in one[0].items():
        np.testing.assert_allclose(many[0][name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_shapes_of_a_batch_are_those_of_the_plan():
    plan = make_plan()
    shapes = objective.abstract_batch(plan)
    batch = make_batch()
    assert set(shapes) == set(objective.fields(plan)) == set(batch)
    for name, shape in shapes.items():
        assert (shape.shape, shape.dtype) == (batch[name].shape, batch[name].dtype), name
