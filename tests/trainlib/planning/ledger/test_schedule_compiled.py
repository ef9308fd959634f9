"""Schedules of programs that the TPU compiler made: collectives of two axes, and known limits.

The limits were taken with libtpu 0.0.42; of another version the tests of figures are skipped.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.tpu_compiler import needs_figures, needs_libtpu
from trainlib import chips
from trainlib.planning.ledger import Ledger, ledger_of
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.topology import devices

pytestmark = [pytest.mark.thorough, needs_libtpu]
LAYERS = 4


@functools.cache
def layers() -> Ledger:
    """Four layers of x + relu(x w1) w2 on v5e-8, weights split over `data` and `model`."""
    mesh = make_mesh(1, 2, 4, devices=devices(chips.target("v5e-8")))

    def shape(sizes: tuple[int, ...], *spec: object) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    def put(x: jax.Array, *spec: object) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def layer(x: jax.Array, w: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, second = put(w[0], None, "model"), put(w[1], "model", None)
        hidden = put(jax.nn.relu(put(x, "data", None) @ first), "data", "model")
        return put(hidden @ second, ("data", "model"), None) + x, None

    return ledger_of(
        jax.jit(lambda x, *w: jax.lax.scan(layer, x, w)[0]),
        shape((4096, 2048), ("data", "model"), None),
        shape((LAYERS, 2048, 8192), None, "data", "model"),
        shape((LAYERS, 8192, 2048), None, "model", "data"),
        target="v5e-8",
    )


@pytest.mark.thorough
def test_collectives_of_a_compiled_program_are_named_by_axis_and_partly_hidden():
    ledger = layers()
    found = ledger.schedule
    assert set(found.in_flight) == {"copies", "data", "model"}
    # The second gather of weights runs beside the first product, everything else is waited for.
    assert found.exposed["data"] < 0.9 * found.in_flight["data"]
    assert max(found.bounds.values()) <= found.seconds <= ledger.seconds
    assert found.core_seconds + sum(found.exposed.values()) == pytest.approx(found.seconds)
    lanes = {span.lane for span in found.spans}
    assert {"core", "copies", "ici x", "ici y"} == lanes


@pytest.mark.thorough
def test_what_is_gathered_and_scattered_is_what_the_layers_hold():
    sent = {
        axes: sum(o.times * o.wire_bytes for o in layers().operations if o.axes == (axes,))
        for axes in ("data", "model")
    }
    # Each weight is gathered from 2 to its fourth of a column: half of it comes from elsewhere.
    assert sent["data"] == LAYERS * 2 * (2048 * 8192 // 4) * 2 // 2
    # Activations [2048, 2048] are gathered from 4 and scattered to 4; the rest are edges of tiles.
    least = LAYERS * 2 * (2048 * 2048 * 2) * 3 / 4
    assert least <= sent["model"] < 1.05 * least


@pytest.mark.thorough
def test_spans_of_a_lane_do_not_overlap():
    spans = layers().schedule.spans
    for lane in ("core", "ici x"):
        own = sorted((one.start, one.end) for one in spans if one.lane == lane)
        assert all(end <= start + 1e-12 for (_, end), (start, _) in itertools.pairwise(own))


@pytest.mark.thorough
@needs_figures
@pytest.mark.parametrize("target", ["v5e:1x1", "v5p:1x1x1", "v4:1x1x1"])
def test_a_product_takes_the_time_of_the_matrix_unit(target):
    left = jax.ShapeDtypeStruct((2048, 8192), jnp.bfloat16)
    right = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
    found = ledger_of(lambda a, b: a @ b, left, right, target=target).schedule
    assert found.bounds["arithmetic"] <= found.seconds <= 1.10 * found.bounds["arithmetic"]
