"""Shipped configurations of the family: what they build, cite and claim."""

from __future__ import annotations

import re

import pytest

from configs import st_moe_32b, st_moe_base, st_moe_l, st_moe_tiny
from moe import describe
from moe import plan as plan_lib
from moe.config import default_config
from moe.models import architecture, named
from trainlib.sharding.mesh import make_mesh

MODULES = (st_moe_tiny, st_moe_base, st_moe_l, st_moe_32b)
COUNTS = {
    **{"st_moe_tiny": 2_494_720, "st_moe_tiny:dense": 1_707_008},
    **{"st_moe_base": 700_641_024, "st_moe_base:dense": 247_577_856},
    **{"st_moe_l": 4_105_444_352, "st_moe_l:dense": 783_150_080},
    "st_moe_32b": 269_104_613_376,
}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_variant_builds_and_is_what_it_claims(module):
    text = " ".join(module.__doc__.split())
    for variant in ("", *module.VARIANTS):
        config = module.get_config(variant)
        plan = plan_lib.make(config, make_mesh(1, 4, 2))
        facts = describe.describe(config)
        count = plan.abstract.param_count
        assert facts["params"] == count == sum(facts["params_by_part"].values())
        assert COUNTS.get(config.name, count) == count
        assert f"`{variant}`" in text or not variant
        if config.name in COUNTS:
            assert re.search(rf"{COUNTS[config.name]:,}\b", text), config.name
        assert len(describe.row(facts)) == 6
    assert f"--config=configs/{module.__name__.split('.')[1]}.py --workdir=" in text


def test_parameters_follow_the_buckets_and_the_sparse_stack():
    """A table of R x N in each stack; blocks without experts lose them and their router."""
    config = default_config("st_moe_tiny")
    plain = describe.describe(config)
    config.model.relative_attention_num_buckets = 40
    more = describe.describe(config)["params"] - plain["params"]
    assert more == 2 * (40 - 32) * config.model.num_heads
    config.model.sparse_stacks = "encoder"
    facts = describe.describe(config)
    assert facts["sparse_blocks"] == {"encoder": [3], "decoder": []}
    # The experts of one of two sparse blocks; the dense layer beside them stays.
    assert 2 * facts["params_by_part"]["experts"] == plain["params_by_part"]["experts"]


def test_recipes_are_those_of_the_paper():
    config = st_moe_32b.get_config()
    assert config.batch_size * config.data.encoder_length == 2**20
    assert config.steps * 2**20 == pytest.approx(1.5e12, rel=1e-5)
    assert (config.routing.capacity_factor, config.routing.capacity_factor_eval) == (1.25, 2.0)
    assert (config.routing.balance_loss_weight, config.routing.z_loss_weight) == (0.01, 1e-3)
    assert (config.model.init_scale, config.model.dropout) == (0.1, 0.0)
    schedule = plan_lib.make(config, make_mesh(1, 8, 1)).schedule
    assert float(schedule(0)) == pytest.approx(0.01)
    assert float(schedule(40_000)) == pytest.approx(0.005)


@pytest.mark.parametrize(("name", "printed"), [("st_moe_32b", 20.270e12), ("st_moe_l", 570.7e9)])
def test_flops_of_a_sequence(name, printed):
    """Counted by hand from the shapes, capacity 1.25, attention logits and output included."""
    assert describe.forward_flops(named(name), 512, 114) == pytest.approx(printed, rel=1e-4)


def test_an_evaluation_that_routes_unlike_training_is_named():
    config = default_config("st_moe_tiny")
    said = describe.routing(architecture(config.model, config.routing))
    assert "random in training, all in evaluation" in said
    assert "second_policy_eval=random" in said
    config.routing.second_policy_eval = "random"
    said = describe.routing(architecture(config.model, config.routing))
    assert said.endswith("random in training, random in evaluation")
    config.routing.top_k = 1
    assert describe.routing(architecture(config.model, config.routing)) == "4 experts, top-1"


def test_what_an_encoder_alone_may_do_is_said_to_be_the_encoders():
    config = default_config("st_moe_tiny")
    config.routing.batch_prioritized = True
    said = describe.routing(architecture(config.model, config.routing))
    assert said.startswith("4 experts, top-2, by priority in the encoder, later choices: random")
    config.routing.router = "experts_choose"
    said = describe.routing(architecture(config.model, config.routing))
    assert said == "4 experts, which choose their tokens in the encoder, top-2 in the decoder"
