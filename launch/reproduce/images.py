"""What the experiments on images share: data, small networks, and what is read off their runs."""

from __future__ import annotations

from typing import Any

from launch.reproduce.experiment import Measure, Rows, Values, settings

IMAGENET = "ImageNet (licence of its makers)"
CIFAR = "CIFAR-100 (public)"
COCO = "COCO 2017 (public)"
CONV, SASA = "reproduce_small", "reproduce_small:standalone"
AA = "reproduce_small:augmented"
ON_DIGITS = "`make reproduce-small`: the three kinds of network on digits, docs/results.md"
ON_CELLS = "`make reproduce-detection`: the three kinds of backbone on BCCD, docs/results.md"

_DIGITS = (
    "{} on 1,797 digits of 8x8 pixels (scikit-learn), 100 steps of 96 images; one recipe for all, "
    "tuned for none"
)
_SHAPES = (
    "RetinaNet with one block a stage at a quarter of its width on drawn shapes of 128 x 160 "
    "pixels, 120 steps of 8 images"
)
_SHORT = {
    "steps": "100",
    "schedule.warmup_steps": "10",
    "eval_every": "100",
    "checkpoint.every": "25",
    "data.workers": "0",
}
_DETECTOR = {**_SHORT, "steps": "120", "eval_every": "120", "checkpoint.every": "30"}
_PARAMETERS = Measure("ours: parameters", lambda run: run.params, 0)
_ACCURACY = (Measure("ours: top-1 %", lambda run: run.percent("top1"), 1), _PARAMETERS)
_PRECISION = (
    Measure("ours: AP", lambda run: run.percent("ap"), 1),
    Measure("ours: AP50", lambda run: run.percent("ap50"), 1),
    _PARAMETERS,
)


def digits(
    rows: Rows, minutes: float, network: str = "ResNet-26 at a quarter of its width"
) -> dict[str, Any]:
    """A tiny variant on digits, about so many CPU minutes."""
    words = _DIGITS.format(network)
    return _tiny(rows, _SHORT) | {"measures": _ACCURACY, "tiny_is": words, "minutes": minutes}


def shapes(rows: Rows, minutes: float) -> dict[str, Any]:
    """A tiny variant on drawn shapes, about so many CPU minutes."""
    return _tiny(rows, _DETECTOR) | {
        "measures": _PRECISION,
        "tiny_is": _SHAPES,
        "minutes": minutes,
    }


def _tiny(rows: Rows, values: Values) -> dict[str, Any]:
    found = {}
    for row, what in rows.items():
        config, own = (what, {}) if isinstance(what, str) else what
        found[row] = config, {**values, **own}
    return {"tiny": settings(found)}


def attention(config: str, **values: str) -> tuple[str, Values]:
    """A configuration with these values of `model.attention`."""
    return config, {f"model.attention.{key}": value for key, value in values.items()}


def quarter(width: str) -> str:
    """A quarter of a multiplier of widths."""
    return f"{float(width) / 4:g}"
