"""What the architecture refuses, and where it puts sparse blocks."""

from __future__ import annotations

import pytest

from trainlib.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"activation": "swiglu"}, "geglu"),
        ({"extra_ffn": "both"}, "Allowed: after, before, none"),
        ({"encoder_blocks": 5}, r"model.encoder_blocks=5 .* Nearest: 4 or 6"),
        ({"sparse_offset": 2}, "use 0 to 1, or -1"),
        ({"heads": 0}, "model.heads=0 must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must be in \[0, 1\)"),
        ({"kind": "decoder", "routing": {"batch_prioritized": True}}, "its future"),
    ],
)
def test_what_cannot_work_is_refused(small, model, message):
    with pytest.raises(ConfigError, match=message):
        small(**model)


def test_blocks_of_a_dense_model_need_no_period(small):
    assert small(experts=0, encoder_blocks=5).periods("encoder") == (1, 5, 0, 0)


@pytest.mark.parametrize(
    ("period", "offset", "expected"), [(4, -1, (3, 7)), (4, 1, (1, 5)), (2, 0, (0, 2, 4, 6))]
)
def test_sparse_blocks_stand_at_their_offset(small, period, offset, expected):
    config = small(sparse_period=period, sparse_offset=offset, encoder_blocks=8, decoder_blocks=4)
    assert config.sparse_blocks("encoder") == expected


def test_a_decoder_keeps_its_order_beside_an_encoder_that_ranks(small):
    config = small(routing={"batch_prioritized": True})
    assert config.stack_routing("encoder").batch_prioritized
    assert not config.stack_routing("decoder").batch_prioritized
