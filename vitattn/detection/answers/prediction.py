"""What a detector says of an image, for people and for programs.

B images of a batch, K places for detections, n detections of one image, C classes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from trainlib import paths
from trainlib.errors import ConfigError, DataError, NumericAbort, shown
from trainlib.keys import fit, number
from vitattn.detection.answers import pictures
from vitattn.detection.answers.drawing import draw
from vitattn.detection.answers.postprocess import Options, detect
from vitattn.detection.answers.results import as_xywh, as_xyxy, in_original
from vitattn.images.given import OneImage
from vitattn.models import configure
from vitattn.models.retinanet.config import RetinaNetConfig

TOP = 10  # detections that are printed
_SERVED = {  # what a caller of an exported program must know of it
    "resize": "keep the aspect: scale so that the picture fits, fill right and below with 0 after "
    "normalising; boxes of the picture are boxes / scale, cut to it",
    "boxes": "y0, x0, y1, x1 in pixels of the input",
    "scores": "0 to 1, falling; all NaN where the network computed a number that is not finite",
    "classes": "from 0; -1 behind the last detection, whose box and score are 0",
}


def make_predict(config: ConfigDict) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(bound model, normalised images f32 [B, H, W, 3]) -> detections`; for these see
    `postprocess.detect`. The sections `model` and `detection` of the configuration say what counts
    as one.
    """
    network = cast(RetinaNetConfig, configure(config.model))  # of no other kind: settings.check
    options = Options.of(config.detection)

    def predict(model: Callable[..., Any], images: jax.Array) -> dict[str, jax.Array]:
        return detect(model(images, train=False), network, options)

    return predict


def serving(
    config: ConfigDict,
) -> tuple[Callable[..., dict[str, jax.Array]], dict[str, Any]]:
    """Returns `(bound model, images) -> {"boxes": f32 [B, K, 4], "scores": f32 [B, K], "classes":
    i32 [B, K]}`; see `vitattn.task.Task.serving`.
    """
    predict = make_predict(config)

    def serve(model: Callable[..., Any], images: jax.Array) -> dict[str, jax.Array]:
        detected = predict(model, images)
        return {name: detected[name] for name in ("boxes", "scores", "classes")}

    return serve, dict(_SERVED)


