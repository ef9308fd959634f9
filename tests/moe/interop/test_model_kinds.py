"""Models that `transformers` builds and saves, of every kind that is read: we compute the same, and
what we export of them it computes too.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from moe import interop
from moe.interop import hf, parity
from moe.models import architecture
from tests.moe.interop import models
from tests.moe.interop.test_parity import TOLERANCE, difference, read, write

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

SMALL = {
    **{"vocab_size": 96, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3},
    **{"num_layers": 2, "num_decoder_layers": 1, "decoder_start_token_id": 0},
}
FEW = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 11}


def saved(path, kind, config, own_head=False):
    """A random model of `transformers`, saved as it saves."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with torch.no_grad():
        if own_head:
            made.lm_head.weight = torch.nn.Parameter(torch.empty_like(made.shared.weight))
        for value in made.parameters():
            value.normal_(0, value.shape[-1] ** -0.5 if value.ndim > 1 else 1)
        if not config.tie_word_embeddings:  # as transformers 4 had them, whatever was tied
            for stack in (made.encoder, made.decoder):
                stack.embed_tokens.weight.copy_(made.shared.weight)
    made.save_pretrained(path)


def agree(path, config, values):
    """Compares logits; returns them."""
    batch = parity.tokens(config.model.vocab_size)
    theirs = parity.transformers_logits(path, batch)
    ours = parity.our_logits(config, models.structs(values), batch)
    real = batch["decoder_segments"] > 0
    assert np.abs(theirs[real]).max() > 0.2
    assert np.abs(ours - theirs)[real].max() < TOLERANCE
    return ours


def there_and_back(tmp_path):
    """Imports what was saved, exports it, imports that: the same numbers everywhere."""
    config, values = read(tmp_path)
    agree(tmp_path, config, values)
    config.data.encoder_length = config.data.decoder_length = models.LENGTH
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", config, values, shard_size=2**30)
    agree(tmp_path / "again", config, values)
    again, back = read(tmp_path / "again")
    for leaf, value in values.items():
        np.testing.assert_array_equal(back[leaf], value, strict=True)
    return config, again, values


# ------------------------------------------------------------------------- T5 and mT5
DENSE = {
    "mt5": ("MT5", {}, False),
    "mt5_own_head_few_buckets": ("MT5", FEW, True),
    "t5_many_buckets": (
        "T5",
        {"relative_attention_num_buckets": 51, "relative_attention_max_distance": 26}
        | {"feed_forward_proj": "relu"},
        False,
    ),
    "t5_unscaled_tied": ("T5", {"tie_word_embeddings": False}, False),
    "t5_pytorch_tanh": ("T5", {"feed_forward_proj": "gated-gelu_pytorch_tanh"} | FEW, False),
    "mt5_relu": ("MT5", {"feed_forward_proj": "relu", "num_decoder_layers": None}, True),
}


RARE = ("t5_unscaled_tied", "t5_pytorch_tanh", "mt5_relu")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in RARE else []) for n in DENSE],
)
def test_dense_models(name, tmp_path):
    kind, changes, own_head = DENSE[name]
    config = getattr(transformers, f"{kind}Config")(**SMALL | changes)
    saved(tmp_path, kind, config, own_head)
    config, again, values = there_and_back(tmp_path)
    for key in FEW:
        assert config.model[key] == again.model[key] == changes.get(key, config.model[key])
    table = values["encoder.bias.table"]
    assert table.shape == (config.model.relative_attention_num_buckets, 3)
    if not config.model.tie_word_embeddings:
        # A head of its own, or the table: never lost on the way.
        same = np.array_equal(values["output.kernel"].T, values["embedding.table"])
        assert same is not own_head


def test_the_distances_are_heard(tmp_path):
    """With T5's 128 in place of 11 the logits are others: so the comparison above saw them."""
    saved(tmp_path, "MT5", transformers.MT5Config(**SMALL | FEW))
    config, values = read(tmp_path)
    batch = parity.tokens(config.model.vocab_size)
    right = parity.our_logits(config, models.structs(values), batch)
    config.model.relative_attention_max_distance = 128
    wrong = parity.our_logits(config, models.structs(values), batch)
    assert difference(right, wrong, batch) > 100 * TOLERANCE


