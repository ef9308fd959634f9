"""Every key of the `data` part of a text configuration, with its default and its meaning."""

from __future__ import annotations

from typing import Any


def data_defaults() -> dict[str, tuple[Any, str]]:
    """Returns {key: (default, one-line meaning)}; lengths and noise are those of the paper."""
    return {
        "source": (
            "pydoc",
            "what is read: pydoc, text:FOLDER, jsonl:PATH, c4, tfds:NAME:VERSION, seqio:TASK, "
            "mixture, mixture:st_moe_32b, or fine-tuning tasks: task:NAMES, sample:NAMES",
        ),
        "parts": (
            (),
            "of a mixture: (source, rate) pairs; of a named mixture: (part, source) pairs",
        ),
        "dir": (
            "",
            "TFDS data directory, or of task: the parent of the published folders; empty is TFDS's "
            "own ~/tensorflow_datasets",
        ),
        "cache": ("", "where tokenised data is kept; empty is ~/.cache/vitattn-moe/text"),
        "vocabulary": ("bytes", "bytes, or sentencepiece:FILE for a SentencePiece model"),
        "extra_ids": (100, "sentinels added at the top of the vocabulary"),
        "text_feature": ("text", "field of a jsonl line or TFDS example that holds the text"),
        "inputs_feature": ("", "field with the encoder's text; '' means there is text only"),
        "holdout": (0.01, "fraction of the documents of text: and jsonl: kept out of training"),
        "eval_split": ("validation", "held-out split of c4, tfds: and seqio: sources"),
        "encoder_length": (512, "tokens of one encoder row"),
        "decoder_length": (114, "tokens of one decoder row"),
        "sentinels": (0, "of tasks: sentinels that end the inputs and begin the targets"),
        "objective": (
            "span_corruption",
            "what is learned of running text: span_corruption (encoder-decoder), or language_model "
            "(model.kind=decoder): the next token, documents joined with an end of sequence each",
        ),
        "noise_density": (0.15, "fraction of the tokens that span corruption hides"),
        "mean_span": (3.0, "mean length of a hidden span, in tokens"),
        "merge_documents": (
            True,
            "join documents end to end before cutting them into rows, as the published objective",
        ),
        "pack": (True, "put several short examples in one row, in segments of their own"),
        "workers": (-1, "processes that make batches; 0 none, -1 one for each CPU core"),
        "prefetch": (2, "batches made ahead of their use"),
        "max_bad_fraction": (
            0.001,
            "the run stops when more of the records than this are unusable (a few are let through)",
        ),
    }
