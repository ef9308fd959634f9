"""A configuration that takes the model of the run that it starts from, ours or an import."""

from __future__ import annotations

import pytest

import configs
from configs.common import load
from moe import interop
from tests.moe.interop import models
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.config import origin_of
from trainlib.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: a workdir of one of the models of the tests of interchange, without steps."""
    root = tmp_path_factory.mktemp("runs")

    def make(name, **values):
        made = models.config(name)
        made.model.update(values)
        models.workdir(made, root / name)
        return root / name

    return make


def test_model_routers_and_vocabulary_are_those_of_the_run(saved):
    directory = saved("switch", vocab_size=384)
    plain = configs.load("finetune_pairs")
    config = configs.load("finetune_pairs", init_from=str(directory), **{"model.dropout": 0.0})
    theirs = models.config("switch")
    assert config.model.d_model == theirs.model.d_model != plain.model.d_model
    assert (config.model.vocab_size, config.routing.top_k) == (384, 1)
    assert config.model.remat == plain.model.remat
    assert config.model.dropout == 0.0
    assert config.schedule == plain.schedule
    assert origin_of(config)["model.d_model"] == "init_from"
    assert origin_of(config)["model.dropout"] == load.CALL
    # All of its weights fit.
    stored = Checkpoints(directory / "checkpoints").shapes(0)
    made = interop.abstract(config).params
    assert {n: stored[f"params/{n}"].shape for n in made} == {n: w.shape for n, w in made.items()}
    assert sum(name.startswith("params/") for name in stored) == len(made)


def test_what_is_set_by_hand_stays(saved):
    directory = saved("t5", vocab_size=384)
    flags = {"init_from": str(directory / "checkpoints"), "model.d_model": "64"}
    config = load.from_flags("finetune_pairs", flags).config
    assert config.model.d_model == 64
    assert config.model.num_heads == models.SIZES["num_heads"]
    # Other configurations have the model that they name.
    assert configs.load("st_moe_tiny", init_from=str(directory)).model.d_model == 128


def test_an_import_with_many_ids_is_asked_for_its_vocabulary(saved):
    directory = str(saved("t5_tied_relu", vocab_size=1100))
    with pytest.raises(ConfigError, match=r"1,100 ids.*data\.vocabulary=sentencepiece:FILE"):
        configs.load("finetune_pairs", init_from=directory)
    config = configs.load("finetune_pairs", init_from=directory, **{"data.vocabulary": "bytes"})
    assert config.model.vocab_size == 1100


def test_a_run_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        configs.load("finetune_pairs", init_from=str(tmp_path))
