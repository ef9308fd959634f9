"""Kernels in compiled programs, beside what is known of them."""

from __future__ import annotations

import functools
import importlib.metadata

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.tpu_compiler import LIBTPU, needs_libtpu
from tests.trainlib.planning.kernels import programs
from tests.trainlib.planning.kernels.programs import F32, I32, shape
from trainlib import chips
from trainlib.planning.hlo import Program
from trainlib.planning.kernels import Kernel, kernels
from trainlib.sharding.topology import devices

pytestmark = [pytest.mark.thorough, needs_libtpu]


def everything(a, b, x, index, turns):
    return (
        *(programs.product(a, b), programs.accumulated(a, b), programs.looped(x)),
        *(programs.copied(x), programs.chosen(index, turns, x)),
    )


@functools.cache
def found() -> dict[str, Kernel]:
    """By their names in the program; one child process for all."""
    mesh = Mesh(np.array(devices(chips.target("v5e-1"))), ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    shapes = (
        *(shape(4096, 1024), shape(1024, 4096), shape(8192, 128, dtype=F32)),
        *(shape(8, dtype=I32), shape(1, dtype=I32)),
    )
    placed = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s in shapes]
    text = jax.jit(everything).lower(*placed).compile().as_text()
    listed = kernels(Program(text, {"data": 1}), chips.CHIPS["v5e"])
    return {kernel.function: kernel for kernel in listed.values()}


@pytest.mark.thorough
def test_the_matrix_unit_may_be_what_takes_longest():
    kernel = found()["product"]
    assert kernel.product_seconds == pytest.approx(0.1744e-3, rel=1e-3)
    # The bundles of 64 steps lie below what the products take at the peak.
    assert 0.85 < kernel.bundle_seconds / kernel.product_seconds < 0.95
    assert kernel.seconds == kernel.product_seconds
    if importlib.metadata.version("libtpu") == LIBTPU:
        assert kernel.bundles == pytest.approx(232_000, rel=0.01)


@pytest.mark.thorough
def test_the_first_and_the_last_step_of_a_sum_do_more():
    kernel = found()["accumulated"]
    assert kernel.seconds == kernel.bundle_seconds > kernel.memory_seconds
    assert kernel.memory_seconds == pytest.approx(167_772_160 / 819e9)
    assert kernel.scoped_vmem > 2 * 2**20  # blocks twice, sums once
    if importlib.metadata.version("libtpu") == LIBTPU:
        assert kernel.bundles == pytest.approx(332_900, rel=0.01)


@pytest.mark.thorough
def test_turns_of_a_loop_multiply_its_bundles():
    kernel = found()["looped"]
    # Each of 16 x 32 turns takes a bundle or more for its tanh.
    assert 16 * 32 * 8 < kernel.bundles < 16 * 32 * 80
    assert not kernel.notes


@pytest.mark.thorough
def test_what_is_not_known_is_said():
    assert found()["copied"].notes == ("Copies that the kernel makes itself are not counted.",)
    assert (
        "Bundles of a loop whose turns are not known are counted once." in found()["chosen"].notes
    )
    assert all(kernel.bundles for kernel in found().values())
