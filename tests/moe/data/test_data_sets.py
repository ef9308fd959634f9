"""The table of data sets: what follows from it, and names of caches that have to stay."""

from __future__ import annotations

import pytest

from moe.data import data_defaults, make_source, make_vocabulary
from moe.data.cache_paths import cache_directory
from moe.data.data_sets import KINDS, kind_of, usage
from trainlib.errors import ConfigError


def test_each_row_says_how_it_is_asked_for():
    named = [form.partition(":")[0] for form in usage().split(", ")]
    assert named == [*KINDS, "module"]  # and those of users
    for name, kind in KINDS.items():
        assert kind_of(kind.usage) is kind_of(name) is kind
    assert kind_of("mixture") is None


def test_help_and_errors_name_all_rows(data_config):
    _, meaning = data_defaults()["source"][:2]
    assert usage() in meaning
    with pytest.raises(ConfigError, match="Did you mean 'jsonl'") as refused:
        make_source(data_config(source="json:x"), "train")
    assert usage() in str(refused.value)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_argument_is_there_where_it_is_needed_and_nowhere_else(data_config, name):
    takes = KINDS[name].takes_argument
    source, wanted = (name, "a path or name") if takes else (f"{name}:x", "nothing")
    refusal = f"'{name}' takes {wanted} after a colon"
    if KINDS[name].parts is not None:  # the list of tasks says more
        example = r"\*" if name == "pairs" else "superglue"
        refusal = f"'{name}' names no task: {name}:{example}"
    with pytest.raises(ConfigError, match=refusal):
        make_source(data_config(source=source), "train")


@pytest.mark.parametrize(
    ("source", "split", "name"),
    [
        ("c4", "train", "c4-train-120d4831ae27"),
        ("c4", "holdout", "c4-holdout-28c92fe72f36"),
        ("tfds:wiki40b/en:1.3.0", "train", "tfds_wiki40b_en_1.3.0-train-cc092717661f"),
        ("tfds:wiki40b/en:1.3.0", "holdout", "tfds_wiki40b_en_1.3.0-holdout-3b30877816c6"),
        ("seqio:mine", "holdout", "seqio_mine-holdout-8c1cebbc7ab4"),
        ("task:cb", "train", "task_cb-train-71bbb7c1b155"),
        ("sample:cb", "train", "sample_cb-train-137990361488"),
    ],
)
def test_a_cache_that_was_prepared_before_stays_valid(data_config, source, split, name):
    """Its name is a digest of what decides its content; these are those of format 3."""
    config = data_config(source=source)
    assert cache_directory(config, source, split, make_vocabulary(config)).name == name
