"""What a resumed run may change."""

import pytest

from trainlib.config import COMMON, from_schema, override
from trainlib.errors import ConfigError
from trainlib.run.resume import check_resume, checkpoint_meta


@pytest.fixture
def config():
    return from_schema(COMMON)


def test_a_resumed_run_may_change_lengths_but_not_meanings(config):
    position = {"next_batch": 5, "records": 10, "digest": "x", "batch_size": 128, "seed": 0}
    meta = checkpoint_meta(config, position)
    override(config, "steps", 2000, "test")
    changed = check_resume(meta, config, ("seed", "mesh."), position | {"digest": "y"})
    assert changed[0] == "steps: 1000 -> 2000"
    assert "data set" in changed[1]
    override(config, "mesh.data", 4, "test")
    with pytest.raises(ConfigError, match=r"mesh\.data: -1 -> 4"):
        check_resume(meta, config, ("seed", "mesh."), position)


def test_a_run_from_before_a_key_was_there_goes_on(config):
    position = {"next_batch": 5, "records": 10, "digest": "x", "batch_size": 128, "seed": 0}
    meta = checkpoint_meta(config, position)
    del meta["config"]["mesh.data"]
    changed = check_resume(meta, config, ("mesh.",), position)
    assert changed == ["mesh.data: None -> -1"]


def test_a_run_from_before_keys_were_renamed_is_refused(config):
    position = {"next_batch": 5, "records": 10, "digest": "x", "batch_size": 128, "seed": 0}
    meta = checkpoint_meta(config, position)
    meta["config"]["model.head_width"] = 64
    with pytest.raises(ConfigError, match=r"earlier version: its model\.head_width .*CHANGELOG"):
        check_resume(meta, config, ("seed",), position)
