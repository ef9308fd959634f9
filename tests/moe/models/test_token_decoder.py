"""What the compiled loop over tokens does beside its products, by counts of its operations."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from moe.decoding.model import Decoding, decoding_model, make_generate
from moe.models.architecture import Architecture

LENGTH = 24
SIZES = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "num_heads": 2, "head_dim": 16}


def loop_of_tokens(batch: int) -> str:
    """The body of the search's loop in the program that XLA made for this CPU."""
    model = Architecture(**SIZES, encoder_blocks=1, decoder_blocks=2, dtype="float32")
    params = {
        name: jax.ShapeDtypeStruct(spec.shape, jnp.float32)
        for name, spec in decoding_model(model).params.items()
    }
    ids = jax.ShapeDtypeStruct((batch, 8), jnp.int32)
    search = make_generate(model, Decoding(), LENGTH, 64)
    given = {"encoder_inputs": ids, "encoder_segments": ids}
    text = jax.jit(lambda p, b: search(p, {}, b)).lower(params, given).compile().as_text()
    bodies = [part for part in re.split(r"\n(?=%|ENTRY)", text) if "while/body/decoder/1" in part]
    return max(bodies, key=len)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_copies_no_cache_and_slices_no_weight(batch):
    """Each cache is changed where it lies: only numbers of a few bytes are copied."""
    body = loop_of_tokens(batch)
    copied = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", body)
    assert all(shape.count(",") == 0 for shape in copied), copied
    assert len(re.findall(r"dynamic-update-slice[\w.\-]* = f32", body)) == 4  # keys, values of 2
    assert not re.search(r"= f32\[32,\d\d+\]\S* (fusion|dynamic-slice|slice|transpose)\(", body)
