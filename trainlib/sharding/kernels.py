"""Whether kernels written for an accelerator are taken, asked while a function is traced.

A kernel lives beside the plain form of the same function, in arrays and operations of JAX alone.
Which of the two a program holds follows from the platform that it is traced for, and from what was
asked for here: a configuration's `kernels`, or `use_kernels` around a call of one's own.
"""

from __future__ import annotations

import contextlib

import jax

from trainlib.errors import one_of
from trainlib.sharding.constrain import platform

KERNELS = ("auto", "plain", "interpret")

# JAX keeps what it traced under one choice apart from what it traced under another.
_CHOICE = jax.make_user_context("auto")


def use_kernels(choice: str) -> contextlib.AbstractContextManager[object]:
    """Decides about kernels in what is traced meanwhile; the results are the same.

    Args:
      choice: "auto" takes them on the platform that they are for, where they can do what is asked;
        "plain" takes none; "interpret" takes them everywhere and runs them step by step, in
        operations of JAX, which is slow and meant for tests.

    Raises:
      ConfigError: another choice.

    Example:
      >>> with use_kernels("plain"):
      ...     y = relative_attention_2d(q, k, v)
    """
    if choice not in KERNELS:
        raise one_of("kernels", choice, KERNELS)
    return _CHOICE(choice)


def kernel_mode(target: str = "tpu") -> str | None:
    """How a kernel for `target` runs in the program that is being traced: "compiled", "interpret",
    or None where the plain form is to be taken.
    """
    choice = _CHOICE.value
    if choice == "interpret":
        return "interpret"
    return "compiled" if choice == "auto" and platform() == target else None
