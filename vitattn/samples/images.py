"""Held-out images with their truth, what a checkpoint says of them, and where it looks.

Letters: N heads, H W image, h w map of a layer.

Images go through the pipeline of evaluation, as those of `launch.predict` do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from trainlib.errors import DataError, shown
from trainlib.formats.load import load_weights
from trainlib.report.samples import Picture, Sample, Samples, spread
from trainlib.step import step
from trainlib.step.plan import Plan
from vitattn import predict
from vitattn.analysis import attention_maps, overlay
from vitattn.analysis.attention_picture import Maps, choose_query, seen
from vitattn.answers import Answer
from vitattn.data.source import DataSet
from vitattn.data.unlabelled import Unlabelled
from vitattn.images.decode import BadImage
from vitattn.images.files import UnreadableRecord
from vitattn.labels import class_names
from vitattn.labels.class_names import printable
from vitattn.models import ModelConfig
from vitattn.plan import make_replicated
from vitattn.task import task_of

_GREEN, _WHITE = (44, 160, 44), (255, 255, 255)


class _Given(NamedTuple):
    """A record that is asked about: its number in the split, and what the split gave."""

    record: int
    example: Any


def take(config: ConfigDict, workdir: Path, at_step: int | None, count: int) -> Samples:
    """Asks a checkpoint about held-out images at equal distances in the evaluation split.

    Args:
      config: the configuration of the run.
      workdir: where its checkpoints are.
      at_step: which step; None is the newest.
      count: how many images, at most.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: what the split needs is not installed.
      DataError: the split is not there, has other classes, or no image that can be read.
      NumericAbort: the model's answers are not finite.
    """
    plan, task = make_replicated(config), task_of(config)
    at_step, known = class_names.of_model(workdir, at_step, plan.model.num_classes)
    source, _ = task.open_evaluation(plan, known, workdir)
    given = _readable(source, count)
    names = printable(predict.choose_names(None, known, plan.model.num_classes))
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    maps = watched(plan)
    compiled = step.compile_eval(predict.make_predict(plan, task, maps), plan)

    def ask(images: np.ndarray) -> dict[str, Any]:
        batch = step.put_batch({"image": images}, plan.batch_sharding)
        return jax.device_get(compiled(loaded.params, loaded.model_state, batch))

    mean, std = task.statistics(config.data)
    images = Unlabelled([one.example.image for one in given], mean, std)
    size = predict.batch_size(len(given), plan, maps)
    samples = []
    stream = predict.answers(task, images, config.data, plan.model.size, size, ask)
    with contextlib.closing(stream):
        for answer in stream:
            if answer.error:
                continue
            one = given[answer.record]
            image = seen(answer.pixels, mean, std)
            said = task.sample(one.example, answer.outputs, names, _enlarged(image))
            samples.append(_complete(said, source.describe(one.record), image, answer, maps))
    return Samples(loaded.step, _about(config, source, samples), tuple(samples))


def watched(plan: Plan[ModelConfig]) -> Maps | None:
    """The maps that are shown: what the centre of the image attends to, in all heads of the last
    layer of the highest resolution. None where no layer attends.
    """
    size = plan.model.size
    layers = attention_maps.survey(plan.abstract, size)
    if not layers:
        return None
    chosen = attention_maps.choose_heads(layers, attention_maps.choose_layers(layers, ()), ())
    return Maps(choose_query(None, size), chosen, size)


def _readable(source: DataSet, count: int) -> list[_Given]:
    """The records that are shown; what cannot be read is left out.

    Raises:
      DataError: nothing can be read.
    """
    given = []
    for record in spread(count, len(source)):
        with contextlib.suppress(UnreadableRecord, BadImage):
            given.append(_Given(record, source[record]))
    if not given:
        raise DataError("None of the images that were to be shown can be read.")
    return given


def _about(config: ConfigDict, source: DataSet, samples: Sequence[Sample]) -> str:
    split = f"the split {config.data.eval_split} of {shown(config.data.source)}"
    judged = [sample.right for sample in samples if sample.right is not None]
    right = f"; {sum(judged)} of them are classified right" if judged else ""
    images = f"{len(samples)} of the {len(source):,} images of {split}, at equal distances"
    return f"{images}{right}."


def _complete(
    sample: Sample, title: str, image: np.ndarray, answer: Answer, maps: Maps | None
) -> Sample:
    """A sample with its title, and with what each layer attends to."""
    pictures = list(sample.pictures)
    for layer in maps.heads if maps else ():
        assert maps is not None
        pictures.append(attention(image, answer.maps[layer], layer, maps.query))
    return Sample(
        title, sample.right, sample.fields, sample.compared, sample.shares, tuple(pictures)
    )


def attention(
    image: np.ndarray, weights: np.ndarray, layer: str, query: tuple[int, int]
) -> Picture:
    """A picture of what the query, a green cross, attends to in the mean of the heads.

    Args:
      image: f32 [H, W, 3] in 0..1.
      weights: f32 [N, h, w], probabilities.
      layer: its name.
      query: row and column in pixels of the image.
    """
    mean = weights.mean(0)
    drawn = _image(overlay.overlay(image, mean))
    k = overlay.enlarged(*image.shape[:2])
    y, x = (k * (2 * place + 1) // 2 for place in query)
    canvas, arm = ImageDraw.Draw(drawn), max(drawn.size) // 40
    for colour, width in ((_WHITE, 4), (_GREEN, 2)):
        canvas.line((x - arm, y, x + arm, y), fill=colour, width=width)
        canvas.line((x, y - arm, x, y + arm), fill=colour, width=width)
    heads = f"mean of {len(weights)} heads" if len(weights) > 1 else "its head"
    scale = overlay.words(mean).replace("\n", ", ")
    return Picture.of(f"attention of {layer}, {heads}, {scale}", drawn)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))


def _enlarged(image: np.ndarray) -> Image.Image:
    """An image f32 [H, W, 3] in 0..1 as the model saw it, with each pixel of a small one enlarged
    so that people see it.
    """
    k = overlay.enlarged(*image.shape[:2])
    return _image(np.repeat(np.repeat(image, k, 0), k, 1))
