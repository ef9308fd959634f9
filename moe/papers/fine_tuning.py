"""Fine-tuning: tables 5 to 7 and 20, figures 3 to 6."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from moe.papers.paper import PICTURE, READ, figure, table
from moe.sweep import SETTINGS, Setting
from trainlib.papers.exhibit import Exhibit

SUPERGLUE = "SuperGLUE"
_BATCHES = {2**20: "1M", 2**18: "262k", 2**16: "65k"}
_RATES = {1e-3: "1e-3", 5e-4: "5e-4", 1e-4: "1e-4"}


def row_of(setting: Setting) -> str:
    """The label of a setting of table 20, such as "1e-3, 262k, slots reset"."""
    slots = "kept" if setting.keep_slots else "reset"
    return f"{_RATES[setting.learning_rate]}, {_BATCHES[setting.tokens]}, slots {slots}"


def fine_tuning() -> Iterator[Exhibit]:
    """The exhibits of section 4 and appendix F."""
    yield table(
        5,
        "Sparse models are robust to dropped tokens when fine-tuning",
        ("tokens dropped", SUPERGLUE),
        """
        train 0.75, eval 2.0, aux loss    | 10.6% | 86.5 +- 0.21
        train 1.25, eval 2.0, aux loss    | 0.3%  | 86.7
        train 2.0, eval 3.0, aux loss     | 0.0%  | 85.8
        train 4.0, eval 5.0, aux loss     | 0.0%  | 86.4
        train 0.75, eval 2.0, no aux loss | 15.6% | 85.7
        train 1.25, eval 2.0, no aux loss | 2.9%  | 85.8
        train 2.0, eval 3.0, no aux loss  | 0.4%  | 85.9
        train 4.0, eval 5.0, no aux loss  | 0.0%  | 86.4
        """,
        reading="with a capacity of CF * S / E and two choices, 0.3 % can only be tokens that no "
        "expert took",
    )
    yield table(
        6,
        "Sentinels in fine-tuning mimic the span objective",
        ("inputs", "targets"),
        """
        Span Corruption | I like <X> the pool <Y> day . | <X> going to <Y> on a sunny
        Fine-Tuning | What is the capital of Illinois ? | Springfield
        Fine-Tuning + Sentinels | What is the capital of Illinois ? <X> | <X> Springfield
        """,
        reading="an illustration: data.sentinels=1 writes the last row, and a test holds it",
    )
    yield table(
        7,
        "Sentinel tokens in fine-tuning",
        (SUPERGLUE, "grammar, exact match"),
        """
        Dense, no sentinels  | 84.9 +- 0.33 | 22.3 +- 0.25
        Dense, sentinels     | 85.1 +- 0.25 | 22.1 +- 0.42
        Sparse, no sentinels | 86.6 +- 0.18 | 22.2 +- 0.04
        Sparse, sentinels    | 86.6 +- 0.24 | 22.9 +- 0.09
        """,
        reading="the mark of a row is read as a cross, no sentinels, for the text says that they "
        "improve grammar",
    )
    yield table(
        20,
        "Sensitivity to learning rate, batch and optimiser slots",
        ("Dense", "Sparse"),
        "\n".join(f"{row_of(s)} | {s.dense} | {s.sparse}" for s in SETTINGS),
        reading="SuperGLUE; a marked row is read as reset, for the caption says that this hurts",
    )
    yield figure(
        3,
        "Training and validation accuracy on CB (250 examples) and ReCoRD (138k)",
        absent=f"{PICTURE}. The sparse model learns both faster and loses on CB's validation split",
    )
    yield figure(
        4,
        "Dropout, and dropout of experts over a dropout of 0.1",
        absent=f"{PICTURE}. The text says that a dropout of 0.1 is best",
    )
    yield figure(
        5,
        "Updating only a subset of the parameters",
        absent=f"{PICTURE}. The text: non-MoE about as well as all, FFN a bit better, MoE "
        "much worse",
    )
    yield figure(
        6,
        "Means of table 20 over all but one of its factors",
        ("Dense", "Sparse"),
        "\n".join(_marginals()),
        origin=f"{READ}: computed from the cells of table 20",
        reading="each is a mean of six runs, as the caption says; the bars themselves are not "
        "labelled",
    )


def _marginals() -> Iterator[str]:
    for title, of in (
        ("learning rate", lambda s: _RATES[s.learning_rate]),
        ("batch", lambda s: _BATCHES[s.tokens]),
    ):
        for value in dict.fromkeys(map(of, SETTINGS)):
            chosen = [setting for setting in SETTINGS if of(setting) == value]
            dense = statistics.mean(setting.dense for setting in chosen)
            sparse = statistics.mean(setting.sparse for setting in chosen)
            yield f"{title} {value} | {dense:.2f} | {sparse:.2f}"
