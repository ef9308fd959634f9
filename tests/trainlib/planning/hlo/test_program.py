"""Collectives read from compiled programs: from text as TPU compilers print it, and from programs
whose collectives are known.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.planning import hlo
from trainlib.planning.hlo import Program
from trainlib.planning.hlo.instruction import parse
from trainlib.sharding.mesh import make_mesh

MESH = {"replica": 1, "data": 2, "model": 4}

# A loop of 6 with a loop of 3 inside; layouts, comments and attributes as libtpu writes them.
TEXT = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[16,8]{1,0:T(8,128)} all-reduce(%input), channel_id=8, \
replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  ROOT %slice = f32[4,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.5, %c), dynamic_slice_sizes={4,8}
}

%started (p: f32[8,64]) -> (f32[8,64], f32[16,64]) {
  %p = f32[8,64]{1,0} parameter(0)
  %all-gather.1 = f32[16,64]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=9, \
replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, frontend_attributes={chain_id="2"}
  ROOT %custom-call.1 = (f32[8,64]{1,0}, f32[16,64]{1,0}, /*index=5*/u32[]{:S(2)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: f32[8,64]) -> f32[16,64] {
  %p.1 = f32[8,64]{1,0} parameter(0)
  %all-gather.2 = f32[16,64]{1,0:T(8,128)S(1)} all-gather(%p.1), channel_id=9, \
replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, frontend_attributes={chain_id="2"}
  ROOT %custom-call.2 = f32[16,64]{1,0} custom-call(%all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%inner_body (state: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %state = (s32[]{:T(128)}, /*index=1*/f32[16,8]{1,0:T(8,128)}) parameter(0)
  %gte = f32[16,8]{1,0} get-tuple-element(%state), index=1
  %fusion.1 = f32[4,8]{1,0:T(8,128)} fusion(%gte), kind=kCustom, calls=%all-reduce-scatter.1
  %a2a = bf16[2,32]{1,0:T(8,128)(2,1)} all-to-all(%gte), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}, \
metadata={op_name="jit(step)/while/body/shard_map/all_to_all"}
  ROOT %tuple.1 = (s32[], f32[16,8]{1,0}) tuple(%i, %gte)
}

%inner_condition (state.2: (s32[], f32[16,8])) -> pred[] {
  %state.2 = (s32[]{:T(128)}, f32[16,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %i.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

%outer_body (state.3: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %state.3 = (s32[]{:T(128)}, f32[16,8]{1,0}) parameter(0)
  %fusion.2 = (f32[8,64]{1,0}, f32[16,64]{1,0}, u32[]{:S(2)}) fusion(%state.3), calls=%started
  %fusion.3 = f32[16,64]{1,0} fusion(%fusion.2), kind=kCustom, calls=%done
  ROOT %while.1 = (s32[]{:T(128)}, f32[16,8]{1,0}) while(%state.3), condition=%inner_condition, \
body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
}

%outer_condition (state.4: (s32[], f32[16,8])) -> pred[] {
  %state.4 = (s32[]{:T(128)}, f32[16,8]{1,0}) parameter(0)
  %limit.4 = s32[]{:T(128)} constant(6)
  ROOT %lt.4 = pred[]{:T(512)} compare(%state.4, %limit.4), direction=LT
}

ENTRY %main (x: f32[16,8]) -> f32[16,8] {
  %x = f32[16,8]{1,0:T(8,128)} parameter(0)
  %while.2 = (s32[]{:T(128)}, f32[16,8]{1,0}) while(%x), condition=%outer_condition, \
body=%outer_body, backend_config={"known_trip_count":{"n":"6"}}
  %permute = f32[5]{0:T(128)} collective-permute(%x), channel_id=4, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %reduce = f32[]{:T(128)} all-reduce(%x), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %out = f32[16,8]{1,0} copy(%x)
}
"""


def by_kind(program: Program) -> dict:
    return {(one.kind, one.axes): (one.times, one.bytes) for one in program.totals()}


