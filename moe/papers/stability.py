"""What keeps training stable: tables 1 to 4, figures 1, 2 and 7."""

from __future__ import annotations

from collections.abc import Iterator

from moe.papers.paper import PICTURE, figure, table
from trainlib.papers.exhibit import Exhibit

STABLE, QUALITY = "stable runs", "negative log perplexity"
_COLUMNS = (STABLE, QUALITY)
_SETTING = (
    "a model of T5-XL's FLOPs with 32 experts on mC4 for 20k steps; six seeds of the baseline, "
    "three of each method; the quality is that of the stable runs on English text"
)


def stability() -> Iterator[Exhibit]:
    """The exhibits of section 3 and appendix B."""
    yield table(
        1,
        "Terms that are used throughout the paper",
        (),
        "",
        absent="definitions of words; nothing in it is measured",
    )
    yield table(
        2,
        "Removing operations with more multiplicative interactions",
        _COLUMNS,
        """
        Baseline                     | 4/6 | -1.755 +- 0.02
        Remove GEGLU                 | 3/3 | -1.849 +- 0.02
        Remove RMS Norm. Scale Param | 3/3 | -2.020 +- 0.06
        """,
        reading=f"{_SETTING}. Without GEGLU two matrices of equal parameters and FLOPs",
    )
    yield table(
        3,
        "Injecting noise during training",
        _COLUMNS,
        """
        Baseline            | 4/6 | -1.755 +- 0.02
        Input jitter (1e-2) | 3/3 | -1.777 +- 0.03
        Dropout (0.1)       | 3/3 | -1.822 +- 0.11
        """,
        reading=_SETTING,
    )
    yield table(
        4,
        "Constraining weight updates and router logits",
        _COLUMNS,
        """
        Baseline                    | 4/6 | -1.755 +- 0.02
        Update clipping (clip = 0.1) | 3/3 | -4.206 +- 0.17
        Router Z-Loss               | 3/3 | -1.741 +- 0.02
        """,
        reading=f"{_SETTING}. The coefficient of the z-loss is 1e-3",
    )
    yield figure(
        1,
        "Training instabilities of sparse models: one run diverges, one does not",
        absent=PICTURE,
    )
    yield figure(
        2,
        "Largest round-off errors of bfloat16 and float32",
        ("bfloat16", "float32"),
        """
        [2, 4)       | 0.01563   | 2.34e-7
        [32, 64)     | 0.25      | 3.81e-6
        [1024, 2048) | 8.0       | 0.00012
        [2^20, 2^21) | 8192.0    | 0.125
        [2^30, 2^31) | 8288608.0 | 128.0
        """,
        reading=(
            "the printed errors are the spacing of the format, twice the error of rounding to "
            "nearest; 2.34e-7 and 8288608 are 2.38e-7 and 8388608 by arithmetic"
        ),
    )
    yield figure(
        7,
        "Router z-loss over training, by its coefficient, in an encoder and a decoder layer",
        absent=f"{PICTURE}. The text says that coefficients of 1e-2 and more bring it near zero",
    )
