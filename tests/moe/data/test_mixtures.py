"""Pre-training text that is mixed into fine-tuning tasks (ST-MoE, appendix J)."""

import numpy as np
import pytest

from moe.data import make_source
from moe.data.mixtures import parts_of, shared
from moe.data.sources.packing import fill_batch
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError

LENGTHS = {"encoder_length": 512, "decoder_length": 114}


@pytest.fixture
def text(tmp_path):
    """A folder of text, all of it to train on."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return f"text:{tmp_path / 'text'}"


@pytest.mark.parametrize("share", [pytest.param(0.01, marks=pytest.mark.thorough), 0.25])
def test_a_share_of_the_rows_is_text_and_the_tasks_keep_their_proportions(data_config, text, share):
    """Exactly in the 65,536 rows of a cycle; the text has spans replaced by sentinels."""
    tasks = {"source": "sample:boolq,copa", "holdout": 0.0, **LENGTHS}
    alone = make_source(data_config(**tasks), "train")
    config = data_config(**tasks, pretraining_source=text, pretraining_share=share)
    mixed = make_source(config, "train")
    rates = [rate for _, rate in alone.parts()]
    np.testing.assert_allclose(
        [rate for _, rate in mixed.parts()], [*((1 - share) * r for r in rates), share]
    )
    epochs, records = mixed.locate(np.arange(1 << 16), seed=3)
    of_text = records >= len(alone)
    assert abs(int(of_text.sum()) - share * (1 << 16)) < 1
    first = np.flatnonzero(of_text)[:4]
    rows = mixed.read(records[first], epochs[first], 3)
    batch = fill_batch(rows, *LENGTHS.values(), mixed.ends)
    sentinels = mixed.vocabulary.size - 100
    for side in ("encoder_inputs", "decoder_targets"):
        assert (batch[side] >= sentinels).sum(1).min() > 1, side
    assert (batch["decoder_targets"] == EOS).any(1).all()
    assert mixed.digest != alone.digest
    assert mixed.notes[
        -1
    ] == f"mixed in: {share:.0%} of the rows are of {text}, as in pre-training".replace("%", " %")
    # Of the text nothing is held out, and evaluation is that of the tasks.
    assert (
        make_source(config, "holdout").digest == make_source(data_config(**tasks), "holdout").digest
    )


def test_shares_of_sources():
    config = {"pretraining_source": "c4", "pretraining_share": 0.2}

    class Data:
        pretraining_source, pretraining_share = config.values()

    assert shared(Data, ["a", "b", "c4"], [3.0, 1.0, 1e6]) == pytest.approx([0.6, 0.2, 0.2])
    assert shared(Data, ["a", "b"], [3.0, 1.0]) == pytest.approx([0.6, 0.2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pretraining_source": "pydoc"}, "share=0 belong together"),
        ({"pretraining_share": 0.1}, "source='' and data.pretraining_share=0.1 belong"),
        (
            {"source": "pydoc", "pretraining_source": "c4", "pretraining_share": 0.1},
            "source='pydoc' names none",
        ),
        (
            {"pretraining_source": "sample:boolq", "pretraining_share": 0.1},
            "'sample:boolq' is not one source of running text",
        ),
        (
            {"pretraining_source": "mixture:st_moe_32b", "pretraining_share": 0.1},
            "'mixture:st_moe_32b' is not one source",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(data_config, settings, words):
    with pytest.raises(ConfigError, match=words):
        parts_of(data_config(**{"source": "sample:copa"} | settings))
