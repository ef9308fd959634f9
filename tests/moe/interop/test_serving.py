"""The model behind an exported program: an answer does not depend on who shares the batch."""

from __future__ import annotations

import dataclasses

import pytest

from moe import interop
from moe.models import architecture
from moe.models.transformer import Transformer
from moe.routing.config import capacity, tokens_per_group
from tests.moe.interop import models
from trainlib.formats import stablehlo
from trainlib.model import weights as nn


@pytest.mark.parametrize("dispatch", ["index", "dropless"])
def test_each_row_is_a_group(dispatch):
    config = models.config("st_moe")
    routing = dict(config.routing.items()) | {"group_sequences": 4, "dispatch": dispatch}
    model = architecture(config.model, routing)
    served = interop.serving_model(model)
    for sequences in (1, 3, 8):
        assert tokens_per_group(served.routing, sequences, models.LENGTH) == models.LENGTH
    rows = capacity(served.routing, models.LENGTH, train=False)
    # 0.75 * 24 / 4 = 4.5 rows of each expert; without a limit, room for all 24 tokens
    assert rows == (4 if dispatch == "index" else 24)
    assert not served.routing.dropless


def test_a_dense_model_stays_as_it_is():
    model = architecture(models.config("t5").model, {"num_experts": 0})
    assert interop.serving_model(model) == dataclasses.replace(model, remat="none")


def test_inputs_are_those_of_its_stacks():
    _, inputs, facts = interop.serving(models.config("st_moe"))
    shape = ("batch", models.LENGTH)
    names = [
        f"{stack}_{part}" for stack in ("encoder", "decoder") for part in ("inputs", "segments")
    ]
    assert inputs == dict.fromkeys(names, (shape, "int32"))
    assert "segments" in facts


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["t5", "st_moe"])
def test_a_program_takes_any_number_of_rows(kind):
    """Forms that are chosen by size have to choose without the size of the batch."""
    config = models.config(kind)
    forward, inputs, _ = interop.serving(config)
    abstract = nn.abstract(Transformer(architecture(config.model, config.routing)))
    _, signature = stablehlo.program(
        forward,
        abstract,
        inputs,
        dtypes=dict.fromkeys(abstract.params, "float32"),
        platforms=("cpu",),
        batch=0,
    )
    assert {str(given["shape"][0]) for given in signature["inputs"].values()} == {"batch"}
