"""What a layer or a model refuses to be called with, as one sentence.

The checks read shapes and types alone, so that they hold under `jax.jit`, `jax.vmap` and
`jax.eval_shape` as well and add nothing to a compiled program.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from trainlib.errors import InputError, shown

Numbers = Literal["float", "real", "integer"]

# What is said of the array, and the types that are allowed.
_ALLOWED: dict[Numbers, tuple[str, tuple[Any, ...]]] = {
    "float": ("an array of floats", (jnp.floating,)),
    "real": ("an array", (jnp.floating, jnp.integer, jnp.bool_)),
    "integer": ("an array of whole numbers", (jnp.integer,)),
}


def check_array(what: str, x: Any, axes: str, numbers: Numbers = "real", **sizes: int) -> None:
    """Raises where an argument is no array of the shape and type that a layer takes.

    Args:
      what: who takes it, such as "A convolution" or "q of halo_attention".
      x: the argument.
      axes: names of its dimensions, "B H W C"; a first name "..." stands for one or more.
      numbers: "float" where the result has the type of x, so that whole numbers would cut it off;
        "real" where x is cast; "integer" for tokens.
      **sizes: of dimensions that are known, C=3. None of the others may be empty.

    Raises:
      InputError: the sentence says what is expected and what came.
    """
    names = axes.split()
    expected = ", ".join(f"{name}={sizes[name]}" if name in sizes else name for name in names)
    article, kinds = _ALLOWED[numbers]
    expected = f"{what} takes {article} [{expected}]"
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise InputError(
            f"{expected}, and was given {shown(repr(x), 60)} of the type {type(x).__name__}."
        )
    shape = tuple(x.shape)
    given = f"{expected}, and was given {x.dtype} of the shape {shape}."
    if not _fits(shape, names, sizes):
        raise InputError(f"{given}{_hint(shape, names, sizes)}")
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
        cast = " Cast it, for example by x.astype(jnp.float32)." if numbers == "float" else ""
        raise InputError(f"{given}{cast}")


def _fits(shape: tuple[int, ...], names: list[str], sizes: dict[str, int]) -> bool:
    if names[0] == "...":
        names = names[1:]
        if len(shape) <= len(names) or 0 in shape:
            return False
        shape = shape[-len(names) :]
    return len(shape) == len(names) and all(
        size == sizes[name] if name in sizes else size > 0
        for name, size in zip(names, shape, strict=True)
    )


def _hint(shape: tuple[int, ...], names: list[str], sizes: dict[str, int]) -> str:
    """The usual mistakes: no batch, channels before rows and columns, nothing in it."""
    if len(shape) == len(names) - 1 and _fits((1, *shape), names, sizes):
        return " A batch of one is x[None]."
    if len(shape) == 4 and names[-1] == "C":
        moved = (shape[0], *shape[2:], shape[1])
        if _fits(moved, names, sizes):
            return " Channels come last: x.transpose(0, 2, 3, 1)."
    return " It is empty." if 0 in shape else ""
