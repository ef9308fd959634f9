"""Classifies image files with the weights of a run, and draws what its attention layers look at.

Letters: B images of a batch, C classes, N heads, H W image, h w map of a layer.

Images go through the evaluation pipeline, in batches of one shape, so that one program is compiled
however many there are. With attention maps a batch has one image for each device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from trainlib.data.folders import below
from trainlib.errors import ConfigError, DataError, nearest, shown
from trainlib.formats import weight_source as weights
from trainlib.formats.load import load_weights
from trainlib.model import weights as nn
from trainlib.run.progress import Progress
from trainlib.step import step
from trainlib.untrusted_files import what_is
from vitattn.analysis import attention_maps, plots
from vitattn.data import eval_batches
from vitattn.data.catalog import statistics
from vitattn.data.source import Example, short_digest
from vitattn.images import files
from vitattn.images.decode import Rgb
from vitattn.labels import class_names
from vitattn.labels.class_names import Names, numbered, printable
from vitattn.models.counts import check_size
from vitattn.plan import make_replicated

TOP = 5
LONGEST = 4096  # characters of a path that is printed
BATCH = 32
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
    """

    images: Sequence[Path]
    class_names: Path | None = None
    as_json: bool = False
    attention: Path | None = None
    layers: Sequence[str] = ()
    heads: Sequence[int] = ()
    query: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came out for one image.

    Attributes:
      image: its file.
      error: why it could not be decoded; empty when it could.
      pixels: f32 [H, W, 3], normalised, as the model saw it.
      probabilities: f32 [C].
      maps: attention layer -> f32 [N, h, w].
    """

    image: Path
    error: str
    pixels: np.ndarray
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]


class Images:
    """Image files as a data set without labels, a `vitattn.data.source.Source`."""

    in_memory = False
    left_out: tuple[str, ...] = ()
    num_classes, class_names = 1, ("",)

    def __init__(self, paths: Sequence[Path], mean: Rgb, std: Rgb):
        self.paths, self.mean, self.std = tuple(paths), mean, std
        self.digest = short_digest(*paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, record: int) -> Example:
        return Example(files.read_image(self.paths[record]), 0)

    def describe(self, record: int) -> str:
        return shown(self.paths[record], 1000)


def run(config: ConfigDict, workdir: Path, request: Request, at_step: int | None = None) -> int:
    """Prints the likeliest classes of each image, and draws the attention maps that are asked for.

    Images that cannot be decoded are named at the end; the others are answered all the same.

    Raises:
      ConfigError: a layer, head or query that the model does not have.
      DataError: images or names that are missing, cannot be decoded or do not fit.
      CheckpointError: no such step, or one of another model.
      StorageError: the picture cannot be written.
    """
    if config.task != "classification":
        raise ConfigError(f"{workdir} holds a run of task={config.task}, which names no classes.")
    if weights.is_export(workdir):
        check_size(config)
    plan = make_replicated(config)
    resolved, abstract = plan.model, plan.abstract
    paths = find_images(request.images)
    at_step, kept = class_names.of_model(workdir, at_step, resolved.num_classes)
    names = choose_names(request.class_names, kept, resolved.num_classes)
    mean, std = statistics(config.data)
    query = choose_query(request.query, resolved.size)
    heads = choose_maps(request, abstract, resolved.size, len(paths)) if request.attention else {}

    loaded = load_weights(workdir, at_step, abstract, plan.shardings)
    number, params, model_state = loaded.step, loaded.params, loaded.model_state
    compiled = step.compile_eval(make_predict(abstract, heads, query, resolved.size), plan)

    def predict(images: np.ndarray) -> dict[str, Any]:
        batch = step.put_batch({"image": images}, plan.batch_sharding)
        return jax.device_get(compiled(params, model_state, batch))

    data = config.data.copy_and_resolve_references()
    data.max_bad_fraction = 1.0  # every image was asked for: all are tried
    if len(paths) <= FEW_IMAGES:
        data.workers = 0
    size = -(-(1 if heads else min(BATCH, len(paths))) // plan.mesh.size) * plan.mesh.size
    found = answers(Images(paths, mean, std), data, size, resolved.size, predict)
    if not request.as_json:
        print(f"{shown(config.name)}, step {number}")
    bad, drawn = [], []
    with contextlib.closing(found):
        for answer in reported(found, len(paths), size, names, request.as_json):
            if answer.error:
                bad.append(f"{shown(answer.image, 1000)} {answer.error}")
            elif heads:
                drawn += picture_rows(answer, printable(names), heads, query, mean, std)
    if drawn:
        plots.attention_picture(request.attention, drawn, query)
        print(f"attention maps: {request.attention}", file=sys.stderr)
    if bad:
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise DataError(
            f"{len(bad)} of {len(paths)} images got no answer: {'; '.join(bad[:20])}{more}."
        )
    return 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """The files that were given, and the images of folders that were given, sorted by name; what
    is left out of a folder is said on standard error.

    Raises:
      DataError: a path that does not exist (names the nearest), or a folder without images.
    """
    found = []
    for path in given:
        if os.path.isdir(path):
            left = files.left_out(path)
            inside = sorted(map(Path, below([path], left)))
            for line in left.lines():
                print(line, file=sys.stderr)
            if not inside:
                raise DataError(
                    f"The folder {shown(path)} has no images: no file in it or below it ends in "
                    f"{', '.join(files.SUFFIXES)}."
                )
            found += inside
        elif os.path.exists(path):
            found.append(path)
        elif os.path.lexists(path):
            raise DataError(f"There is no image {shown(path)}: it is {what_is(path)}.")
        else:
            there: list[str] = []
            with contextlib.suppress(OSError, ValueError):
                there = os.listdir(path.parent)
            raise DataError(f"There is no image {shown(path)}. {nearest(path.name, there)}")
    return found


def choose_names(file: Path | None, kept: class_names.ModelNames | None, outputs: int) -> Names:
    """One name for each output of a model: those of a file, else those of the run, else none.

    Raises:
      DataError: the file cannot be read, or holds another number of names than the model has
        outputs.
    """
    if file is not None:
        return class_names.read(file, outputs).names
    return kept.names if kept is not None else (None,) * outputs


def choose_query(query: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """The pixel that attends: the one that was asked for, or the centre.

    Raises:
      ConfigError: it lies outside the image.
    """
    y, x = query or (size[0] // 2, size[1] // 2)
    if y >= size[0] or x >= size[1]:
        raise ConfigError(
            f"--query={y},{x} lies outside the image that the model sees, {size[0]} x {size[1]} "
            f"pixels: rows are 0 to {size[0] - 1}, columns 0 to {size[1] - 1}."
        )
    return y, x


def choose_maps(
    request: Request, abstract: nn.Abstract, size: tuple[int, int], images: int
) -> dict[str, tuple[int, ...]]:
    """Attention layer -> heads to draw.

    Raises:
      ConfigError: the model lacks a layer or head, or the picture cannot be drawn.
      StorageError: the directory of the picture does not exist.
    """
    found = attention_maps.survey(abstract, size)
    layers = attention_maps.choose_layers(found, request.layers)
    heads = attention_maps.choose_heads(found, layers, request.heads)
    plots.check_picture(request.attention, images * sum(map(len, heads.values())))
    return heads


def make_predict(
    abstract: nn.Abstract,
    heads: dict[str, tuple[int, ...]],
    query: tuple[int, int],
    size: tuple[int, int],
) -> Callable[[nn.Arrays, nn.Arrays, step.Batch], dict[str, Any]]:
    """The pure function `(params, model_state, {"image": [B, H, W, 3]}) -> probabilities, maps`.

    Its result is {"probabilities": f32 [B, C], "maps": {layer: f32 [B, N, h, w]}}, with the
    attention of the cell that holds pixel `query` by the chosen heads.
    """

    def predict(params: nn.Arrays, model_state: nn.Arrays, batch: step.Batch) -> dict[str, Any]:
        maps = {}

        def see(name: str, layer: attention_maps.Layer, x: jax.Array) -> None:
            whole = attention_maps.query_map(layer, x, query, size)
            maps[name] = whole[:, np.asarray(heads[name])]

        model = abstract.bind(params, model_state)
        attention_maps.observe(model, heads, see)
        logits = model(batch["image"], train=False)
        return {"probabilities": jax.nn.softmax(logits), "maps": maps}

    return predict


def answers(
    source: Images,
    data: ConfigDict,
    batch_size: int,
    image_size: tuple[int, int],
    predict: Callable[[np.ndarray], dict[str, Any]],
) -> Iterator[Answer]:
    """An answer for each record of `source`, in order, from batches of one shape."""
    with eval_batches(source, data, batch_size, 0, 1, image_size) as batches:
        for batch in batches:
            out = predict(batch["image"])
            reasons = dict(batches.bad)
            for row, record in enumerate(batch["index"].tolist()):
                if record >= 0:
                    where = source.describe(record)
                    yield Answer(
                        source.paths[record],
                        "" if batch["weight"][row] else reasons[where],
                        batch["image"][row],
                        out["probabilities"][row],
                        {name: maps[row] for name, maps in out["maps"].items()},
                    )


def reported(
    found: Iterator[Answer], total: int, batch_size: int, names: Names, as_json: bool
) -> Iterator[Answer]:
    """Passes answers on once they are printed; shows how far it is when there are many.

    The live line shares the terminal with the answers. Where these go to a file, it is on standard
    error.
    """
    words = numbered(names) if as_json else printable(names)
    live = sys.stdout.isatty()
    many = total > max(BATCH, batch_size)
    stream = sys.stdout if live else sys.stderr
    with contextlib.closing(Progress(total, stream=stream, unit="image")) as progress:
        for done, answer in enumerate(found, 1):
            text = as_line(answer, words) if as_json else as_text(answer, words)
            if many and live:
                progress.message(text)
            else:
                print(text, flush=live)
            if many and (done % batch_size == 0 or done == total):
                progress.update(done)
            yield answer


def top(probabilities: np.ndarray) -> list[int]:
    """The likeliest classes, the likeliest first."""
    return np.argsort(-probabilities, kind="stable")[:TOP].tolist()


def as_text(answer: Answer, names: Sequence[str]) -> str:
    """An answer for people."""
    image = shown(answer.image, LONGEST)
    if answer.error:
        return f"{image}\n    {answer.error}"
    lines = [
        f"  {100 * answer.probabilities[n]:6.2f} %  {names[n]}" for n in top(answer.probabilities)
    ]
    return "\n".join([image, *lines])


def as_line(answer: Answer, names: Sequence[str]) -> str:
    """An answer as one line of JSON: image, and error or classes (number, name, probability)."""
    if answer.error:
        return json.dumps({"image": _unicode(answer.image), "error": answer.error})
    classes = [
        {"class": n, "name": _unicode(names[n]), "probability": float(answer.probabilities[n])}
        for n in top(answer.probabilities)
    ]
    return json.dumps({"image": _unicode(answer.image), "classes": classes})


def _unicode(name: str | Path) -> str:
    """A name, with the bytes written out that are no UTF-8: JSON holds Unicode only."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def picture_rows(
    answer: Answer,
    names: Sequence[str],
    heads: dict[str, tuple[int, ...]],
    query: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> list[plots.AttentionRow]:
    """What the picture shows of an answer: a row for each layer."""
    image = np.clip(answer.pixels * np.asarray(std) + np.asarray(mean), 0, 1).astype(np.float32)
    best = top(answer.probabilities)[0]
    caption = (
        f"{shown(answer.image.name)}: {names[best]} ({100 * answer.probabilities[best]:.0f} %)"
    )
    return [
        plots.AttentionRow(
            image,
            caption,
            layer,
            shown,
            answer.maps[layer],
            attention_maps.cell(query, image.shape[:2], answer.maps[layer].shape[1:]),
        )
        for layer, shown in heads.items()
    ]
