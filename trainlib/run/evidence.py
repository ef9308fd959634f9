"""Keeps what a `NumericAbort` found as a file, and says in its message where it lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from trainlib.errors import NumericAbort, UserError, shown
from trainlib.files import write_atomically


@contextlib.contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Inside, the evidence of a `NumericAbort` is written into a directory, by the first of several
    processes.

    Raises:
      NumericAbort: that one, with the place of the file, or with the reason why there is none.
    """
    try:
        yield
    except NumericAbort as error:
        if error.evidence is None:
            raise
        name, text = error.evidence
        path = directory / name
        where = f"What was found is in {shown(path)}."
        if jax.process_index() == 0:
            try:
                write_atomically(path, text)
            except (OSError, UserError) as refused:
                # The first trouble is the one to mend, and decides the exit code.
                where = f"{shown(path)}, with what was found, cannot be written: {refused}"
        raise NumericAbort(f"{error} {where}", error.evidence) from None
