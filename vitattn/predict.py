"""Applies a trained model to image files, and draws what its attention layers look at.

Letters: B images of a batch, N heads, H W image, h w map of a layer.

Images go through the evaluation pipeline, in batches of one shape, so that one program is compiled
however many there are. With attention maps a batch has one image for each device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import DataError, NumericAbort, shown
from trainlib.formats.load import load_weights
from trainlib.formats.weight_source import is_export
from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan
from vitattn.analysis import attention_picture
from vitattn.analysis.attention_picture import Maps, Picture
from vitattn.answers import Answer, printed, renderer
from vitattn.data.unlabelled import Unlabelled
from vitattn.images.files import find_images
from vitattn.images.size import Size
from vitattn.labels import class_names
from vitattn.labels.class_names import ModelNames, Names, printable
from vitattn.models import ModelConfig
from vitattn.models.counts import check_size
from vitattn.plan import make_replicated
from vitattn.task import Task, task_of

BATCH = 32
# Pixels of a batch at most: one of images of 640 x 640, as detectors see them, has 5.
PIXELS = 2**21
MIN_SCORE = 0.3  # from which a box is drawn
# Up to this many images the processes that would read them take longer to start than to read.
FEW_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes:
      images: image files, and folders that are searched for them.
      class_names: a file with one name a line; None takes those that the checkpoint or the
        workdir carries, or those that the data set fixes, where they are as many as the outputs.
      as_json: one JSON object an image instead of text.
      attention: the picture to draw, or None.
      layers: attention layers or parts of the network; empty for `choose_layers`' default.
      heads: their numbers; empty for all.
      query: row and column of a pixel of the model's image; None is the centre.
      boxes: the directory of pictures with what a detector finds, or None.
      min_score: score from which a box is drawn.
    """

    images: Sequence[Path]
    class_names: Path | None = None
    as_json: bool = False
    attention: Path | None = None
    layers: Sequence[str] = ()
    heads: Sequence[int] = ()
    query: tuple[int, int] | None = None
    boxes: Path | None = None
    min_score: float = MIN_SCORE


def run(config: ConfigDict, workdir: Path, request: Request, at_step: int | None = None) -> int:
    """Prints what a model says of each image, and draws the attention maps that are asked for.

    Images that cannot be decoded are named at the end; the others are answered all the same.

    Raises:
      ConfigError: a layer, head or query that the model does not have.
      DataError: images or names that are missing, cannot be decoded or do not fit.
      CheckpointError: no such step, or one of another model.
      StorageError: the picture cannot be written.
    """
    if is_export(workdir):
        check_size(config)
    paths = find_images(request.images)
    plan, task = make_replicated(config), task_of(config)
    outputs = plan.model.num_classes
    at_step, known = class_names.of_model(workdir, at_step, outputs)
    names = choose_names(request.class_names, known, outputs)
    picture = choose_picture(request, plan, len(paths))
    drawn = None
    if request.boxes is not None:
        drawn = task.open_pictures(request.boxes, paths, names, request.min_score)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    predict_step = step.compile_eval(make_predict(plan, task, picture), plan)

    def predict(images: np.ndarray) -> dict[str, Any]:
        batch = step.put_batch({"image": images}, plan.batch_sharding)
        return jax.device_get(predict_step(loaded.params, loaded.model_state, batch))

    if not request.as_json:
        print(f"{shown(config.name)}, step {loaded.step}")
    size = batch_size(len(paths), plan, picture)
    mean, std = task.statistics(config.data)
    source = Unlabelled(paths, mean, std)
    rows, unread = [], []
    stream = answers(task, source, config.data, plan.model.size, size, predict)
    with contextlib.closing(stream):
        render = renderer(task, paths, names, request.as_json)
        many = len(paths) > max(BATCH, size)
        for answer in printed(stream, len(paths), size, render, many):
            if answer.error:
                unread.append(f"{source.describe(answer.record)} {answer.error}")
                continue
            if drawn is not None:
                drawn.add(answer.record, answer.outputs)
            if picture is not None:
                prediction = task.caption(answer.outputs, printable(names))
                caption = f"{shown(paths[answer.record].name)}: {prediction}"
                rows += picture.rows(answer.pixels, caption, answer.maps, mean, std)
    if picture is not None and rows:
        picture.draw(rows)
        print(f"attention maps: {picture.path}", file=sys.stderr)
    for label, phrase in drawn.close().items() if drawn is not None else ():
        print(f"{label}: {phrase}", file=sys.stderr)
    if unread:
        raise no_answer(unread, len(paths))
    return 0


