"""Models and batches small enough to compile in seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from moe.data import data_defaults
from moe.models import architecture
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from trainlib.model import weights as nn

SMALL = {
    **{"vocab_size": 48, "d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8},
    **{"encoder_blocks": 4, "decoder_blocks": 2, "sparse_period": 2},
    **{"dtype": "float32", "remat": "none"},
}
# Capacity for everything and the reproducible policy: what a token gets depends on it alone.
ROOMY = {
    **{"num_experts": 4, "capacity_factor": 8.0, "capacity_factor_eval": 8.0},
    **{"second_policy": "all", "group_sequences": 1},
}


@pytest.fixture(scope="session")
def small() -> Callable[..., Architecture]:
    """`small(experts=4, routing={...}, **model)`: an architecture; 0 experts makes it dense."""

    def make(experts: int = 4, routing: dict[str, Any] | None = None, **model: Any):
        return architecture(SMALL | model, ROOMY | {"num_experts": experts} | (routing or {}))

    return make


@pytest.fixture(scope="session")
def made() -> Callable[[Architecture], tuple[nn.Abstract, nn.Arrays]]:
    """`made(architecture)`: the abstract model, and weights that no compiler had to make."""

    def make(config: Architecture):
        abstract = nn.abstract(Transformer(config))
        rng = np.random.default_rng(0)
        weights = {}
        for name, spec in sorted(abstract.params.items()):
            values = rng.normal(size=spec.shape)
            if spec.axes[-1] == "norm":
                values = 1 + 0.2 * values
            elif len(spec.shape) > 1 and "table" not in name:
                values *= spec.shape[-2] ** -0.5
            weights[name] = values.astype(np.float32)
        return abstract, weights

    return make


@pytest.fixture(scope="session")
def quick() -> Callable[..., Any]:
    """`jax.jit` for programs that run once: less time in LLVM, the same XLA passes."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def text() -> Callable[..., dict[str, np.ndarray]]:
    """`text(rows)`: a batch of packed rows, two segments and padding in each."""

    def make(rows: int, encoder: int = 12, decoder: int = 7, words: int = 48):
        rng = np.random.default_rng(rows)

        def segments(length: int) -> np.ndarray:
            first = rng.integers(1, length - 1, size=(rows, 1))
            places, end = np.arange(length), rng.integers(first + 1, length + 1)
            return ((places < end) * (1 + (places >= first))).astype(np.int32)

        batch = {
            "encoder_inputs": rng.integers(1, words, (rows, encoder), dtype=np.int32),
            "encoder_segments": segments(encoder),
            "decoder_inputs": rng.integers(1, words, (rows, decoder), dtype=np.int32),
            "decoder_targets": rng.integers(1, words, (rows, decoder), dtype=np.int32),
            "decoder_segments": segments(decoder),
        }
        batch["decoder_weights"] = (batch["decoder_segments"] > 0).astype(np.float32)
        return batch

    return make


# A text configuration whose cache lies in the directory of the test.
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
