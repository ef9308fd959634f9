"""The experiments of both papers on attention in vision models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launch.reproduce.experiment import Measure, Rows, Values, settings

IMAGENET = "ImageNet (licence of its makers)"
CIFAR = "CIFAR-100 (public)"
COCO = "COCO 2017 (public)"
DIGITS = (
    "ResNet-26 at a quarter of its width on 1,797 digits of 8x8 pixels (scikit-learn), 100 steps "
    "of 96 images; one recipe for all, tuned for none"
)
SHAPES = (
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
_CONV, _SASA = "reproduce_small", "reproduce_small:standalone"
_AA = "reproduce_small:augmented"
_ATTENTION = "model.attention."

ACCURACY = (
    Measure("ours: top-1 %", lambda run: run.percent("top1"), 1),
    Measure("ours: parameters", lambda run: run.params, 0),
)
AVERAGE_PRECISION = (
    Measure("ours: AP", lambda run: run.percent("ap"), 1),
    Measure("ours: AP50", lambda run: run.percent("ap50"), 1),
    Measure("ours: parameters", lambda run: run.params, 0),
)
_SMALL = "`make reproduce-small`: the three kinds of network on digits, docs/results.md"
_CELLS = "`make reproduce-detection`: the three kinds of backbone on BCCD, docs/results.md"


def _digits(rows: Rows, minutes: float) -> dict[str, Any]:
    """A tiny variant on digits."""
    tiny = settings({row: _with(what, _SHORT) for row, what in rows.items()})
    return {"tiny": tiny, "measures": ACCURACY, "tiny_is": DIGITS, "minutes": minutes}


def _shapes(rows: Rows, minutes: float) -> dict[str, Any]:
    """A tiny variant on drawn shapes."""
    tiny = settings({row: _with(what, _DETECTOR) for row, what in rows.items()})
    return {"tiny": tiny, "measures": AVERAGE_PRECISION, "tiny_is": SHAPES, "minutes": minutes}


def _with(what: str | tuple[str, Values], values: Values) -> tuple[str, Values]:
    config, own = (what, {}) if isinstance(what, str) else what
    return config, {**values, **own}


def _attention(kind: str, **values: str) -> tuple[str, Values]:
    """A small network whose attention has these values."""
    return kind, {_ATTENTION + key: value for key, value in values.items()}


def augmented() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of an exhibit of arXiv 1904.09925 -> what `Experiment` takes beside it."""
    wide = {
        "WRN-28-10": "wrn28_10",
        "GE-WRN-28-10": "wrn28_10:gather_excite",
        "SE-WRN-28-10": "wrn28_10:se",
        "AA-WRN-28-10": "aa_wrn28_10",
    }
    tiny = {
        "WRN-28-10": "wrn28_10:digits",
        "GE-WRN-28-10": ("wrn28_10:digits", {"model.gate": "gather_excite"}),
        "SE-WRN-28-10": ("wrn28_10:digits", {"model.gate": "se"}),
        "AA-WRN-28-10": "aa_wrn28_10:digits",
    }
    yield (
        "table 1",
        {"needs": CIFAR, "full": settings(wide), **_digits(tiny, 4)}
        | {"tiny_is": DIGITS.replace("ResNet-26 at a quarter of its width", "WRN-10-2")},
    )
    gates = ("se", "bam", "cbam", "gala")
    fraction = {f"AA-ResNet-50, kappa = upsilon = {f}": f for f in ("0.25", "0.5", "0.75", "1.0")}
    quarter = next(iter(fraction))
    yield (
        "table 2",
        {
            "needs": IMAGENET,
            "full": settings(
                {"ResNet-50": "resnet50"}
                | {f"{gate.upper()}-ResNet-50": f"resnet50:{gate}" for gate in gates}
                | {quarter: "aa_resnet50:fraction025"}
            ),
            **_digits(
                {"ResNet-50": _CONV}
                | {f"{gate.upper()}-ResNet-50": (_CONV, {"model.gate": gate}) for gate in gates}
                | {quarter: _AA},
                6,
            ),
            "note": "latencies: `describe --table=papers --latency` measures them on this machine",
        },
    )
    depths = {
        f"{name}ResNet-{depth}": f"aa_resnet{depth}{variant}"
        for depth in (34, 101, 152)
        for name, variant in (("", ":conv"), ("SE-", ":se"), ("AA-", ""))
    }
    fifty = {"ResNet-50": "resnet50", "SE-ResNet-50": "resnet50:se", "AA-ResNet-50": "aa_resnet50"}
    small = {
        "ResNet-50": _CONV,
        "SE-ResNet-50": (_CONV, {"model.gate": "se"}),
        "AA-ResNet-50": _AA,
    }
    networks = {"needs": IMAGENET, "full": settings({**depths, **fifty}), **_digits(small, 3)}
    yield "table 3", {**networks, "done": _SMALL}
    yield "figure 1", {**networks, "done": _SMALL}
    widths = {"0.75": ":width075", "1.0": "", "1.25": ":width125", "1.4": ":width140"}
    mobile = {
        f"{name}MnasNet-A1 x{width}": f"{config}{variant}"
        for width, variant in widths.items()
        for name, config in (("", "mnasnet"), ("AA-", "aa_mnasnet"))
    }
    quarters = {
        f"{name}MnasNet-A1 x{width}": (
            f"{config}:digits",
            {"model.width": f"{float(width) / 4:g}"},
        )
        for width in widths
        for name, config in (("", "mnasnet"), ("AA-", "aa_mnasnet"))
    }
    by_width = {"needs": IMAGENET, "full": settings(mobile), **_digits(quarters, 10)}
    by_width["tiny_is"] = "MnasNet of one or two blocks a row at a quarter of the widths, on digits"
    yield "table 4", by_width
    yield "figure 3", by_width
    detectors = {
        "RetinaNet-50": "retinanet_resnet50",
        "SE-RetinaNet-50": "retinanet_resnet50:se",
        "AA-RetinaNet-50": "retinanet_aa_resnet50",
        "RetinaNet-101": "retinanet_resnet101",
        "SE-RetinaNet-101": "retinanet_resnet101:se",
        "AA-RetinaNet-101": "retinanet_aa_resnet101",
    }
    drawn = {
        "RetinaNet-50": "retinanet_resnet50:shapes",
        "SE-RetinaNet-50": ("retinanet_resnet50:shapes", {"model.gate": "se"}),
        "AA-RetinaNet-50": "retinanet_aa_resnet50:shapes",
    }
    yield (
        "table 5",
        {"needs": COCO, "full": settings(detectors), **_shapes(drawn, 9), "done": _CELLS},
    )
    percent = {row: f"aa_resnet50:fraction{100 * float(f):03.0f}" for row, f in fraction.items()}
    yield (
        "table 6",
        {
            "needs": IMAGENET,
            "full": settings({"ResNet-50": "resnet50", **percent}),
            **_digits(
                {"ResNet-50": _CONV}
                | {row: _attention(_AA, kappa=f, upsilon=f) for row, f in fraction.items()},
                5,
            ),
        },
    )
    positions = ("none", "sine", "coord", "relative")
    named = {p: "" if p == "relative" else f":position_{p}" for p in positions}
    yield (
        "table 7",
        {
            "needs": IMAGENET,
            "full": settings(
                {f"AA-ResNet-50, position {p}": f"aa_resnet50{v}" for p, v in named.items()}
            ),
            **_digits(
                {f"AA-ResNet-50, position {p}": _attention(_AA, position=p) for p in positions}, 4
            ),
        },
    )
    detector = "retinanet_aa_resnet50"
    yield (
        "table 8",
        {
            "needs": COCO,
            "full": settings(
                {f"AA-RetinaNet-50, position {p}": f"{detector}{v}" for p, v in named.items()}
            ),
            **_shapes(
                {
                    f"AA-RetinaNet-50, position {p}": _attention(f"{detector}:shapes", position=p)
                    for p in ("none", "relative")
                },
                6,
            ),
        },
    )
    pairs = [(f, p) for f in fraction.values() for p in ("relative", "none")]
    yield (
        "figure 4",
        {
            "needs": IMAGENET,
            "full": settings(
                {
                    f"kappa = upsilon = {f}, position {p}": (
                        f"aa_resnet50:fraction{100 * float(f):03.0f}",
                        {"model.attention.position": p},
                    )
                    for f, p in pairs
                }
            ),
            **_digits(
                {
                    f"kappa = upsilon = {f}, position {p}": _attention(
                        _AA, kappa=f, upsilon=f, position=p
                    )
                    for f, p in pairs
                },
                8,
            ),
        },
    )


