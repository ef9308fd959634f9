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


@pytest.fixture
def folder(tmp_path, data_config):
    """`folder(files)`: a `data` section whose directory holds them."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return data_config(dir=str(tmp_path / "data"))

    return make


class _Builder:
    """Stands for a TFDS builder: records with bytes and NumPy numbers, as TFDS yields them."""

    def __init__(self, records):
        self.records = records

    def as_data_source(self, split):
        assert split == "train"
        return self.records


@pytest.fixture
def tfds_of(monkeypatch):
    """`tfds_of(records)`: what TFDS finds; returns the list of sets that are asked for."""
    tfds = pytest.importorskip("tensorflow_datasets")

    def make(records):
        asked = []

        def builder(name, data_dir):
            asked.append((name, data_dir))
            return _Builder(records)

        monkeypatch.setattr(tfds, "builder", builder)
        return asked

    return make
