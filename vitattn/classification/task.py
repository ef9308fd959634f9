"""Classification as a task: one class for each image. See `vitattn.task.Task`."""

from vitattn.classification.evaluation import MEASURED, over_split
from vitattn.classification.objective import abstract_batch, fields, make_evaluate, make_loss
from vitattn.classification.prediction import as_lines, as_record, caption, predict
from vitattn.classification.splits import open_evaluation, open_training, train_batches

__all__ = [
    "MEASURED",
    "abstract_batch",
    "as_lines",
    "as_record",
    "caption",
    "fields",
    "make_evaluate",
    "make_loss",
    "open_evaluation",
    "open_training",
    "over_split",
    "predict",
    "train_batches",
]
