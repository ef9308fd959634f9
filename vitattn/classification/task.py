"""Classification as a task: one class for each image. See `vitattn.task.Task`."""

from vitattn.classification.checks import check_data
from vitattn.classification.evaluation import MEASURED, WRITES_PREDICTIONS, over_split
from vitattn.classification.objective import abstract_batch, fields, make_evaluate, make_loss
from vitattn.classification.prediction import (
    answer,
    as_lines,
    as_record,
    caption,
    finish,
    make_predict,
    open_pictures,
    sample,
    serving,
)
from vitattn.classification.settings import check, settings
from vitattn.classification.splits import (
    image_batches,
    open_evaluation,
    open_training,
    train_batches,
)
from vitattn.data import make_source
from vitattn.data.catalog import statistics

__all__ = [
    "MEASURED",
    "WRITES_PREDICTIONS",
    "abstract_batch",
    "answer",
    "as_lines",
    "as_record",
    "caption",
    "check",
    "check_data",
    "fields",
    "finish",
    "image_batches",
    "make_evaluate",
    "make_loss",
    "make_predict",
    "make_source",
    "open_evaluation",
    "open_pictures",
    "open_training",
    "over_split",
    "sample",
    "serving",
    "settings",
    "statistics",
    "train_batches",
]
