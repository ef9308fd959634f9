"""The count of compilations that other tests rely on."""

import jax
import jax.numpy as jnp

from tests.trainlib.compilations import compilations


def test_compilations_are_counted_by_name_inside_the_block_only():
    def doubled(x):
        return x * 2

    compiled = jax.jit(doubled)
    with compilations() as names:
        for _ in range(3):
            compiled(jnp.ones(3)).block_until_ready()
        assert names.count("jit(doubled)") == 1
        compiled(jnp.ones(4)).block_until_ready()
    assert names.count("jit(doubled)") == 2
    compiled(jnp.ones(5))
    assert names.count("jit(doubled)") == 2
