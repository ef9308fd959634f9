"""What a classifier says of an image, for people and for programs.

B images of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

TOP = 5  # classes that are printed


def predict(model: Callable[..., jax.Array], images: jax.Array) -> dict[str, jax.Array]:
    """Applies a bound model.

    Args:
      model: with its weights and running statistics.
      images: f32 [B, H, W, 3], normalised.

    Returns:
      {"probabilities": f32 [B, C]}.
    """
    return {"probabilities": jax.nn.softmax(model(images, train=False))}


def likeliest(probabilities: np.ndarray) -> list[int]:
    """Returns the numbers of the five likeliest of [C] classes, the likeliest first."""
    return np.argsort(-probabilities, kind="stable")[:TOP].tolist()


def as_lines(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """Returns lines for people.

    Args:
      outputs: what `predict` returned for one image: {"probabilities": f32 [C]}.
      names: of the classes, printable.
    """
    probabilities = outputs["probabilities"]
    return [f"{100 * probabilities[n]:6.2f} %  {names[n]}" for n in likeliest(probabilities)]


def as_record(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a JSON object: the likeliest classes with number, name, probability.

    Args:
      outputs: what `predict` returned for one image: {"probabilities": f32 [C]}.
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
