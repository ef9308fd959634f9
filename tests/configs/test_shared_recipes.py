"""What must be equal between configuration files, now that each of them writes its recipe out."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import configs
from configs.common import load
from moe.models import size
from trainlib.config import flatten

PUBLISHED = "published."
DIGITS = [
    *("aa_mnasnet", "aa_resnet34", "aa_resnet50", "aa_resnet101", "aa_resnet152", "aa_wrn28_10"),
    *("mnasnet", "resnet50", "sasa_resnet26", "sasa_resnet38", "sasa_resnet50", "wrn28_10"),
]
SASA = ("sasa_resnet26", "sasa_resnet38", "sasa_resnet50")


def variants_of(name: str) -> dict[str, dict[str, Any]]:
    return importlib.import_module(f"configs.{name}").VARIANTS


def differing(*names: str) -> set[str]:
    """Keys that some of the configurations have with different values, or not at all."""
    first, *others = (flatten(configs.load(name)) for name in names)
    missing = object()
    return {
        key
        for other in others
        for key in set(first) | set(other)
        if first.get(key, missing) != other.get(key, missing)
    }


def without(keys: set[str], *prefixes: str) -> set[str]:
    return {key for key in keys if not key.startswith(prefixes)}


# Files -> the keys in which they may differ; "SECTION." is all keys of a section.
RECIPES = {
    "aa_resnet50 aa_resnet101 aa_resnet152": "model.depth",
    "aa_resnet50 aa_resnet34": "model.depth model.attention.kappa model.attention.upsilon",
    "aa_resnet50 resnet50": "model.attention.",
    "aa_resnet34:conv aa_resnet101:conv aa_resnet152:conv resnet50": "model.depth",
    "aa_resnet34:se aa_resnet101:se aa_resnet152:se resnet50:se": "model.depth",
    "mnasnet aa_mnasnet": "model.attention. schedule.learning_rate schedule.decay_rate",
    "wrn28_10 aa_wrn28_10": """
        model.attention. batch_size steps schedule.learning_rate schedule.warmup_steps
        optimizer.weight_decay eval_every checkpoint.every""",
    "st_moe_base st_moe_l st_moe_32b": """
        model.d_model model.d_ff model.num_heads model.head_dim model.encoder_blocks
        model.decoder_blocks routing.num_experts routing.group_sequences data.source steps target
        mesh. router.log_every router.dead_after""",
    "st_moe_l st_moe_32b": """
        model.d_model model.d_ff model.num_heads model.head_dim routing.num_experts data.source
        steps target mesh. router.log_every router.dead_after""",
    "st_moe_tiny st_moe_stability": """
        model.d_model model.d_ff model.head_dim routing.z_loss_weight data.encoder_length
        data.decoder_length schedule.learning_rate optimizer.factored_min_size max_skipped_steps
        steps eval_every checkpoint.every""",
    "st_moe_superglue st_moe_tasks": "data.source",
    "st_moe_superglue st_moe_32b_finetune": """
        model.d_model model.d_ff model.num_heads model.head_dim model.expert_dropout
        routing.num_experts target mesh. finetune.train finetune.frozen_dtype""",
    "st_moe_superglue:sample st_moe_tasks:sample": "data.source data.decoder_length",
    "st_moe_tasks:xsum st_moe_tasks:cnn_dailymail": "data.source",
}


@pytest.mark.parametrize(("names", "own"), RECIPES.items(), ids=lambda text: text.split(" ")[0])
def test_files_of_a_paper_differ_in_these_keys_alone(names, own):
    keys = without(differing(*names.split()), "name", PUBLISHED)
    assert not without(keys, *own.split())
    for key in own.split():  # each is needed, so that the list cannot hide a slip
        assert any(differs.startswith(key) for differs in keys), key


@pytest.mark.thorough
@pytest.mark.parametrize("variant", ["", *variants_of("sasa_resnet50")])
def test_every_variant_of_standalone_attention_is_the_same_at_each_depth(variant):
    names = (f"{stem}:{variant}".rstrip(":") for stem in SASA)
    assert without(differing(*names), PUBLISHED) == {"name", "model.depth"}


def test_digits_are_trained_alike_by_every_vision_model():
    recipes = [
        {key: value for key, value in variants_of(name)["digits"].items() if "model." not in key}
        for name in DIGITS
    ]
    assert all(recipe == recipes[0] for recipe in recipes)
    models = [variants_of(name)["digits"] for name in DIGITS]
    for key in ("model.image_size", "model.num_classes", "model.dtype", "model.bn_decay"):
        assert len({model[key] for model in models}) == 1
    small = flatten(configs.load("reproduce_small")) | {"steps": recipes[0]["steps"]}
    assert {key: small[key] for key in recipes[0]} == recipes[0]
    assert set(DIGITS) == {
        path.stem
        for path in load.shipped()
        if "digits" in getattr(load.load_module(path), "VARIANTS", {})
    }


@pytest.mark.parametrize("name", ["st_moe_tiny", "st_moe_base", "st_moe_l", "st_moe_32b"])
def test_sizes_in_the_files_are_those_of_the_table(name):
    config, (model, routing) = configs.load(name), size(name)
    assert {key: config.model[key] for key in model} == model
    assert {key: config.routing[key] for key in routing} == routing


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("st_moe_l", "st_moe_superglue"), {"model.expert_dropout"}),
        (("st_moe_32b", "st_moe_32b_finetune"), set()),  # its experts do not learn
    ],
)
def test_fine_tuning_has_the_model_of_pre_training_with_dropout(names, more):
    keys = without(differing(*names), "name", PUBLISHED)
    assert {key for key in keys if key.startswith(("model.", "routing.", "objective."))} == {
        "model.dropout",
        "routing.group_sequences",
        *more,
    }


def test_an_attention_that_a_variant_takes_away_leaves_no_keys():
    config = configs.load("aa_resnet101:conv")
    assert list(config.model.attention) == ["kind"]
    assert configs.load("sasa_resnet26:halo").model.attention.mask_border
