"""Weights of this family in other formats: our own names, torchvision's ResNets, StableHLO."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from trainlib import config as settings
from trainlib.errors import CheckpointError, ConfigError, one_of
from trainlib.formats.layout import Foreign, Layout, own_layout
from trainlib.formats.safetensors import Reader
from trainlib.formats.weight_source import RECORD, is_export
from trainlib.model import weights as nn
from vitattn import config as config_lib
from vitattn.interop import torchvision_names
from vitattn.interop.card import subject as subject  # a role of this module
from vitattn.interop.serving import image_facts, serving
from vitattn.labels import class_names
from vitattn.models import build, configure
from vitattn.models.counts import check_size

START = ""  # nothing beside init_from
NAMES = ("auto", "own", "torchvision")
COMPARED = {"torchvision": ("torch", "torchvision")}  # format -> what a comparison takes
TOLERANCE = 1e-3  # of the largest logit


def abstract(config: ConfigDict) -> nn.Abstract:
    """The model of a configuration, without arrays."""
    return nn.abstract(build(config.model))


def layout(config: ConfigDict, kind: str, names: str = "auto", dtype: str = "float32") -> Layout:
    """The table of an export or import.

    Args:
      config: of the model.
      kind: "safetensors"; there is no other format of vision weights.
      names: of `NAMES`; "auto" is our own.
      dtype: of the file, which a table of vision weights does not depend on.

    Raises:
      ConfigError: the model cannot be written so.
    """
    if kind != "safetensors":
        raise ConfigError(
            f"--format={kind} is for language models; vision models are exported as safetensors or "
            "stablehlo."
        )
    if names not in NAMES:
        raise one_of("--names", names, NAMES)
    if names == "torchvision":
        return torchvision_names.layout(config, image_facts(config))
    model = abstract(config)
    specs = {**model.params, **model.model_state}
    return own_layout(specs, {"config.json": settings.to_json(config)})


def open_foreign(kind: str, path: Path, strip: str = "") -> Foreign:
    """Opens a safetensors file, or a directory with one, in torchvision's names.

    Args:
      kind: "torchvision", the only one that the commands offer for vision models.
      path: the file or directory.
      strip: what is taken off the beginning of its names.

    Raises:
      CheckpointError: damaged, hostile, or no ResNet that this package has.
    """
    reader = Reader(path, strip)
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    config = config_lib.default_config("resnet")
    torchvision_names.recognise(shapes, path, config)
    check_size(config)
    return Foreign(config, "safetensors", "torchvision", shapes, reader.read)


def beside(config: ConfigDict, workdir: Path, step: int) -> dict[str, str]:
    """Files that go along with the weights of a run, or of an export: name -> text.

    Raises:
      CheckpointError: no such step.
      DataError: the names of the classes do not fit.
    """
    number = None if is_export(workdir) else step
    known = class_names.of_model(workdir, number, configure(config.model).num_classes)[1]
    return {class_names.FILE: class_names.to_text(known.names)} if known else {}


def to_import(config: ConfigDict, path: Path, names: Path | None) -> dict[str, str]:
    """Files that an import writes beside its weights: name -> text.

    Args:
      config: of the model.
      path: the weights; an export of ours has the names of its classes beside them.
      names: a file with others, or None.

    Raises:
      DataError: the names do not fit.
    """
    outputs = configure(config.model).num_classes
    directory = path if path.is_dir() else path.parent
    if names is not None:
        known = class_names.read(names, outputs)
    else:  # what lies beside a single file is only then ours when an export says so
        ours = path.is_dir() or (directory / RECORD).is_file()
        known = class_names.find(directory, "", {}, outputs) if ours else None
    return {class_names.FILE: class_names.to_text(known.names)} if known else {}


def compare(config: ConfigDict, params: nn.Arrays, path: Path) -> str:
    """One line with the largest difference of the logits to torchvision's model.

    Raises:
      ConfigError: torchvision has no such model.
      CheckpointError: they differ by more than rounding.
    """
    import torch

    # The type checker takes this very file for the library.
    from torchvision import models  # pyright: ignore[reportAttributeAccessIssue]

    missing = torchvision_names.not_there(configure(config.model))
    if missing:
        raise ConfigError(f"--check: torchvision has no ResNet {missing}. Leave it out.")
    depth, size = config.model.depth, configure(config.model).size
    theirs = getattr(models, f"resnet{depth}")(num_classes=config.model.num_classes)
    reader = Reader(path)
    values = {name: torch.from_numpy(reader.read(name).astype("f4")) for name in reader.tensors}
    theirs.load_state_dict(values)
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    model = abstract(config)
    weights = {name: params[name] for name in model.params}
    statistics = {name: params[name] for name in model.model_state}
    forward, *_ = serving(config)
    ours = np.asarray(jax.jit(forward)(weights, statistics, {"image": image}))
    difference, largest = float(np.abs(ours - expected).max()), float(np.abs(expected).max())
    line = f"largest difference of logits to torchvision {difference:.2e}, of {largest:.3g}"
    if not difference <= TOLERANCE * max(1.0, largest):
        raise CheckpointError(f"The imported model is another one: {line}.")
    return line
