"""The end of a residual block: bit-equal to a ReLU of the sum, and written once on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.layers.residual import add_relu


def maps(dtype, shape=(2, 5, 3, 7)):
    x, y, g = jax.random.normal(jax.random.key(0), (3, *shape)).astype(dtype)
    x, y = x.at[0].set(0), y.at[0, 0].set(0)  # both are 0 somewhere: the gradient there is 0
    return x.at[1, 0].set(-y[1, 0]), y, g


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_a_relu_of_the_sum(dtype):
    x, y, g = maps(dtype)
    out, pull = jax.vjp(add_relu, x, y)
    want, pull_want = jax.vjp(lambda x, y: jax.nn.relu(x + y), x, y)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, want)
    for actual, wanted in zip(pull(g), pull_want(g), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_blocks_of_a_chain_are_not_added_up_again():
    """Each of four sums is read twice, as in a stage. Made again where they are read, they would be
    2 + 4 + 6 + 8 additions and maxima instead of 2 for each."""

    def chain(x, branches, kernel):
        outputs = []
        for branch in branches:
            x = add_relu(x, branch)
            outputs.append(x @ kernel)
        return outputs

    x, branches = jnp.ones((512, 256)), jnp.ones((4, 512, 256))
    text = jax.jit(chain).lower(x, list(branches), jnp.ones((256, 256))).compile().as_text()
    assert text.count(" maximum(") == 4
