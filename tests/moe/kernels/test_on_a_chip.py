"""What the sparse layer takes on a TPU, by the account of its compiler; nothing is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.moe import chip
from moe.kernels.tiled import tiled
from moe.routing.config import RoutingConfig
from moe.routing.dispatch import combine, copy_to_slots
from moe.routing.route import route
from tests.tpu_compiler import needs_figures, needs_libtpu
from trainlib import chips
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.constrain import activate
from trainlib.sharding.topology import devices


@needs_figures
@pytest.mark.thorough
def test_tokens_are_moved_by_six_gathers_and_passes_that_compute():
    """Without a pad to [G, S + 1, D], a scatter, or a pass that only changes a type or a layout.

    In arrays of all tokens, [G, S, D], 33.1 are read and written: by two gathers of slots and four
    of tokens, by the passes of combine (3), of its gradient (5) and of dx (3), and by the experts
    of this test, which scale.
    """
    groups, size, width = 2, 2048, 1024
    config = RoutingConfig(8, second_policy="all")

    def step(x, logits, scale, dy):
        def layer(x, logits, scale):
            routed = route(logits, config, train=True)
            slots = copy_to_slots(x, routed.slot, routed.source)
            slots = jax.lax.optimization_barrier(slots) * scale
            return combine(slots, routed.gates, routed.slot, routed.source)

        y, pull = jax.vjp(layer, x, logits, scale)
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, pull(dy)[:2]

    x = jax.ShapeDtypeStruct((groups, size, width), jnp.bfloat16)
    logits = jax.ShapeDtypeStruct((groups, size, 8), jnp.float32)
    ledger = ledger_of(step, x, logits, jax.ShapeDtypeStruct((width,), jnp.bfloat16), x)
    tokens = 2 * groups * size * width  # bytes
    moved = {
        one.name: (one.hbm_bytes + one.vmem_bytes) / tokens
        for one in ledger.operations
        if not one.opcode.endswith(("-start", "-done"))  # into memory on the chip, meanwhile
    }
    large = [one for one in ledger.operations if moved.get(one.name, 0) >= 1]
    assert sum(one.kind == "gather" for one in large) == 6
    assert {one.kind for one in large} == {"gather", "elementwise", "reduction"}
    assert all(one.opcode == "fusion" for one in large)
    assert not any(one.kind == "scatter" for one in ledger.operations)
    assert sum(moved.values()) <= 34  # 33.1
    # Gathers of single numbers, the weight of each slot, take 4.9 cycles each: 0.06 ms of these.
    singles = [one for one in ledger.operations if one.kind == "gather" and one not in large]
    taken = sum(one.total_seconds for one in singles)
    assert taken <= 0.07e-3, taken
    assert ledger.seconds - taken <= 0.44e-3  # 0.426 ms


@needs_figures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "target", "share", "ratio"),
    [
        (8, "v5e-1", 0.9, 1.35),  # 0.94, 1.28
        (32, "v5e-1", 0.8, 1.35),  # 0.85, 1.28
        (64, "v5e-1", 0.5, 1.25),  # 0.52, 1.18: float32 weights of so many experts are its time
    ],
)
def test_a_layer_is_its_products_and_little_else(experts, target, share, ratio):
    """The products at `share` of the peak or more, the layer at most `ratio` times them."""
    row = chip.measure(experts, target)
    assert row.arithmetic / row.products >= share
    assert row.layer / row.products <= ratio


@needs_libtpu
@pytest.mark.slow
def test_a_loop_over_layers_with_the_kernels_compiles():
    """Gradients of stacked weights, which XLA would write from within the kernels: their memory
    was then too small ("Ran out of memory in memory space vmem").
    """
    mesh = Mesh(
        np.array(devices(chips.target("v5e-1"))[:1]), ("data",), axis_types=(AxisType.Auto,)
    )
    place, layers = NamedSharding(mesh, P()), 6

    def of(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    into, out = of(layers, 1, 1024, 1408), of(layers, 1, 1408, 1024)

    def loss(weights, x):
        def layer(x, weights):
            return x + tiled(x, weights, None), None

        with activate(mesh, {"batch": None}):
            y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    weights = {"gate": into, "up": into, "down": out}
    x = of(1, 8192, 1024, dtype=jnp.bfloat16)
    assert jax.jit(jax.grad(loss)).lower(weights, x).compile()
