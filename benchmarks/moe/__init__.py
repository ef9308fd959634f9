"""Sparse layer against its floors on one CPU core: `python -m benchmarks.moe`.

Forward and backward of one layer, float32, GEGLU, top-2, capacity 1.25 * 2 * T / E, all weights and
inputs differentiated, router and its losses included. The floors:

    padded  the three batched matrix products alone, on a ready [E, C, D] buffer
    dense   one dense GEGLU layer of d_ff 2 F: the arithmetic of the choices, no padding

The ratio to the padded floor is what routing, dispatch and combining cost, less what is saved on
slots that stay empty, which a CPU does not compute; the ratio to the dense floor adds what many
small products cost. `--peer` adds the papers' one-hot einsum.
A ratio above its target ends in exit code 1, unless `--report-only`. The same layer on a TPU:
`python -m benchmarks.moe.chip`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.harness import timing

CHOICES, FACTOR = 2, 1.25
# (experts, tokens, d_model, d_ff, target ratio to the padded floor)
CASES = (
    (8, 2048, 512, 1024, 1.05),
    (32, 2048, 512, 1024, 1.05),
    (64, 2048, 256, 512, 1.20),
    (128, 2048, 256, 512, 1.20),
)
DENSE_TARGET, DROPLESS_TARGET = 1.30, 1.15


def layer(experts: int, d_model: int, d_ff: int, dispatch: str):
    """Returns (routing, abstract layer, weights)."""
    import jax

    from moe.layers.sparse import SparseFFN
    from moe.routing.config import RoutingConfig
    from trainlib.model.weights import abstract, initialise

    routing = RoutingConfig(
        experts,
        top_k=CHOICES,
        capacity_factor=FACTOR,
        capacity_per_choice=True,
        second_policy="all",
        dispatch=dispatch,
    )
    spec = abstract(SparseFFN(d_model, d_ff, routing, init_scale=1.0))
    return routing, spec, initialise(spec.params, jax.random.key(0))


def sparse_step(experts: int, tokens: int, d_model: int, d_ff: int, dispatch: str):
    """Returns a function that runs the sparse layer forward and backward."""
    import jax
    import jax.numpy as jnp

    from moe.routing.losses import auxiliary_loss

    routing, spec, params = layer(experts, d_model, d_ff, dispatch)
    x, dy = (jax.random.normal(jax.random.key(i), (1, tokens, d_model)) for i in (1, 2))

    def loss_fn(params, x):
        y, out = spec.bind(params, {})(x, train=True)
        return jnp.vdot(y, dy) + auxiliary_loss(out.losses, routing)

    step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(params, x))


def padded_step(experts: int, tokens: int, d_model: int, d_ff: int):
    """Returns a function that runs the experts alone on a ready buffer."""
    import jax
    import jax.numpy as jnp

    from moe.kernels.batched import batched
    from moe.routing.config import capacity

    routing, _, params = layer(experts, d_model, d_ff, "index")
    slots = capacity(routing, tokens, train=True)
    weights = {name: params[name] for name in ("gate", "up", "down")}
    shape = (experts, slots, d_model)  # [E, C, D]
    x, dy = (jax.random.normal(jax.random.key(i), shape) for i in (1, 2))

    def loss_fn(weights, x):
        return jnp.vdot(batched(x, weights, "none", None), dy)

    step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(weights, x))


def dense_step(tokens: int, d_model: int, d_ff: int):
    """Returns a function that runs a dense layer with the arithmetic of CHOICES experts."""
    import jax
    import jax.numpy as jnp

    from moe.layers.ffn import FeedForward
    from trainlib.model.weights import abstract, initialise

    spec = abstract(FeedForward(d_model, CHOICES * d_ff))
    params = initialise(spec.params, jax.random.key(0))
    x, dy = (jax.random.normal(jax.random.key(i), (1, tokens, d_model)) for i in (1, 2))
    step = jax.jit(
        jax.value_and_grad(lambda p, x: jnp.vdot(spec.bind(p, {})(x), dy), argnums=(0, 1))
    )
    return lambda: jax.block_until_ready(step(params, x))


def einsum_step(experts: int, tokens: int, d_model: int, d_ff: int):
    """Returns a function that runs the layer with one-hot dispatch and combine, one group."""
    import jax
    import jax.numpy as jnp

    from moe.kernels.batched import batched
    from moe.routing.losses import auxiliary_loss
    from moe.routing.route import route

    routing, _, params = layer(experts, d_model, d_ff, "index")
    x, dy = (jax.random.normal(jax.random.key(i), (tokens, d_model)) for i in (1, 2))

    def loss_fn(params, x):
        routed = route((x @ params["router"])[None], routing, train=True)
        slots = routed.source.shape[-1]
        one_hot = jax.nn.one_hot(routed.slot[0], experts * slots)
        buffer = jnp.einsum("skr,sd->rd", one_hot, x).reshape(experts, slots, d_model)
        weights = {name: params[name] for name in ("gate", "up", "down")}
        out = batched(buffer, weights, "none", None).reshape(-1, d_model)
        y = jnp.einsum("skr,sk,rd->sd", one_hot, routed.gates[0], out)
        losses = jax.tree.map(lambda v: v.sum(0), routed.losses)
        return jnp.vdot(y, dy) + auxiliary_loss(losses, routing)

    step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(params, x))


class Gate(NamedTuple):
    """A ratio, and what it may be at most."""

    name: str
    ratio: float
    target: float

    @property
    def met(self) -> bool:
        return self.ratio <= self.target

    def __str__(self) -> str:
        verdict = "met" if self.met else "NOT MET"
        return f"  {self.name:18}{self.ratio:.3f}   target <= {self.target:.2f}   {verdict}"


def gates(experts: int, target: float, times: dict[str, float]) -> list[Gate]:
    """The ratios of one case that have a target."""
    result = [Gate("index / padded", times["index"] / times["padded floor"], target)]
    for name, limit in (("index", DENSE_TARGET), ("dropless", DROPLESS_TARGET)):
        if experts == 8:
            result.append(Gate(f"{name} / dense", times[name] / times["dense floor"], limit))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Prints CPU times and ratios with their targets; returns 1 when one is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each candidate")
    parser.add_argument("--experts", type=int, nargs="*", help="only these numbers of experts")
    parser.add_argument("--peer", action="store_true", help="time the one-hot einsum as well")
    parser.add_argument(
        "--core", type=int, help="processor core to be pinned to; default: the last"
    )
    parser.add_argument("--report-only", action="store_true", help="exit 0 whatever is missed")
    options = parser.parse_args(argv)
    timing.pin_one_thread(options.core)
    print(timing.header(), flush=True)
    missed = 0
    for experts, tokens, d_model, d_ff, target in CASES:
        if options.experts and experts not in options.experts:
            continue
        size = (tokens, d_model, d_ff)
        candidates = {
            "index": sparse_step(experts, *size, "index"),
            "padded floor": padded_step(experts, *size),
            "dense floor": dense_step(*size),
        }
        if experts == 8:
            candidates["dropless"] = sparse_step(experts, *size, "dropless")
        if options.peer:
            candidates["one-hot einsum"] = einsum_step(experts, *size)
        times = timing.fastest(candidates, options.rounds)
        print(f"\nE={experts} T={tokens} D={d_model} F={d_ff}, float32, forward and backward")
        for name, milliseconds in times.items():
            print(f"  {name:16}{milliseconds:8.0f} ms")
        for gate in gates(experts, target, times):
            print(gate)
            missed += not gate.met
        if experts != 8:
            print(f"  {'index / dense':18}{times['index'] / times['dense floor']:.3f}", flush=True)
    if missed:
        print(f"\n{missed} of the targets missed")
    return int(missed > 0 and not options.report_only)
