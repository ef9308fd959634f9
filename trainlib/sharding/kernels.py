"""Whether kernels written for an accelerator are taken, asked while a function is traced.

A kernel lives beside the plain form of the same function, in arrays and operations of JAX alone.
Which of the two a program holds follows from the platform that it is traced for, and from what was
asked for here: a configuration's `kernels`, or `use_kernels` around a call of one's own.
"""

from __future__ import annotations

import contextlib

import jax

from trainlib.chips import chip_of
from trainlib.errors import one_of
from trainlib.sharding.constrain import platform

# MiB of the memory of a TPU's core, which holds what a kernel computes on.
CORE_MEMORY = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}
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


def core_memory() -> int:
    """Bytes of the memory (VMEM) of the core that is traced for; of the smallest known where that
    is not known.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    chip = chip_of(device.device_kind if device else jax.devices()[0].device_kind)
    return 2**20 * CORE_MEMORY.get(chip.name if chip else "", min(CORE_MEMORY.values()))
