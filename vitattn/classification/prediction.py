"""What a classifier says of an image, for people and for programs.

B images of a batch, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import ConfigError, NumericAbort, shown
from trainlib.keys import fit, whole
from trainlib.report.samples import Compared, Picture, Sample
from vitattn.data.source import Example
from vitattn.labels.class_names import Names

TOP = 5  # classes that are printed
_SHARES = 3  # classes of a sample


def make_predict(config: ConfigDict) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(bound model, normalised images f32 [B, H, W, 3]) -> {"probabilities": f32 [B,
    C]}`, the same for every configuration.
    """
    return _probabilities


def _probabilities(model: Callable[..., jax.Array], images: jax.Array) -> dict[str, jax.Array]:
    return {"probabilities": jax.nn.softmax(model(images, train=False))}


def serving(config: ConfigDict) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """Returns `(bound model, images) -> logits f32 [B, C]`; see `vitattn.task.Task.serving`."""
    return _logits, {}


def _logits(model: Callable[..., jax.Array], images: jax.Array) -> jax.Array:
    return model(images, train=False)


def finish(
    outputs: Mapping[str, np.ndarray], example: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the outputs of one image: they are of all of it, however it was resized."""
    return dict(outputs)


def likeliest(probabilities: np.ndarray, most: int = TOP) -> list[int]:
    """Returns the numbers of the likeliest of [C] classes, the likeliest first."""
    return np.argsort(-probabilities, kind="stable")[:most].tolist()


class ClassProbability(NamedTuple):
    """A class and how probable a model thinks it is."""

    class_number: int
    class_name: str
    probability: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a classifier says of one image.

    Attributes:
      probabilities: f32 [C], of all classes; they sum to 1.
      class_names: one for each class.
      image: the file that was read; None for an image that was in memory.
    """

    probabilities: np.ndarray
    class_names: tuple[str, ...]
    image: Path | None = None

    def top(self, most: int = TOP) -> list[ClassProbability]:
        """Returns the likeliest classes, the likeliest first, at most `most` of them.

        Raises:
          ConfigError: `most` is no whole number of at least 1.
        """
        fit("most", most, whole(1))
        return [
            ClassProbability(n, self.class_names[n], float(self.probabilities[n]))
            for n in likeliest(self.probabilities, most)
        ]

    @property
    def class_number(self) -> int:
        """Number of the likeliest class, from 0."""
        return self.top(1)[0].class_number

    @property
    def class_name(self) -> str:
        """Name of the likeliest class."""
        return self.top(1)[0].class_name

    @property
    def probability(self) -> float:
        """Probability of the likeliest class, 0 to 1."""
        return self.top(1)[0].probability

    def __repr__(self) -> str:
        """The likeliest classes: Prediction(cat 93 %, dog 5 %)."""
        words = ", ".join(f"{shown(c.class_name)} {100 * c.probability:.3g} %" for c in self.top(3))
        return f"Prediction({words})"


def answer(
    outputs: Mapping[str, np.ndarray], names: Sequence[str], image: Path | None
) -> Prediction:
    """Returns the prediction for one image as an object; see `vitattn.task.Task.answer`."""
    return Prediction(outputs["probabilities"], tuple(names), image)


def as_lines(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """Returns lines for people.

    Args:
      outputs: of one image, finished: {"probabilities": f32 [C]}.
      names: of the classes, printable.
    """
    probabilities = outputs["probabilities"]
    return [f"{100 * probabilities[n]:6.2f} %  {names[n]}" for n in likeliest(probabilities)]


def as_record(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a JSON object: the likeliest classes with number, name, probability.

    Args:
      outputs: of one image, finished: {"probabilities": f32 [C]}.
      names: of the classes, as Unicode.
    """
    probabilities = outputs["probabilities"]
    return {
        "classes": [
            {"class": n, "name": names[n], "probability": float(probabilities[n])}
            for n in likeliest(probabilities)
        ]
    }


def caption(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Returns the likeliest class as a phrase for a picture: "name (93 %)"."""
    probabilities = outputs["probabilities"]
    best = likeliest(probabilities)[0]
    return f"{names[best]} ({100 * probabilities[best]:.0f} %)"


def sample(
    example: Example, outputs: Mapping[str, np.ndarray], names: Sequence[str], seen: Image.Image
) -> Sample:
    """Returns the class beside the true one, the likeliest classes, and the image as the model saw
    it; see `vitattn.task.Task.sample`.

    Raises:
      NumericAbort: a probability is not finite.
    """
    probabilities = outputs["probabilities"]
    if not np.isfinite(probabilities).all():
        raise NumericAbort(
            "The classifier gives probabilities that are not finite (NaN or infinite): its weights "
            "have diverged. Take an earlier checkpoint with --step=N."
        )
    best = likeliest(probabilities, _SHARES)
    true, said = (f"{names[n]} ({100 * probabilities[n]:.3g} %)" for n in (example.label, best[0]))
    right = best[0] == example.label
    return Sample(
        "",
        right,
        compared=(Compared("class", true, said, right),),
        shares=tuple((names[n], float(probabilities[n])) for n in best),
        pictures=(Picture.of("as the model saw it", seen),),
    )


def open_pictures(directory: Path, images: Sequence[Path], names: Names, least: float) -> NoReturn:
    """Refuses: a classifier finds nothing in an image that could be drawn.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
        f"--boxes={shown(directory)} draws what a detector finds, and this is a run of a "
        "classifier. Leave --boxes out, or give the --workdir of a detector."
    )
