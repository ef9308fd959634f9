"""config.json of others: each field that changes what a model computes is honoured, or refused by
name with advice that works. What a field means is asked of the classes of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.common.load import of_workdir
from launch import import_weights
from moe import interop
from moe.interop import hf, hf_config
from moe.interop.hf_config import FIXED, FIXED_IN_SWITCH, HONOURED, INERT, MT5, SWITCH, T5
from moe.models import architecture
from tests.moe.interop import models
from trainlib.errors import CheckpointError, run_command
from trainlib.formats import layout as interchange

KINDS = {T5: "T5Config", MT5: "MT5Config", SWITCH: "SwitchTransformersConfig"}


def theirs(kind, content):
    """The configuration as `transformers` reads it."""
    transformers = pytest.importorskip("transformers", reason="asks the other library")
    return getattr(transformers, KINDS[kind]).from_dict(dict(content))


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_unknown(kind):
    config = theirs(kind, {})
    fields = {field.name for field in dataclasses.fields(config)} | set(config.to_dict())
    fixed = set(FIXED) | (set(FIXED_IN_SWITCH) if kind == SWITCH else set())
    assert fields <= HONOURED | INERT | fixed
    assert not INERT & (HONOURED | set(FIXED) | set(FIXED_IN_SWITCH))


def test_umt5_has_no_field_of_its_own():
    transformers = pytest.importorskip("transformers", reason="asks the other library")
    fields = set(transformers.UMT5Config().to_dict())
    assert fields <= HONOURED | INERT | set(FIXED)


# Each is read by both; what they make of it is compared below.
READ = [
    *[(kind, {}) for kind in KINDS],  # nothing but defaults
    *[(kind, {"hidden_size": 96, "num_attention_heads": 3}) for kind in KINDS],
    (T5, {"head_dim": 24, "num_hidden_layers": 5}),
    (SWITCH, {"num_hidden_layers": 9, "num_decoder_layers": None}),
    (SWITCH, {"head_dim": 24}),  # no second name there
    (T5, {"num_layers": 5, "num_decoder_layers": None}),
    (MT5, {"num_layers": 5, "num_decoder_layers": 2, "d_kv": 20}),
    (T5, {"feed_forward_proj": "gated-gelu"}),
    (T5, {"feed_forward_proj": "gated-gelu_new"}),
    (T5, {"feed_forward_proj": "gated-silu", "dense_act_fn": "gelu_new"}),
    (MT5, {"feed_forward_proj": "relu"}),
    (MT5, {"dense_act_fn": "relu", "is_gated_act": False}),
    *[(kind, {"tie_word_embeddings": False}) for kind in KINDS],
    (T5, {"tie_word_embeddings": True, "scale_decoder_outputs": False}),
    (SWITCH, {"scale_decoder_outputs": False}),  # not a field of it
    (T5, {"relative_attention_num_buckets": 9, "relative_attention_max_distance": 5}),
    (SWITCH, {"num_layers": 7, "num_sparse_encoder_layers": 3, "num_decoder_layers": None}),
    (SWITCH, {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 13}),
    (SWITCH, {"encoder_sparse_step": 0, "decoder_sparse_step": 5}),
    (SWITCH, {"expert_capacity": 3, "router_jitter_noise": 0, "dropout_rate": 0}),
    (SWITCH, {"feed_forward_proj": "gated-gelu"}),  # read by no layer of it
    (T5, {"eos_token_id": [1], "decoder_start_token_id": None, "use_cache": False}),
]


@pytest.mark.parametrize(("kind", "change"), READ, ids=str)
def test_a_field_means_what_it_means_there(kind, change):
    content = {"model_type": kind, **change}
    config = theirs(kind, content)
    model, routing = hf.from_config(content)
    found = architecture({**model, "dtype": "float32"}, routing)
    same = {
        **{
            "vocab_size": "vocab_size",
            "d_model": "d_model",
            "d_ff": "d_ff",
            "num_heads": "num_heads",
        },
        **{"head_dim": "d_kv", "encoder_blocks": "num_layers", "dropout": "dropout_rate"},
        "decoder_blocks": "num_decoder_layers",
        **{name: name for name in HONOURED if name.startswith("relative_")},
    }
    for ours, name in same.items():
        assert getattr(found, ours) == getattr(config, name), name
    if kind == SWITCH:
        assert found.tie_word_embeddings is config.tie_word_embeddings
        for stack, blocks in (("encoder", config.num_layers), ("decoder", found.decoder_blocks)):
            step = getattr(config, f"{stack}_sparse_step")
            sparse = [i for i in range(blocks) if step > 0 and (i % step == 1 or step == 1)]
            assert list(found.sparse_blocks(stack)) == sparse
        assert found.routing.min_capacity == config.expert_capacity
        assert found.routing.jitter == config.router_jitter_noise
    else:
        scaled = kind == T5 and config.scale_decoder_outputs
        assert found.tie_word_embeddings is scaled
        gated = {"geglu": ("gelu_new", True), "relu": ("relu", False)}[found.activation]
        assert gated == (config.dense_act_fn, config.is_gated_act)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_change_nothing_change_nothing(kind):
    plain = {"model_type": kind}
    for key in INERT:
        assert hf.from_config({**plain, key: 17}) == hf.from_config(plain), key


# Kind, field, value, what else the message says.
REFUSED = [
    (T5, "layer_norm_epsilon", 1e-5, "mean square"),
    (MT5, "is_encoder_decoder", False, "no logits"),
    *[(kind, "pad_token_id", 3, "every vocabulary") for kind in KINDS],
    (T5, "eos_token_id", 2, "every vocabulary"),
    (T5, "eos_token_id", True, "every vocabulary"),
    (SWITCH, "eos_token_id", [1, 5], "every vocabulary"),
    (MT5, "decoder_start_token_id", 5, "every vocabulary"),
    (T5, "tie_encoder_decoder", True, "weights of their own"),
    (T5, "pruned_heads", {"1": [0]}, "all heads"),
    (T5, "quantization_config", {"bits": 4}, "float numbers"),
    (T5, "auto_map", {"AutoModel": "evil.Model"}, "not run"),
    (SWITCH, "router_bias", True, "matrix alone"),
    (SWITCH, "router_dtype", "bfloat16", "routers compute"),
    (SWITCH, "dense_act_fn", "gelu", "activation"),
]


@pytest.mark.parametrize(("kind", "key", "value", "about"), REFUSED, ids=str)
def test_what_is_not_computed_is_refused_by_name_and_the_advice_works(kind, key, value, about):
    content = {"model_type": kind, key: value}
    with pytest.raises(CheckpointError, match=about) as error:
        hf.from_config(content)
    told = str(error.value)
    assert f"{key}={json.dumps(value)} is not read" in told
    if f"remove {key} from its config.json" in told:
        del content[key]
    else:
        line = re.search(rf'write ("{key}": .+?) in its config.json', told)[1]
        content |= json.loads("{" + line + "}")
    hf.from_config(content)


def test_every_fixed_field_is_tried():
    assert {key for _, key, *_ in REFUSED} == set(FIXED) | set(FIXED_IN_SWITCH)


OTHERS = [
    ({"feed_forward_proj": "gated-silu"}, r"feed_forward_proj='gated-silu'.*silu with a gate"),
    ({"feed_forward_proj": "gelu_new"}, "gelu_new without a gate"),
    ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu with a gate"),
    ({"feed_forward_proj": "gated-gelu", "is_gated_act": False}, "gelu_new without a gate"),
    ({"feed_forward_proj": 3}, "feed_forward_proj=3"),
    ({"is_gated_act": "no"}, "is_gated_act='no' must be true or false"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
    ({"scale_decoder_outputs": 1}, "scale_decoder_outputs=1 must be true or false"),
    ({"d_model": 64, "hidden_size": 32}, "two names of one field"),
    ({"hidden_size": -1}, "d_model is -1"),
    ({"num_hidden_layers": 2, "num_layers": "x", "num_decoder_layers": None}, "two names"),
    ({"num_layers": [2]}, "num_layers"),
    ({"relative_attention_max_distance": 2**40}, "relative_attention_max_distance"),
    ({"relative_attention_num_buckets": 33.0}, "relative_attention_num_buckets"),
]


@pytest.mark.parametrize(("change", "told"), OTHERS, ids=str)
def test_values_that_cannot_be_are_named(change, told):
    with pytest.raises(CheckpointError, match=told):
        hf.from_config({"model_type": T5, **change})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_sparse_encoder_layers": 99, "num_sparse_decoder_layers": 99}, "dense model"),
        ({"encoder_sparse_step": -1}, "encoder_sparse_step"),
        ({"num_sparse_decoder_layers": "3"}, "num_sparse_decoder_layers"),
        ({"num_experts": 2**15}, "more than any model has"),
    ],
)
def test_values_of_switch_that_cannot_be_are_named(change, told):
    with pytest.raises(CheckpointError, match=told):
        hf.from_config({"model_type": SWITCH, **change})


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("umt5", "each of its layers has a table"),
        ("longt5", "attends to neighbours"),
        ("t5gemma", "Gemma"),
        ("bert", "'bert' is not read"),
        (None, "None is not read"),
        (["t5"], "is not read"),
        ("x\x1b[31m", r"x\\x1b\[31m"),
    ],
)
def test_other_models_are_refused_by_name(kind, told):
    with pytest.raises(CheckpointError, match=told) as error:
        hf.from_config({"model_type": kind})
    assert "t5, mt5, switch_transformers" in str(error.value)


def test_the_name_that_is_advised_is_read():
    with pytest.raises(CheckpointError) as error:
        hf.from_config({"model_type": "byt5", "vocab_size": 384})
    line = re.search(r'says so: ("model_type": "\w+")', str(error.value))[1]
    assert hf.from_config(json.loads("{" + line + ', "vocab_size": 384}'))[0]["vocab_size"] == 384


# ------------------------------------------------------------------------------ whole files
@pytest.fixture
def directory(tmp_path):
    """`directory(change, **config)`: a directory of a small T5 whose tensors are changed."""

    def make(change=lambda tensors: tensors, name="t5_tied_relu", **more):
        config = models.config(name)
        layout = interop.layout(config, "safetensors", "hf")
        values = models.arrays(config)
        tensors = {
            n: np.ascontiguousarray(value)
            for leaf, entries in layout.by_leaf(written=True).items()
            for n, value in interchange.give(entries, values[leaf], None)
        }
        save_file(change(tensors), tmp_path / "model.safetensors")
        content = json.loads(layout.files["config.json"]) | more
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path, values

    return make


def take(capsys, path, *flags):
    code = run_command(
        lambda: import_weights.main(
            ["--format=hf", f"--path={path}", f"--out={path / 'back'}", *flags]
        )
    )
    return code, " ".join(capsys.readouterr().err.split())


def test_another_number_of_words_is_named_and_the_advice_works(directory, capsys):
    path, _ = directory(vocab_size=256)
    code, told = take(capsys, path)
    assert code == 66
    assert "--config.model.KEY=VALUE" in told
    assert take(capsys, path, "--config.model.vocab_size=128")[0] == 0
    assert of_workdir(path / "back", {}).model.vocab_size == 128


def test_an_encoder_alone_is_refused(directory, capsys):
    path, _ = directory(lambda t: {n: v for n, v in t.items() if not n.startswith("decoder")})
    code, told = take(capsys, path)
    assert code == 66
    assert "holds no decoder" in told


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_a_shared_table_under_another_name(directory, name):
    path, values = directory(lambda t: {name if n == hf.TABLE else n: v for n, v in t.items()})
    foreign = interop.open_foreign("hf", path)
    np.testing.assert_array_equal(foreign.read(hf.TABLE), values["embedding.table"])


def test_a_scaled_head_that_is_not_the_table_is_refused(directory, capsys):
    """transformers 4 ignores it and 5 scales it: no one knows which was meant."""
    path, _ = directory(lambda t: t | {hf.HEAD: t[hf.TABLE] + 1})
    code, told = take(capsys, path)
    assert code == 66
    assert "lm_head.weight differs" in told


def test_an_untied_switch_without_its_head_is_refused(directory, capsys):
    path, _ = directory(
        lambda t: {n: v for n, v in t.items() if n != hf.HEAD}, name="switch", eos_token_id=1
    )
    code, told = take(capsys, path)
    assert code == 66
    assert "1 missing (lm_head.weight" in told


# -------------------------------------------------------------------------------- exports
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "counts capacity by sequence: expert_capacity=4"),
        ({"routing.group_sequences": 4}, "a group is not one sequence"),
        ({"routing.group_size": 12, "routing.group_sequences": 0}, "a group is not one sequence"),
        ({"data.decoder_length": 48}, "4 in the encoder, 9 in the decoder"),
        ({"routing.dispatch": "dropless"}, "nothing is dropped; sequences of more than 24"),
    ],
)
def test_capacity_that_differs_there_is_said(change, told):
    config = models.config("switch")
    for key, value in change.items():
        section, _, name = key.partition(".")
        config[section][name] = value
    notes = interop.layout(config, "safetensors", "hf").notes
    assert any(told in note for note in notes), notes
    assert (len(notes) == 1) is (not change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"routing": {"router_dtype": "bfloat16"}}, "router_dtype=bfloat16"),
        ({"model": {"sparse_offset": 0}}, "sparse_offset=0"),
        ({"model": {"sparse_period": 4, "sparse_offset": 2, "encoder_blocks": 8}}, "sparse_offset"),
    ],
)
def test_what_their_switch_has_not_is_an_obstacle(change, told):
    config = models.config("switch")
    config.model.update({"decoder_blocks": 4} | change.get("model", {}))
    config.routing.update(change.get("routing", {}))
    found = hf.obstacles(architecture(config.model, config.routing))
    assert any(told in text for text in found)


def test_exported_fields_are_those_that_are_read():
    for name in ("t5", "switch", "switch_cut"):
        config = models.config(name)
        model = architecture(config.model, config.routing)
        written = set(hf.to_config(model, "float32", {}))
        assert written <= HONOURED | INERT | set(FIXED) | set(FIXED_IN_SWITCH)
    assert hf_config.FIXED["eos_token_id"][0][0] == 1
