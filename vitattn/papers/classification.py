"""The classification tables of both papers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitattn.papers.row import AUGMENTED, PAIRS, STANDALONE, Published

# Beside the usual columns; the last is the accuracy at a width of about 25.6 M parameters.
MECHANISM_COLUMNS: tuple[str, ...] = ("inference latency", "training latency", "top-1 % at 25.6 M")
HELD_OUT = "top-1 % of held-out training images"


def _augmented(**options: Any) -> dict[str, Any]:
    return {"kind": "augmented", **options}


def _local(**options: Any) -> dict[str, Any]:
    return {"kind": "local", **options}


def _resnet(depth: int, **options: Any) -> dict[str, Any]:
    return {"name": "resnet", "depth": depth, **options}


def _wide(**options: Any) -> dict[str, Any]:
    return {"name": "wide_resnet", **options}


def _cifar() -> Iterator[Published]:
    source = f"{AUGMENTED} CIFAR-100"
    yield Published("WRN-28-10", source, _wide(), "36.3", "10.4", 80.3, 95.0)
    gather = _wide(gate="gather_excite")
    yield Published("GE-WRN-28-10", source, gather, "36.3", "10.4", 79.8, 95.0)
    note = "36.55 printed as 36.5"
    yield Published("SE-WRN-28-10", source, _wide(gate="se"), "36.5", "10.4", 81.0, 95.3, note)
    note = "relative tables shared by heads give 36.05 M; with pairs of pixels counted once, 11.5 G"
    attention = _wide(attention=_augmented())
    yield Published("AA-WRN-28-10", source, attention, "36.2", "10.9", 81.6, 95.2, note)


def _imagenet() -> Iterator[Published]:
    source = f"{AUGMENTED} ImageNet"
    printed = {
        34: (("21.8", "7.4", 73.6, 91.5), ("22.0", "7.4", 74.3, 91.8), ("20.7", "7.1", 74.7, 92.0)),
        50: (("25.6", "8.2", 76.4, 93.1), ("28.1", "8.2", 77.5, 93.7), ("25.8", "8.3", 77.7, 93.8)),
        101: (
            ("44.5", "15.6", 77.9, 94.0),
            ("49.3", "15.6", 78.4, 94.2),
            ("45.4", "16.1", 78.7, 94.4),
        ),
        152: (
            ("60.2", "23.0", 78.4, 94.2),
            ("66.8", "23.1", 78.9, 94.5),
            ("61.6", "23.8", 79.1, 94.6),
        ),
    }
    for depth, (base, gated, augmented) in printed.items():
        yield Published(f"ResNet-{depth}", source, _resnet(depth), *base)
        yield Published(f"SE-ResNet-{depth}", source, _resnet(depth, gate="se"), *gated)
        fractions = {"kappa": 0.25, "upsilon": 0.25} if depth == 34 else {}
        model = _resnet(depth, attention=_augmented(**fractions))
        yield Published(f"AA-ResNet-{depth}", source, model, *augmented)


def _fractions() -> Iterator[Published]:
    source = f"{AUGMENTED} attention fraction"
    yield Published("ResNet-50", source, _resnet(50), "25.6", "8.2", 76.4, 93.1)
    for fraction, params, gflops, top1, top5, note in (
        (0.25, "24.3", "7.9", 77.7, 93.8, ""),
        (0.5, "22.3", "7.3", 77.3, 93.6, ""),
        (0.75, "20.7", "6.8", 76.7, 93.2, ""),
        (1.0, "19.4", "6.3", 74.8, 92.0, PAIRS),
    ):
        attention = _augmented(kappa=fraction, upsilon=fraction)
        label = f"AA-ResNet-50, kappa = upsilon = {fraction}"
        model = _resnet(50, attention=attention)
        yield Published(label, source, model, params, gflops, top1, top5, note)


def _positions() -> Iterator[Published]:
    source = f"{AUGMENTED} position encodings"
    for position, top1, top5 in (
        ("none", 77.5, 93.7),
        ("sine", 77.5, 93.7),
        ("coord", 77.5, 93.8),
        ("relative", 77.7, 93.8),
    ):
        model = _resnet(50, attention=_augmented(position=position))
        yield Published(f"AA-ResNet-50, position {position}", source, model, "", "", top1, top5)


def _mechanisms() -> Iterator[Published]:
    source = f"{AUGMENTED} other mechanisms"
    augmented = {"attention": _augmented(kappa=0.25, upsilon=0.25)}
    ratio = "kappa = upsilon = 0.25"
    for label, model, params, gflops, top1, more in (
        ("ResNet-50", {}, "25.6", "8.2", 76.4, ("-", "-", "")),
        ("SE-ResNet-50", {"gate": "se"}, "28.1", "8.2", 77.5, ("+12%", "+92%", "77.0")),
        ("BAM-ResNet-50", {"gate": "bam"}, "25.9", "8.3", 77.3, ("+19%", "+43%", "")),
        ("CBAM-ResNet-50", {"gate": "cbam"}, "28.1", "8.2", 77.4, ("+56%", "+132%", "77.4")),
        ("GALA-ResNet-50", {"gate": "gala"}, "29.4", "8.6", 77.5, ("+86%", "+133%", "77.3")),
        (f"AA-ResNet-50, {ratio}", augmented, "24.3", "7.9", 77.7, ("+29%", "+25%", "")),
    ):
        printed = dict(zip(MECHANISM_COLUMNS, more, strict=True))
        yield Published(label, source, _resnet(50, **model), params, gflops, top1, more=printed)


def _mnasnet() -> Iterator[Published]:
    source = f"{AUGMENTED} MnasNet"
    nearly = "within 0.01 M; rounding of depths is not stated"
    for width, base, augmented in (
        (0.75, ("2.91", "0.45", 73.3, 91.3, ""), ("3.02", "0.51", 73.9, 91.6, nearly)),
        (1.0, ("3.89", "0.63", 75.2, 92.4, ""), ("4.06", "0.70", 75.7, 92.6, "")),
        (1.25, ("5.26", "1.01", 76.7, 93.2, ""), ("5.53", "1.11", 77.2, 93.6, nearly)),
        (1.4, ("6.10", "1.17", 77.2, 93.5, nearly), ("6.44", "1.29", 77.7, 93.8, nearly)),
    ):
        model = {"name": "mnasnet", "width": width}
        yield Published(f"MnasNet-A1 x{width}", source, model, *base)
        model = {**model, "attention": _augmented()}
        yield Published(f"AA-MnasNet-A1 x{width}", source, model, *augmented)


def _standalone() -> Iterator[Published]:
    source = f"{STANDALONE} ImageNet"
    rounding = "14.17 printed as 14.1"
    for depth, convolution, stem, full in (
        (26, ("13.7", "4.7", 74.5), ("10.3", "4.5", 75.8), ("10.3", "4.7", 74.8)),
        (38, ("19.6", "6.5", 76.2), ("14.1", "5.7", 77.1), ("14.1", "6.0", 76.9)),
        (50, ("25.6", "8.2", 76.9), ("18.0", "7.0", 77.4), ("18.0", "7.2", 77.6)),
    ):
        note = rounding if depth == 38 else ""
        yield Published(f"ResNet-{depth}, convolution", source, _resnet(depth), *convolution)
        model = _resnet(depth, attention=_local())
        label = f"SASA-ResNet-{depth}, convolution stem"
        yield Published(label, source, model, *stem, note=note)
        model = {**model, "stem": "attention"}
        label = f"SASA-ResNet-{depth}, attention stem"
        yield Published(label, source, model, *full, note=note)


def _stages() -> Iterator[Published]:
    source = f"{STANDALONE} stages"
    for stages, params, gflops, held_out, note in (
        ((2, 3, 4, 5), "18.0", "7.0", "80.2", ""),
        ((3, 4, 5), "18.1", "7.3", "80.7", ""),
        ((4, 5), "18.5", "7.5", "80.7", ""),
        ((5,), "20.8", "8.0", "80.2", ""),
        ((), "25.6", "8.2", "79.5", ""),
        ((2,), "25.5", "7.9", "79.7", ""),
        ((2, 3), "25.0", "7.8", "79.6", "25.09 counted: 0.1 M unresolved"),
        ((2, 3, 4), "22.7", "7.2", "79.9", ""),
    ):
        names = ", ".join(f"conv{stage}_x" for stage in stages)
        model = _resnet(50, **({"attention": _local(stages=stages)} if stages else {}))
        label = f"SASA-ResNet-50 in {names}" if stages else "ResNet-50, no stage attends"
        more = {HELD_OUT: held_out}
        yield Published(label, source, model, params, gflops, note=note, more=more)


def _ablations() -> Iterator[Published]:
    windows = ((3, "6.6", 76.4), (5, "6.7", 77.2), (7, "7.0", 77.4), (9, "7.3", 77.7))
    for window, gflops, top1 in (*windows, (11, "7.7", 77.6)):
        model = _resnet(50, attention=_local(window=window))
        label = f"SASA-ResNet-50, window {window}"
        yield Published(label, f"{STANDALONE} window", model, "18.0", gflops, top1)
    source = f"{STANDALONE} position encodings"
    for position, gflops, held_out in (
        ("none", "6.9", "77.6"),
        ("sine", "6.9", "78.2"),
        ("relative", "7.0", "80.2"),
    ):
        model = _resnet(50, attention=_local(position=position))
        label, more = f"SASA-ResNet-50, position {position}", {HELD_OUT: held_out}
        yield Published(label, source, model, "18.0", gflops, more=more)
    model = _resnet(50, attention=_local(position_only=True))
    source, note = f"{STANDALONE} position only", "16.76 printed as 16.7"
    yield Published("SASA-ResNet-50, q.r only", source, model, "16.7", "6.1", 76.9, note=note)
    model = _resnet(50, attention=_local())
    yield Published("SASA-ResNet-50, q.k + q.r", source, model, "18.0", "7.0", 77.4)
    for stem, gflops, top1 in (
        ("attention_plain", "7.1", 76.2),
        ("attention_conv", "7.4", 77.2),
        ("attention", "7.2", 77.6),
    ):
        model = _resnet(50, attention=_local(), stem=stem)
        label = f"SASA-ResNet-50, stem {stem}"
        yield Published(label, f"{STANDALONE} stem", model, "", gflops, top1)


def classification() -> list[Published]:
    """Every classification row of both papers, by paper and table."""
    tables = (_cifar, _imagenet, _fractions, _positions, _mechanisms, _mnasnet)
    return [row for table in (*tables, _standalone, _stages, _ablations) for row in table()]
