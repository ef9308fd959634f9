"""Products of kernels, their factors, and an order of stages that keeps the units busy."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp

from trainlib.sharding.constrain import platform

Array = jax.Array
T = TypeVar("T")
NN, NT = (1, 0), (1, 1)  # contracted dimensions: of a product, and by a transpose


def product(left: Array, right: Array, contracted: tuple[int, int] = NN) -> Array:
    """A matrix product in float32; float32 factors are not rounded."""
    if platform() == "cpu":  # which has no products of bfloat16 for some shapes
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dimensions, preferred_element_type=jnp.float32, precision=exact
    )


def parts_of(x: Array, dtype: jax.typing.DTypeLike, count: int) -> list[Array]:
    """x as a sum of so many float32 arrays of numbers that `dtype` holds, for a product of it."""
    parts = []
    for _ in range(count):
        part = x.astype(dtype).astype(jnp.float32)
        parts.append(part)
        x = x - part
    return parts


def in_turn(works: Iterable[Generator[None, None, T]]) -> list[T]:
    """Runs the stages of several independent works in turn, and gives what each returns.

    Products that wait for each other stand far apart in the program then: the compiler moves
    operations little, and a product has others to run beside it only where they are written.
    """
    waiting, results = dict(enumerate(works)), {}
    while waiting:
        for number, stages in list(waiting.items()):
            try:
                next(stages)
            except StopIteration as end:
                results[number] = end.value
                del waiting[number]
    return [results[number] for number in sorted(results)]
