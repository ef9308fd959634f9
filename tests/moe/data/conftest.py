"""A text configuration whose cache lies in the test's own directory."""

import pytest
from ml_collections import ConfigDict

from moe.data import data_defaults


@pytest.fixture
def data_config(tmp_path):
    """Returns a function that makes the `data` part of a configuration from some settings."""

    def make(**settings):
        defaults = {key: default for key, (default, _) in data_defaults().items()}
        unknown = set(settings) - set(defaults)
        assert not unknown, unknown
        return ConfigDict(defaults | {"cache": str(tmp_path / "cache"), "workers": 0} | settings)

    return make
