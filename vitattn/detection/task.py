"""Detection as a task: boxes with a class. See `vitattn.task.Task`."""

from vitattn.detection.answers.pictures import open_pictures
from vitattn.detection.answers.prediction import (
    answer,
    as_lines,
    as_record,
    caption,
    finish,
    make_predict,
    serving,
)
from vitattn.detection.answers.sample import sample
from vitattn.detection.check import check_data
from vitattn.detection.data.catalog import make_source, statistics
from vitattn.detection.evaluation.evaluation import MEASURED, WRITES_PREDICTIONS, over_split
from vitattn.detection.input.pipeline import image_batches
from vitattn.detection.input.splits import open_evaluation, open_training, train_batches
from vitattn.detection.objective.objective import (
    abstract_batch,
    fields,
    make_evaluate,
    make_loss,
)
from vitattn.detection.settings import check, settings

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
