"""The experiments of attention augmentation (arXiv 1904.09925)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launch.reproduce.experiment import settings
from launch.reproduce.images import (
    AA,
    CIFAR,
    COCO,
    CONV,
    IMAGENET,
    ON_CELLS,
    ON_DIGITS,
    attention,
    digits,
    quarter,
    shapes,
)

Known = Iterator[tuple[str, dict[str, Any]]]  # name of an exhibit, what `Experiment` takes

_FRACTIONS = ("0.25", "0.5", "0.75", "1.0")  # kappa and upsilon
_POSITIONS = {"none": ":position_none", "sine": ":position_sine"}
_POSITIONS |= {"coord": ":position_coord", "relative": ""}
_LATENCY = "latencies: `describe --table=papers --latency` measures them on this machine"


def experiments() -> Known:
    """Name of an exhibit -> what `Experiment` takes beside it."""
    yield from _wide()
    yield from _mechanisms()
    yield from _depths()
    yield from _mobile()
    yield from _detectors()
    yield from _fractions()
    yield from _encodings()


def _wide() -> Known:
    small, plain = "aa_wrn28_10:digits", "wrn28_10:digits"
    tiny = {
        "WRN-28-10": plain,
        "GE-WRN-28-10": (plain, {"model.gate": "gather_excite"}),
        "SE-WRN-28-10": (plain, {"model.gate": "se"}),
        "AA-WRN-28-10": small,
    }
    full = {
        "WRN-28-10": "wrn28_10",
        "GE-WRN-28-10": "wrn28_10:gather_excite",
        "SE-WRN-28-10": "wrn28_10:se",
        "AA-WRN-28-10": "aa_wrn28_10",
    }
    yield "table 1", {"needs": CIFAR, "full": settings(full), **digits(tiny, 4, "WRN-10-2")}


def _fraction(fraction: str) -> str:
    """The row of a fraction of attention."""
    return f"AA-ResNet-50, kappa = upsilon = {fraction}"


def _variant(fraction: str) -> str:
    """The configuration of a fraction of attention."""
    return f"aa_resnet50:fraction{100 * float(fraction):03.0f}"


def _mechanisms() -> Known:
    gates = {f"{gate.upper()}-ResNet-50": gate for gate in ("se", "bam", "cbam", "gala")}
    full = {"ResNet-50": "resnet50"} | {row: f"resnet50:{gate}" for row, gate in gates.items()}
    tiny = {"ResNet-50": CONV} | {row: (CONV, {"model.gate": g}) for row, g in gates.items()}
    last = _fraction("0.25")
    experiment = {
        "needs": IMAGENET,
        "full": settings({**full, last: _variant("0.25")}),
        **digits({**tiny, last: AA}, 6),
    }
    yield "table 2", {**experiment, "note": _LATENCY}


def _depths() -> Known:
    full = {"ResNet-50": "resnet50", "SE-ResNet-50": "resnet50:se", "AA-ResNet-50": "aa_resnet50"}
    full |= {
        f"{name}ResNet-{depth}": f"aa_resnet{depth}{variant}"
        for depth in (34, 101, 152)
        for name, variant in (("", ":conv"), ("SE-", ":se"), ("AA-", ""))
    }
    tiny = {
        "ResNet-50": CONV,
        "SE-ResNet-50": (CONV, {"model.gate": "se"}),
        "AA-ResNet-50": AA,
    }
    experiment = {"needs": IMAGENET, "full": settings(full), **digits(tiny, 3), "done": ON_DIGITS}
    yield "table 3", experiment
    yield "figure 1", experiment


def _mobile() -> Known:
    widths = {"0.75": ":width075", "1.0": "", "1.25": ":width125", "1.4": ":width140"}
    full, tiny = {}, {}
    for width, variant in widths.items():
        for name, config in (("", "mnasnet"), ("AA-", "aa_mnasnet")):
            row = f"{name}MnasNet-A1 x{width}"
            full[row] = f"{config}{variant}"
            tiny[row] = (f"{config}:digits", {"model.width": quarter(width)})
    words = "MnasNet of one or two blocks a row at a quarter of the widths"
    experiment = {"needs": IMAGENET, "full": settings(full), **digits(tiny, 10, words)}
    yield "table 4", experiment
    yield "figure 3", experiment


def _detectors() -> Known:
    full = {
        f"{name}RetinaNet-{depth}": config.format(depth)
        for depth in (50, 101)
        for name, config in (
            ("", "retinanet_resnet{}"),
            ("SE-", "retinanet_resnet{}:se"),
            ("AA-", "retinanet_aa_resnet{}"),
        )
    }
    drawn = "retinanet_resnet50:shapes"
    tiny = {
        "RetinaNet-50": drawn,
        "SE-RetinaNet-50": (drawn, {"model.gate": "se"}),
        "AA-RetinaNet-50": "retinanet_aa_resnet50:shapes",
    }
    experiment = {"needs": COCO, "full": settings(full), **shapes(tiny, 9)}
    yield "table 5", {**experiment, "done": ON_CELLS}


def _fractions() -> Known:
    full = {"ResNet-50": "resnet50"} | {_fraction(f): _variant(f) for f in _FRACTIONS}
    tiny = {_fraction(f): attention(AA, kappa=f, upsilon=f) for f in _FRACTIONS}
    experiment = {"needs": IMAGENET, "full": settings(full)}
    yield "table 6", {**experiment, **digits({"ResNet-50": CONV, **tiny}, 5)}
    pairs = {
        f"kappa = upsilon = {f}, position {p}": (f, p)
        for f in _FRACTIONS
        for p in ("relative", "none")
    }
    without = {row: attention(_variant(f), position=p) for row, (f, p) in pairs.items()}
    tiny = {row: attention(AA, kappa=f, upsilon=f, position=p) for row, (f, p) in pairs.items()}
    yield "figure 4", {"needs": IMAGENET, "full": settings(without), **digits(tiny, 8)}


def _encodings() -> Known:
    full = {f"AA-ResNet-50, position {p}": f"aa_resnet50{v}" for p, v in _POSITIONS.items()}
    tiny = {f"AA-ResNet-50, position {p}": attention(AA, position=p) for p in _POSITIONS}
    yield "table 7", {"needs": IMAGENET, "full": settings(full), **digits(tiny, 4)}
    detector, name = "retinanet_aa_resnet50", "AA-RetinaNet-50, position"
    full = {f"{name} {p}": f"{detector}{v}" for p, v in _POSITIONS.items()}
    tiny = {
        f"{name} {p}": attention(f"{detector}:shapes", position=p) for p in ("none", "relative")
    }
    yield "table 8", {"needs": COCO, "full": settings(full), **shapes(tiny, 6)}
