"""A program compiled in a thread does what it does without one."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh
from trainlib.step.ahead import compiled_ahead


def test_it_gives_what_the_program_gives_and_is_traced_once_under_the_caller_s_settings():
    split = NamedSharding(make_mesh(1, 8, 1), P("data"))
    traced_under = []

    def double(tree):
        traced_under.append(jax.config.jax_default_matmul_precision)
        return jax.tree.map(lambda x: 2 * x, tree)

    program = jax.jit(double, in_shardings=split, out_shardings=split, donate_argnums=0)
    shape = {"x": jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split)}
    with jax.default_matmul_precision("highest"):
        ahead = compiled_ahead(program, shape)
    x = np.arange(48, dtype=np.float32).reshape(16, 3)
    for factor in (2, 4):
        given = jax.device_put({"x": factor * x / 2}, split)
        result = ahead(given)["x"]
        np.testing.assert_array_equal(result, factor * x)
        assert result.sharding == split
        assert given["x"].is_deleted()
    assert traced_under == ["highest"]


def test_what_the_trace_refuses_is_raised_at_once():
    def refuse(x):
        raise ConfigError("no such layer")

    with pytest.raises(ConfigError, match="no such layer"):
        compiled_ahead(jax.jit(refuse), jax.ShapeDtypeStruct((), jnp.float32))


def test_what_the_compiler_refuses_is_raised_by_every_call():
    class Program:
        """Traced, lowered, and then too large for its device."""

        def trace(self, *_):
            return self

        def lower(self):
            return self

        def compile(self):
            assert threading.current_thread() is not threading.main_thread()
            raise MemoryError("it does not fit")

    ahead = compiled_ahead(Program())
    for _ in range(2):
        with pytest.raises(MemoryError, match="does not fit"):
            ahead()
