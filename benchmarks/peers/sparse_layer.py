"""The sparse feed-forward layer, forward and backward, top-2, against `st-moe-pytorch`.

Letters: B sequences, L tokens of one, T = B L, D model width, F hidden width, E experts, C slots.

float32, every second choice sent, C = 2.5 L / E slots for each sequence, which is a routing group:
of 2,048 tokens the peer is fastest in 16 sequences. Both sides hold the same weights and make the
output, both router losses and the gradients of x and of every weight. The peer's experts are its
own `Expert` without what ours do not have, the biases of its layers and the multiplicative one, and
with the tanh form of GELU; its gradient does not go straight through the dispatch tensor. Outputs,
losses and gradients are compared with nothing dropped, and again with the capacity that is timed,
without the balance losses there: the peer's counts first choices after the dropped ones are gone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import goals, timing
from benchmarks.harness.goals import Goal

FACTOR = 1.25  # of both choices; the peer counts 2.5 of one
EXPERTS, TIMES = 8, 4  # and as many times more of experts, and of tokens
LENGTH, WIDTH, HIDDEN = 128, 512, 1024
_BOUND = 1e-4  # of the largest magnitude of an array; both round 1024 products otherwise

Results = dict[str, Any]  # "output", "balance", "z", and gradients by name


def ours(weights: Results, x, dy, factor: float) -> Callable[[], Results]:
    """Our layer on x [B, L, D], with the cotangent dy."""
    import jax
    import jax.numpy as jnp

    from moe.layers.sparse import SparseFFN
    from moe.routing.config import RoutingConfig
    from moe.routing.losses import auxiliary_loss
    from trainlib.model.weights import abstract

    experts, width, hidden = weights["up"].shape
    routing = RoutingConfig(
        experts,
        capacity_factor=factor,
        capacity_per_choice=True,
        second_policy="all",
        group_sequences=1,
    )
    spec = abstract(SparseFFN(width, hidden, routing))

    def loss(weights, x):
        y, out = spec.bind(weights, {})(x, train=True)
        parts = {name: total / count for name, (total, count) in out.losses.items()}
        return jnp.vdot(y, dy) + auxiliary_loss(out.losses, routing), (y, parts)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    weights, x = jax.tree.map(jnp.asarray, (weights, x))

    def run() -> Results:
        (_, (y, parts)), (gradients, dx) = jax.block_until_ready(step(weights, x))
        return {"output": y, "balance": parts["balance"], "z": parts["z"], "x": dx, **gradients}

    return run


def theirs(weights: Results, x, dy, factor: float) -> Callable[[], Results]:
    """The peer's layer on the same; its results in our layout."""
    import torch
    from st_moe_pytorch.st_moe_pytorch import Expert, MoE  # pyright: ignore[reportMissingImports]

    class TanhGEGLU(torch.nn.Module):
        def forward(self, x):
            up, gate = x.chunk(2, dim=-1)
            return torch.nn.functional.gelu(gate, approximate="tanh") * up

    experts, width, hidden = weights["up"].shape
    members = []
    for number in range(experts):
        # Its hidden width is two thirds of the multiple.
        expert = Expert(width, hidden_mult=(1.5 * hidden + 0.5) / width, mult_bias=False)
        into, _, out = expert.net
        for linear in (into, out):
            linear.bias = None  # pyright: ignore[reportArgumentType]
        expert.net[1] = TanhGEGLU()
        both = [torch.tensor(weights[name][number]).T for name in ("up", "gate")]
        into.weight.data = torch.cat(both).contiguous()
        out.weight.data = torch.tensor(weights["down"][number]).T.contiguous()
        members.append(expert)
    layer = MoE(
        width,
        num_experts=experts,
        threshold_train=1e-9,  # every second choice is sent
        capacity_factor_train=2 * factor,
        experts=torch.nn.ModuleList(members),
        straight_through_dispatch_tensor=False,
    )
    layer.gate.to_gates.weight.data = torch.tensor(weights["router"]).T.contiguous()
    x = torch.tensor(x, requires_grad=True)
    dy = torch.tensor(dy)
    names = [name for name, _ in layer.named_parameters()]
    asked = [x, *layer.parameters()]

    def run() -> Results:
        out = layer(x)
        total = (out.outputs * dy).sum() + out.total_aux_loss
        found = dict(zip(("x", *names), torch.autograd.grad(total, asked), strict=True))
        found |= {"output": out.outputs, "balance": out.balance_loss, "z": out.router_z_loss}
        return found  # pyright: ignore[reportReturnType]

    return run


