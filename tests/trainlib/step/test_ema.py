"""The moving average of weights."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.trainlib.step.test_optimizers import arrays, assert_same
from trainlib.step.ema import ema_update


def test_ema_is_its_formula_with_and_without_warm_up():
    values = [arrays(i) for i in range(6)]
    for warm in (False, True):
        ema = jax.tree.map(jnp.asarray, values[0])
        expected = {name: value.astype("f8") for name, value in values[0].items()}
        for t, new in enumerate(values):
            ema = jax.jit(ema_update, static_argnums=2)(ema, new, 0.3, t if warm else None)
            d = min(0.3, (1 + t) / (10 + t)) if warm else 0.3
            expected = {n: d * expected[n] + (1 - d) * new[n] for n in expected}
        assert_same(ema, expected)


def test_ema_moves_by_steps_far_below_the_precision_of_the_decay():
    # 1 - 0.9999 in f32 is off by 5e-5 relative; the share is formed in f64 before that.
    ema, new = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    np.testing.assert_allclose(ema_update(ema, new, 0.9999)["w"], 1e-4, rtol=1e-6)
    np.testing.assert_allclose(ema_update(ema, new, 0.9999, 10**6)["w"], 1e-4, rtol=1e-6)
    np.testing.assert_allclose(ema_update(ema, new, 0.9999, 0)["w"], 0.9, rtol=1e-6)


def test_ema_keeps_dtypes_and_takes_whole_numbers_as_they_are():
    ema = {"frozen": jnp.asarray([3, -7], jnp.int8), "half": jnp.ones(2, jnp.bfloat16)}
    new = {"frozen": jnp.asarray([3, -7], jnp.int8), "half": jnp.zeros(2, jnp.bfloat16)}
    moved = jax.jit(ema_update, static_argnums=2)(ema, new, 0.5, 10**6)
    assert moved["frozen"].dtype == jnp.int8
    assert moved["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved["frozen"], [3, -7])
    np.testing.assert_array_equal(moved["half"].astype("f4"), [0.5, 0.5])
