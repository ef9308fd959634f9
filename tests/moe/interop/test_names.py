"""The tables of names: every number of every weight has one place there, and comes back from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe import interop
from moe.interop import hf, t5x
from moe.models import architecture
from tests.moe.interop import models
from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats import layout as interchange

SCANNED = ("switch", "switch_every_layer", "switch_encoder", "switch_decoder", "st_moe")
PAIRS = [
    *[(name, "hf") for name in models.MODELS if not name.startswith("st_moe")],
    *[(name, "own") for name in ("t5", "st_moe")],
    *[(name, names) for name in ("t5", "t5_tied_relu") for names in t5x.NAMES],
    *[(name, "flaxformer") for name in models.MODELS],
    *[(name, "flaxformer_scan") for name in SCANNED],
]


def table(name: str, names: str):
    config = models.config(name)
    kind = "t5x" if names in t5x.NAMES else "safetensors"
    return config, interop.abstract(config).params, interop.layout(config, kind, names)


@pytest.mark.parametrize(("name", "names"), PAIRS)
def test_every_number_has_one_place(name, names):
    _, specs, layout = table(name, names)
    theirs = [entry.theirs for entry in layout.entries]
    assert len(set(theirs)) == len(theirs)
    for leaf, entries in layout.by_leaf().items():
        count = np.zeros(specs[leaf].shape, np.int8)
        for entry in entries:
            if not entry.copy:
                count[entry.index] += 1
        assert (count == 1).all(), leaf
    assert set(layout.by_leaf()) == set(specs)


@pytest.mark.parametrize(("name", "names"), PAIRS)
def test_weights_come_back_bit_for_bit(name, names):
    config, specs, layout = table(name, names)
    ours = models.arrays(config)
    theirs = {
        n: value
        for leaf, entries in layout.by_leaf().items()
        for n, value in interchange.give(entries, ours[leaf], None)
    }
    for entry in layout.entries:
        assert theirs[entry.theirs].shape == interchange.their_shape(entry, specs[entry.ours])
    for leaf, entries in layout.by_leaf().items():
        back = interchange.take(entries, specs[leaf], theirs, theirs.__getitem__)
        np.testing.assert_array_equal(back, ours[leaf], strict=True)


@pytest.mark.parametrize(("name", "names"), [p for p in PAIRS if p[1] in t5x.NAMES])
def test_t5x_names_tell_what_the_model_is(name, names):
    config, specs, layout = table(name, names)
    shapes = {e.theirs: interchange.their_shape(e, specs[e.ours]) for e in layout.entries}
    found = t5x.guess(shapes)
    plain = {"flaxformer": "t5"} if not config.routing.num_experts else {}
    assert found.names == plain.get(names, names)
    for key, value in found.model.items():
        expected = config.model[key]
        if key == "extra_ffn" and not config.routing.num_experts:
            continue
        if key == "sparse_offset":
            value, expected = (n % config.model.sparse_period for n in (value, expected))
        assert value == expected, key
    assert found.routing["num_experts"] == config.routing.num_experts
    if config.routing.num_experts:
        assert found.routing["top_k"] == config.routing.top_k


def test_t5x_names_of_a_small_model_by_hand():
    """The listing of T5 1.1 and flaxformer checkpoints, D 24, F 40, 4 heads of 8."""
    _, specs, layout = table("st_moe", "flaxformer")
    shapes = {e.theirs: interchange.their_shape(e, specs[e.ours]) for e in layout.entries}
    expected = {
        "token_embedder/embedding": (128, 24),
        "encoder/relpos_bias/rel_embedding": (4, 32),
        "encoder/layers_0/pre_attention_layer_norm/scale": (24,),
        "encoder/layers_0/attention/query/kernel": (24, 32),
        "encoder/layers_3/attention/out/kernel": (32, 24),
        "encoder/layers_0/mlp/wi_0/kernel": (24, 40),
        "encoder/layers_1/mlp/expert/wi_1/kernel": (4, 24, 40),
        "encoder/layers_1/mlp/expert/wo/kernel": (4, 40, 24),
        "encoder/layers_1/mlp/router/router_weights/w/kernel": (24, 4),
        "encoder/layers_1/pre_extra_mlp_layer_norm/scale": (24,),
        "encoder/layers_1/extra_mlp/wo/kernel": (40, 24),
        "encoder/encoder_norm/scale": (24,),
        "decoder/layers_0/pre_self_attention_layer_norm/scale": (24,),
        "decoder/layers_0/self_attention/key/kernel": (24, 32),
        "decoder/layers_0/pre_cross_attention_layer_norm/scale": (24,),
        "decoder/layers_0/encoder_decoder_attention/value/kernel": (24, 32),
        "decoder/layers_0/pre_mlp_layer_norm/scale": (24,),
        "decoder/logits_dense/kernel": (24, 128),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    _, specs, layout = table("t5", "scalable")
    shapes = {e.theirs: interchange.their_shape(e, specs[e.ours]) for e in layout.entries}
    expected = {
        "encoder/encoder/attention/query/kernel": (24, 4, 4, 8),
        "encoder/encoder/attention/out/kernel": (4, 4, 8, 24),
        "encoder/encoder/mlp/wi_0/kernel": (24, 4, 40),
        "encoder/encoder/mlp/wo/kernel": (40, 4, 24),
        "encoder/encoder/relpos_bias/rel_embedding": (4, 4, 32),
        "decoder/decoder/pre_mlp_layer_norm/scale": (24, 2),
        "decoder/decoder_norm/scale": (24,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    _, specs, layout = table("st_moe", "flaxformer_scan")
    shapes = {e.theirs: interchange.their_shape(e, specs[e.ours]) for e in layout.entries}
    expected = {
        "encoder/encoder/subblock_0/attention/query/kernel": (24, 2, 32),
        "encoder/encoder/subblock_1/mlp/expert/wi_0/kernel": (4, 2, 24, 40),
        "encoder/encoder/subblock_1/mlp/expert/wo/kernel": (4, 2, 40, 24),
        "encoder/encoder/subblock_1/mlp/router/router_weights/w/kernel": (24, 2, 4),
        "decoder/decoder/subblock_1/self_attention/out/kernel": (32, 1, 24),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_relative_positions_of_each_layer_are_refused():
    """A scanned model trained by T5X has tables that differ; half a model is worse than none."""
    config, specs, layout = table("t5", "scalable")
    ours = models.arrays(config)
    entries = layout.by_leaf()["encoder.bias.table"]
    ((name, value),) = interchange.give(entries, ours["encoder.bias.table"], None)
    value = value.copy()
    value[0, 1, 0] += 1
    with pytest.raises(CheckpointError, match="shares one table"):
        interchange.take(entries, specs["encoder.bias.table"], {name}, lambda _: value)


def test_copies_that_differ_are_refused():
    config, specs, layout = table("switch", "hf")
    entries = layout.by_leaf()["embedding.table"]
    assert [entry.copy for entry in entries] == [False, True, True]
    value = models.arrays(config)["embedding.table"]
    there = {entry.theirs: value for entry in entries}
    interchange.take(entries, specs["embedding.table"], there, there.__getitem__)
    there["decoder.embed_tokens.weight"] = value + 1
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens"):
        interchange.take(entries, specs["embedding.table"], there, there.__getitem__)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"residual_scale": 0.5}}, "residual_scale"),
        ({"model": {"extra_ffn": "after"}}, "extra_ffn"),
        ({"model": {"extra_ffn": "after", "extra_ffn_blocks": (0,)}}, "extra_ffn_blocks="),
        ({"model": {"activation": "geglu"}}, "activation"),
        ({"model": {"sparse_offset": 0}}, "sparse_offset"),
        ({"model": {"norm_scale": False}}, "norm_scale"),
        ({"routing": {"top_k": 2}}, "top_k"),
        ({"routing": {"batch_prioritized": True}}, "batch_prioritized"),
    ],
)
def test_what_hugging_face_has_not_is_named(change, named):
    config = models.config("switch")
    config.model.update(change.get("model", {}))
    config.routing.update(change.get("routing", {}))
    with pytest.raises(ConfigError, match=named):
        interop.layout(config, "safetensors", "hf")
    assert interop.layout(config, "safetensors", "auto").title == "own names"


@pytest.mark.parametrize(("name", "names"), [("t5", "hf"), ("t5", "t5"), ("st_moe", "flaxformer")])
def test_listed_extra_layers_have_no_names_of_others(name, names):
    config = models.config(name)
    config.model.extra_ffn_blocks = (0,)
    with pytest.raises(ConfigError, match=r"model\.extra_ffn_blocks=\(0,\)"):
        interop.layout(config, "safetensors" if names == "hf" else "t5x", names)


@pytest.mark.parametrize("name", [n for n in models.MODELS if not n.startswith("st_moe")])
def test_hugging_face_configurations_come_back(name):
    config = models.config(name)
    model = architecture(config.model, config.routing)
    lengths = {"encoder": models.LENGTH, "decoder": models.LENGTH}
    sections = hf.from_config(hf.to_config(model, "float32", lengths))
    defaults = {**SWITCH_FREE, "routing": None}
    back = architecture({**sections[0], "dtype": "float32", "remat": "none"}, sections[1])
    assert dataclasses.replace(back, **defaults) == dataclasses.replace(model, **defaults)
    if model.routing:
        # 0.75 * 24 / 4 = 4.5 rows: 4 of one sequence
        assert back.routing.min_capacity == 4


SWITCH_FREE = {"sparse_period": 4, "sparse_offset": -1}  # of dense models; checked by the names


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "bert"},
        {"num_layers": 10**12},
        {"num_layers": "4"},
        {"d_model": -1},
        {"d_model": True},
        {"num_heads": 1.5},
        {"feed_forward_proj": "gated-silu"},
        {"relative_attention_num_buckets": 2},
        {"relative_attention_num_buckets": 256},
        {"relative_attention_max_distance": 16},
        {"layer_norm_epsilon": 1e-5},
        {"dropout_rate": "high"},
        {"vocab_size": None},
    ],
)
def test_configurations_that_cannot_be_are_refused(change):
    config = models.config("t5")
    model = architecture(config.model, config.routing)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf.from_config(hf.to_config(model, "float32", {}) | change)


@pytest.mark.parametrize(
    "change",
    [
        {"router_bias": True},
        {"num_sparse_encoder_layers": -1},
        {"num_sparse_encoder_layers": 5, "num_sparse_decoder_layers": 3},
        {"num_experts": 0},
        {"expert_capacity": 2**40},
        {"router_jitter_noise": float("nan")},
    ],
)
def test_switch_configurations_that_cannot_be_are_refused(change):
    config = models.config("switch")
    model = architecture(config.model, config.routing)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf.from_config(hf.to_config(model, "float32", {}) | change)
