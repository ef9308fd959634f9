"""A program that is compiled while something else is made ready.

XLA compiles the step of a network for ten seconds on a laptop and for minutes on a pod, mostly
outside of Python. The first weights are made meanwhile, and the workers that read data start.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from trainlib.step.heap import keep_memory_of


def compiled_ahead(program: Any, *shapes: Any) -> Callable[..., Any]:
    """Begins to compile in a thread, and returns what calls the program.

    Args:
      program: of `jax.jit`.
      *shapes: of its arguments: trees of `jax.ShapeDtypeStruct` with shardings. It may be called
        with such arguments alone.

    It is traced here, under the settings of the caller, and what the trace refuses is raised here.

    Returns:
      A function of the same arguments, whose calls wait for the compiler and raise what that
      raised.
    """
    traced = program.trace(*shapes)
    result: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            compiled = traced.lower().compile()
            keep_memory_of(compiled)
            result.append(compiled)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="compile")
    thread.start()

    def call(*args: Any) -> Any:
        if not result:
            thread.join()
            if failure:
                raise failure[0]
        return result[0](*args)

    return call
