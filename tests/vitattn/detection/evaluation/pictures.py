"""A split of pictures whose brightness tells their number, and a detector that reads it and answers
from a table: what `over_split` does is then known, on any number of devices and processes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from tests.vitattn.detection.evaluation.small_sets import Split, random_detections, random_split
from trainlib.sharding.mesh import make_mesh
from vitattn.detection.data.source import BoxedExample
from vitattn.detection.evaluation.detections import Detections
from vitattn.detection.input.augment import letterbox
from vitattn.detection.settings import data_settings
from vitattn.images.files import UnreadableRecord

SIDE, PLACES = 32, 24  # of the network's image, and of its answers


class Pictures(Split):
    """A split whose record n is a picture of brightness n + 1, 2 n + 40 pixels high and 100 wide.

    Attributes:
      broken: records that cannot be read.
    """

    num_classes, digest, in_memory, left_out = 4, "", True, ()
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    broken: tuple[int, ...] = ()

    def __getitem__(self, record: int) -> BoxedExample:
        if record in self.broken:
            raise UnreadableRecord("is broken")
        pixels = np.full((*self.sides(record), 3), record + 1, np.uint8)
        nothing = np.zeros(0)
        return BoxedExample(pixels, nothing.reshape(0, 4), nothing, nothing)

    def sides(self, record: int) -> tuple[int, int]:
        return 2 * record + 40, 100


def pictures(images: int, classes: int = 4) -> tuple[Pictures, Detections]:
    """A split, and what the detector will find on it, inside the pictures."""
    rng = np.random.default_rng(0)
    split = random_split(rng, images, classes)
    split = Pictures(split.truths, split.class_names, split.category_ids)
    found = random_detections(rng, split, PLACES)
    height = np.array([split.sides(record)[0] for record in range(images)], float)[found.records]
    x, y, wide, high = found.boxes.T
    x, y = x % 90, y % (height - 10)
    boxes = np.stack((x, y, np.minimum(wide, 100 - x), np.minimum(high, height - y)), -1)
    return split, found._replace(boxes=boxes)


def detector(split: Pictures, found: Detections) -> Any:
    """`(params, model_state, batch) -> detections`, as `step.compile_eval` makes it."""
    shape = len(split), PLACES
    boxes = np.zeros((*shape, 4), np.float32)
    scores, classes = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    for record in range(len(split)):
        own = found.at(found.records == record)
        count, scale = len(own.scores), letterbox(split.sides(record), (SIDE, SIDE)).scale
        x, y, wide, high = (own.boxes * np.tile(scale[::-1], 2)).T
        boxes[record, :count] = np.stack((y, x, y + high, x + wide), -1)
        scores[record, :count], classes[record, :count] = own.scores, own.classes
    table = {"boxes": boxes, "scores": scores, "classes": classes}

    def answers(params: Any, model_state: Any, batch: Any) -> Any:
        record = jnp.round(batch["image"].max((1, 2, 3)) * 255).astype(jnp.int32) - 1
        # Where no picture is, nonsense is found, and must count nowhere.
        some = {name: jnp.asarray(values)[record] for name, values in table.items()}
        finite = jnp.isfinite(some["boxes"]).all((1, 2)) & jnp.isfinite(some["scores"]).all(1)
        return some | {"finite": finite}

    return answers


def plan_of(batch_size: int) -> Any:
    """As much of a plan as evaluation reads, over all devices."""
    data = {name: value for name, (value, _) in data_settings().items()}
    data |= {"workers": 0, "max_bad_fraction": 0.5}
    config = {"batch_size": 4, "eval_batch_size": batch_size, "data": data}
    config |= {"detection": {"max_detections": 100}}
    mesh = make_mesh(1, jax.device_count())
    return SimpleNamespace(
        config=ConfigDict(config),
        mesh=mesh,
        batch_sharding=NamedSharding(mesh, P(("replica", "data"))),
        model=SimpleNamespace(size=(SIDE, SIDE)),
    )


def compiled(answers: Any, plan: Any) -> Any:
    """On the devices of a plan, its answers on all of them."""
    whole = NamedSharding(plan.mesh, P())
    return jax.jit(answers, in_shardings=(None, None, plan.batch_sharding), out_shardings=whole)
