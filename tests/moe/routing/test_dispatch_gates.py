"""What the compiler makes of the sparse layer: arithmetic, memory, scatters, collectives. Exact and
free of noise; nothing is executed. The layer is that of all platforms but a CPU, which computes no
empty slots (`tests/moe/exchange/test_filled.py`).
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from moe.kernels.batched import batched
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig, capacity
from moe.routing.losses import auxiliary_loss
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs

CHOICES, FACTOR = 2, 1.25
RULES = {
    **{"batch": ("replica", "data", "model"), "expert": "data", "expert_embed": None},
    **{"expert_mlp": "model", "router": None},
}


def compile_quickly(function, *args):
    lowered = jax.jit(function).lower(*args)
    # The emitter of fusions that users have: memory and scatters are those of its programs.
    return lowered.compile(
        {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}
    )


@functools.cache
def layer(experts, tokens, width, hidden, sequences=1, mesh=None, **options):
    """The compiled forward and backward pass of a layer, router and losses included."""
    config = RoutingConfig(
        experts,
        capacity_factor=FACTOR,
        capacity_per_choice=True,
        second_policy="all",
        max_group_size=10**9,
        **options,
    )
    spec = nn.abstract(SparseFFN(width, hidden, config))
    params = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}
    x = jax.ShapeDtypeStruct((sequences, tokens // sequences, width), jnp.float32)
    if mesh:
        placed = resolve_specs(spec.params, RULES, mesh)
        params = {n: p.update(sharding=placed[n]) for n, p in params.items()}
        x = x.update(sharding=batch_sharding(RULES, mesh))

    def loss(params, x):
        y, out = spec.bind(params, {})(x, train=True)
        return jnp.vdot(y, y) + auxiliary_loss(out.losses, config)

    def step(params, x):
        if not mesh:
            return jax.value_and_grad(loss, (0, 1))(params, x)
        with activate(mesh, RULES):
            return jax.value_and_grad(loss, (0, 1))(params, x)

    with lowered_for("gpu"):
        return compile_quickly(step, params, x), capacity(config, tokens, train=True)


@functools.cache
def padded_floor(experts, rows, width, hidden):
    """The batched products alone, forward and backward."""
    into, out = (experts, width, hidden), (experts, hidden, width)
    weights = {"gate": into, "up": into, "down": out}
    weights = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in weights.items()}
    x = jax.ShapeDtypeStruct((experts, rows, width), jnp.float32)

    def loss(weights, x):
        y = batched(x, weights, "none", None)
        return jnp.vdot(y, y)

    return compile_quickly(jax.value_and_grad(loss, (0, 1)), weights, x)


def products(compiled):
    """Floating-point operations of all matrix products in the program."""
    return compiled.cost_analysis()["flops"]


SIZES = ((8, 2048, 512, 1024), (64, 2048, 256, 512))


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "tokens", "width", "hidden"), SIZES)
def test_arithmetic_is_that_of_the_padded_experts(experts, tokens, width, hidden):
    """At most 1.02 of the experts' own, the router's 6 T D E set aside. One-hot einsums: 2.1."""
    compiled, rows = layer(experts, tokens, width, hidden)
    floor = products(padded_floor(experts, rows, width, hidden))
    exact = 18 * experts * rows * width * hidden
    assert exact <= floor <= 1.02 * exact  # the floor is what the formula says
    router = 6 * tokens * width * experts
    assert (products(compiled) - router) / floor <= 1.02


@pytest.mark.thorough
def test_arithmetic_is_linear_in_tokens():
    ratio = products(layer(64, 8192, 256, 512)[0]) / products(layer(64, 2048, 256, 512)[0])
    assert ratio <= 4.05


@pytest.mark.parametrize(("experts", "tokens", "width", "hidden"), SIZES)
def test_memory_is_that_of_the_padded_experts(experts, tokens, width, hidden):
    """Temporary bytes: at most three copies of the rows above those of the floor; where C F
    dominates, at most 1.15 of the floor and its ready buffer. One-hot einsums: 1.8 to 2.9.
    """
    compiled, rows = layer(experts, tokens, width, hidden)
    used = compiled.memory_analysis().temp_size_in_bytes
    floor = padded_floor(experts, rows, width, hidden).memory_analysis().temp_size_in_bytes
    buffer = 4 * experts * rows * width
    assert used <= floor + 3 * buffer
    if experts == 8:
        assert used <= 1.15 * (floor + buffer)


def shapes(text):
    """(element type, dimensions, operation) of every array-valued instruction of an HLO text."""
    found = re.findall(r"= \(?(\w+)\[([\d,]*)\][^ ]* ([\w-]+)\(", text)
    return [(kind, [int(n) for n in dims.split(",") if n], op) for kind, dims, op in found]


@pytest.mark.parametrize(("experts", "tokens", "width", "hidden"), SIZES)
def test_no_row_is_scattered_and_no_one_hot_is_made(experts, tokens, width, hidden):
    """Scatters are of integers only; nothing has as many elements as [S, E, C]."""
    compiled, rows = layer(experts, tokens, width, hidden)
    arrays = shapes(compiled.as_text())
    assert {op for _, _, op in arrays} >= {"gather", "sort", "scatter"}  # the pattern sees them
    assert {kind for kind, _, op in arrays if op == "scatter"} == {"s32"}
    assert max(math.prod(dims) for _, dims, _ in arrays) < tokens * experts * rows


COLLECTIVES = ("all-to-all", "all-gather", "reduce-scatter", "collective-permute", "all-reduce")


def outputs(text, op):
    """Elements that each collective of a kind leaves on a device; sums over one device left out
    (the CPU compiler keeps them, for mesh axes of size 1).
    """
    sizes = []
    for line in re.findall(rf"= (.*? {op}(?:-start)?\(.*)", text):
        if not re.search(r"replica_groups=\{\{\d+\}", line):
            arrays = re.findall(r"\w+\[([\d,]*)\]", line[: line.index(f" {op}")])
            sizes.append(sum(math.prod(int(n) for n in a.split(",") if n) for a in arrays))
    return sizes


@pytest.mark.thorough
@pytest.mark.parametrize("partitioner", ["shard_map", "automatic"])
def test_expert_parallel_training_is_four_all_to_alls(partitioner):
    """Two forward, two backward, each K * CF * T/n * D * 4 bytes a device; no gather of anything.
    All-reduces are of the router's gradient and of scalars.
    """
    devices, experts, tokens, width, hidden = 8, 16, 1024, 32, 64
    mesh = make_mesh(data=devices)
    compiled, _ = layer(
        experts, tokens, width, hidden, devices, mesh, group_sequences=1, partitioner=partitioner
    )
    text = compiled.as_text()
    found = {op: outputs(text, op) for op in COLLECTIVES}
    assert {op: len(sizes) for op, sizes in found.items() if op != "all-reduce"} == {
        "all-to-all": 4,
        "all-gather": 0,
        "reduce-scatter": 0,
        "collective-permute": 0,
    }

    own_rows = CHOICES * FACTOR * tokens / devices
    assert found["all-to-all"] == [own_rows * width] * 4
    assert sum(found["all-reduce"]) <= width * experts + 10 * experts


@pytest.mark.thorough
def test_columns_gather_and_reduce_scatter_but_never_all_reduce_rows():
    """With d_ff over columns: buffers are gathered before the experts and reduce-scattered after
    (and the reverse in the backward pass); experts never move.
    """
    mesh = make_mesh(data=4, model=2)
    compiled, _ = layer(16, 1024, 32, 64, 8, mesh, group_sequences=1)
    text = compiled.as_text()
    found = {op: outputs(text, op) for op in COLLECTIVES}
    counts = [len(found[op]) for op in ("all-to-all", "all-gather", "reduce-scatter")]
    assert counts == [4, 2, 2]
    assert sum(found["all-reduce"]) <= 32 * 16 + 10 * 16  # the router, scalars and the load
