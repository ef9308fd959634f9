"""Data sets of images: what can be read, its splits, and batches. The order of records is defined
in `trainlib.data.order`."""

from vitattn.data.catalog import check_classes, make_source
from vitattn.data.options import data_defaults
from vitattn.data.pipeline import check_settings, eval_batches, train_batches
from vitattn.data.source import Arrays, Example, Kind, Source, argument_of, hold_out

__all__ = [
    "Arrays",
    "Example",
    "Kind",
    "Source",
    "argument_of",
    "check_classes",
    "check_settings",
    "data_defaults",
    "eval_batches",
    "hold_out",
    "make_source",
    "train_batches",
]