@pytest.mark.parametrize("change", ["none", "head", "v1"])
def test_the_head_of_a_tied_unscaled_t5_survives(change, tmp_path):
    """Tied and unscaled there, a matrix of its own here; trained further here, a head of its own
    there, which `transformers` keeps when it saves again.
    """
    saved(tmp_path, "T5", transformers.T5Config(**SMALL | {"tie_word_embeddings": False}))
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["tie_word_embeddings"], content["scale_decoder_outputs"]) == (True, False)
    if change == "v1":  # as transformers 4 writes it
        content = {**content, "tie_word_embeddings": False}
        del content["scale_decoder_outputs"]
        (tmp_path / "config.json").write_text(json.dumps(content))
    config, values = read(tmp_path)
    if change == "head":
        values["output.kernel"] = values["output.kernel"] + np.float32(0.1)
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", config, values, shard_size=2**30)
    ours = agree(tmp_path / "ours", config, values)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "theirs")
    config, back = read(tmp_path / "theirs")
    np.testing.assert_array_equal(back["output.kernel"], values["output.kernel"])
    batch = parity.tokens(config.model.vocab_size)
    np.testing.assert_array_equal(parity.our_logits(config, models.structs(back), batch), ours)


# ---------------------------------------------------------------------------- Switch
def switch(encoder, decoder, **changes):
    """(layers, sparse layers) of each stack."""
    places = {"num_layers": encoder[0], "num_sparse_encoder_layers": encoder[1]}
    places |= {"num_decoder_layers": decoder[0], "num_sparse_decoder_layers": decoder[1]}
    few = {"num_experts": 3, "expert_capacity": 7}
    return transformers.SwitchTransformersConfig(**SMALL | few | places | changes)


# Name -> (configuration, sparse layers of the encoder, of the decoder).
def cut():
    return switch((5, 1), (5, 1), encoder_sparse_step=3)


SWITCHES = {
    "encoder alone": (lambda: switch((2, 1), (3, 4)), (1,), ()),
    "decoder alone": (lambda: switch((2, 3), (2, 2)), (), (0, 1)),
    # Their formula has one sparse layer where none is asked for, the second.
    "no sparse layers": (lambda: switch((3, 0), (4, 2)), (1,), (1, 3)),
    "a step alone": (lambda: switch((2, 1), (2, 1), encoder_sparse_step=0), (), (1,)),
    "other steps": (lambda: switch((4, 4), (6, 2)), (0, 1, 2, 3), (1, 4)),
    "inside of a period": (lambda: switch((5, 2), (8, 2)), (1, 3), (1, 5)),
    "cut after a sparse layer": (cut, (1, 4), (1,)),
    "one layer": (lambda: switch((1, 0), (1, 1)), (0,), (0,)),
    "untied": (lambda: switch((2, 1), (1, 4), tie_word_embeddings=False, **FEW), (1,), ()),
}
QUICK = ("encoder alone", "cut after a sparse layer")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n not in QUICK else []) for n in SWITCHES],
)
def test_switch_with_sparse_layers_anywhere(name, tmp_path):
    make, *expected = SWITCHES[name]
    saved(tmp_path, "SwitchTransformers", make())
    names = read_names(tmp_path)
    for stack, sparse in zip(("encoder", "decoder"), expected, strict=True):
        there = {int(n.split(".")[2]) for n in names if n.startswith(stack) and "router" in n}
        assert there == set(sparse)
    config, again, _ = there_and_back(tmp_path)
    for made in (config, again):
        model = architecture(made.model, made.routing)
        assert [model.sparse_blocks(stack) for stack in model.stacks] == expected


def read_names(path):
    return list(interop.open_foreign("hf", path).shapes)


@pytest.mark.parametrize("name", SWITCHES)
def test_switch_configurations_come_back(name):
    make, *expected = SWITCHES[name]
    sections = hf.from_config(make().to_dict())
    model = architecture({**sections[0], "dtype": "float32"}, sections[1])
    assert [model.sparse_blocks(stack) for stack in model.stacks] == expected
    again = hf.from_config(json.loads(json.dumps(hf.to_config(model, "float32", {"encoder": 9}))))
    capacity = {"min_capacity": model.routing.min_capacity}
    routing = dataclasses.replace(model.routing, **capacity)
    assert architecture({**again[0], "dtype": "float32"}, again[1] | capacity) == (
        dataclasses.replace(model, routing=routing)
    )
