"""The library: models by name, and trained models that answer images.

Letters: B images, H W image, C classes.

    model = vitattn.create_model("aa_resnet50", num_classes=10, rngs=nnx.Rngs(0))
    trained = vitattn.load("runs/mine")
    print(trained.predict("cat.png"))
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from trainlib import extension, paths
from trainlib.errors import shown
from trainlib.formats.load import saved_config
from trainlib.formats.weight_source import is_export, open_weights
from trainlib.model import statistics, weights
from vitattn import config as vision
from vitattn.answers import Answer
from vitattn.classification.prediction import ClassProbability, Prediction
from vitattn.data.unlabelled import Unlabelled
from vitattn.detection.answers.prediction import Detection, Detections
from vitattn.images.given import OneImage, gather
from vitattn.labels import class_names
from vitattn.models import Model, build, configure, named
from vitattn.models.counts import check_size
from vitattn.predict import answers, most_images, no_answer
from vitattn.task import task_of

__all__ = [
    "ClassProbability",
    "Detection",
    "Detections",
    "LoadedModel",
    "Prediction",
    "create_model",
    "list_models",
    "load",
]

Images = Sequence[OneImage]


# ---------------------------------------------------------------- models by name
def list_models(pattern: str = "") -> list[str]:
    """Returns the names that `create_model` takes and that contain `pattern`, in which `*` and `?`
    stand for other letters; sorted.

    Example:
      >>> vitattn.list_models("sasa")
      ['retinanet_sasa_resnet50', 'sasa_resnet26', 'sasa_resnet38', 'sasa_resnet50']
    """
    return named.names(pattern)


def create_model(name: str, *, rngs: nnx.Rngs | None, **overrides: Any) -> Model:
    """Builds a network of the papers (arXiv 1904.09925, 1906.05909) with fresh weights.

    It is called as `model(images, train=False)`: images [B, H, W, 3] of any float type -> f32
    logits [B, C]; a RetinaNet gives logits and offsets of boxes for each level of its pyramid
    (`vitattn.models.retinanet.network.Level`). With `train=True` it normalises by the batch and
    moves its running statistics; a MnasNet then needs `key=` for its dropout. Weights are float32,
    the computation has the type `model.config.dtype`, which is bfloat16 for the networks of
    ImageNet and CIFAR-100.

    Args:
      name: one of `list_models()`.
      rngs: keys for the weights. None declares them without making arrays, as every layer here
        does: for counts, shapes and sharded initialisation by `trainlib.model.weights`.
      **overrides: fields of the `model` section of a configuration: `num_classes`, `image_size`
        (relative positions are tied to it), `dtype`, `stem`, ... A part takes a mapping of the
        fields that change, `attention={"num_heads": 4}`, or None for no such part.

    Raises:
      ConfigError: no such name or field (the message names the nearest), or a value that its field
        does not take.

    Example:
      >>> model = vitattn.create_model("aa_resnet50", num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 224, 224, 3))).shape
      (1, 10)
    """
    return build(named.section(name, overrides), rngs=rngs)


# ---------------------------------------------------------------- trained models
def load(
    directory: str | os.PathLike[str],
    step: int | None = None,
    *,
    trust_code: Sequence[str] = (),
) -> LoadedModel:
    """Reads a trained model with its class names and the normalisation of its images.

    Moving averages of the weights are taken where the run kept them, as `launch.predict` and
    `launch.evaluate` do.

    Args:
      directory: the workdir of a run, an export in our own names (`launch.export`), or what
        `launch.import_weights` wrote.
      step: which checkpoint of a run; None is the newest whole one. An export has one step.
      trust_code: modules that the configuration of the run may import, for layers and tasks of
        your own (`model.attention.kind=my_layers:AxialConfig`); see `trainlib.extension.trust`.

    Raises:
      ConfigError: the directory holds no run of image models, a step was chosen of an export, or
        the configuration names code that nobody trusts.
      CheckpointError: there is no such step, or it is damaged.
      DataError: class names that do not fit the model.

    Example:
      >>> trained = vitattn.load("runs/mine")
      >>> trained.predict("cat.png").class_name
      'tabby'
    """
    extension.trust(*trust_code)
    workdir = paths.resolve(directory, "directory")
    config = saved_config(workdir, "vitattn", vision.schema)
    if is_export(workdir):
        check_size(config)
    outputs = configure(config.model).num_classes
    step, known = class_names.of_model(workdir, step, outputs)
    names = (None,) * outputs if known is None else known.names
    model, step = _filled(config, workdir, step)
    return LoadedModel(model, config, step, tuple(class_names.numbered(names)))


def _filled(config: ConfigDict, workdir: Path, step: int | None) -> tuple[Model, int]:
    """The model as any Flax module, with the weights of a step."""
    # Shapes alone: initial values would be made only to be replaced.
    split: list[nnx.GraphDef] = []

    def shapes() -> nnx.State:
        graphdef, state = nnx.split(build(config.model, rngs=nnx.Rngs(0)))
        split.append(graphdef)
        return state

    jax.eval_shape(shapes)
    abstract = weights.abstract(build(config.model))
    with contextlib.closing(open_weights(workdir, abstract, step)) as source:
        # Copies without a device of their own: the user's program decides where they lie.
        values = {name: jnp.array(value) for name, value in source.leaves()}
        layers = statistics.layers(abstract.model_state)
        for layer, count in zip(layers, source.counts(), strict=True):
            values[f"{layer}.count"] = jnp.asarray(count, jnp.int32)
        return nnx.merge(split[0], weights.unflatten(values)), source.step


class LoadedModel:
    """A trained model: what `load` returns.

    Attributes:
      model: an `nnx.Module` as `create_model` makes it, for images as `preprocess` makes them. It
        can be trained further, alone or as a part of a module of your own; its running statistics
        go on from where the run left them. `predict` uses the weights that it has at the time.
      config: the configuration of the run.
      step: which step the weights are from.
      class_names: one name for each output, "class N" where output N has none.
      image_size: H, W.
      mean: of the pixels in RGB, in units of the full range, by which images are normalised.
      std: standard deviation of the same.
    """

    model: Model
    config: ConfigDict
    step: int
    class_names: tuple[str, ...]

    def __init__(self, model: Model, config: ConfigDict, step: int, names: tuple[str, ...]):
        self.model, self.config, self.step, self.class_names = model, config, step, names
        self.image_size = configure(config.model).size
        self._task = task_of(config)
        self.mean, self.std = self._task.statistics(config.data)
        self._apply = jax.jit(_applied(self._task.make_predict(config)), static_argnums=0)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"LoadedModel({shown(self.config.name)}, step {self.step}, {len(self.class_names)} "
            f"classes, images of {height} x {width} pixels)"
        )

    def predict(self, images: OneImage | Images) -> Any:
        """Answers images, as `launch.predict` does.

        Args:
          images: one image, or a list of them. An image is a path, a picture of Pillow, the bytes
            of an image file, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of any
            size. An array [B, H, W, C] counts as a list; a folder in a list stands for the images
            below it.

        Returns:
          What the task of the run gives for an image: a `Prediction` of a classifier, `Detections`
          of a detector; for a list, one for each image, in order.

        Raises:
          DataError: what is no image, or images that cannot be read; it names each.
          NumericAbort: a detector computed numbers that are not finite.

        Example:
          >>> trained.predict("cat.png").top(3)
          >>> [p.class_name for p in trained.predict(["cat.png", pixels])]
          >>> detector.predict("street.jpg").above(0.5).draw("boxes.png")
        """
        given, single = gather(images)
        most = most_images(self.image_size)
        size = min(most, 1 << (len(given) - 1).bit_length()) if given else 1
        graphdef, state = nnx.split(self.model)

        def outputs(batch: np.ndarray) -> dict[str, Any]:
            return {"outputs": jax.device_get(self._apply(graphdef, state, batch)), "maps": {}}

        results = [
            self._task.answer(
                answer.outputs, self.class_names, image if isinstance(image, Path) else None
            )
            for image, answer in zip(given, self._read(given, size, outputs), strict=True)
            if not answer.error  # for which `_read` raises when it is done
        ]
        return results[0] if single else results

    def preprocess(self, images: Any) -> np.ndarray:
        """Returns images as the model takes them: the crop and normalisation of evaluation.

        Args:
          images: as for `predict`; one image counts as a list of one.

        Returns:
          f32 [B, H, W, 3].

        Raises:
          DataError: as `predict`.
        """
        given, _ = gather(images)
        most = most_images(self.image_size)
        nothing = {"outputs": {}, "maps": {}}
        pixels = [answer.pixels for answer in self._read(given, most, lambda batch: nothing)]
        return np.stack(pixels) if pixels else np.zeros((0, *self.image_size, 3), np.float32)

    def _read(self, given: Sequence[Any], size: int, outputs: Any) -> Generator[Answer, None, None]:
        """Answers for the images, in order; raises the error for those that cannot be read at the
        end.
        """
        data = self.config.data.copy_and_resolve_references()
        data.workers = 0  # processes that are started anew would run the caller's script again
        source, unread = Unlabelled(given, self.mean, self.std), []
        stream = answers(self._task, source, data, self.image_size, size, outputs)
        with contextlib.closing(stream):
            for answer in stream if given else ():
                if answer.error:
                    unread.append(f"{source.describe(answer.record)} {answer.error}")
                yield answer
        if unread:
            raise no_answer(unread, len(given))


def _applied(predict: Callable[..., Any]) -> Callable[[nnx.GraphDef, nnx.State, Any], Any]:
    def apply(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> Any:
        return predict(nnx.merge(graphdef, state), images)

    return apply
