"""The ledger of a program: sums, groups, and functions of one's own compiled for TPUs."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.tpu_compiler import needs_libtpu
from tests.trainlib.planning.ledger.programs import (
    BF16,
    PROGRAMS,
    compile_for_v5e,
    compiled_bytes,
    recorded,
    shape,
)
from trainlib.chips import CHIPS, target
from trainlib.errors import ConfigError
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import ledger_of, ledger_of_compiled, ledger_of_program
from trainlib.planning.ledger.names import UNNAMED
from trainlib.planning.ledger.operation import BASES, KINDS
from trainlib.sharding.topology import devices

V5E = target("v5e-1")


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_operation_is_accounted_for(name):
    ledger = recorded(name)
    for one in ledger.operations:
        assert one.kind in KINDS
        assert one.basis in BASES
        assert one.seconds > 0 or not one.hbm_bytes
        assert one.layer
    assert len({one.name for one in ledger.operations}) == len(ledger.operations)


@pytest.mark.parametrize("what", ["layer", "op", "source", "kind"])
def test_groups_hold_everything_once(what):
    ledger = recorded("residual_block")
    groups = ledger.by(what)
    assert sum(g.hbm_bytes for g in groups) == ledger.hbm_bytes
    assert sum(g.seconds for g in groups) == pytest.approx(ledger.seconds)
    assert sum(g.flops for g in groups) == pytest.approx(ledger.flops)
    assert sum(g.share for g in groups) == pytest.approx(1)
    assert sum(g.operations for g in groups) == len(ledger.operations)
    assert groups == sorted(groups, key=lambda g: -g.seconds)


def test_an_unknown_grouping_is_an_error():
    with pytest.raises(ValueError, match="layer, op, source, kind"):
        recorded("matmul").by("colour")


def test_layers_of_a_block_with_gradients():
    """All that runs has a layer; prefetches have that of what they are made for."""
    ledger = recorded("residual_block")
    layers = {g.name: g for g in ledger.by("layer")}
    assert set(layers) <= {"block", "block/conv1", "block/conv2", UNNAMED}
    assert layers["block/conv1"].flops + layers["block/conv2"].flops > 0.99 * ledger.flops
    assert layers.get(UNNAMED) is None
    phases = {one.phase for one in ledger.operations if one.kind == "product"}
    assert phases == {"forward", "backward"}
    assert {o.source.split(":")[0] for o in ledger.operations} == {
        "/project/tests/trainlib/planning/ledger/programs.py"
    }


def test_times_are_the_compilers_cycles():
    (product,) = (o for o in recorded("matmul").operations if o.kind == "product")
    assert product.basis == "compiler"
    assert product.cycles is not None
    assert product.seconds == product.cycles / CHIPS["v5e"].clock
    peak = 2 * 4096**3 / CHIPS["v5e"].flops
    assert 0.9 < peak / product.seconds < 1


SCATTER = """HloModule m

%stored (t: s32[32768], i: s32[16384], u: s32[16384]) -> s32[32768] {
  %t = s32[32768]{0:T(1024)} parameter(0)
  %i = s32[16384]{0:T(1024)S(1)} parameter(1)
  %u = s32[16384]{0:T(1024)S(1)} parameter(2)
  ROOT %s = s32[32768]{0:T(1024)} scatter(%t, %i, %u), update_window_dims={}, \
inserted_window_dims={0}, to_apply=%second
}

ENTRY %main (x: s32[32768], j: s32[16384], v: s32[16384]) -> s32[32768] {
  %x = s32[32768]{0:T(1024)} parameter(0)
  %j = s32[16384]{0:T(1024)S(1)} parameter(1)
  %v = s32[16384]{0:T(1024)S(1)} parameter(2)
  ROOT %f = s32[32768]{0:T(1024)} fusion(%x, %j, %v), kind=kCustom, calls=%stored
}
"""


def test_single_numbers_are_scattered_one_after_the_other():
    """Of 65 x 1,722 bundles on v5e, whatever the bytes."""
    ledger = ledger_of_program(Program(SCATTER, {}), target("v5e-1"))
    assert ledger.seconds == pytest.approx(65 * 1722 / 1.5e9, rel=0.03)
    assert [f.kind for f in ledger.findings] == ["uncounted"]


def test_a_scatter_in_a_fusion_of_a_fusion_is_found():
    """As the compiler makes of `jnp.bincount`."""
    head, entry = SCATTER.split("ENTRY")
    outer = entry.replace("%main", "%outer").replace("ROOT %f =", "ROOT %inner =")
    entry = entry.replace("calls=%stored", "calls=%outer")
    nested = ledger_of_program(Program(f"{head}{outer.strip()}\n\nENTRY{entry}", {}), V5E)
    assert nested.seconds == ledger_of_program(Program(SCATTER, {}), V5E).seconds


def test_single_numbers_are_gathered_one_after_the_other():
    """20,480 of them take 0.067 ms by the bundles of v5e; a row of many is no single number."""
    text = """HloModule m

