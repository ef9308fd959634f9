"""The weights of a fine-tuning run as the plain model has them: what an export writes.

Experts that were kept as int8 are given back in float32, q times its scale, and adapters are added
to their matrices in float32: W + alpha / rank A B. See `moe.models.tuned`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from moe.kernels import int8
from moe.layers.product import A, B
from moe.models.tuned import Tuned, merged
from trainlib.formats.weight_source import Weights
from trainlib.model.weights import Spec


class Merged:
    """Weights of a run, leaf by leaf, under the names and in the types of the plain model.

    Attributes: as of `trainlib.formats.weight_source.Weights`.

    Args:
      source: of the run.
      tuned: how the run stores them.
      specs: name -> what the plain model declares.
    """

    def __init__(self, source: Weights, tuned: Tuned, specs: Mapping[str, Spec]):
        self._source, self._tuned, self.specs = source, tuned, dict(specs)
        self.step, self.averaged, self.origin = source.step, source.averaged, source.origin
        self.measured, self.versions = source.measured, source.versions

    def leaves(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of the leaves asked for, in the dtypes of the plain model."""
        for name in self.specs if names is None else names:
            yield name, self._leaf(name)

    def _leaf(self, name: str) -> np.ndarray:
        there = self._source.specs
        beside = [name + end for end in (A, B, int8.scale_of("")) if name + end in there]
        read = dict(self._source.leaves([name, *beside]))
        value, dtype = read[name], self.specs[name].dtype
        if int8.scale_of(name) in read:
            scale = jnp.asarray(read[int8.scale_of(name)])
            return np.asarray(int8.restored(jnp.asarray(value), scale, dtype))
        if name + A in read:
            return np.asarray(_merged(value, read[name + A], read[name + B], self._tuned.scale))
        return value.astype(dtype, copy=False)

    def counts(self) -> np.ndarray | tuple[()]:
        """See `Weights.counts`."""
        return self._source.counts()

    def close(self) -> None:
        """Closes the source."""
        self._source.close()


_merged = jax.jit(merged)


def notes(tuned: Tuned) -> tuple[str, ...]:
    """What an export says of the way from the run to its weights, one line each."""
    said = []
    if tuned.experts != "float32":
        said.append(
            f"the run keeps its experts as {tuned.experts}; they are written as float32, rounded "
            "as they were"
        )
    if tuned.adapted:
        said.append(
            f"adapters of rank {tuned.rank} are merged into {len(tuned.adapted)} weights, in "
            "float32"
        )
    return tuple(said)
