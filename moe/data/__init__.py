"""Text for pre-training and fine-tuning: data sets, token caches, sources, batches.

A value of `data.source` becomes a reader (`moe.text`, `moe.tasks`) by the table in `data_sets`, its
tokens a cache (`cache`), the cache a source of records (`sources`), and these batches (`pipeline`).
"""

from moe.data.catalog import evaluates, make_source
from moe.data.options import data_defaults
from moe.data.pipeline import eval_batches, train_batches
from moe.data.sources.source import Source, unigram_entropy
from moe.text.vocabulary import Vocabulary, check_vocabulary, make_vocabulary

__all__ = [
    "Source",
    "Vocabulary",
    "check_vocabulary",
    "data_defaults",
    "eval_batches",
    "evaluates",
    "make_source",
    "make_vocabulary",
    "train_batches",
    "unigram_entropy",
]
