"""The tables and figures of both papers, with the cells of `published`.

Tables of arXiv 1904.09925 are numbered as in its last version, which compares with other attention
mechanisms in table 2; the first version has none of that, and other numbers. Those numbers are
remembered; those of arXiv 1906.05909 were read in a translation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainlib.papers.exhibit import Exhibit, Paper
from vitattn.papers.classification import HELD_OUT, MECHANISM_COLUMNS
from vitattn.papers.detection import SIZES
from vitattn.papers.row import AUGMENTED, STANDALONE, Published

AA = Paper("aa", AUGMENTED, "Attention Augmented Convolutional Networks")
SASA = Paper("sasa", STANDALONE, "Stand-Alone Self-Attention in Vision Models")

PARAMS, GFLOP = "parameters (M)", "GFLOP"
TOP1, TOP5 = "top-1 %", "top-5 %"
PRECISION = ("AP", "AP50", "AP75")
_COUNTS = (PARAMS, GFLOP)
_PICTURE = "a picture: its values stand nowhere as numbers"
_DRAWING = "a drawing; nothing in it is measured"
_TRANSLATED = "read in a translation of the paper"


def of_both(rows: Sequence[Published]) -> list[Exhibit]:
    """All tables, then all figures, of each paper, by number.

    Args:
      rows: `vitattn.papers.published()`.
    """
    return [*_augmented(rows), *_standalone(rows)]


def cell(row: Published, column: str) -> str:
    """What a row prints in a column; "" where it prints nothing."""
    scores = {TOP1: row.top1, TOP5: row.top5}
    scores |= dict(zip(PRECISION, (row.ap, row.ap50, row.ap75), strict=True))
    if column in scores:
        return f"{scores[column]:.1f}" if scores[column] else ""
    return {PARAMS: row.params, GFLOP: row.gflops, **row.more}.get(column, "")


def _cells(
    rows: Sequence[Published], source: str, columns: Sequence[str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = [row for row in rows if row.source == source]
    return tuple((row.label, tuple(cell(row, column) for column in columns)) for row in found)


def _augmented(rows: Sequence[Published]) -> Iterator[Exhibit]:
    def table(number: int, title: str, name: str, columns: tuple[str, ...], **more: str) -> Exhibit:
        cells = _cells(rows, f"{AUGMENTED} {name}", columns)
        return Exhibit(AA, "table", number, title, columns, cells, **more)

    scores = (*_COUNTS, TOP1, TOP5)
    yield table(
        *(1, "Wide-ResNet-28-10 on CIFAR-100", "CIFAR-100", scores),
        origin="read in the paper",
    )
    yield table(
        *(2, "Attention mechanisms in ResNet-50 on ImageNet", "other mechanisms"),
        (*_COUNTS, TOP1, *MECHANISM_COLUMNS),
        origin="remembered; parameters and FLOPs confirmed by counting",
        reading="latencies are increases over ResNet-50 on a V100, batches of 128",
    )
    yield table(
        *(3, "ResNet of four depths on ImageNet", "ImageNet", scores),
        origin="top-1 read in the paper, the rest in summaries; the SE rows of 34 and 101 layers "
        "and all of 152 are remembered, and confirmed by counting",
    )
    yield table(
        *(4, "MnasNet on ImageNet by width", "MnasNet", scores),
        origin="remembered; parameters and FLOPs confirmed by counting to 0.01",
    )
    yield table(
        *(5, "RetinaNet on COCO", "COCO", (*_COUNTS, *PRECISION)),
        origin="read in a summary; the row SE-RetinaNet-101 is remembered",
        reading="640 pixels, from scratch; 6 anchors a location, which the parameters prove",
    )
    yield table(
        *(6, "Fractions of attention in ResNet-50 on ImageNet", "attention fraction", scores),
        origin="remembered; parameters and FLOPs confirmed by counting",
    )
    yield table(
        *(7, "Position encodings in AA-ResNet-50 on ImageNet", "position encodings", (TOP1, TOP5)),
        origin="read in a summary",
    )
    yield table(
        *(8, "Position encodings in AA-RetinaNet-50 on COCO", "COCO position encodings", PRECISION),
        origin="remembered; the row of relative positions read in a summary",
    )
    yield Exhibit(
        *(AA, "figure", 1, "Top-1 on ImageNet over parameters: ResNet, SE-ResNet, AA-ResNet"),
        absent=f"{_PICTURE} but those of table 3",
    )
    yield Exhibit(AA, "figure", 2, "Attention-augmented convolution", absent=_DRAWING)
    yield Exhibit(
        *(AA, "figure", 3, "Top-1 on ImageNet over parameters: MnasNet and AA-MnasNet"),
        absent=f"{_PICTURE} but those of table 4",
    )
    yield Exhibit(
        *(AA, "figure", 4, "Relative positions as the ratio of attention grows, AA-ResNet-50"),
        absent=f"{_PICTURE}; a summary says that the fully attentional network gains 2.8 points "
        "from relative positions",
    )


def _standalone(rows: Sequence[Published]) -> Iterator[Exhibit]:
    def table(number: int, title: str, name: str, columns: tuple[str, ...], **more: str) -> Exhibit:
        cells = _cells(rows, f"{STANDALONE} {name}", columns)
        return Exhibit(
            *(SASA, "table", number, title, columns, cells),
            origin=_TRANSLATED,
            **more,
        )

    yield table(1, "ResNet of three depths on ImageNet", "ImageNet", (*_COUNTS, TOP1))
    columns = (*_COUNTS, *PRECISION, *SIZES)
    yield table(
        *(2, "RetinaNet on COCO", "COCO", columns),
        reading="the 3x3 convolutions of the pyramid stay where heads attend, which the counts "
        "say against the text",
    )
    tuning = "accuracies are of 4 % of the training images"
    columns = (*_COUNTS, HELD_OUT)
    yield table(3, "Which stages attend, ResNet-50", "stages", columns, reading=tuning)
    yield table(4, "Size of the window, ResNet-50", "window", (GFLOP, TOP1))
    yield table(5, "Position encodings, ResNet-50", "position encodings", columns, reading=tuning)
    yield table(6, "Without content, ResNet-50", "position only", (*_COUNTS, TOP1))
    yield table(7, "Attention stems, ResNet-50", "stem", (GFLOP, TOP1))
    for number, title in (
        (1, "A local window"),
        (2, "A 3x3 convolution"),
        (3, "A local attention layer"),
        (4, "Relative distances"),
    ):
        yield Exhibit(SASA, "figure", number, title, absent=_DRAWING)
    yield Exhibit(
        *(SASA, "figure", 5, "Top-1 over parameters and FLOPs of ResNet-50 by width"),
        absent=_PICTURE,
    )
