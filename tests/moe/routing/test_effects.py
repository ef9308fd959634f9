"""Which options do nothing beside which others: the table against what routers really do."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs.common import load
from moe import plan
from moe.routing import effects
from moe.routing.choice import BiasStep
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.route import route
from trainlib.config import to_json
from trainlib.errors import ConfigError

G, S, E = 3, 8, 8
# What a router of each kind is, beside the defaults; in these, every option is tried.
MODES = {
    "usual": {},
    "one choice": {"top_k": 1},
    "experts choose": {"router": "experts_choose"},
    "experts choose, room by K": {"router": "experts_choose", "capacity_per_choice": True},
    "no capacity": {"dispatch": "dropless"},
    "no balance loss": {"balance_loss_weight": 0.0},
    "no losses": {"balance_loss_weight": 0.0, "z_loss_weight": 0.0},
    "bias": {"balance_bias": True},
    "groups of experts": {"expert_groups": 4, "groups_per_token": 2},
    "all groups": {"expert_groups": 4, "groups_per_token": 4},
    "groups of one": {"expert_groups": 8, "groups_per_token": 4},
    "if dropped": {"second_policy": "if_dropped", "second_policy_eval": "if_dropped"},
    "all are sent": {"second_policy": "all"},
}
TRIED = {
    "top_k": 3,
    "scores": "sigmoid",
    "gate_scale": 2.0,
    "bias_update_rate": 0.5,
    "expert_groups": 2,
    "groups_per_token": 3,
    "expert_group_score": "best",
    "capacity_factor": 2.0,
    "capacity_factor_eval": 1.0,
    "capacity_per_choice": True,
    "capacity_rounding": "round",
    "min_capacity": 5,
    "normalize_gates": False,
    "second_policy": "none",
    "second_policy_eval": "none",
    "second_threshold": 0.9,
    "batch_prioritized": True,
    "sample_temperature": 2.0,
    "logit_clip": 0.5,
    "balance_choices": "all",
    "balance_over": "batch",
    "balance_loss_weight": 0.5,
    "z_loss_weight": 0.5,
    "later_balance_weight": 0.5,
    "entropy_loss_weight": 0.5,
    "loss_reduction": "mean",
}
# They are about the layer around a router, its devices, or what is more than a function of it.
LAYER = {
    *("num_experts", "router", "dispatch", "balance_bias", "jitter", "router_dropout"),
    *("router_dtype", "group_size", "group_sequences", "max_group_size", "whole_expert_dropout"),
    *("dropless_room", "exchange_chunks", "partitioner"),
}


def config_of(**options):
    return RoutingConfig(E, **{"min_capacity": 0, "capacity_factor": 1.8} | options)


@functools.cache
def figures(config):
    """All that follows from the options: where tokens go, gates, losses, the bias after a step."""
    rng = np.random.default_rng(1)
    logits = np.float32(rng.normal(size=(G, S, E)) + np.linspace(0, 0.3, E))
    mask = rng.random((G, S)) < 0.9
    found = []
    for train in (True, False):
        drawn = config.sample_temperature and train
        routed = route(
            logits,
            config,
            train=train,
            mask=mask,
            draws=np.float32(rng.random((G, S, 7)))[..., : config.top_k - 1],
            gumbel=np.float32(rng.gumbel(size=logits.shape)) if drawn else None,
            bias=np.float32(0.3 * rng.normal(size=E)) if config.balance_bias else None,
        )
        combine = routed.combine_weights().sum(-1)
        found += [combine, auxiliary_loss(routed.losses, config)]
        if config.balance_bias:
            load = routed.metrics["load"][0].sum(0)
            found.append(BiasStep(config.bias_update_rate)(np.zeros(E, np.float32), load))
    return jax.device_get(found)


def test_every_option_is_in_the_table():
    names = [field.name for field in dataclasses.fields(RoutingConfig)]
    assert list(effects.NEEDS) == names
    assert LAYER.isdisjoint(TRIED)
    assert {*TRIED, *LAYER} == set(names)
    keys = {need.key.removeprefix("routing.") for needs in effects.NEEDS.values() for need in needs}
    assert keys <= set(names)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
def test_options_that_lack_something_change_nothing_and_others_do(mode):
    base, wrong = config_of(**MODES[mode]), []
    for option, value in TRIED.items():
        if option in MODES[mode]:
            continue
        try:
            changed = dataclasses.replace(base, **{option: value})
        except ConfigError:
            continue  # refused already
        alike = all(
            np.array_equal(a, b) for a, b in zip(figures(base), figures(changed), strict=True)
        )
        need = effects.lacking(option, changed, [changed])
        if alike != (need is not None):
            wrong.append((option, alike, need))
    assert not wrong


TINY = "configs/st_moe_tiny.py"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"routing.router": "experts_choose", "routing.balance_over": "batch"}
            | {"model.sparse_stacks": "encoder"},
            "routing.balance_over='batch' does nothing here, where routing.router='experts_choose'",
        ),
        ({"routing.bias_update_rate": "0.1"}, "or set routing.balance_bias to True"),
        (
            {"routing.router": "experts_choose", "model.sparse_stacks": "decoder"},
            "set model.sparse_stacks to 'all' or 'encoder'",
        ),
        (
            {"routing.dispatch": "dropless", "routing.capacity_factor": "2"},
            r"routing\.capacity_factor=2\.0 does nothing here.*Leave it at 1\.25",
        ),
        ({"routing.expert_group_score": "best"}, "routing.expert_groups=1"),
        ({"router.log_every": "0", "router.max_logit": "3"}, "set router.log_every to 10"),
        ({"router.alerts": "false", "router.dead_after": "3"}, "set router.alerts to True"),
    ],
)
def test_what_does_nothing_is_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        plan.make(
            load.from_flags(TINY, {"routing.num_experts": "8", "batch_size": "8"} | keys).config
        )


@pytest.mark.parametrize(
    "keys",
    [
        # It acts in the decoder, where tokens choose whatever they do in the encoder.
        {"routing.router": "experts_choose", "routing.balance_over": "batch"},
        {"routing.dispatch": "dropless"},  # the recipe's least capacity is out of play
        {"routing.balance_loss_weight": "0", "routing.later_balance_weight": "0"},
        {"router.log_every": "0", "router.probe_rows": "0"},
        {"routing.num_experts": "0", "routing.balance_over": "batch"},
    ],
)
def test_what_a_recipe_says_and_what_acts_somewhere_is_taken(keys):
    plan.make(load.from_flags(TINY, {"routing.num_experts": "8", "batch_size": "8"} | keys).config)


def test_what_a_run_or_an_import_has_noted_is_taken(tmp_path):
    """A Switch of transformers has raw gates and one choice; runs of before must go on."""
    keys = {"routing.num_experts": "8", "batch_size": "8"}
    config = load.from_flags(TINY, keys).config
    config.routing.update(top_k=1, normalize_gates=False, second_policy="all")
    (tmp_path / "config.json").write_text(to_json(config))
    plan.make(load.of_workdir(tmp_path, {}))
    with pytest.raises(ConfigError, match=r"second_threshold=0\.5 does nothing"):
        plan.make(load.of_workdir(tmp_path, {"routing.second_threshold": "0.5"}))