ENTRY %main (x: f32[32768], i: s32[20480]) -> f32[20480] {
  %x = f32[32768]{0:T(1024)} parameter(0)
  %i = s32[20480]{0:T(1024)S(1)} parameter(1)
  ROOT %g = f32[20480]{0:T(1024)} gather(%x, %i), offset_dims={}, slice_sizes={1}
}
"""
    assert ledger_of_program(Program(text, {}), V5E).seconds == pytest.approx(6.7e-5, rel=0.01)
    rows = text.replace("slice_sizes={1}", "slice_sizes={1,8}")
    assert ledger_of_program(Program(rows, {}), V5E).seconds < 1e-6


def test_what_an_opaque_custom_call_computes_is_said_to_be_left_out():
    text = """HloModule m

ENTRY %main (x: f32[1024,8192]) -> f32[1024,8] {
  %x = f32[1024,8192]{1,0:T(8,128)} parameter(0)
  ROOT %c = f32[1024,8]{1,0:T(8,128)} custom-call(%x), custom_call_target="TopK"
}
"""
    ledger = ledger_of_program(Program(text, {}), V5E)
    (found,) = (f for f in ledger.findings if f.kind == "left out")
    assert "What TopK computes is not counted: it takes at least" in found.text


def test_a_ledger_is_json():
    ledger = recorded("scan")
    read = json.loads(json.dumps(ledger.to_dict()))
    assert read["target"] == "v5e-1"
    assert read["hbm_bytes"] == ledger.hbm_bytes
    assert sum(o["times"] * o["flops"] for o in read["operations"]) == ledger.flops


def test_without_a_chip_there_are_bytes_and_no_times():
    """A program for the simulated CPU devices, as the tests of the report compile it."""
    fn = jax.jit(lambda x: jnp.sin(x) @ x)
    compiled = fn.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    ledger = ledger_of_compiled(compiled, {"data": 1}, None)
    assert ledger.seconds == 0
    assert ledger.schedule.seconds == 0
    assert ledger.hbm_bytes >= 2 * 64 * 64 * 4
    assert ledger.flops >= 2 * 64**3
    assert ledger.findings == ()
    json.dumps(ledger.to_dict())


# ---------------------------------------------------------------------- with the TPU's compiler
def test_an_unknown_target_is_an_error():
    with pytest.raises(ConfigError, match="not known"):
        ledger_of(lambda x: x, shape(8, 128), target="v9-1")


@pytest.mark.thorough
@needs_libtpu
@pytest.mark.parametrize("name", ["matmul_odd", "depthwise", "chain", "row_sums", "batched"])
def test_totals_are_those_of_the_installed_compiler(name):
    """Within 5 %, whichever libtpu is installed."""
    compiled = compile_for_v5e(name)
    ledger = ledger_of_compiled(compiled, {"data": 1}, target("v5e-1"))
    cost = compiled.cost_analysis()
    assert ledger.flops == pytest.approx(cost["flops"], rel=0.05)
    assert compiled_bytes(ledger) == pytest.approx(cost["bytes accessed"], rel=0.05)
    assert ledger.memory.peak == pytest.approx(ledger.temporaries, rel=0.1, abs=2**16)


@pytest.mark.sample(2)
@needs_libtpu
@pytest.mark.parametrize("chip", ["v4:1x1x1", "v5p:1x1x1", "v6e-1", "tpu7x:1x1x1"])
def test_every_chip_has_a_clock(chip):
    """A product of 2048 cubed runs at 50 to 100 % of the peak by the compiler's account."""
    ledger = ledger_of(jnp.dot, shape(2048, 2048), shape(2048, 2048), target=chip)
    (product,) = (o for o in ledger.operations if o.kind == "product")
    assert product.basis == "compiler"
    peak = 2 * 2048**3 / CHIPS[chip.split(":")[0].split("-")[0]].flops
    assert 0.5 < peak / product.seconds <= 1


