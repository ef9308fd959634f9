"""What a language model expects at a few places of held-out texts, beside what stands there.

A decoder alone is not decoded here (`moe.decoding`), so that it is asked as an evaluation asks it:
each place sees the true text before it.

Letters: B sequences of a batch, L length, P places of each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe.data.sources.packing import batch_fields, fill_batch
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.samples import held_out
from moe.samples.held_out import HeldOut
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.errors import NumericAbort
from trainlib.model.weights import Arrays
from trainlib.report.samples import Compared, Sample
from trainlib.step import step
from trainlib.step.plan import Plan
from trainlib.step.step import Batch

_PLACES = 8  # of a text
_BEFORE = 40  # letters of the text before a place that are shown beside it


class Asked:
    """Held-out texts that are asked about; arguments and errors as `moe.samples.gaps.Asked`."""

    def __init__(self, plan: Plan[Architecture], count: int):
        self.plan, self.config = plan, plan.config
        self.source = held_out.open_held_out(plan.config, plan.model.vocab_size)
        size = plan.config.eval_batch_size or plan.config.batch_size
        self.examples = held_out.examples(self.source, min(count, size))
        # The batch of an evaluation, whose groups of tokens the router knows.
        records = [[(one.inputs, one.targets)] for one in self.examples]
        records += [[] for _ in range(size - len(records))]
        lengths = plan.config.data.encoder_length, plan.config.data.decoder_length
        batch = fill_batch(records, *lengths, self.source.ends)
        self.batch = {name: batch[name] for name in batch_fields(plan.model.kind)}
        self.batch["places"] = np.zeros((size, _PLACES), np.int32)
        for row, one in enumerate(self.examples):
            self.batch["places"][row] = places(len(one.targets))

    def answered(self, weights: Arrays) -> tuple[list[Sample], str]:
        """The samples, and a sentence on them.

        Raises:
          NumericAbort: the model gives NaN.
        """
        compiled = step.compile_eval(self._expected, self.plan)
        batch = step.put_batch(self.batch, self.plan.batch_sharding)
        expected = jax.device_get(compiled(*self.plan.abstract.split(weights), batch))
        if not np.isfinite(expected["truth"]).all():
            raise NumericAbort(
                "The model gives NaN for the probability of a word: its weights are damaged, or "
                "too large for model.dtype. Take an earlier checkpoint."
            )
        samples = [
            sample(
                one,
                self.batch["places"][row],
                {name: values[row] for name, values in expected.items()},
                self.source.vocabulary,
            )
            for row, one in enumerate(self.examples)
        ]
        right = [row.right for one in samples for row in one.compared]
        about = held_out.about(self.source, self.config, len(samples))
        return samples, (
            f"{about}; at {sum(map(bool, right))} of {len(right)} places the likeliest word is the "
            "true one."
        )

    def _expected(self, params: Arrays, model_state: Arrays, batch: Batch) -> dict[str, jax.Array]:
        """`words` int32 [B, P], the likeliest; `best` and `truth` float32 [B, P], the probabilities
        of these and of the true ones.
        """
        model = self.plan.abstract.bind(params, model_state)
        assert isinstance(model, Transformer)
        hidden, _ = model.hidden(batch, train=False)
        at = jnp.take_along_axis(hidden, batch["places"][..., None], 1)  # [B, P, D]
        targets = jnp.take_along_axis(batch["decoder_targets"], batch["places"], 1)
        chances = jax.nn.softmax(model.logits(at))  # [B, P, V]
        truth = jnp.take_along_axis(chances, targets[..., None], -1)[..., 0]
        return {"words": jnp.argmax(chances, -1), "best": jnp.max(chances, -1), "truth": truth}


def places(length: int) -> np.ndarray:
    """int32 [P]: places at equal distances in a text of `length` tokens, the last of them its last;
    fewer tokens than places are named more than once.
    """
    return (np.arange(1, _PLACES + 1) * length // _PLACES - 1).clip(0).astype(np.int32)


def sample(
    example: HeldOut, at: np.ndarray, expected: dict[str, np.ndarray], vocabulary: Vocabulary
) -> Sample:
    """One text, and what is expected at its places.

    Args:
      example: the text.
      at: int32 [P].
      expected: `words`, `best` and `truth`, [P] each.
      vocabulary: of all of them.
    """
    rows = []
    for place in np.unique(at):
        number = int(np.flatnonzero(at == place)[0])
        true, said = example.targets[place], expected["words"][number]
        before = vocabulary.decode(example.targets[:place])[-_BEFORE:].replace("\n", "↵")
        rows.append(
            Compared(
                f"after “{before}”",
                f"{_word(true, vocabulary)} ({100 * expected['truth'][number]:.3g} %)",
                f"{_word(said, vocabulary)} ({100 * expected['best'][number]:.3g} %)",
                bool(true == said),
            )
        )
    text = (("text", vocabulary.decode(example.targets)),)
    return Sample(example.title, fields=text, compared=tuple(rows))


def _word(number: np.ndarray, vocabulary: Vocabulary) -> str:
    """One token as people can read it: a byte may be a part of a letter."""
    if number == EOS:
        return "(end)"
    return held_out.piece(vocabulary, np.asarray([number])) or f"token {number}"
