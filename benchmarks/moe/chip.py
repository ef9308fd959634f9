"""Sparse layer on a TPU that need not be here: `python -m benchmarks.moe.chip --target=v5e-1`.

Forward and backward of one layer, bfloat16 on float32 weights, GEGLU, top-2, all weights and inputs
differentiated, router and its losses included, by the account of the TPU compiler
(`trainlib.planning.ledger`). Nothing is run. Sizes are those of ST-MoE-L: 8 sequences of 2,048
tokens, groups of 4,096 or less, d_model 1,024, d_ff 2,816.

    layer     all operations in the order of their schedule
    products  the experts' own, of the same program: six kernels
    plain     the same products as XLA makes them from `moe.kernels.batched`, with `--plain`

The ratio of layer and products is what routing, dispatch and combining cost. `bound` is the part of
the layer's time that the compiler makes no estimate of, gathers above all: bytes at the bandwidth.
`--per-choice` gives each expert twice the slots (capacity times K, as V-MoE and MaxText count it).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

SEQUENCES, LENGTH, D_MODEL, D_FF = 8, 2048, 1024, 2816
CHOICES, FACTOR = 2, 1.25


def _routing(experts: int, per_choice: bool):
    from moe.routing.config import RoutingConfig

    return RoutingConfig(
        experts,
        top_k=CHOICES,
        capacity_factor=FACTOR,
        capacity_per_choice=per_choice,
        second_policy="all",
    )


def slots(experts: int, per_choice: bool) -> int:
    """N, the slots of one expert, of all groups."""
    from moe.routing.config import capacity, tokens_per_group

    routing = _routing(experts, per_choice)
    size = tokens_per_group(routing, SEQUENCES, LENGTH)
    return SEQUENCES * LENGTH // size * capacity(routing, size, train=True)


def _with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(weights, x)` and what its gradients make of a cotangent, one after the other."""
    import jax

    def step(weights, x, cotangent):
        out, pull = jax.vjp(function, weights, x)
        out, cotangent = jax.lax.optimization_barrier((out, cotangent))
        return out, pull(cotangent)

    return step


def layer(experts: int, *, per_choice: bool = False) -> tuple[Callable[..., Any], list[Any]]:
    """A step of one sparse layer, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    from moe.layers.sparse import SparseFFN
    from moe.routing.losses import auxiliary_loss
    from trainlib.model.weights import abstract

    routing = _routing(experts, per_choice)
    spec = abstract(SparseFFN(D_MODEL, D_FF, routing))

    def apply(params, x):
        y, out = spec.bind(params, {})(x, train=True)
        return y, auxiliary_loss(out.losses, routing)

    params = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in spec.params.items()
    }
    x = jax.ShapeDtypeStruct((SEQUENCES, LENGTH, D_MODEL), jnp.bfloat16)
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    return _with_gradients(apply), [params, x, (x, loss)]


def plain(experts: int, *, per_choice: bool = False) -> tuple[Callable[..., Any], list[Any]]:
    """The experts alone, on a ready buffer, as plain products, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    from moe.kernels.batched import batched

    def apply(weights, x):
        weights = {name: value.astype(x.dtype) for name, value in weights.items()}
        return batched(x, weights, "none", None)

    into, out = (experts, D_MODEL, D_FF), (experts, D_FF, D_MODEL)
    weights = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in (("gate", into), ("up", into), ("down", out))
    }
    shape = (experts, slots(experts, per_choice), D_MODEL)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return _with_gradients(apply), [weights, x, x]


class Row(NamedTuple):
    """Of one layer on one target; seconds and bytes.

    Attributes:
      experts: E.
      slots: N, of each expert.
      layer: the predicted time of the whole step.
      products: of the kernels of the experts.
      arithmetic: of the same products at the peak of the chip.
      hbm_bytes: of the whole step.
      bound: of what carries no estimate.
      plain: of the products as XLA makes them; None where not asked for.
    """

    experts: int
    slots: int
    layer: float
    products: float
    arithmetic: float
    hbm_bytes: int
    bound: float
    plain: float | None


def measure(experts: int, target: str, *, per_choice: bool = False, with_plain: bool = False):
    """The row of one layer.

    Raises:
      ConfigError: libtpu is not installed, or an unknown target.
    """
    from trainlib import chips
    from trainlib.planning.ledger import ledger_of

    function, shapes = layer(experts, per_choice=per_choice)
    ledger = ledger_of(function, *shapes, target=target)
    rows = experts * slots(experts, per_choice)
    other = None
    if with_plain:
        function, shapes = plain(experts, per_choice=per_choice)
        other = ledger_of(function, *shapes, target=target).schedule.seconds

    def total(choose: Callable[[Any], bool]) -> float:
        return sum(one.total_seconds for one in ledger.operations if choose(one))

    return Row(
        experts=experts,
        slots=slots(experts, per_choice),
        layer=ledger.schedule.seconds,
        products=total(lambda one: one.kind == "kernel"),
        arithmetic=18 * rows * D_MODEL * D_FF / chips.target(target).chip.flops,
        hbm_bytes=ledger.hbm_bytes,
        bound=total(lambda one: one.kind in ("gather", "scatter", "sort")),
        plain=other,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each number of experts."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--target", default="v5e-1")
    parser.add_argument("--experts", type=int, nargs="*", default=[8, 32, 64])
    parser.add_argument("--per-choice", action="store_true")
    parser.add_argument("--plain", action="store_true", help="XLA's own products as well")
    options = parser.parse_args(argv)
    print(f"{options.target}: forward and backward, ms, by the compiler's account")
    print("  E     N    layer  products  ratio  of peak     GB  bound  plain")
    for experts in options.experts:
        row = measure(
            experts, options.target, per_choice=options.per_choice, with_plain=options.plain
        )
        print(
            f"{row.experts:3}{row.slots:6}{1e3 * row.layer:9.2f}{1e3 * row.products:10.2f}"
            f"{row.layer / row.products:7.2f}{row.arithmetic / row.products:9.0%}"
            f"{row.hbm_bytes / 1e9:7.2f}{1e3 * row.bound:7.2f}"
            + (f"{1e3 * row.plain:7.2f}" if row.plain is not None else "      -"),
            flush=True,
        )


if __name__ == "__main__":
    main()
