"""What the model card of an export says of a vision model; of a detector see `card_detector`."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from trainlib import paths
from trainlib.formats.model_card import LIBRARY, Metric, Subject, escaped, names
from vitattn.interop import card_detector
from vitattn.labels import class_names
from vitattn.models import configure
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.task import task_of

_CLASSIFICATION = "classification"
# Kind of attention -> what it is called, and its paper.
_ATTENTION = {
    "augmented": ("attention-augmented convolution", "1904.09925"),
    "local": ("stand-alone local self-attention", "1906.05909"),
    "halo": ("blocked local self-attention", "2103.12731"),
}
_BACKBONES = {  # model -> its name and paper
    "resnet": ("ResNet", "1512.03385"),
    "wide_resnet": ("Wide ResNet", "1605.07146"),
    "mnasnet": ("MnasNet", "1807.11626"),
    "retinanet": ("RetinaNet", "1708.02002"),
}
_DATA = {  # kind of data set -> how it is called, its id on the hub
    "imagenet": ("ImageNet (ILSVRC 2012)", "ILSVRC/imagenet-1k"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist"),
    "idx": ("images in IDX files", ""),
    "digits": ("handwritten digits of scikit-learn", ""),
    "folder": ("images in class folders", ""),
    "synthetic": ("synthetic images, which mean nothing", ""),
    "coco": ("COCO 2017", "detection-datasets/coco"),
    "shapes": ("drawn shapes", ""),
}
METRICS = card_detector.METRICS | {
    "top1": Metric("accuracy", "top-1 accuracy", True),
    "top5": Metric("accuracy", "top-5 accuracy", True),
    "loss": Metric("loss", "cross entropy, nats"),
}
_USES = {
    "own": """
import vitattn

model = vitattn.load(".")
prediction = model.predict("picture.png")
print(prediction.top(3))
""",
    "torchvision": """
from pathlib import Path
from safetensors.torch import load_file
from torchvision.models import resnet{depth}

model = resnet{depth}(num_classes={classes})
model.load_state_dict(
    {{name: t for file in Path(".").glob("*.safetensors") for name, t in load_file(file).items()}}
)
model.eval()
""",
    "stablehlo": """
import numpy as np
from load import load  # load.py of this directory: needs jax, numpy and flatbuffers, nothing else

forward, signature = load(".")
image = np.zeros((1, {height}, {width}, 3), np.float32)  # normalised as the table says
logits = forward({{"image": image}})
""",
}


def subject(config: ConfigDict, form: str, beside: Mapping[str, str]) -> Subject:
    """What the card says of a model.

    Args:
      config: of the run.
      form: "own", "torchvision" or "stablehlo": how the weights are written.
      beside: files of the export, name -> text: one may hold the names of the classes.
    """
    model = configure(config.model)
    text = beside.get(class_names.FILE, "")
    named = class_names.printable(tuple(class_names.from_text(text))) if text else []
    kind = config.model.get("attention", {}).get("kind", "none")
    backbone, paper = _BACKBONES.get(config.model.name, (escaped(config.model.name), ""))
    attention, attention_paper = _ATTENTION.get(kind, (kind, ""))
    what = f"{backbone} with {escaped(attention)}" if kind != "none" else backbone
    papers = [p for p in (attention_paper if kind != "none" else "", paper) if p]
    data, data_id = _data(config.data.source)
    about = card_detector.about if isinstance(model, RetinaNetConfig) else _about
    task, pipeline, takes, use = about(config, form)
    attends = kind != "none" or getattr(model, "head_attention", "none") != "none"
    return Subject(
        what=f"{what}: {escaped(task)} with JAX and Flax, trained by `{LIBRARY}`.",
        pipeline=pipeline,
        task=escaped(task),
        tags=(LIBRARY, "jax", "flax", "vision", *(["self-attention"] if attends else [])),
        papers=tuple(papers),
        rows={
            "classes": names(model.num_classes, named),
            "input": f"RGB, {takes}, {_normalised(config)}",
        },
        data=data,
        data_id=data_id,
        split=config.data.eval_split,
        metrics=METRICS,
        hidden=("examples", "detections"),
        use=use,
    )


def _data(source: str) -> tuple[str, str]:
    """How a data set is called, and its id on the hub."""
    kind, _, rest = source.partition(":")
    if kind == "coco" and rest:
        return "images with boxes in a COCO json", ""
    return _DATA.get(kind.partition("/")[0], (paths.without_paths(source), ""))


def _normalised(config: ConfigDict) -> str:
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values)
        for values in task_of(config).statistics(config.data)
    )
    return f"(RGB / 255 - mean) / std with mean {mean} and std {std}"


def _about(config: ConfigDict, form: str) -> tuple[str, str, str, str]:
    """Of a classifier: what it does, the hub's word for it, its images, and how it is used."""
    model = configure(config.model)
    height, width = model.size
    crop = config.data.get("eval_crop", 1.0)
    cut = f"the central {crop:.4g} of the shorter side, " * (crop < 1)
    values = {"depth": config.model.get("depth", 0), "classes": model.num_classes}
    use = _USES[form].format(height=height, width=width, **values)
    takes = f"{cut}scaled to {height} x {width} pixels"
    if config.task != _CLASSIFICATION:
        return config.task, "", takes, use
    return "image classification", "image-classification", takes, use
