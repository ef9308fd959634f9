"""Scores of free text by the words that it shares with what is right, in percent: ROUGE by the
package rouge-score and BLEU by sacrebleu, both of the extra [text].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from moe.eval.text_match import percent
from trainlib import commands
from trainlib.errors import ConfigError

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2, -L and -Lsum, without stemming, as T5 reports them; of
    several references the best of each kind counts.

    For Lsum, sentences are the lines of a text, and " . " ends one.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise _missing("rouge", "rouge-score") from None
    scorer = rouge_scorer.RougeScorer(list(KINDS))
    scores = [
        scorer.score_multi(list(map(_lines, texts)), _lines(prediction))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {kind: percent([score[kind].fmeasure for score in scores]) for kind in KINDS}


def _lines(text: str) -> str:
    return text.replace(" . ", " .\n")


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a whole set (Papineni et al. 2002) as sacrebleu computes it by default: up to four
    words, its tokeniser 13a, exponential smoothing (arXiv 1804.08771). Each text may have another
    number of references.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        import sacrebleu  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise _missing("bleu", "sacrebleu") from None
    # The library takes the first references of all texts, then the second ones, and so on.
    columns = [list(column) for column in itertools.zip_longest(*references)]
    return sacrebleu.corpus_bleu(list(predictions), columns).score


def _missing(metric: str, package: str) -> ConfigError:
    return ConfigError(
        f"The metric {metric} is computed by the package {package}, which is not installed: "
        f"{commands.install('text')} or pip install {package}."
    )
