"""The paths of `benchmarks.attention` can be traced, and a row of the table says what is met."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.attention import __main__ as command
from benchmarks.attention import measure
from benchmarks.attention.cases import Case, shape, size_of, with_gradients
from tests.tpu_compiler import needs_libtpu
from trainlib.errors import ConfigError

PRODUCT = Case(
    "test/product",
    "of two matrices",
    lambda: with_gradients(jnp.matmul, shape(256, 512), shape(512, 128)),
    floor={"v5e-1": 0.001},
    goal=1.0,
    aim=0.5,
)


def first_of_each_family():
    """All cases; those that are not the first of their family are left to slower runs."""
    seen = set()
    for case in command.cases(""):
        family = case.path.split("/")[0]
        marks = [pytest.mark.slow] if family in seen else []
        seen.add(family)
        yield pytest.param(case, id=case.path, marks=marks)


@pytest.mark.parametrize("case", first_of_each_family())
def test_a_path_gives_its_value_and_a_gradient_of_each_argument(case):
    program = case.make()
    value, gradients = jax.eval_shape(program.function, *program.shapes)
    arguments, _, cotangent = program.shapes
    assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, cotangent)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, arguments)


def test_paths_are_found_by_the_beginning_of_their_names():
    assert {case.path for case in command.cases("augmented/half")} == {
        "augmented/half_14",
        "augmented/half_28",
    }
    families = {case.path.split("/")[0] for case in command.cases("t5,windowed")}
    assert families == {"t5", "windowed"}
    assert {case.path.split("/")[0] for case in command.cases("")} == set(command.FAMILIES)
    with pytest.raises(ConfigError, match="augmented/half_14"):
        command.cases("augmentd/half_14")


@needs_libtpu
def test_a_row_has_the_figures_of_the_ledger():
    row = measure.measure(PRODUCT, "v5e-1")
    # Two operands in and a cotangent; value and two gradients out: 2 bytes an element.
    assert row.least == 2 * 2 * (256 * 512 + 512 * 128 + 256 * 128)
    assert row.outputs == row.least / 2 == size_of(PRODUCT.make().shapes)
    assert row.milliseconds > 0 == row.kernels
    cells = measure.cells(row)
    assert len(cells) == len(measure.HEADER)
    assert cells[5] == "1 (met)"
    assert measure.cells(dataclasses.replace(row, milliseconds=2.0))[5] == "1 (missed)"
    assert measure.cells(dataclasses.replace(row, target="v6e-1"))[4:7] == ("-", "-", "-")