def in_our_layout(found: Results, experts: int) -> Results:
    """What the peer found, its gradients by our names."""
    import torch

    own = [f"experts.experts.{number}.net" for number in range(experts)]
    into, out = (torch.stack([found[f"{name}.{i}.weight"].mT for name in own]) for i in (0, 2))
    up, gate = into.chunk(2, dim=-1)
    kept = {name: found[name] for name in ("output", "balance", "z", "x")}
    router = found["gate.to_gates.weight"].mT
    weights = {"router": router, "up": up, "gate": gate, "down": out}
    return {name: value.detach().numpy() for name, value in (kept | weights).items()}


def check(what: str, got: Results, want: Results, but: str = "") -> None:
    """Stops the row unless both found the same, `but` one of it."""
    import numpy as np

    for name, value in want.items():
        if name == but:
            continue
        apart = float(np.max(np.abs(np.asarray(got[name]) - value), initial=0.0))
        largest = float(np.max(np.abs(value)))
        if not apart <= _BOUND * max(largest, 1e-3):
            sys.exit(f"{what}: {name} differs by {apart:.3g}, its largest value is {largest:.3g}.")
    print(f"{what}: the same output, losses and gradients", *([f"but {but}"] if but else []))


def data(experts: int, shape: tuple[int, ...], hidden: int) -> tuple[Results, Any, Any]:
    """Weights, x [B, L, D] and the cotangent of the output, all float32."""
    import numpy as np

    random, width = np.random.default_rng(0), shape[-1]
    sizes = {
        "router": (width, experts),
        "gate": (experts, width, hidden),
        "up": (experts, width, hidden),
        "down": (experts, hidden, width),
    }
    weights = {
        name: np.float32(random.normal(size=size) * size[-2] ** -0.5)
        for name, size in sizes.items()
    }
    x, dy = (np.float32(random.normal(size=shape)) for _ in range(2))
    return weights, x, dy


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the times and ratios; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    options = parser.parse_args(argv)
    timing.need_peers("torch", "st_moe_pytorch")
    timing.pin_one_thread()
    import torch

    torch.set_num_threads(1)
    print(timing.header(("jax", "jaxlib", "torch", "st-moe-pytorch")), flush=True)

    def case(experts: int, tokens: int) -> tuple[Results, Any, Any]:
        shape = (tokens // LENGTH, LENGTH, options.width)
        return data(experts, shape, options.hidden)

    candidates = {}
    for experts in (EXPERTS, TIMES * EXPERTS):
        few = case(experts, 2 * LENGTH)
        room = experts / 2  # a slot for every token
        pair = [make(*few, room)() for make in (ours, theirs)]
        check(f"E={experts}, nothing dropped", pair[0], in_our_layout(pair[1], experts))
        pair = [make(*case(experts, options.tokens), FACTOR) for make in (ours, theirs)]
        results = pair[0](), in_our_layout(pair[1](), experts)
        check(f"E={experts}, as timed", *results, but="balance")
        candidates |= dict(
            zip((f"ours E={experts}", f"st-moe-pytorch E={experts}"), pair, strict=True)
        )
    more = f"ours E={EXPERTS}, {TIMES} times the tokens"
    candidates[more] = ours(*case(EXPERTS, TIMES * options.tokens), FACTOR)
    return goals.report(
        f"sparse layer, top-2, T={options.tokens} D={options.width} F={options.hidden}",
        timing.fastest(candidates, options.rounds),
        [
            *(
                Goal(f"ours E={n}", f"st-moe-pytorch E={n}", 0.95, aim=0.85)
                for n in (EXPERTS, TIMES * EXPERTS)
            ),
            Goal(more, f"ours E={EXPERTS}", 4.05),
            Goal(f"ours E={TIMES * EXPERTS}", f"ours E={EXPERTS}", 1.15),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