def standalone() -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of arXiv 1906.05909."""
    kinds = {
        "ResNet-{}, convolution": ":conv",
        "SASA-ResNet-{}, convolution stem": "",
        "SASA-ResNet-{}, attention stem": ":full",
    }
    strided: Values = {"model.stem": "conv"}
    yield (
        "table 1",
        {
            "needs": IMAGENET,
            "full": settings(
                {
                    name.format(depth): f"sasa_resnet{depth}{variant}"
                    for depth in (26, 38, 50)
                    for name, variant in kinds.items()
                }
            ),
            **_digits(
                {
                    "ResNet-26, convolution": (_CONV, strided),
                    "SASA-ResNet-26, convolution stem": (_SASA, strided),
                    "SASA-ResNet-26, attention stem": (_SASA, {"model.stem": "attention"}),
                },
                3,
            ),
            "done": _SMALL,
        },
    )
    name, config = "SASA-RetinaNet-50", "retinanet_sasa_resnet50"
    drawn = f"{config}:shapes"
    yield (
        "table 2",
        {
            "needs": COCO,
            "full": settings(
                {
                    "RetinaNet-50, convolution": "retinanet_resnet50",
                    f"{name}, convolution stem": config,
                    f"{name}, attention stem": f"{config}:full",
                    f"{name} and heads, convolution stem": f"{config}:heads",
                    f"{name} and heads, attention stem": f"{config}:full_heads",
                }
            ),
            **_shapes(
                {
                    "RetinaNet-50, convolution": "retinanet_resnet50:shapes",
                    f"{name}, convolution stem": drawn,
                    f"{name} and heads, convolution stem": (
                        drawn,
                        {"model.head_attention": "towers"},
                    ),
                },
                10,
            ),
            "done": _CELLS,
        },
    )
    stages = {"3, 4, 5": "345", "4, 5": "45", "5": "5", "2": "2", "2, 3": "23", "2, 3, 4": "234"}
    rows: dict[str, str | tuple[str, Values]] = {
        _stages("2, 3, 4, 5"): _SASA,
        "ResNet-50, no stage attends": _CONV,
    }
    rows |= {
        _stages(s): _attention(_SASA, stages=s.replace(" ", "") + ("," if len(s) == 1 else ""))
        for s in stages
    }
    held_out = {"data__holdout": "0.04", "data__eval_split": "holdout"}
    yield (
        "table 3",
        {
            "needs": IMAGENET,
            "full": settings(
                {_stages("2, 3, 4, 5"): "sasa_resnet50"}
                | {_stages(s): f"sasa_resnet50:stages{v}" for s, v in stages.items()}
                | {"ResNet-50, no stage attends": "sasa_resnet50:conv"},
                **held_out,
            ),
            **_digits(rows, 8),
        },
    )
    windows = ("3", "5", "7", "9", "11")
    yield (
        "table 4",
        {
            "needs": IMAGENET,
            "full": settings(
                {
                    f"SASA-ResNet-50, window {w}": "sasa_resnet50"
                    + ("" if w == "7" else f":window{w}")
                    for w in windows
                }
            ),
            **_digits(
                {f"SASA-ResNet-50, window {w}": _attention(_SASA, window=w) for w in windows}, 5
            ),
        },
    )
    positions = {"none": ":position_none", "sine": ":position_sine", "relative": ""}
    yield (
        "table 5",
        {
            "needs": IMAGENET,
            "full": settings(
                {
                    f"SASA-ResNet-50, position {p}": f"sasa_resnet50{v}"
                    for p, v in positions.items()
                },
                **held_out,
            ),
            **_digits(
                {f"SASA-ResNet-50, position {p}": _attention(_SASA, position=p) for p in positions},
                3,
            ),
        },
    )
    yield (
        "table 6",
        {
            "needs": IMAGENET,
            "full": settings(
                {
                    "SASA-ResNet-50, q.r only": "sasa_resnet50:position_only",
                    "SASA-ResNet-50, q.k + q.r": "sasa_resnet50",
                }
            ),
            **_digits(
                {
                    "SASA-ResNet-50, q.r only": _attention(_SASA, position_only="true"),
                    "SASA-ResNet-50, q.k + q.r": _SASA,
                },
                2,
            ),
        },
    )
    stems = {"attention_plain": "stem_plain", "attention_conv": "stem_conv", "attention": "full"}
    yield (
        "table 7",
        {
            "needs": IMAGENET,
            "full": settings(
                {f"SASA-ResNet-50, stem {s}": f"sasa_resnet50:{v}" for s, v in stems.items()}
            ),
            **_digits({f"SASA-ResNet-50, stem {s}": (_SASA, {"model.stem": s}) for s in stems}, 3),
        },
    )
    widths = {"0.25": ":width025", "0.5": ":width050", "0.75": ":width075", "1.0": ""}
    by_width: dict[str, str | tuple[str, Values]] = {}
    for width, variant in widths.items():
        by_width[f"attention, width {width}"] = f"sasa_resnet50{variant}"
        by_width[f"convolution, width {width}"] = ("sasa_resnet50:conv", {"model.width": width})
    yield (
        "figure 5",
        {
            "needs": IMAGENET,
            "full": settings(by_width),
            **_digits(
                {
                    f"{kind}, width {width}": (config, {"model.width": f"{float(width) / 4:g}"})
                    for width in widths
                    for kind, config in (("attention", _SASA), ("convolution", _CONV))
                },
                8,
            ),
        },
    )


def _stages(numbers: str) -> str:
    stages = ", ".join(f"conv{number}_x" for number in numbers.split(", "))
    return f"SASA-ResNet-50 in {stages}"