def no_answer(unread: Sequence[str], images: int, most: int = 20) -> DataError:
    """The error for images that cannot be decoded: a phrase for each, of so many images."""
    more = f"; and {len(unread) - most} more" if len(unread) > most else ""
    return DataError(
        f"{len(unread)} of {images} images got no answer: {'; '.join(unread[:most])}{more}."
    )


def choose_picture(request: Request, plan: Plan[ModelConfig], images: int) -> Picture | None:
    """Decides what the picture of attention shows; None where none is asked for.

    Raises:
      ConfigError: the model lacks the layer, head or query, or the picture cannot be drawn.
      StorageError: the directory of the picture does not exist.
    """
    if request.attention is None:
        return None
    chosen = request.attention, request.query, request.layers, request.heads
    return attention_picture.choose(*chosen, plan.abstract, plan.model.size, images)


def choose_names(file: Path | None, known: ModelNames | None, outputs: int) -> Names:
    """Returns one name for each output of a model: those of a file, else those of the run, else
    none.

    Raises:
      DataError: the file cannot be read, or holds another number of names than the model has
        outputs.
    """
    if file is not None:
        return class_names.read(file, outputs).names
    return known.names if known is not None else (None,) * outputs


def batch_size(images: int, plan: Plan[ModelConfig], maps: Maps | None) -> int:
    """Returns B: a multiple of the devices, one for each where attention is drawn."""
    devices = plan.mesh.size
    most = 1 if maps else min(images, most_images(plan.model.size))
    return -(-most // devices) * devices


def most_images(image_size: tuple[int, int]) -> int:
    """Returns how many images of a size a batch has at most."""
    height, width = image_size
    return max(1, min(BATCH, PIXELS // (height * width)))


def make_predict(
    plan: Plan[ModelConfig], task: Task, watched: Maps | None
) -> Callable[[Arrays, Arrays, step.Batch], dict[str, Any]]:
    """Returns the pure function `(params, model_state, {"image": f32 [B, H, W, 3]}) -> result`.

    Its result is {"outputs": those of the task, [B, ...] each, "maps": {layer: f32 [B, N, h, w]}}.
    """
    of_images = task.make_predict(plan.config)

    def predict(params: Arrays, model_state: Arrays, batch: step.Batch) -> dict[str, Any]:
        model = plan.abstract.bind(params, model_state)
        maps: dict[str, jax.Array] = {}
        if watched is not None:
            watched.watch(model, maps)
        outputs = of_images(model, batch["image"])
        return {"outputs": outputs, "maps": maps}

    return predict


def answers(
    task: Task,
    source: Unlabelled,
    data: ConfigDict,
    image_size: Size,
    size: int,
    predict: Callable[[np.ndarray], dict[str, Any]],
) -> Generator[Answer, None, None]:
    """Yields an answer for each image of `source`, in order.

    Args:
      task: what the model learned.
      source: the images.
      data: the `data` section of the configuration that the model was trained with.
      image_size: of the model, in pixels.
      size: images of a batch.
      predict: images f32 [size, H, W, 3] -> {"outputs": .., "maps": ..}, see `make_predict`.
    """
    data = data.copy_and_resolve_references()
    data.max_bad_fraction = 1.0  # every image was asked for: all are tried
    if len(source) <= FEW_IMAGES:
        data.workers = 0
    with task.image_batches(source, data, size, image_size) as batches:
        for batch in batches:
            result = predict(batch["image"])
            reasons = dict(batches.bad)
            for number, record in enumerate(batch["index"].tolist()):
                if record >= 0:
                    example = {name: array[number] for name, array in batch.items()}
                    unread = not example["weight"]
                    outputs = {name: array[number] for name, array in result["outputs"].items()}
                    if outputs and not unread:
                        outputs = _finished(task, outputs, example, source.describe(record))
                    yield Answer(
                        record,
                        reasons[source.describe(record)] if unread else "",
                        example["image"],
                        outputs,
                        {name: array[number] for name, array in result["maps"].items()},
                    )


def _finished(
    task: Task, outputs: dict[str, np.ndarray], example: dict[str, np.ndarray], image: str
) -> dict[str, np.ndarray]:
    """What a task makes of the outputs of one image; its error names the image."""
    try:
        return task.finish(outputs, example)
    except NumericAbort as error:
        raise NumericAbort(f"{image}: {error}") from error
