"""What a step measured, as values: scalars, and vectors over the sparse blocks and their experts.

The flat names that files hold, such as `router/encoder.3/load_0`, are made by `flat` for whoever
writes a file; nothing here reads one back.

Letters: P sparse blocks of a stack, E experts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from trainlib.model import metrics
from trainlib.model.metrics import Metrics

ROUTER = "router/"  # prefix of the sums of a step that are vectors over blocks
_MANY = 8  # with more experts, a row of a table gives the range of their loads

Rows = list[tuple[str, str]]  # of a printed table


@dataclasses.dataclass(frozen=True)
class Routers:
    """What the routers of all sparse blocks did.

    Attributes:
      blocks: stack -> numbers of its sparse blocks, see `Architecture.sparse_blocks`.
      values: stack -> metric -> float64 [P]; `load`, the share of the choices sent that each expert
        got, is [P, E].
    """

    blocks: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Mapping[str, np.ndarray]]

    def flat(self) -> dict[str, dict[str, float]]:
        """Name of a sum -> the values of its blocks, by the names that files hold.

        `router/encoder/load` of the blocks 3 and 7 is `router/encoder.3/load_0`, ..
        """
        named = {}
        for stack, values in self.values.items():
            for metric, vector in values.items():
                named[f"{ROUTER}{stack}/{metric}"] = {
                    f"{ROUTER}{stack}.{block}/{name}": value
                    for block, of_block in zip(self.blocks[stack], vector, strict=True)
                    for name, value in _by_expert(metric, of_block)
                }
        return named

    def loads(self) -> dict[str, np.ndarray]:
        """`STACK.BLOCK` of each sparse block -> load of its experts, float64 [E]."""
        return {block: values["load"] for block, values in self._each()}

    def rows(self) -> Rows:
        """One row for each sparse block: load of its experts, dropped tokens, router entropy."""
        return [(f"router {block}", _router_row(values)) for block, values in self._each()]

    def _each(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(`STACK.BLOCK`, metric -> value) of each sparse block."""
        for stack, values in self.values.items():
            for number, block in enumerate(self.blocks[stack]):
                yield f"{stack}.{block}", {name: vector[number] for name, vector in values.items()}

    def weighted(self, weight: float, more: Routers | None = None) -> Routers:
        """All values times a weight, added to those of `more`."""
        values = {
            stack: {
                name: (0.0 if more is None else more.values[stack][name]) + weight * vector
                for name, vector in of_stack.items()
            }
            for stack, of_stack in self.values.items()
        }
        return Routers(self.blocks, values)


def _by_expert(metric: str, value: np.ndarray) -> list[tuple[str, float]]:
    if metric != "load":
        return [(metric, float(value))]
    return [(f"load_{expert}", float(share)) for expert, share in enumerate(value)]


def _router_row(values: Mapping[str, np.ndarray]) -> str:
    load = values["load"]
    shares = " ".join(f"{100 * share:.0f}" for share in load)
    if len(load) > _MANY:
        shares = f"{100 * load.min():.1f} to {100 * load.max():.1f}"
    return (
        f"load {shares} %, dropped {100 * values['dropped_choices']:.1f} %, "
        f"entropy {values['entropy']:.2f} of {np.log(len(load)):.2f}"
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """The values of the sums of a step.

    Attributes:
      scalars: name -> value.
      routers: what is a vector over blocks.
    """

    scalars: Mapping[str, float]
    routers: Routers

    @classmethod
    def of(cls, sums: Metrics, blocks: Mapping[str, tuple[int, ...]]) -> Measured:
        """Divides sums by their counts, on the host.

        Args:
          sums: what a step or an evaluation returned; `router/STACK/NAME` has totals [P] or [P, E]
            and counts [P].
          blocks: stack -> numbers of its sparse blocks.
        """
        scalars: dict[str, metrics.Metric] = {}
        vectors: dict[str, dict[str, np.ndarray]] = {}
        for name, metric in metrics.to_host(sums).items():
            if name.startswith(ROUTER):
                stack, _, router_metric = name.removeprefix(ROUTER).partition("/")
                vectors.setdefault(stack, {})[router_metric] = _divided(metric)
            else:
                scalars[name] = metric
        # Stacks in the order of the model, blocks in that of the stack.
        ordered = {stack: vectors[stack] for stack in blocks if stack in vectors}
        return cls(metrics.compute(scalars), Routers(blocks, ordered))

    def flat(self) -> dict[str, float]:
        """Everything under the names that files hold, in the order of the names of the sums."""
        flat: dict[str, float] = {}
        for name, value in sorted({**self.scalars, **self.routers.flat()}.items()):
            flat |= value if isinstance(value, dict) else {name: value}
        return flat


def _divided(metric: metrics.Metric) -> np.ndarray:
    """Totals [P] or [P, E] over counts [P]; NaN where nothing was counted."""
    total, count = np.asarray(metric.total), np.asarray(metric.count)
    count = count.reshape(count.shape + (1,) * (total.ndim - count.ndim))
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count != 0)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """How well the target tokens of a text were predicted.

    Attributes:
      cross_entropy: mean over the tokens, in nats.
      accuracy: share of the tokens that were the likeliest.
      tokens: how many there were.
    """

    cross_entropy: float
    accuracy: float
    tokens: int

    def flat(self) -> dict[str, float]:
        """The figures of `metrics.jsonl`: how good, and not on how much."""
        return {"cross_entropy": self.cross_entropy, "accuracy": self.accuracy}

    def plus(self, rate: float, part: Predicted) -> Predicted:
        """This sum with another part, whose means count `rate`."""
        return Predicted(
            self.cross_entropy + rate * part.cross_entropy,
            self.accuracy + rate * part.accuracy,
            self.tokens + part.tokens,
        )
