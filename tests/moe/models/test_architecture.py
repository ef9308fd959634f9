"""What the architecture refuses, and where it puts sparse blocks."""

from __future__ import annotations

import pytest

from trainlib.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"activation": "swiglu"}, "geglu"),
        ({"extra_ffn": "both"}, "one of none, before, after"),
        ({"extra_ffn": "none", "extra_ffn_blocks": (1,)}, "extra_ffn=none makes none"),
        ({"extra_ffn_blocks": (1, 0, 1)}, "each block once, in their order: 0, 1"),
        ({"extra_ffn_blocks": (-1,)}, "entry 1 is -1. It takes a list, each a whole number from 0"),
        ({"extra_ffn_blocks": (4,)}, "encoder, whose model.encoder_blocks=4 .* Use 0 to 3[.]"),
        (
            {"extra_ffn_blocks": (3,)},
            "extra_ffn_blocks: block 3 .*decoder_blocks=2 .* Use 0 to 1, or list",
        ),
        ({"decoder_extra_ffn_blocks": (2,)}, "decoder_extra_ffn_blocks: block 2 .* Use 0 to 1[.]"),
        (
            {"kind": "decoder", "decoder_extra_ffn_blocks": (1,)},
            "kind=decoder is one stack. Use model.extra_ffn_blocks",
        ),
        ({"encoder_blocks": 5}, r"model.encoder_blocks=5 .* Nearest: 4 or 6"),
        ({"sparse_offset": 2}, "use 0 to 1, or -1"),
        ({"decoder_sparse_period": 3}, r"decoder_blocks=2 .* model.decoder_sparse_period=3"),
        ({"decoder_sparse_period": -1}, "decoder_sparse_period=-1"),
        ({"encoder_blocks": 1, "partial_period": True}, "Nearest: 2"),
        ({"sparse_stacks": "none"}, "one of all, encoder, decoder"),
        ({"sparse_stacks": "encoder", "kind": "decoder"}, "without a sparse block"),
        ({"relative_attention_num_buckets": 3}, "num_buckets=3 is not allowed. It takes a whole"),
        ({"relative_attention_max_distance": 16}, "max_distance=16 is outside 17 to"),
        ({"num_heads": 0}, "model.num_heads=0 is not allowed. It takes a whole number from 1"),
        (
            {"dropout": 1.0},
            "model.dropout=1.0 is not allowed. It takes a number from 0 and below 1",
        ),
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


def test_the_stacks_have_places_of_their_own(small):
    config = small(decoder_blocks=5, decoder_sparse_period=1, sparse_offset=0)
    assert [config.sparse_blocks(s) for s in config.stacks] == [(0, 2), (0, 1, 2, 3, 4)]
    for stack, other in (("encoder", "decoder"), ("decoder", "encoder")):
        config = small(sparse_stacks=stack)
        assert config.stack_routing(stack) is not None
        assert config.stack_routing(other) is None
        assert config.sparse_blocks(other) == ()
        assert config.periods(other) == (1, 4 if other == "encoder" else 2, 0, 0)


@pytest.mark.parametrize(
    ("blocks", "offset", "trees"),
    [
        (7, 1, {"dense": [[0], [3]], "sparse": [1, 4], "tail": [[2], [5]], "rest_dense": [[6]]}),
        (
            5,
            1,
            {"dense": [[0]], "sparse": [1], "tail": [[2]]}
            | {"rest_dense": [[3]], "rest_sparse": [4]},
        ),
        (5, 0, {"sparse": [0], "tail": [[1, 2]], "rest_sparse": [3], "rest_tail": [[4]]}),
        (5, -1, {"dense": [[0, 1]], "sparse": [2], "rest_dense": [[3, 4]]}),
    ],
)
def test_a_stack_may_end_inside_of_a_period(small, blocks, offset, trees):
    places = {"sparse_period": 3, "sparse_offset": offset, "partial_period": True}
    config = small(kind="encoder", encoder_blocks=blocks, **places)
    assert {tree: numbers.tolist() for tree, numbers in config.trees("encoder").items()} == trees


@pytest.mark.parametrize(
    ("experts", "blocks", "places", "trees"),
    [
        (4, 4, (1, 3), {"dense": [[0], [2]], "sparse": [1, 3]}),  # as if they were not listed
        (0, 5, (1, 3), {"dense": [[0], [2]], "tail": [[1], [3]], "part1_dense": [[4]]}),
        (0, 3, (1, 2), {"dense": [[0]], "tail": [[1]], "part1_tail": [[2]]}),
        (
            4,
            4,
            (0, 2, 3),
            {"tail": [[0]], "part1_sparse": [1], "part2_tail": [[2]], "part3_sparse": [3]},
        ),
    ],
)
def test_listed_layers_cut_a_stack(small, experts, blocks, places, trees):
    config = small(experts, kind="encoder", encoder_blocks=blocks, extra_ffn_blocks=list(places))
    assert {tree: numbers.tolist() for tree, numbers in config.trees("encoder").items()} == trees
    assert config.sparse_blocks("encoder") == ((1, 3) if experts else ())
    assert config.extra_blocks("encoder") == places


def test_extra_layers_stand_beside_the_experts_unless_listed(small):
    assert small().extra_blocks("encoder") == (1, 3)
    assert small(extra_ffn="none").extra_blocks("encoder") == ()
    assert small(0).extra_blocks("encoder") == ()
    config = small(extra_ffn_blocks=(0,), decoder_extra_ffn_blocks=(1,))
    assert [config.extra_blocks(stack) for stack in config.stacks] == [(0,), (1,)]
    config = small(decoder_extra_ffn_blocks=(0,))
    assert [config.extra_blocks(stack) for stack in config.stacks] == [(1, 3), (0,)]
