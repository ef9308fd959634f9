"""The fine-tuning tasks as seqio Tasks. Needs the extra [text], TensorFlow included."""

import pytest

seqio = pytest.importorskip("seqio", reason="needs seqio and TensorFlow, extra [text]")

from moe.data import make_vocabulary  # noqa: E402
from moe.eval import seqio_export as seqio_benchmarks  # noqa: E402
from moe.tasks import records, task_reader  # noqa: E402

LENGTHS = {"inputs": 256, "targets": 32}


def test_a_task_yields_the_same_ids_and_scores(data_config):
    config = data_config()
    vocabulary = make_vocabulary(config)
    source, mixture = "sample:boolq,record,axb", "samples"
    names = seqio_benchmarks.register(config, source, vocabulary, mixture)
    assert names == ["st_moe_boolq", "st_moe_record", "st_moe_axb"]
    assert seqio_benchmarks.register(config, source, vocabulary, mixture) == names  # again: nothing

    task = seqio.get_mixture_or_task("st_moe_boolq")
    found = list(task.get_dataset(LENGTHS, "validation", shuffle=False).as_numpy_iterator())
    asked = records.load(config, "sample:boolq", "validation")
    assert len(found) == len(asked) == 5
    for theirs, ours in zip(found, asked, strict=True):
        inputs, targets = task_reader.encode(ours.inputs, ours.targets[0], vocabulary, 256, 0)
        assert theirs["inputs"].tolist() == [*inputs.tolist(), 1]
        assert theirs["targets"].tolist() == [*targets.tolist(), 1]
    wanted = [task.postprocess_fn("x", example=e, is_target=True) for e in found]
    answers = [task.postprocess_fn(e.targets[0], example=None, is_target=False) for e in asked]
    assert task.metric_fns[0](wanted, answers) == {"accuracy": 100.0}
    assert task.metric_fns[0](wanted[:2], [answers[0], "no word"]) == {"accuracy": 50.0}


def test_a_mixture_takes_tasks_by_size_and_leaves_out_what_has_no_training_split(data_config):
    config = data_config()
    seqio_benchmarks.register(config, "sample:copa,record,axb", make_vocabulary(config), "sizes")
    found = seqio.get_mixture_or_task("sizes")
    # ReCoRD: 16 queries, one of them with two accepted answers, each a row.
    assert {t.name: found.get_rate(t) for t in found.tasks} == {
        "st_moe_copa": 17,
        "st_moe_record": 17,
    }
