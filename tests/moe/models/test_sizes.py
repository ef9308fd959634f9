"""Exact parameter counts of every named size, from shapes alone and against plain arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from moe.describe import forward_flops
from moe.models import SIZES, named
from moe.models.transformer import Transformer
from trainlib.errors import ConfigError
from trainlib.model import weights as nn

# ST-MoE-L and -32B: 4.1B and 269B of the paper; T5 v1.1: as released; the others by `counted`.
EXACT = {
    "st_moe_tiny": 2_494_720,
    "st_moe_base": 700_641_024,
    "st_moe_l": 4_105_444_352,
    "st_moe_32b": 269_104_613_376,
    "dense_l": 783_150_080,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
}
PRINTED = {"switch_xxl": "394.7", "switch_c": "1571.4", "t5_1_1_xxl": "11.1", "st_moe_32b": "269.1"}


def count(config) -> int:
    return nn.abstract(Transformer(config)).param_count


def counted(config) -> int:
    """The parameters of an encoder-decoder by arithmetic."""
    d, inner = config.d_model, config.num_heads * config.head_dim
    ffn = (3 if config.activation == "geglu" else 2) * d * config.d_ff
    attention, experts = 4 * d * inner, config.routing.num_experts if config.routing else 0
    total = (
        config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
        + 2 * 32 * config.num_heads
        + 2 * d
    )
    for blocks, attentions in ((config.encoder_blocks, 1), (config.decoder_blocks, 2)):
        sparse = blocks // config.sparse_period if experts else 0
        extra = sparse if config.extra_ffn != "none" else 0
        total += blocks * attentions * (attention + d) + (blocks - sparse + extra) * (ffn + d)
        total += sparse * (experts * ffn + d * experts + d)
    return total


@pytest.mark.parametrize("name", sorted(SIZES))
def test_count_is_exact(name):
    config = named(name)
    assert count(config) == counted(config)
    if name in EXACT:
        assert count(config) == EXACT[name]
    if name in PRINTED:
        digits = len(PRINTED[name].partition(".")[2])
        assert f"{count(config) / 1e9:.{digits}f}" == PRINTED[name]


def test_other_readings_of_the_paper():
    """The sums that a different reading of table 11 gives."""
    big, large = named("st_moe_32b"), named("st_moe_l")
    tied = [count(dataclasses.replace(config, tie_word_embeddings=True)) for config in (big, large)]
    assert tied == [268_940_118_016, 4_072_545_280]
    biased = dataclasses.replace(big, expert_bias="multiplicative")
    assert count(biased) - count(big) == 15_728_640
    alone = dataclasses.replace(big, extra_ffn="none")
    assert f"{count(alone) / 1e9:.3f}" == "265.330"
    shape = {"d_model": 2048, "d_ff": 5120, "num_heads": 32}
    wide = [count(named("st_moe_l", {"num_experts": n}, **shape)) for n in (16, 32)]
    assert wide == [8_889_972_736, 14_930_163_712]


def test_extra_layers_at_other_places():
    """Table 16 of the paper: 12 layers of 3 * 1024 * 2816 + 1024 more than dense; at random places
    as many as beside the experts.
    """
    beside = (3, 7, 11, 15, 19, 23)
    assert count(named("dense_l", extra_ffn_blocks=beside)) == EXACT["dense_l"] + 12 * 8_651_776
    large = named("st_moe_l")
    random = named(
        "st_moe_l",
        extra_ffn_blocks=(0, 5, 6, 9, 10, 14),
        decoder_extra_ffn_blocks=(9, 12, 14, 16, 20, 22),
    )
    assert count(random) == EXACT["st_moe_l"]
    assert forward_flops(random, 512, 114) == forward_flops(large, 512, 114)
    listed = nn.abstract(Transformer(dataclasses.replace(large, extra_ffn_blocks=beside)))
    assert listed.params == nn.abstract(Transformer(large)).params


def test_where_the_parameters_of_the_largest_are():
    specs = nn.abstract(Transformer(named("st_moe_32b"))).params

    def part(*words: str) -> int:
        return sum(s.size for name, s in specs.items() if any(word in name for word in words))

    assert part(".experts.gate", ".experts.up", ".experts.down") == 241_591_910_400
    assert part(".experts.router") == 3_932_160
    assert part(".ffn.") == 15_099_494_400
    assert part("norm.scale") == 686_080
    assert part("bias.table") == 4_096
    assert part("embedding.", "output.") == 328_990_720
    assert specs["encoder.dense.ffn.up"].shape == (6, 3, 5120, 20480)
    assert specs["encoder.sparse.experts.up"].shape == (6, 64, 5120, 20480)


def test_an_unknown_size_is_named():
    with pytest.raises(ConfigError, match="st_moe_32b"):
        named("st_moe_32")
