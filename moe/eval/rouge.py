"""ROUGE of summaries, by the package rouge-score (of the extra [text]), in percent."""

from __future__ import annotations

from collections.abc import Sequence

from moe.eval.text_match import percent
from trainlib import commands
from trainlib.errors import ConfigError

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], summaries: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2, -L and -Lsum, without stemming, as T5 reports them.

    For Lsum, sentences are the lines of a text, and " . " ends one.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise ConfigError(
            "Summaries are scored by the package rouge-score, which is not installed: "
            f"{commands.install('text')} or pip install rouge-score."
        ) from None
    scorer = rouge_scorer.RougeScorer(list(KINDS))
    scores = [
        scorer.score(_lines(summary), _lines(prediction))
        for prediction, summary in zip(predictions, summaries, strict=True)
    ]
    return {kind: percent([score[kind].fmeasure for score in scores]) for kind in KINDS}


def _lines(text: str) -> str:
    return text.replace(" . ", " .\n")
