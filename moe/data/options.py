"""Every key of the `data` part of a text configuration: its default, its meaning, what it takes."""

from __future__ import annotations

from typing import Any

from moe.data.data_sets import usage
from moe.data.denoisers.ul2 import MODE_TOKENS
from moe.data.mixtures import MIXTURES
from trainlib.keys import choice, either, key, many, number, pair, switch, text, whole

OBJECTIVES = ("span_corruption", "prefix_lm", "ul2", "language_model")


def data_defaults() -> dict[str, tuple[Any, str]]:
    """Returns {key: (default, one-line meaning)}, with what each takes; lengths and noise are those
    of the paper.
    """
    part = pair(text(1), either(number(above=0), text(1)))
    return {
        "source": key(
            "pydoc",
            f"what is read: {usage()} (task: and sample: are fine-tuning tasks, pairs:* all tasks "
            "of one's own in data.train); mixture, "
            f"{', '.join(f'mixture:{name}' for name in MIXTURES)}",
            text(1),
        ),
        "parts": key(
            (),
            "of a mixture: (source, rate) pairs; of a named mixture: (part, source) pairs",
            many(part),
        ),
        "pretraining_source": key(
            "",
            "of tasks: running text that is mixed into fine-tuning, a data.source that is no "
            "mixture; '' = none (ST-MoE, appendix J, found no gain)",
            text(),
        ),
        "pretraining_share": key(
            0.0,
            "share of the rows of fine-tuning that are of data.pretraining_source; the paper tried "
            "0.01, 0.05 and 0.25",
            number(0, below=1),
        ),
        "train": key("", "of pairs: file of rows with inputs and targets", text()),
        "validation": key(
            "", "of pairs: file of the rows that are scored; '' holds data.holdout out", text()
        ),
        "test": key("", "of pairs: file of the rows of evaluation.split=test", text()),
        "dir": key(
            "",
            "TFDS data directory, or of task: the parent of the published folders; empty is TFDS's "
            "own ~/tensorflow_datasets",
            text(),
        ),
        "cache": key(
            "", "where tokenised data is kept; empty is ~/.cache/vitattn-moe/text", text()
        ),
        "vocabulary": key(
            "bytes", "bytes, or sentencepiece:FILE for a SentencePiece model", text(1)
        ),
        "extra_ids": key(
            100,
            "sentinels at the top of the vocabulary, added unless a SentencePiece model has them "
            "already (<extra_id_0>, as mT5's does)",
            whole(0, 1_000_000),
        ),
        "text_feature": key(
            "text", "field of a jsonl line or TFDS example that holds the text", text(1, 200)
        ),
        "inputs_feature": key(
            "", "field with the encoder's text; '' means there is text only", text(0, 200)
        ),
        "holdout": key(
            0.01,
            "fraction of the documents of text:, jsonl: and brown:, and of the rows of pairs "
            "without data.validation, kept out of training",
            number(0, below=1),
        ),
        "eval_split": key(
            "validation", "held-out split of c4, tfds: and seqio: sources", text(1, 200)
        ),
        "encoder_length": key(512, "tokens of one encoder row", whole(2, 2**24)),
        "decoder_length": key(114, "tokens of one decoder row", whole(2, 2**24)),
        "sentinels": key(
            0, "of tasks: sentinels that end the inputs and begin the targets", whole(0, 1_000_000)
        ),
        "objective": key(
            "span_corruption",
            "what is learned of running text: span_corruption, prefix_lm (how a text goes on) or "
            "ul2 (seven denoisers) in an encoder-decoder, language_model in model.kind=decoder: "
            "the next token, documents joined with an end of sequence each",
            choice(*OBJECTIVES),
        ),
        "mode_tokens": key(
            "words",
            "of ul2: what tells the encoder the kind of a text: words ([NLU], [S2S] and [NLG] in "
            "the vocabulary's own pieces), ids (one each, of the lowest sentinels) or none",
            choice(*MODE_TOKENS),
        ),
        "noise_density": key(
            0.15, "fraction of the tokens that span corruption hides", number(above=0, below=1)
        ),
        "mean_span": key(3.0, "mean length of a hidden span, in tokens", number(1, 1e6)),
        "merge_documents": key(
            True,
            "join documents end to end before cutting them into rows, as the published objective",
            switch(),
        ),
        "pack": key(
            True,
            "put several pairs, documents with merge_documents=False, or the two windows of a "
            "prefix language model in one row, in segments of their own",
            switch(),
        ),
        "workers": key(
            -1,
            "processes that make batches; 0 none, -1 one for each CPU core",
            whole(0, 1024, also={-1: "one for each CPU core"}),
        ),
        "prefetch": key(2, "batches made ahead of their use", whole(1, 10_000)),
        "max_bad_fraction": key(
            0.001,
            "the run stops when more of the records than this are unusable (a few are let through)",
            number(0, 1),
        ),
    }
