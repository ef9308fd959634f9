"""Keys outside of a small map: what they add up to, and how many are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.kernels.plain.attend import MASK_BIAS
from vitattn.kernels.plain.border import beside, inside_starts, outside


def test_blocks_of_small_maps_have_only_keys_that_are_there():
    assert inside_starts(14, 7, 3) == ((0, 4), 10)
    assert inside_starts(13, 7, 3) == ((0, 3), 10)
    assert inside_starts(7, 7, 3) == ((0,), 7)
    assert inside_starts(28, 7, 3) is None
    assert inside_starts(7, 7, 0) is None


@pytest.mark.thorough
@pytest.mark.parametrize("large", [False, True])
def test_what_lies_outside_is_the_sum_over_its_keys(large):
    size, block, window, depth = 5, 3, 7, 4
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (1, 2, 2, 2, block, block, depth)) * (60 if large else 1)
    tables = [jax.random.normal(key, (window, depth // 2)) for key in keys[1:]]
    sides = outside(size, block, window)
    found = beside(q, tables, sides, sides)
    for head, c, r, y, x in np.ndindex(2, 2, 2, block, block):
        query = q[0, head, c, r, y, x]
        rows, cols = query[:2] @ tables[0].T, query[2:] @ tables[1].T
        out = sides[r, y][:, None] | sides[c, x][None, :]
        logits = (rows[:, None] + cols[None, :])[out]
        want = jax.nn.logsumexp(logits) if out.any() else MASK_BIAS
        # Of a share below 1e-30 of the window nothing is left that a softmax would show.
        top = rows.max() + cols.max()
        np.testing.assert_allclose(
            found[0, head, c, r, y, x], jnp.maximum(want, top - 69.1), 1e-4, 0.1
        )
    grads = jax.grad(lambda *a: beside(a[0], a[1:], sides, sides).clip(-1e3).sum(), (0, 1, 2))
    assert all(bool(jnp.isfinite(g).all()) for g in grads(q, *tables))


def test_a_program_of_14_pixels_has_no_logits_of_padding():
    from vitattn.kernels.local import local_attention

    args = [jnp.ones((2, 14, 14, 2, 8))] * 3 + [jnp.ones((7, 4))] * 2
    gradient = jax.grad(lambda *a: local_attention(*a, window=7).sum(), (0, 1, 2, 3, 4))
    text = jax.jit(gradient).lower(*args).compile().as_text()
    assert ",100,49]" in text
    assert ",169," not in text
