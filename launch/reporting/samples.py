"""The samples of a checkpoint that a page shows: read from the workdir, or made there first.

To make them the model answers on this machine, which takes JAX, the data and memory for the
weights. Whatever of that is missing is no reason to have no page: the page says why there are no
samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path

from trainlib.checkpoint import manifest
from trainlib.errors import DataError, UserError, shown
from trainlib.report import samples as files
from trainlib.report.samples import Samples


def of_checkpoint(
    workdir: Path,
    step: int,
    count: int,
    say: Callable[[str], object],
    compile_cache: str = "",
) -> Samples | str:
    """The samples of a saved step, at most `count`; or the reason why there are none.

    What was written for the same weights is read, so that only the first page of a step takes a
    model.

    Args:
      workdir: of the run.
      step: number of the checkpoint, which is whole.
      count: 1 or more.
      say: told what takes time, and what cannot be written.
      compile_cache: of `--compile_cache`.
    """
    count = min(count, files.MOST)
    try:
        content = manifest.read(workdir / "checkpoints" / str(step))
        there = files.read(workdir, step)
        if there is None or there.weights != digest(content) or there.asked < count:
            there = _made(workdir, content, count, say, compile_cache)
    except manifest.NOT_READ as error:
        return f"The checkpoint of step {step} cannot be read: {error}."
    except UserError as error:
        return str(error)
    return dataclasses.replace(there, samples=there.samples[:count])


def digest(content: manifest.Manifest) -> str:
    """A text that tells the weights of a step from those of a run that was trained again."""
    digests = sorted((name, leaf.digest) for name, leaf in content.leaves.items())
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]


def _made(
    workdir: Path,
    content: manifest.Manifest,
    count: int,
    say: Callable[[str], object],
    compile_cache: str,
) -> Samples:
    """Asks the model, and writes what it says.

    Raises:
      UserError: it cannot be asked here.
    """
    _check_memory(content)
    from configs.common import load
    from launch import families
    from trainlib import compile_cache as cache

    config = load.of_workdir(workdir, {})
    say(
        f"samples: the model of step {content.step} answers {count} held-out examples on this "
        "machine (--samples=0 leaves them out)"
    )
    cache.enable(compile_cache)
    import jax

    try:
        made = families.of(config).samples.take(config, workdir, content.step, count)
    except jax.errors.JaxRuntimeError as error:
        reason = shown(str(error).partition("\n")[0], 300)
        raise DataError(f"JAX cannot run the model on this machine: {reason}.") from None
    made = dataclasses.replace(made, weights=digest(content), asked=count)
    try:
        return files.write(workdir, made)
    except UserError as error:
        say(f"The samples are on the page, and are made anew for the next one: {error}")
        return files.bounded(made)


def _check_memory(content: manifest.Manifest) -> None:
    """Refuses weights that this machine cannot hold beside what is computed with them, before JAX
    is started.

    Raises:
      CheckpointError: names both sizes.
    """
    from trainlib.untrusted_files import check_memory

    def size(leaf: manifest.Leaf) -> int:
        bits = re.search(r"\d+", leaf.dtype)  # bfloat16, float32, ..
        return math.prod(leaf.shape) * (int(bits[0]) // 8 if bits else 1)

    weights = sum(size(leaf) for name, leaf in content.leaves.items() if name.startswith("params/"))
    check_memory(2 * weights, f"To answer with the weights of step {content.step}")
