"""Blocks, products, loops and branches of kernels, counted by hand beside the module's own."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.trainlib.planning.kernels import programs
from tests.trainlib.planning.kernels.programs import F32, I32, shape
from trainlib.planning.hlo.layout import arrays
from trainlib.planning.kernels.mosaic import Module
from trainlib.planning.kernels.work import Work, work

MIB = 2**20


def array(kind: str, *sizes: int, space: str = ""):
    """As libtpu lays it out."""
    tiles = "T(128)" if len(sizes) == 1 else "T(8,128)" + "(2,1)" * (kind == "bf16")
    order = ",".join(str(axis) for axis in reversed(range(len(sizes))))
    listed = ",".join(map(str, sizes))
    return arrays(f"{kind}[{listed}]{{{order}:{tiles}{space}}}")[0]


def count(function, operands, results) -> Work:
    kinds = {"bf16": programs.BF16, "f32": F32, "s32": I32}
    shapes = [shape(*one.shape, dtype=kinds[one.kind]) for one in operands]
    return work(Module(programs.config(function, *shapes)), operands, results)


def test_a_block_that_stays_is_fetched_once():
    a, b, out = array("bf16", 4096, 1024), array("bf16", 1024, 4096), array("bf16", 4096, 4096)
    done = count(programs.product, [a, b], [out])
    # Rows once each, columns for each of 8 blocks of rows, the result once.
    assert done.hbm_bytes == 8 * MIB + 8 * 8 * MIB + 32 * MIB
    assert done.flops == done.passes == 2 * 4096 * 1024 * 4096
    assert done.steps == 64
    assert not done.notes


def test_sums_stay_while_their_parts_are_fetched():
    a, b, out = array("bf16", 4096, 1024), array("bf16", 1024, 4096), array("bf16", 4096, 4096)
    done = count(programs.accumulated, [a, b], [out])
    # Both operands change in each of the 4 steps of a sum, so each is fetched 8 times.
    assert done.hbm_bytes == 2 * 8 * 8 * MIB + 32 * MIB
    assert done.flops == 2 * 4096 * 1024 * 4096
    assert done.branches == (0.25, 0.25)  # the first and the last step of 4


def test_blocks_over_the_edge_and_padding_of_tiles():
    # 600 rows in blocks of 512: 512 and 88. 96 columns lie on 128 lanes. The second operand is one
    # block, which stays.
    a, b, out = array("bf16", 600, 96), array("bf16", 96, 512), array("bf16", 600, 512)
    done = count(programs.product, [a, b], [out])
    assert done.hbm_bytes == 2 * (600 * 128 + 96 * 512 + 600 * 512)


def test_arrays_in_memory_on_the_chip_are_told_apart():
    a = array("bf16", 4096, 1024, space="S(1)")
    b, out = array("bf16", 1024, 4096), array("bf16", 4096, 4096)
    done = count(programs.product, [a, b], [out])
    assert done.vmem_bytes == 8 * MIB
    assert done.hbm_bytes == 8 * 8 * MIB + 32 * MIB


@pytest.mark.parametrize(("turns", "mean"), [(32, 32), (None, np.mean(np.arange(16) + 1))])
def test_turns_of_loops(turns, mean):
    x, out = array("f32", 8192, 128), array("f32", 128, 128)
    done = count(lambda x: programs.looped(x, turns), [x], [out])
    # JAX writes a loop of unknown length as one and a rest, here without turns.
    assert done.loops == (mean,)
    assert not done.notes


def test_copies_of_its_own_are_said_not_to_be_counted():
    done = count(programs.copied, [array("f32", 512, 128)], [array("f32", 128, 128)])
    assert done.hbm_bytes == 128 * 128 * 4  # the result
    assert done.notes == ("Copies that the kernel makes itself are not counted.",)


def test_what_only_the_run_knows_is_assumed_and_said():
    operands = [array("s32", 8), array("s32", 1), array("f32", 512, 128)]
    done = count(programs.chosen, operands, [array("f32", 1024, 128)])
    # 8 steps over 4 blocks, two steps each; the scalars take a tile of 128.
    assert done.hbm_bytes == 4 * 128 * 128 * (4 + 8) + 2 * 128 * 4
    assert set(done.notes) == {
        "Blocks named by prefetched scalars are taken in order, evenly.",
        "A loop without a constant bound is counted once.",
    }
    assert None in done.loops


def test_a_module_of_another_kind_is_an_error_that_says_so():
    body = base64.b64encode(b"something else").decode()
    with pytest.raises(ValueError, match="its module cannot be read"):
        Module({"custom_call_config": {"body": body}})
