"""Images for classification: sources, augmentation, batches. `facts` about order are in
`trainlib.data.batches`."""

from vitattn.data.options import data_defaults
from vitattn.data.pipeline import check_settings, eval_batches, train_batches
from vitattn.data.source import Example, Source, check_classes, make_source

__all__ = [
    "Example",
    "Source",
    "check_classes",
    "check_settings",
    "data_defaults",
    "eval_batches",
    "make_source",
    "train_batches",
]
