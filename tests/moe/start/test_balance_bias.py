"""Fine-tuning a model with balance biases: they come along, or the start is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe import plan as plan_lib
from moe.config import default_config
from moe.start import finetune
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import CheckpointError
from trainlib.sharding.mesh import make_mesh


@pytest.fixture
def begin(tmp_path):
    """`begin(there, here)`: the state of a run that starts from another one, whose numbers are all
    7, and the table that is printed; each has balance biases or not.
    """

    def plan_of(bias: bool):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=8, d_ff=16, num_heads=2, head_dim=4, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
        config.routing.balance_bias = bias
        config.init_from = str(tmp_path)
        return plan_lib.make(config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))

    def full(plan, value):
        filled = jax.tree.map(
            lambda leaf: np.full(leaf.shape, value, leaf.dtype), plan.abstract_state()
        )
        return jax.device_put(filled, plan.shardings)

    def run(there: bool, here: bool):
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(1, full(plan_of(there), 7), {})
        checkpoints.close()
        plan = plan_of(here)
        return finetune.start(plan, full(plan, 0))

    return run


@pytest.mark.parametrize("there", [True, False])
def test_biases_come_along_and_begin_at_zero_where_there_were_none(begin, there):
    state, told = begin(there, True)
    assert {float(v.max()) for v in state.params.values()} == {7.0}
    assert {float(v.max()) for v in state.model_state.values()} == {7.0 if there else 0.0}
    assert "slots" in told


def test_a_model_that_would_lose_its_biases_is_refused(begin):
    with pytest.raises(CheckpointError, match=r"routing\.balance_bias=true") as error:
        begin(True, False)
    assert "encoder.sparse.experts.balance_bias" in error.value.details
