"""What one evaluation measured, as values, and how files, lines and tables show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from moe.eval.measured import Predicted, Routers, Rows
from moe.eval.scores import Scores

PART = "part/"  # prefix of what is measured of the parts of a mixture: part/SOURCE/NAME
TOKENS, UNIGRAM = "tokens", "unigram_entropy"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation on the held-out split, and on the tasks of a fine-tuning run.

    Attributes:
      whole: over the split; of a mixture, means over its parts, weighted by its rates as its
        unigram entropy is.
      parts: of a mixture, source -> the same over this part.
      routers: weighted as `whole`.
      unigram: entropy of the target tokens without context, in nats.
      scores: of the tasks; none while pre-training.
    """

    whole: Predicted
    parts: Mapping[str, Predicted]
    routers: Routers
    unigram: float
    scores: Scores = dataclasses.field(default_factory=Scores)

    def flat(self) -> dict[str, float]:
        """The figures of the whole model, as `metrics.jsonl` and checkpoints name them. Single
        routers are in the training lines of every step, constants in the summary.
        """
        figures = dict(sorted(self.whole.flat().items()))
        for source, part in self.parts.items():
            figures |= {f"{PART}{source}/{name}": value for name, value in part.flat().items()}
        return figures | self.scores.flat()

    def everything(self) -> dict[str, float]:
        """All that was measured, as the summary of a run names it."""
        values = dict(sorted(self.whole.flat().items()))
        for of_blocks in dict(sorted(self.routers.flat().items())).values():
            values |= of_blocks
        values[TOKENS] = self.whole.tokens
        for source, part in self.parts.items():
            figures = part.flat() | {TOKENS: part.tokens}
            values |= {f"{PART}{source}/{name}": value for name, value in figures.items()}
        return values | {UNIGRAM: self.unigram} | self.scores.flat()

    def phrase(self) -> str:
        """The evaluation on one line."""
        whole = self.whole
        return (
            f"cross-entropy {whole.cross_entropy:.4f} (unigram {self.unigram:.4f}), "
            f"accuracy {100 * whole.accuracy:.2f} % on {whole.tokens:,} tokens"
            f"{self.scores.phrase()}"
        )

    def rows(self, config: ConfigDict) -> Rows:
        """The evaluation as rows of a table: the whole, its parts, tasks, routers."""
        whole, difference = self.whole, self.whole.cross_entropy - self.unigram
        side = "below" if difference <= 0 else "above: context was not used yet"
        return [
            (
                "cross-entropy",
                f"{whole.cross_entropy:.4f} nats a token on {whole.tokens:,} tokens",
            ),
            (
                "unigram entropy",
                f"{self.unigram:.4f} nats; cross-entropy is {abs(difference):.4f} {side}",
            ),
            ("token accuracy", f"{100 * whole.accuracy:.2f} %"),
            *((source, _part_row(part)) for source, part in self.parts.items()),
            *self.scores.rows(config),
            *self.routers.rows(),
        ]


def _part_row(part: Predicted) -> str:
    return (
        f"cross-entropy {part.cross_entropy:.4f}, accuracy {100 * part.accuracy:.2f} % on "
        f"{part.tokens:,} tokens"
    )