@pytest.mark.thorough
@needs_libtpu
def test_functions_of_ones_own():
    """Plain, jitted or partial; of pytrees; the same ledger each time."""

    def fn(weights, x, scale):
        with jax.named_scope("dense"):
            return {"y": scale * (x @ weights["w"])}

    arguments = ({"w": shape(512, 512)}, shape(1024, 512))
    plain = ledger_of(functools.partial(fn, scale=2.0), *arguments)
    jitted = ledger_of(jax.jit(functools.partial(fn, scale=2.0)), *arguments)
    assert plain.operations == jitted.operations
    assert plain.target == "v5e-1"
    assert [g.name for g in plain.by("layer")] == ["dense"]


@pytest.mark.thorough
@needs_libtpu
def test_a_pallas_kernel_is_counted_by_its_blocks_and_bundles():
    """Over a grid of 4 x 4 the rows are fetched once each, the columns once for every row of
    blocks.
    """
    from jax.experimental import pallas as pl

    def kernel(a, b, out):
        out[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32).astype(BF16)

    def product(a, b):
        return pl.pallas_call(
            kernel,
            grid=(4, 4),
            in_specs=[
                pl.BlockSpec((1024, 512), lambda i, j: (i, 0)),
                pl.BlockSpec((512, 1024), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((1024, 1024), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((4096, 4096), BF16),
        )(a, b)

    ledger = ledger_of(product, shape(4096, 512), shape(512, 4096))
    (found,) = (one for one in ledger.operations if one.kind == "kernel")
    assert found.basis == "bundles"
    assert found.flops == 2 * 4096 * 4096 * 512
    blocks = 2 * 4096 * (512 + 4 * 512 + 4096)
    assert found.hbm_bytes + found.vmem_bytes == blocks
    assert 0.5 < found.flops / CHIPS["v5e"].flops / found.seconds <= 1


@pytest.mark.thorough
@needs_libtpu
def test_several_chips_by_the_shardings_of_shapes():
    mesh = Mesh(np.array(devices(target("v5e-4"))).reshape(2, 2), ("data", "model"))

    def placed(*spec):
        return jax.ShapeDtypeStruct((4096, 4096), BF16, sharding=NamedSharding(mesh, P(*spec)))

    ledger = ledger_of(
        lambda x, w: x @ w, placed("data", "model"), placed("model", None), target="v5e-4"
    )
    collectives = [o for o in ledger.operations if o.basis == "links"]
    assert {o.axes for o in collectives} == {("model",)}
    # Every device multiplies half of the rows by half of the depth.
    assert ledger.flops == pytest.approx(2 * 4096**3 / 4, rel=0.05)


@needs_libtpu
@pytest.mark.parametrize("of", ["cpu", "v5e-8"])
def test_a_mesh_of_other_devices_is_an_error(of):
    """Nothing says otherwise that the times are of another chip, or the links of another slice."""
    found = jax.devices()[:1] if of == "cpu" else devices(target(of))
    sharding = NamedSharding(Mesh(np.array(found), ("data",)), P())
    argument = jax.ShapeDtypeStruct((8, 128), BF16, sharding=sharding)
    with pytest.raises(ConfigError, match=r"not v5e-4, 4 x TPU v5 lite.*devices\("):
        ledger_of(jnp.tanh, argument, target="v5e-4")


@needs_libtpu
def test_arguments_are_those_of_a_call():
    """Values of Python by place, static or by name, and functions of NumPy that take JAX's."""
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    times = jax.jit(lambda a, n: sum(a * k for k in range(1, n)), static_argnums=1)
    assert ledger_of(times, x, 4).flops > 0
    assert ledger_of(lambda a, s, *, b: a * s + b, x, 2.0, b=x).flops == 2 * 8 * 128
    assert ledger_of(np.sum, x).flops == 8 * 128 - 1
