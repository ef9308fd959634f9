"""The router's product on a CPU against its plain form: values, gradients, and the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.logits import router_logits
from trainlib.sharding.constrain import lowered_for


def step(x, router, dy):
    logits, pull = jax.vjp(router_logits, x, router)
    return logits, *pull(dy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_plain_form(dtype):
    x, router, dy = (
        jax.random.normal(jax.random.key(i), shape).astype(dtype)
        for i, shape in enumerate([(3, 7, 5), (5, 4), (3, 7, 4)])
    )
    got = step(x, router, dy)
    with lowered_for("tpu"):
        want = step(x, router, dy)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == dtype
        limit = 1e-6 if dtype == "float32" else 0.02
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=limit, atol=10 * limit)


def test_the_gradient_of_the_router_is_no_product_of_few_columns():
    shapes = [(1, 256, 64), (64, 4), (1, 256, 4)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def narrow():
        jax.clear_caches()
        text = jax.jit(step).lower(*arrays).compile().as_text()
        products = [line for line in text.splitlines() if " dot(" in line]
        return [line for line in products if "= f32[64,4]" in line]

    assert not narrow()
    with lowered_for("tpu"):
        assert narrow()
