"""`vitattn.create_model` and the configurations build the same networks."""

import dataclasses

import pytest

import configs
import vitattn
from configs.common import load
from tests.configs.test_vision import EXPECTED
from trainlib.model.weights import abstract
from vitattn.models import configure, named

SHIPPED = [
    path.stem
    for path in load.shipped()
    if load.load_module(path).get_config("").family == "vitattn"
]


def test_every_shipped_vision_configuration_is_a_name_and_every_name_is_shipped():
    assert set(vitattn.list_models()) == set(SHIPPED)


@pytest.mark.parametrize("name", vitattn.list_models())
def test_a_name_builds_what_the_configuration_trains(name):
    section = configs.load(name).model
    ours = configure(named.section(name))
    assert type(ours) is type(configure(section))
    assert dataclasses.asdict(ours) == dataclasses.asdict(configure(section))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_has_the_published_number_of_parameters(name):
    assert abstract(vitattn.create_model(name, rngs=None)).param_count == EXPECTED[name]
