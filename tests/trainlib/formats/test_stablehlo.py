"""Programs for several platforms: each gets the form that its layers choose for it."""

import jax
import numpy as np
import pytest
from flax import nnx

from trainlib.formats import stablehlo
from trainlib.model import weights as nn
from trainlib.sharding.constrain import platform


@pytest.mark.parametrize("batch", [0, 2])
def test_every_platform_has_its_own_form(batch):
    def forward(params, statistics, inputs):
        return inputs["x"] + {"cpu": 11.0, "gpu": 22.0, "tpu": 33.0}[platform()]

    data, signature = stablehlo.program(
        forward,
        nn.Abstract(nnx.graphdef(nnx.Module()), {}, {}),
        {"x": (("batch", 3), "float32")},
        dtypes={},
        platforms=("tpu", "cuda", "cpu"),
        batch=batch,
    )
    assert signature["platforms"] == ["tpu", "cuda", "cpu"]
    made = jax.export.deserialize(bytearray(data))
    np.testing.assert_array_equal(made.call({}, {"x": np.zeros((2, 3), np.float32)}), 11.0)
    text = made.mlir_module()
    assert all(f"{number:e}" in text for number in (11, 22, 33))
