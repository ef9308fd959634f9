"""What the TPU compiler makes of the exchange between devices: rows that are sent, and what runs
beside them. Nothing is executed.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from tests.tpu_compiler import needs_figures, needs_libtpu
from trainlib import chips
from trainlib.model import weights as nn
from trainlib.planning.hlo.layout import arrays
from trainlib.planning.ledger import Ledger, ledger_of
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs
from trainlib.sharding.topology import devices

RULES = {
    **{"batch": ("replica", "data", "model"), "expert": "data", "expert_embed": None},
    **{"expert_mlp": "model", "router": None},
}


@functools.cache
def layer(target, shape, sizes, config, sequences, length) -> Ledger:
    """Forward and backward of a layer in bfloat16; `sequences` of a device, `sizes` (D, F)."""
    mesh = make_mesh(*shape, devices=devices(chips.target(target)))
    spec = nn.abstract(SparseFFN(sizes[0], sizes[1], config))
    placed = resolve_specs(spec.params, RULES, mesh)
    params = {
        n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placed[n])
        for n, s in spec.params.items()
    }
    whole = (sequences * mesh.size, length, sizes[0])
    x = jax.ShapeDtypeStruct(whole, jnp.bfloat16, sharding=batch_sharding(RULES, mesh))

    def loss(params, x):
        y, _ = spec.bind(params, {})(x, train=True, key=jax.random.key(0))
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    def step(params, x):
        with activate(mesh, RULES):
            return jax.value_and_grad(loss, (0, 1))(params, x)

    return ledger_of(step, params, x, target=target)


def lines(led):
    return itertools.chain.from_iterable(led.program.computations.values())


def first_array(text):
    return next(iter(arrays(text)))


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2)])
def test_dropless_sends_each_row_once(shape):
    """Over rows of the mesh at most K T rows of D in each direction, and the numbers of choices."""
    # Not "dropless", which sends the same and takes minutes to compile.
    tokens, width, top_k = 2 * 128, 1024, 2
    # Room for everything: no further rounds, whose number only data say.
    config = RoutingConfig(8, top_k, dispatch="grouped", dropless_room=8.0, group_sequences=1)
    led = layer("v5e-8", shape, (width, 256), config, 2, 128)
    types = {line.name: line.type for line in lines(led)}
    sent = []
    for line in lines(led):
        if not line.opcode.startswith("ragged-all-to-all"):
            continue
        collective = led.program.collective("", line, 1)
        if collective and collective.axes == ("data",):
            ends = types[line.operands[0].lstrip("%")], line.type
            sent.append(min(first_array(one).bytes for one in ends))
    assert len(sent) == 4  # there and back, forward and backward
    assert max(sent) <= 1.1 * top_k * tokens * width * 2
    # The numbers of choices, the gradient of the router, and the loss of this test with that.
    most = max(4 * shape[1] * 8, 4 * width * 8 + 4)
    others = [one for one in led.program.collectives if one.axes == ("data",)]
    assert all(one.bytes <= most for one in others if one.kind != "ragged-all-to-all")


def beside(led):
    """(share of the bytes of all-to-alls in asynchronous pairs, share of their time that the core
    has other work between start and end).
    """
    seconds = {one.name: one.seconds for one in led.operations}
    sent = paired = transfer = covered = 0.0
    for computation in led.program.computations.values():
        under_way = {}
        for line in computation:
            if line.opcode == "all-to-all":
                sent += led.links.transfer(led.program, line).bytes
            elif line.opcode == "all-to-all-start":
                under_way[line.name] = 0.0
                one = led.links.transfer(led.program, line)
                sent, paired = sent + one.bytes, paired + one.bytes
                transfer += one.seconds
            elif line.opcode == "all-to-all-done":
                name = line.operands[0].lstrip("%")
                covered += min(under_way.pop(name), seconds[name])
            else:
                for name in under_way:
                    under_way[name] += seconds.get(line.name, 0.0)
    return paired / sent, covered / transfer


L16 = ("v5e-16", (1, 16, 1), (1024, 2816))


@pytest.mark.slow
@needs_figures
def test_most_of_the_exchange_travels_beside_the_experts():
    """A layer of ST-MoE-L's sizes, 32 experts on 16 chips, 32 sequences each."""
    cut, whole = (
        layer(*L16, RoutingConfig(32, group_sequences=4, exchange_chunks=n), 32, 512)
        for n in (0, 1)
    )
    paired, covered = beside(cut)
    assert paired >= 0.8
    assert covered >= 0.8  # 0.803
    waits = [led.schedule.exposed["data"] for led in (cut, whole)]
    assert waits[0] <= 0.3 * waits[1]  # 0.75 of 2.65 ms
    assert cut.schedule.seconds <= 0.965 * whole.schedule.seconds  # 10.65 of 11.10 ms
    moved = [
        sum(one.bytes * one.times for one in led.program.collectives if one.kind == "all-to-all")
        for led in (cut, whole)
    ]
    assert math.isclose(*moved)
