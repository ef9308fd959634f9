"""The kernels of the augmented half, interpreted, against the plain form; and their figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_compiler import needs_figures
from tests.vitattn.kernels.tpu.test_relative_packed import close
from trainlib.sharding.kernels import use_kernels
from vitattn.kernels.augmented import augmented_half
from vitattn.kernels.relative import relative_attention_2d

# images, rows, columns, channels, heads, depth of keys and of values, channels of the result
CASES = {
    "odd": (3, 5, 9, 12, 2, 6, 4, 7),
    "two blocks of images": (9, 3, 4, 8, 3, 20, 1, 5),
    "one pixel": (2, 1, 1, 8, 3, 5, 2, 5),
    "one row": (1, 1, 17, 6, 1, 3, 9, 3),
    "one head": (2, 7, 7, 16, 1, 32, 32, 32),
    "published": (2, 14, 14, 16, 8, 20, 6, 48),
}


def arguments(case, dtype="float32", relative=True):
    """Map, weights and tables; then a cotangent."""
    images, rows, columns, channels, heads, d, e, width = case
    keys = iter(jax.random.split(jax.random.key(0), 6))
    x = jax.random.normal(next(keys), (images, rows, columns, channels), dtype)
    qkv = jax.random.normal(next(keys), (channels, heads * (2 * d + e))) * channels**-0.5
    out = jax.random.normal(next(keys), (heads * e, width)) * (heads * e) ** -0.5
    tables = [jax.random.normal(next(keys), (2 * n - 1, d)) for n in (rows, columns)]
    cotangent = jax.random.normal(next(keys), (images, rows, columns, width), dtype)
    return (x, qkv, out, tuple(tables) if relative else ()), cotangent


def plain(x, qkv, out, tables, *, heads, depth, scale=None):
    """Projections as 1x1 convolutions, and the attention of `relative_attention_2d`."""
    keys = (qkv.shape[1] - heads * depth) // 2
    projected = jnp.split(x @ qkv.astype(x.dtype), (keys, 2 * keys), -1)
    q, k, v = (part.reshape(*x.shape[:3], heads, -1) for part in projected)
    with use_kernels("plain"):
        per_head = relative_attention_2d(q, k, v, *tables, scale=scale)
    return per_head.reshape(*x.shape[:3], -1) @ out.astype(x.dtype)


def value_and_gradients(function, given, cotangent, kernels="interpret"):
    def run(given, cotangent):
        with use_kernels(kernels):
            value, pull = jax.vjp(function, *given)
            return value, pull(cotangent)

    return jax.jit(run)(given, cotangent)


def check(case, bound, dtype="float32", relative=True, scale=None):
    """The kernels differ from the plain form by at most `bound` of the largest entry, or of 1."""
    given, cotangent = arguments(case, dtype, relative)
    heads, depth = case[4], case[6]
    kernel = functools.partial(augmented_half, num_heads=heads, scale=scale)
    actual = value_and_gradients(kernel, given, cotangent)
    # In float32: bfloat16 is to be compared with what is exact.
    wide, wide_cotangent = jax.tree.map(lambda a: a.astype(jnp.float32), (given, cotangent))
    expected = value_and_gradients(
        functools.partial(plain, heads=heads, depth=depth, scale=scale), wide, wide_cotangent
    )
    close(actual, expected, bound)
    assert actual[0].dtype == actual[1][0].dtype == dtype


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_are_those_of_the_plain_form(name):
    check(CASES[name], 1e-5)


@pytest.mark.thorough
def test_heads_of_a_detector_have_three_channels_and_values_of_one():
    check((2, 5, 8, 16, 2, 3, 1, 2), 1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_scale_covers_the_relative_terms(scale):
    check(CASES["odd"], 1e-5, scale=scale)


def test_without_relative_positions():
    check(CASES["odd"], 1e-5, relative=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd", "published"])
def test_bfloat16_is_as_close_as_its_roundings(name):
    """Queries, keys, probabilities and outputs are rounded at 2^-9 each; measured 0.014."""
    check(CASES[name], 2**-5, dtype="bfloat16")


def random_case(rng):
    whole = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    rows, columns = whole(1, 16), whole(1, 16)
    heads, d, e = whole(1, 4), whole(1, 24), whole(1, 12)
    return (whole(1, 9), rows, columns, whole(1, 20), heads, d, e, whole(1, 20))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_shapes(seed):
    rng = np.random.default_rng(seed)
    check(random_case(rng), 1e-5, relative=bool(rng.integers(4)))


def test_a_bad_pixel_touches_its_own_image_only():
    given, cotangent = arguments(CASES["odd"])
    x = given[0].at[1, 2, 3].set(jnp.nan)
    kernel = functools.partial(augmented_half, num_heads=2)
    good, (dx, *_) = value_and_gradients(kernel, given, cotangent)
    value, (dx_bad, *_) = value_and_gradients(kernel, (x, *given[1:]), cotangent)
    for one, other in ((good, value), (dx, dx_bad)):
        np.testing.assert_array_equal(one[::2], other[::2])
        assert np.isnan(other[1]).any()


def test_large_logits_neither_overflow_nor_lose_the_maximum():
    """Logits of some 1e3: one key has all the weight, and the sums stay finite."""
    (x, qkv, out, tables), cotangent = arguments(CASES["odd"])
    given = (x * 30, qkv, out, tables)
    kernel = functools.partial(augmented_half, num_heads=2)
    actual = value_and_gradients(kernel, given, cotangent)
    expected = value_and_gradients(functools.partial(plain, heads=2, depth=4), given, cotangent)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-2, atol=1e-2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actual))


@pytest.mark.slow
def test_it_can_be_mapped_over_and_recomputed():
    """`jax.vmap` over maps and weights, and `jax.checkpoint`, whose residuals are the inputs."""
    given, cotangent = arguments(CASES["odd"])
    stacked = jax.tree.map(lambda a: jnp.stack([a, a[::-1] * 0.5]), (given, cotangent))
    kernel = functools.partial(augmented_half, num_heads=2)
    both = value_and_gradients(jax.vmap(kernel), *stacked)
    for index in range(2):
        one = jax.tree.map(lambda a, index=index: a[index], stacked)
        alone = value_and_gradients(jax.checkpoint(kernel), *one)
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=2e-5, atol=2e-5)


def test_where_no_kernel_is_taken():
    given, _ = arguments(CASES["odd"])
    assert augmented_half(*given, num_heads=2) is None  # traced for a CPU
    with use_kernels("interpret"):
        assert augmented_half(given[0].astype(jnp.float16), *given[1:], num_heads=2) is None
        wide = jnp.zeros((1, 33, 32, 12))
        assert augmented_half(wide, *given[1:3], (), num_heads=2) is None


@needs_figures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "most"), [("half_14", 0.2), pytest.param("half_28", 1.4, marks=pytest.mark.slow)]
)
def test_time_and_bytes_of_a_half_on_v5e(path, most):
    """14 px in 0.175 ms and 28 px in 1.349; each pass moves its maps, outputs and
    statistics once, the rest is padding of 196 pixels to 256."""
    from benchmarks.attention import __main__ as command
    from benchmarks.attention import measure

    (case,) = command.cases(f"augmented/{path}")
    row = measure.measure(case, "v5e-1")
    assert row.milliseconds < most
    assert row.bytes_over_least < 2.0
    assert row.temporaries_over_outputs < 0.5
