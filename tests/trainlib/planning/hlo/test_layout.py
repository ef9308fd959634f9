"""What arrays take in memory: tiles, packing and memory spaces, by hand."""

from __future__ import annotations

import pytest

from trainlib.planning.hlo.layout import CMEM, HBM, HOST, VMEM, arrays


@pytest.mark.parametrize(
    ("text", "elements", "bytes_", "padded"),
    [
        # The innermost dimension, to 128 lanes: 64 channels take twice their bytes.
        ("bf16[1000,64]{1,0:T(8,128)(2,1)}", 64_000, 128_000, 1000 * 128 * 2),
        ("f32[1000,65]{1,0:T(8,128)}", 65_000, 260_000, 1000 * 128 * 4),
        # The second, to 8 rows.
        ("f32[3,5,128]{2,1,0:T(8,128)}", 1920, 7680, 3 * 8 * 128 * 4),
        # The order of the layout, not of the shape: 32 and 128 lie innermost.
        ("bf16[32,56,56,128]{3,0,2,1:T(8,128)(2,1)}", 12_845_056, 25_690_112, 25_690_112),
        ("bf16[64,112,112,3]{0,3,2,1:T(4,128)(2,1)}", 2_408_448, 4_816_896, 112 * 112 * 1024),
        # One dimension, to 1024; packed, the tile is cut again and stays as large.
        ("s32[3000]{0:T(1024)}", 3000, 12_000, 3072 * 4),
        ("pred[3000]{0:T(1024)(128)(4,1)}", 3000, 3000, 3072),
        # Two rows of bfloat16 share a word, so a tile of one row has two.
        ("bf16[5,1,128]{2,1,0:T(1,128)(2,1)}", 640, 1280, 5 * 2 * 128 * 2),
        # A scalar takes a tile.
        ("f32[]{:T(128)}", 1, 4, 512),
        # Untiled, as on a CPU; a bound of a dynamic dimension; four bits an element.
        ("f32[3,5]{1,0}", 15, 60, 60),
        ("f32[<=3,5]", 15, 60, 60),
        ("s4[8,256]{1,0:T(8,128)(8,1)E(4)}", 2048, 1024, 1024),
    ],
)
def test_bytes_by_hand(text, elements, bytes_, padded):
    (array,) = arrays(text)
    assert (array.elements, array.bytes, array.padded_bytes) == (elements, bytes_, padded)


@pytest.mark.parametrize(
    ("layout", "space"),
    [
        ("{1,0:T(8,128)S(1)}", VMEM),
        ("{1,0:T(8,128)S(3)}", CMEM),
        ("{1,0:S(5)}", HOST),
        ("{1,0:T(8,128)}", HBM),
        ("", HBM),
    ],
)
def test_memory_spaces(layout, space):
    assert [array.space for array in arrays(f"f32[8,128]{layout}")] == [space]


def test_tuples_and_what_is_no_array():
    text = "((bf16[2,3]{1,0}, /*index=1*/f32[4]{0:T(128)S(1)}), token[], u32[]{:S(2)})"
    assert [(a.kind, a.shape, a.space) for a in arrays(text)] == [
        ("bf16", (2, 3), HBM),
        ("f32", (4,), VMEM),
        ("u32", (), 2),
    ]
