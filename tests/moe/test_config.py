"""Keys of the family: each explained, each logical axis placed, impossible values refused."""

from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec as P

from moe import config as config_lib
from moe import plan as plan_lib
from moe.models import SIZES, named
from moe.models.transformer import Transformer
from trainlib.config import flatten, override
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import resolve_specs


def test_every_key_has_a_meaning_and_every_field_of_the_model_a_key():
    schema = config_lib.schema()
    assert all(meaning.strip() for _, meaning in schema.values())
    config = config_lib.default_config("st_moe_l")
    assert set(flatten(config)) == set(schema)
    assert config.routing.num_experts == 32
    assert config.model.d_model == 1024


@pytest.mark.parametrize("name", sorted(SIZES))
def test_rules_place_every_weight_of_every_size(name):
    config = config_lib.default_config(name)
    for kind in ("fsdp", "replicated"):
        config.sharding = kind
        specs = nn.abstract(Transformer(named(name, expert_bias="additive"))).params
        rules = config_lib.sharding_rules(config)
        places = resolve_specs(specs, rules, make_mesh(1, 4, 2))
        for weight, place in places.items():
            if ".experts." in weight and "router" not in weight:
                assert place.spec[specs[weight].axes.index("expert")] == "data"
        split = any("data" in place.spec for w, place in places.items() if ".attention." in w)
        assert split == (kind == "fsdp")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 12, r"batch_size=12 does not divide over 8 devices.*Nearest: 16"),
        ("eval_batch_size", 4, "eval_batch_size=4 does not divide over 8 devices"),
        ("microbatches", 3, r"8 devices x 3 microbatches.*Nearest: 24"),
        ("steps", 0, "steps=0 is not allowed. It takes a whole number from 1"),
        ("sharding", "fdsp", "Did you mean 'fsdp'"),
        ("model.kind", "encoder", "predicts the decoder's targets"),
        ("model.kind", "decoder", r"Set --config\.data\.objective=language_model"),
        ("data.objective", "language_model", r"Set --config\.data\.objective=span_corruption"),
        ("model.num_heads", 3, "which does not divide over 2 devices"),
        ("routing.num_experts", 6, "does not divide over the 4 rows"),
        ("routing.top_k", 5, "top_k=5 is more than"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_compiled(key, value, message):
    config = config_lib.default_config("st_moe_tiny")
    config.batch_size = 16
    section, _, leaf = key.rpartition(".")
    setattr(getattr(config, section) if section else config, leaf, value)
    with pytest.raises(ConfigError, match=message):
        plan_lib.make(config, make_mesh(1, 4, 2))


def test_slots_of_the_optimiser_follow_their_weights():
    """Factored moments of stacked experts keep the places of the dimensions that they keep."""
    config = config_lib.default_config("st_moe_tiny")
    plan = plan_lib.make(config, make_mesh(1, 4, 2))
    name = "encoder.sparse.experts.up"  # [period, expert, embed 128, mlp 256]
    assert plan.shardings.params[name].spec == P(None, "data", None, "model")
    slots = plan.shardings.opt_state["factored"]
    # v_row averages the largest dimension (mlp) away, v_col the second largest.
    assert slots.v_row[name].spec == P(None, "data", None)
    assert slots.v_col[name].spec == P(None, "data", "model")


def test_extra_layers_are_split_as_dense_ones_are():
    """And their places come from the JSON of a run as from a command line."""
    config = config_lib.default_config("dense_tiny")
    key = "model.extra_ffn_blocks"
    override(config, key, [1, 3], "config.json", typed=True)
    assert config.model.extra_ffn_blocks == (1, 3)
    override(config, key, "0,2", "--config")
    assert config.model.extra_ffn_blocks == (0, 2)
    plan = plan_lib.make(config, make_mesh(1, 4, 2))
    place = plan.shardings.params["encoder.tail.extra_ffn.up"].spec
    assert place == plan.shardings.params["encoder.tail.ffn.up"].spec
    assert place == P(None, None, "data", "model")


def test_zero_splits_the_slots_of_whole_weights():
    config = config_lib.default_config("st_moe_tiny")
    config.sharding, config.optimizer.factored_min_size = "zero", 64
    plan = plan_lib.make(config, make_mesh(1, 4, 2))
    name = "encoder.dense.ffn.up"  # [period, dense, embed 128, mlp 256]
    assert plan.shardings.params[name].spec == P(None, None, None, "model")
    # v_row averages the largest dimension (mlp) away and keeps embed.
    assert plan.shardings.opt_state["factored"].v_row[name].spec == P(None, None, "data")


def test_groups_and_capacity_are_checked_too():
    config = config_lib.default_config("st_moe_tiny")
    config.batch_size = 8
    config.routing.group_sequences = 3
    with pytest.raises(ConfigError, match="group_sequences=3 does not divide"):
        plan_lib.make(config, make_mesh(1, 1, 1, devices=make_mesh().devices.flat[:1]))


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("model.width", "model.d_model"),
        ("model.hidden", "model.d_ff"),
        ("model.heads", "model.num_heads"),
        ("model.head_width", "model.head_dim"),
        ("model.d_kv", "model.head_dim"),
        ("model.scan", "model.scan_layers"),
        ("routing.z_weight", "routing.z_loss_weight"),
        ("routing.over_layers", "routing.loss_reduction"),
        ("decoding.beams", "decoding.num_beams"),
        ("decoding.length", "decoding.max_length"),
    ],
)
def test_another_word_for_a_key_is_refused_with_the_key(asked, key):
    with pytest.raises(ConfigError, match=f"no configuration key '{asked}'. Did you mean '{key}'"):
        override(config_lib.default_config("st_moe_tiny"), asked, "2", "command line")
