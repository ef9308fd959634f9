"""Weights of this family in other formats: our own names, torchvision's ResNets and RetinaNets,
StableHLO.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from trainlib import config as settings
from trainlib.errors import ConfigError, one_of
from trainlib.formats.layout import Foreign, Layout, own_layout
from trainlib.formats.safetensors import Reader
from trainlib.formats.weight_source import RECORD, Weights, is_export
from trainlib.model import weights as nn
from vitattn import config as config_lib
from vitattn.detection.annotations import official
from vitattn.interop import torchvision_names, torchvision_retinanet
from vitattn.interop.card import subject as subject  # a role of this module
from vitattn.interop.compare import compare as compare
from vitattn.interop.serving import image_facts
from vitattn.interop.serving import serving as serving
from vitattn.labels import class_names
from vitattn.models import build, configure
from vitattn.models.counts import check_size
from vitattn.models.retinanet.config import RetinaNetConfig

START = ""  # nothing beside init_from
NAMES = ("auto", "own", "torchvision")
COMPARED = {"torchvision": ("torch", "torchvision")}  # format -> what a comparison takes
DETECTION_SIZE = 1024  # pixels of an image's longer side: objects are then about as large as there


def abstract(config: ConfigDict) -> nn.Abstract:
    """The model of a configuration, without arrays."""
    return nn.abstract(build(config.model))


def base(config: ConfigDict) -> ConfigDict:
    """The configuration of an export: the same."""
    return config


def merged(config: ConfigDict, source: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The weights of a run as an export writes them: as they are."""
    del config
    return source, ()


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
        detects = isinstance(configure(config.model), RetinaNetConfig)
        table = torchvision_retinanet if detects else torchvision_names
        return table.layout(config, image_facts(config))
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
      CheckpointError: damaged, hostile, or nothing that this package has.
    """
    reader = Reader(path, strip)
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    if torchvision_retinanet.is_detector(shapes):
        return _open_detector(reader, shapes, path)
    config = config_lib.default_config("resnet")
    torchvision_names.recognise(shapes, path, config)
    check_size(config)
    return Foreign(config, "safetensors", "torchvision", shapes, reader.read)


def _open_detector(reader: Reader, there: Mapping[str, tuple[int, ...]], path: Path) -> Foreign:
    """A RetinaNet, with the names of COCO's classes where it has as many."""
    names = torchvision_retinanet.renewed(there)
    shapes = {now: there[name] for now, name in names.items()}
    config = config_lib.default_config("retinanet", task="detection")
    notes = torchvision_retinanet.recognise(shapes, path, config)
    check_size(config)
    config.model.image_size = DETECTION_SIZE
    files = {}
    if config.model.num_classes == torchvision_retinanet.COCO_CLASSES:
        known = official.of_outputs(torchvision_retinanet.COCO_CLASSES, first_id=0)
        files[class_names.FILE] = class_names.to_text(known)
    return Foreign(
        config,
        "safetensors",
        "torchvision",
        shapes,
        lambda name: reader.read(names[name]),
        notes,
        files,
    )


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
