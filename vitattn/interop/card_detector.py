"""What the model card of an export says of a detector."""

from __future__ import annotations

from ml_collections import ConfigDict

from trainlib.formats.model_card import Metric
from vitattn.interop import torchvision_retinanet
from vitattn.models import configure
from vitattn.models.retinanet.config import RetinaNetConfig

_AP, _AR = "mean_average_precision", "average_recall"
METRICS = {
    "ap": Metric(_AP, "AP (COCO, IoU 0.50 to 0.95)", True),
    "ap50": Metric(_AP, "AP50", True),
    "ap75": Metric(_AP, "AP75", True),
    "ap_small": Metric(_AP, "AP of small objects", True),
    "ap_medium": Metric(_AP, "AP of medium objects", True),
    "ap_large": Metric(_AP, "AP of large objects", True),
    "ar_1": Metric(_AR, "AR of 1 detection", True),
    "ar_10": Metric(_AR, "AR of 10 detections", True),
    "ar_100": Metric(_AR, "AR of 100 detections", True),
    "ar_small": Metric(_AR, "AR of small objects", True),
    "ar_medium": Metric(_AR, "AR of medium objects", True),
    "ar_large": Metric(_AR, "AR of large objects", True),
}
_USES = {
    "own": """
import vitattn

detector = vitattn.load(".")
found = detector.predict("picture.png")
for one in found.above(0.5):
    print(one.class_name, one.score, one.box)  # x0, y0, x1, y1 in pixels of the picture
""",
    "torchvision": """
from pathlib import Path
from safetensors.torch import load_file
from torchvision.models.detection import {function} as build

model = build(weights=None, weights_backbone=None, num_classes={classes}, {sizes})
files = Path(".").glob("*.safetensors")
model.load_state_dict({{name: t for file in files for name, t in load_file(file).items()}})
{mend}model.eval()
""",
    "stablehlo": """
import numpy as np
from load import load  # load.py of this directory: needs jax, numpy and flatbuffers, nothing else

forward, signature = load(".")
image = np.zeros((1, {height}, {width}, 3), np.float32)  # normalised as the table says
detections = forward({{"image": image}})
boxes = detections["boxes"]  # [1, K, 4], y0 x0 y1 x1 in pixels of the input; scores [1, K], classes
""",
}
_NO_EPSILON = """\
for part in model.modules():
    if hasattr(part, "running_var"):
        part.eps = 0.0
"""


def about(config: ConfigDict, form: str) -> tuple[str, str, str, str]:
    """Of a detector: what it does, the hub's word for it, its images, and how it is used."""
    model = configure(config.model)
    assert isinstance(model, RetinaNetConfig)
    height, width = model.size
    bare = torchvision_retinanet.their_eps(model) == 0.0
    use = _USES[form].format(
        height=height,
        width=width,
        classes=model.num_classes,
        function=f"retinanet_resnet50_fpn{'_v2' * (model.head_norm == 'group')}",
        sizes=f"min_size={min(height, width)}, max_size={max(height, width)}",
        mend=_NO_EPSILON * bare,
    )
    takes = f"scaled as large as fits into {height} x {width} pixels, filled up with the mean"
    return "object detection", "object-detection", takes, use
