"""What an evaluation says: names of metric files, a phrase and rows."""

from vitattn import config as config_lib
from vitattn.classification.evaluation import MEASURED, Evaluation


def test_an_evaluation_is_flattened_to_the_names_of_metric_files():
    result = Evaluation(loss=0.25, top1=0.5, top5=0.75, examples=1234)
    assert list(result.flat().items()) == [
        ("loss", 0.25),
        ("top1", 0.5),
        ("top5", 0.75),
        ("examples", 1234),
    ]
    assert set(MEASURED) == set(result.flat()) - {"examples"}
    assert result.phrase() == "top-1 50.00 %, top-5 75.00 %, loss 0.2500 on 1,234 images"
    assert ("evaluated on", "1,234 images (test split)") in result.rows(config_lib.default_config())