def test_text_of_a_tpu_program():
    """Bytes are of whole buffers, times those of the loops around them."""
    assert by_kind(Program(TEXT, MESH)) == {
        ("reduce-scatter", ("model",)): (18, 18 * 16 * 8 * 4),
        ("all-to-all", ("data",)): (18, 18 * 2 * 32 * 2),
        ("all-gather", ("data",)): (6, 6 * 16 * 64 * 4),  # once, not in both of its fusions
        ("collective-permute", ("model",)): (1, 5 * 4),
        ("all-reduce", ("data", "model")): (1, 4),
    }


def test_bytes_on_the_wire_by_kind():
    sent = {one.kind: one.wire_bytes / one.bytes for one in Program(TEXT, MESH).totals()}
    assert sent == {
        "reduce-scatter": 3 / 4,
        "all-to-all": 1 / 2,
        "all-gather": 1 / 2,
        "collective-permute": 1,
        "all-reduce": 2 * 7 / 8,
    }


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{{0,1,2,3},{4,5,6,7}}", ("model",)),
        ("{{0,1,2,3,4,5,6,7}}", ("data", "model")),
        ("[2,4]<=[8]", ("model",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("mesh['a'=2,'b'=4] {'b'}", ("model",)),
        ("mesh['a'=2,'b'=4] {'a','b'}", ("data", "model")),
        ("mesh['a'=8] {'a':(1)2}", ("data",)),
        ("mesh['a'=8] {'a':(2)4}", ("model",)),
        ("{}", ("data", "model")),
    ],
)
def test_groups_of_devices_are_named_by_mesh_axes(groups, axes):
    line = TEXT.replace("[1,8]<=[8]", groups)
    found = [one for one in Program(line, MESH).collectives if one.kind == "all-reduce"]
    assert [one.axes for one in found] == [axes]


def compiled(fn, mesh, *specs_and_shapes):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec, shape in specs_and_shapes
    ]
    return Program(jax.jit(fn).lower(*arguments).compile().as_text() or "", mesh.shape)


def test_a_program_with_known_collectives():
    """Real compilation: gather over one axis, sum over the other, seven times in a loop."""
    mesh = make_mesh(1, 2, 4)

    def local(x):
        def body(total, _):
            whole = jax.lax.all_gather(x + total.sum(), "data", tiled=True)
            return total + jax.lax.psum(whole.sum(0), "model"), None

        return jax.lax.scan(body, jnp.zeros(x.shape[1]), None, length=7)[0]

    fn = jax.shard_map(
        local, mesh=mesh, in_specs=P("data", "model"), out_specs=P("model"), check_vma=False
    )
    found = by_kind(compiled(fn, mesh, (P("data", "model"), (8, 40))))
    assert found == {
        ("all-gather", ("data",)): (7, 7 * 8 * 10 * 4),
        ("all-reduce", ("model",)): (7, 7 * 10 * 4),
    }


def test_the_partitioners_warning_is_found():
    log = "I0 something\n... [SPMD] Involuntary full rematerialization. The compiler ...\n"
    assert len(hlo.involuntary(log)) == 1
    assert hlo.involuntary("all is well") == []


def test_a_quotation_mark_in_a_scope_ends_no_name():
    line = r'%a = f32[] tanh(%b), metadata={op_name="jit(f)/a\"b\\c/tanh" stack_frame_id=4}'
    found = parse(line)
    assert found is not None
    assert found.op_name == r'jit(f)/a"b\c/tanh'
    assert found.frame == 4


def test_what_a_kernel_says_of_itself_is_no_line_of_its_own():
    """As splash attention of JAX does; what follows belongs to the same instruction."""
    text = """HloModule m

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} custom-call(), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, backend_config={"flag_configs":[]}
  ROOT %b = f32[8]{0} negate(%a)
}
"""
    first, second = hlo.Program(text, {}).computations["main"]
    assert (first.name, second.name) == ("a", "b")
    assert "backend_config" in first.rest
