"""The same weights give the same logits in `transformers`, whoever wrote them: within 1e-4 in f32.

Weights are drawn large enough that logits are of order 1 and tokens are dropped for want of
capacity, so a wrong transposition, scale, bucket, placement or capacity is seen.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe import interop
from moe.interop import parity
from tests.moe.interop import models
from trainlib.formats import layout as interchange
from trainlib.formats import safetensors as safetensors_io
from trainlib.model import weights as nn

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

TOLERANCE = 1e-4
LENGTHS = {"encoder": models.LENGTH, "decoder": models.LENGTH}


@pytest.fixture(autouse=True)
def same_lengths(monkeypatch):
    """As long as the configurations say: capacity is counted from it."""
    monkeypatch.setattr(parity, "LENGTHS", LENGTHS)


def write(path, config, values, shard_size=50_000):
    layout = interop.layout(config, "safetensors", "hf")
    specs = interop.abstract(config).params
    tensors = {
        e.theirs: (interchange.their_shape(e, specs[e.ours]), np.dtype("f4"))
        for e in layout.entries
    }
    files = safetensors_io.plan(path, tensors, shard_size, {})
    assert (len(files) > 2) is (shard_size < 10**6)
    with safetensors_io.Writer(path, files) as writer:
        for leaf, entries in layout.by_leaf().items():
            for name, value in interchange.give(entries, values[leaf], None):
                writer.write(name, value)
    (path / safetensors_io.INDEX).write_text(safetensors_io.index_text(files))
    for name, text in layout.files.items():
        (path / name).write_text(text)


def difference(ours, theirs, batch):
    real = batch["decoder_segments"] > 0
    assert np.abs(theirs[real]).max() > 0.5
    return np.abs(ours - theirs)[real].max()


def read(path):
    foreign = interop.open_foreign("hf", path)
    specs = interop.abstract(foreign.config).params
    layout = interop.layout(foreign.config, foreign.kind, foreign.names)
    interchange.match(layout, specs, foreign.shapes).check(path)
    values = {
        leaf: interchange.take(entries, specs[leaf], foreign.shapes, foreign.read)
        for leaf, entries in layout.by_leaf().items()
    }
    return foreign.config, values


OURS = ["t5", "switch"]  # the others differ in what the tables of names are tested for
OURS += [
    pytest.param(n, marks=pytest.mark.slow)
    for n in models.MODELS
    if "_" in n[2:] and "moe" not in n
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_transformers_computes_what_we_exported(name, tmp_path):
    config = models.config(name)
    values = models.arrays(config)
    write(tmp_path, config, values)
    batch = parity.tokens(config.model.vocab_size)
    theirs = parity.transformers_logits(tmp_path, batch)
    ours = parity.our_logits(config, models.structs(values), batch)
    assert difference(ours, theirs, batch) < TOLERANCE
    # The way back: the same bits, and as a model of its own the same logits.
    imported, back = read(tmp_path)
    for leaf, value in values.items():
        np.testing.assert_array_equal(back[leaf], value, strict=True)
    again = parity.our_logits(imported, models.structs(back), batch)
    assert difference(again, theirs, batch) < TOLERANCE


def test_the_exported_switch_drops_tokens_in_both(tmp_path):
    """Without capacity the logits differ: so the comparison above saw it."""
    config = models.config("switch")
    values = models.arrays(config)
    write(tmp_path, config, values)
    batch = parity.tokens(config.model.vocab_size)
    limited = parity.our_logits(config, models.structs(values), batch)
    config.routing.capacity_factor_eval = 4.0
    free = parity.our_logits(config, models.structs(values), batch)
    assert difference(limited, free, batch) > 100 * TOLERANCE


def switch_config():
    return transformers.SwitchTransformersConfig(
        **{"vocab_size": 96, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3},
        **{"num_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2},
        **{"num_sparse_decoder_layers": 2, "num_experts": 3, "expert_capacity": 7},
        decoder_start_token_id=0,
    )


def t5_config(**changes):
    return transformers.T5Config(
        **{"vocab_size": 96, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3},
        **{"num_layers": 2, "num_decoder_layers": 3, "decoder_start_token_id": 0},
        **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} | changes,
    )


THEIRS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(t5_config()),
    "t5_relu_tied": lambda: transformers.T5ForConditionalGeneration(
        t5_config(feed_forward_proj="relu", tie_word_embeddings=True)
    ),
    "t5_tied_unscaled": lambda: transformers.T5ForConditionalGeneration(t5_config()),
    "switch": lambda: transformers.SwitchTransformersForConditionalGeneration(switch_config()),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if "_" in k else []) for k in sorted(THEIRS)]
)
def test_we_compute_what_transformers_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = THEIRS[kind]()
    with torch.no_grad():
        if kind == "t5":  # as published: a head of its own
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        for value in model.parameters():
            value.normal_(0, value.shape[-1] ** -0.5 if value.ndim > 1 else 1)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    config, values = read(tmp_path)
    batch = parity.tokens(config.model.vocab_size)
    theirs = parity.transformers_logits(tmp_path, batch)
    ours = parity.our_logits(config, models.structs(values), batch)
    assert difference(ours, theirs, batch) < TOLERANCE
    assert "largest difference" in parity.compare(config, models.structs(values), tmp_path)


@pytest.mark.slow
def test_router_losses_are_theirs(tmp_path):
    """z-loss and balance loss of a Switch model, per layer as they weigh them."""
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(switch_config()).eval()
    model.save_pretrained(tmp_path)
    config, values = read(tmp_path)
    batch = parity.tokens(config.model.vocab_size)
    for stack in LENGTHS:  # without padding, which their router counts and ours does not
        batch[f"{stack}_inputs"] = np.maximum(batch[f"{stack}_inputs"], 1)
        batch[f"{stack}_segments"][:] = 1
    inputs = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch.items()}
    with torch.no_grad():
        out = model(
            input_ids=inputs["encoder_inputs"],
            decoder_input_ids=inputs["decoder_inputs"],
            output_router_logits=True,
        )
    from moe.models import architecture
    from moe.models.transformer import Transformer

    model = {**config.model.to_dict(), "dtype": "float32"}
    bound = nn.abstract(Transformer(architecture(model, config.routing)))
    routers = bound.bind(models.structs(values), {})(**models.structs(batch)).routers
    for stack in LENGTHS:
        losses = routers[stack].losses
        z, balance = (
            np.asarray(total / count) for total, count in (losses["z"], losses["balance"])
        )
        # They join the layers of a stack as if they were more tokens; the z-loss is then the mean.
        np.testing.assert_allclose(z.mean(), float(getattr(out, f"{stack}_z_loss")), rtol=1e-5)
        logits = getattr(out, f"{stack}_router_logits")
        for layer, each in enumerate(logits):
            probs = each.softmax(-1)
            expected = transformers.models.switch_transformers.modeling_switch_transformers
            found = expected.load_balancing_loss_func(probs, probs.argmax(-1))
            np.testing.assert_allclose(balance[layer], float(found), rtol=1e-5)


def test_bfloat16_config_says_so():
    layout = interop.layout(models.config("t5"), "safetensors", "hf", "bfloat16")
    assert json.loads(layout.files["config.json"])["torch_dtype"] == "bfloat16"
