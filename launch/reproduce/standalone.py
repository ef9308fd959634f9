"""The experiments of stand-alone self-attention (arXiv 1906.05909)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launch.reproduce.experiment import settings
from launch.reproduce.images import (
    COCO,
    CONV,
    IMAGENET,
    ON_CELLS,
    ON_DIGITS,
    SASA,
    attention,
    digits,
    quarter,
    shapes,
)

Known = Iterator[tuple[str, dict[str, Any]]]  # name of an exhibit, what `Experiment` takes

# 4 % of the training images, on which the paper tunes.
_HELD_OUT = {"data__holdout": "0.04", "data__eval_split": "holdout"}
_NETWORK = "SASA-ResNet-50"


def experiments() -> Known:
    """Name of an exhibit -> what `Experiment` takes beside it."""
    yield from _depths()
    yield from _detectors()
    yield from _stages()
    yield from _windows()
    yield from _logits()
    yield from _stems()
    yield from _widths()


def _depths() -> Known:
    kinds = {
        "ResNet-{}, convolution": ":conv",
        "SASA-ResNet-{}, convolution stem": "",
        "SASA-ResNet-{}, attention stem": ":full",
    }
    full = {
        name.format(depth): f"sasa_resnet{depth}{variant}"
        for depth in (26, 38, 50)
        for name, variant in kinds.items()
    }
    tiny = {
        "ResNet-26, convolution": (CONV, {"model.stem": "conv"}),
        "SASA-ResNet-26, convolution stem": (SASA, {"model.stem": "conv"}),
        "SASA-ResNet-26, attention stem": (SASA, {"model.stem": "attention"}),
    }
    experiment = {"needs": IMAGENET, "full": settings(full), **digits(tiny, 3)}
    yield "table 1", {**experiment, "done": ON_DIGITS}


def _detectors() -> Known:
    name, config = "SASA-RetinaNet-50", "retinanet_sasa_resnet50"
    full = {
        "RetinaNet-50, convolution": "retinanet_resnet50",
        f"{name}, convolution stem": config,
        f"{name}, attention stem": f"{config}:full",
        f"{name} and heads, convolution stem": f"{config}:heads",
        f"{name} and heads, attention stem": f"{config}:full_heads",
    }
    drawn = f"{config}:shapes"
    tiny = {
        "RetinaNet-50, convolution": "retinanet_resnet50:shapes",
        f"{name}, convolution stem": drawn,
        f"{name} and heads, convolution stem": (drawn, {"model.head_attention": "towers"}),
    }
    experiment = {"needs": COCO, "full": settings(full), **shapes(tiny, 10)}
    yield "table 2", {**experiment, "done": ON_CELLS}


def _stages() -> Known:
    def row(numbers: str) -> str:
        return f"{_NETWORK} in {', '.join(f'conv{number}_x' for number in numbers)}"

    some = ("345", "45", "5", "2", "23", "234")
    full = {row("2345"): "sasa_resnet50", "ResNet-50, no stage attends": "sasa_resnet50:conv"}
    full |= {row(numbers): f"sasa_resnet50:stages{numbers}" for numbers in some}
    tiny = {row("2345"): SASA, "ResNet-50, no stage attends": CONV}
    tiny |= {row(numbers): attention(SASA, stages=",".join(numbers) + ",") for numbers in some}
    experiment = {"needs": IMAGENET, "full": settings(full, **_HELD_OUT)}
    yield "table 3", {**experiment, **digits(tiny, 8)}


def _windows() -> Known:
    windows = {"3": ":window3", "5": ":window5", "7": "", "9": ":window9", "11": ":window11"}
    full = {f"{_NETWORK}, window {w}": f"sasa_resnet50{v}" for w, v in windows.items()}
    tiny = {f"{_NETWORK}, window {w}": attention(SASA, window=w) for w in windows}
    yield "table 4", {"needs": IMAGENET, "full": settings(full), **digits(tiny, 5)}


def _logits() -> Known:
    """What queries meet: positions of several kinds, contents, or positions alone."""
    positions = {"none": ":position_none", "sine": ":position_sine", "relative": ""}
    full = {f"{_NETWORK}, position {p}": f"sasa_resnet50{v}" for p, v in positions.items()}
    tiny = {f"{_NETWORK}, position {p}": attention(SASA, position=p) for p in positions}
    experiment = {"needs": IMAGENET, "full": settings(full, **_HELD_OUT)}
    yield "table 5", {**experiment, **digits(tiny, 3)}
    alone, both = f"{_NETWORK}, q.r only", f"{_NETWORK}, q.k + q.r"
    full = {alone: "sasa_resnet50:position_only", both: "sasa_resnet50"}
    tiny = {alone: attention(SASA, position_only="true"), both: SASA}
    yield "table 6", {"needs": IMAGENET, "full": settings(full), **digits(tiny, 2)}


def _stems() -> Known:
    stems = {"attention_plain": "stem_plain", "attention_conv": "stem_conv", "attention": "full"}
    full = {f"{_NETWORK}, stem {s}": f"sasa_resnet50:{v}" for s, v in stems.items()}
    tiny = {f"{_NETWORK}, stem {s}": (SASA, {"model.stem": s}) for s in stems}
    yield "table 7", {"needs": IMAGENET, "full": settings(full), **digits(tiny, 3)}


def _widths() -> Known:
    widths = {"0.25": ":width025", "0.5": ":width050", "0.75": ":width075", "1.0": ""}
    full, tiny = {}, {}
    for width, variant in widths.items():
        full[f"attention, width {width}"] = f"sasa_resnet50{variant}"
        full[f"convolution, width {width}"] = ("sasa_resnet50:conv", {"model.width": width})
        for kind, config in (("attention", SASA), ("convolution", CONV)):
            tiny[f"{kind}, width {width}"] = (config, {"model.width": quarter(width)})
    yield "figure 5", {"needs": IMAGENET, "full": settings(full), **digits(tiny, 8)}
