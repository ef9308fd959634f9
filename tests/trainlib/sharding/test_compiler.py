"""What the compiler is told of programs for several devices."""

import jax

from tests.tpu_compiler import needs_libtpu
from trainlib import chips
from trainlib.sharding.compiler import options
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.topology import devices


def test_a_cpu_is_told_nothing():
    assert options(make_mesh(data=len(jax.devices()))) is None


@needs_libtpu
def test_several_tpus_are_told_to_exchange_asynchronously():
    asynchronous = {"xla_tpu_enable_async_all_to_all": True}
    # A slice of v5e of more than 16 chips has no such operation: libtpu 0.0.42 ends with an error.
    slices = {"v5e-1": None, "v5e-4": asynchronous, "v5e-64": None, "v6e-64": asynchronous}
    for target, told in slices.items():
        found = devices(chips.target(target))
        assert options(make_mesh(data=len(found), devices=found)) == told


@needs_libtpu
def test_meshes_with_columns_are_not():
    """The step of ST-MoE-L on 32 x 2 chips, encoder 4,096, made libtpu 0.0.42 abort."""
    found = devices(chips.target("v5e-4"))
    assert options(make_mesh(data=2, model=2, devices=found)) is None