def finish(
    outputs: Mapping[str, np.ndarray], example: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the detections of one image in pixels of the image that was given.

    Those that lie beside the image altogether, in the border that fills the network's image up,
    are left out.

    Args:
      outputs: of `postprocess.detect`, for one image.
      example: {"scale": f32 [2], "original": i32 [2]} and more, of its batch.

    Returns:
      {"boxes": f64 [n, 4], y0 x0 y1 x1, "scores": f32 [n], "classes": i32 [n], "original": i32
      [2]}, the best first.

    Raises:
      NumericAbort: the network computed numbers that are not finite.
    """
    if not outputs["finite"]:
        raise NumericAbort(
            "The detector computed numbers that are not finite (NaN or infinite), so its boxes "
            "mean nothing: its weights have diverged, or the image is far from what it was "
            "trained on. Take an earlier checkpoint with --step=N."
        )
    boxes = in_original(outputs["boxes"], example["scale"], example["original"])
    there = (outputs["classes"] >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(-1)
    found = {"boxes": boxes, "scores": outputs["scores"], "classes": outputs["classes"]}
    return {n: v[there] for n, v in found.items()} | {"original": np.asarray(example["original"])}


class Detection(NamedTuple):
    """One object that a detector sees; `box` is x0, y0, x1, y1 in pixels of the image."""

    class_number: int
    class_name: str
    score: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What a detector says of one image: a sequence of `Detection`, the best first.

    Attributes:
      boxes: f64 [n, 4], x0 y0 x1 y1 in pixels of the (upright) image, continuous edges: x from 0,
        the left edge of the first pixel, to the width.
      scores: f32 [n], 0 to 1, falling.
      class_numbers: i32 [n].
      class_names: one for each class that the model knows.
      image_size: height and width of the image in pixels.
      image: the file that was read; None for an image that was in memory.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_numbers: np.ndarray
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    image: Path | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, place: int) -> Detection: ...

    @overload
    def __getitem__(self, place: slice) -> Detections: ...

    def __getitem__(self, place: int | slice) -> Detection | Detections:
        """One of them; of a slice, `found[:3]`, those."""
        if isinstance(place, slice):
            return self._only(place)
        n = int(self.class_numbers[place])
        x0, y0, x1, y1 = self.boxes[place].tolist()
        return Detection(n, self.class_names[n], float(self.scores[place]), (x0, y0, x1, y1))

    def __iter__(self) -> Iterator[Detection]:
        return (self[place] for place in range(len(self)))

    def above(self, score: float) -> Detections:
        """Returns those with at least this score.

        Raises:
          ConfigError: `score` is no number from 0 to 1.
        """
        fit("score", score, number(0, 1))
        return self._only(self.scores >= score)

    def of_class(self, name: str) -> Detections:
        """Returns those of a class; none where the model does not know it."""
        numbers = [n for n, known in enumerate(self.class_names) if known == name]
        return self._only(np.isin(self.class_numbers, numbers))

    def draw(
        self, path: str | os.PathLike[str] | None = None, *, image: OneImage | None = None
    ) -> Image.Image:
        """Returns the image with a box and a label for each detection, and writes it to a file.

        Args:
          path: a .png or .jpg file; None writes nothing.
          image: what was predicted, where it was in memory; None reads the file anew.

        Raises:
          ConfigError: another suffix, or no image.
          DataError: the image cannot be read, or has another size than the one predicted.
          StorageError: the file cannot be written.

        Example:
          >>> trained.predict("street.jpg").above(0.5).draw("boxes.png")
        """
        source = self.image if image is None else image
        if source is None:
            raise ConfigError(
                "These detections are of an image in memory, so they cannot be drawn without it: "
                "give it again, draw(path, image=...)."
            )
        picture = pictures.whole(source)
        if picture.size[::-1] != self.image_size:
            raise DataError(
                f"The image to draw on has {picture.size[0]} x {picture.size[1]} pixels, and the "
                f"detections are of one of {self.image_size[1]} x {self.image_size[0]}."
            )
        drawn = draw(picture, self.boxes, self.scores, self.class_numbers, self.class_names)
        if path is not None:
            pictures.save(drawn, paths.resolve(path, "file"))
        return drawn

    def _only(self, chosen: np.ndarray | slice) -> Detections:
        boxes, scores, numbers = (
            array[chosen] for array in (self.boxes, self.scores, self.class_numbers)
        )
        return dataclasses.replace(self, boxes=boxes, scores=scores, class_numbers=numbers)

    def __repr__(self) -> str:
        """The best: Detections(3: cat 93 %, dog 61 %, dog 5 %)."""
        best = list(self[:3])
        words = [f"{shown(one.class_name)} {100 * one.score:.3g} %" for one in best]
        more = ", ..." if len(self) > len(words) else ""
        return f"Detections({len(self)}{': ' if words else ''}{', '.join(words)}{more})"


def answer(
    outputs: Mapping[str, np.ndarray], names: Sequence[str], image: Path | None
) -> Detections:
    """Returns the detections of one image as an object; see `vitattn.task.Task.answer`."""
    height, width = outputs["original"].tolist()
    boxes = as_xyxy(outputs["boxes"])
    found = boxes, outputs["scores"], outputs["classes"]
    return Detections(*found, tuple(names), (height, width), image)


def as_lines(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """Returns lines for people: score, class and where it is.

    Args:
      outputs: of one image, finished; see `finish`.
      names: of the classes, printable.
    """
    scores, classes = outputs["scores"], outputs["classes"]
    if not len(scores):
        return ["nothing is detected"]
    lines = [
        f"{100 * scores[n]:6.2f} %  {names[classes[n]]}  x {x0:.0f} to {x1:.0f}, "
        f"y {y0:.0f} to {y1:.0f}"
        for n, (y0, x0, y1, x1) in enumerate(outputs["boxes"][:TOP])
    ]
    if len(scores) > TOP:
        lines.append(f"and {len(scores) - TOP} more, down to {100 * scores[-1]:.2g} %")
    return lines


def as_record(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a JSON object: height and width of the image, and the detections with
    class, name, score and bbox (x, y, width, height, as COCO has it).

    Args:
      outputs: of one image, finished; see `finish`.
      names: of the classes, as Unicode.
    """
    height, width = outputs["original"].tolist()
    boxes, scores = as_xywh(outputs["boxes"]).tolist(), outputs["scores"].tolist()
    return {
        "height": height,
        "width": width,
        "detections": [
            {"class": n, "name": names[n], "score": score, "bbox": box}
            for n, score, box in zip(outputs["classes"].tolist(), scores, boxes, strict=True)
        ],
    }


def caption(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Returns the best detection as a phrase for a picture: "cat (93 %) and 2 more"."""
    scores = outputs["scores"]
    if not len(scores):
        return "nothing"
    more = f" and {len(scores) - 1} more" if len(scores) > 1 else ""
    return f"{names[outputs['classes'][0]]} ({100 * scores[0]:.0f} %){more}"
