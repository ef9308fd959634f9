"""The attention stem against a direct NumPy loop over pixels."""

import jax
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model.weights import abstract, initialise
from trainlib.sharding.kernels import use_kernels
from vitattn.kernels.tpu.halo import attention as halo
from vitattn.layers import attention_stem
from vitattn.layers.attention_stem import AttentionStem


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def values(x, params, kind):
    height, width = x.shape[1:3]
    if kind == "plain":
        return x @ params["value"]
    if kind == "conv":  # an even size has one more pixel after than before
        padded = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
        taps = np.ndindex(4, 4)
        return sum(
            padded[:, a : a + height, c : c + width] @ params["value"][a, c] for a, c in taps
        )
    out = np.zeros((*x.shape[:3], params["value"].shape[-1]))
    for y, z in np.ndindex(height, width):
        place = params["emb_row"][y % 4] + params["emb_col"][z % 4]
        share = softmax(params["mixture"] @ place)
        out[:, y, z] = sum(
            s * (x[:, y, z] @ w) for s, w in zip(share, params["value"], strict=True)
        )
    return out


def reference(x, params, kind, relative, heads):
    x = np.asarray(x, np.float64)
    q, k = np.split(x @ params["qk"], 2, axis=-1)
    v = values(x, params, kind)
    depth = q.shape[-1] // heads
    out = np.zeros(v.shape)
    for b, y, z, n in np.ndindex(*x.shape[:3], heads):
        mine, top, left = slice(n * depth, n * depth + depth), y // 4 * 4, z // 4 * 4
        block = (b, slice(top, top + 4), slice(left, left + 4), mine)  # NumPy stops at the border
        logits = k[block] @ q[b, y, z, mine]
        if relative:
            first, second = q[b, y, z, mine][: depth // 2], q[b, y, z, mine][depth // 2 :]
            rows, cols = np.arange(logits.shape[0]) - y % 4, np.arange(logits.shape[1]) - z % 4
            logits = logits + (params["rel_row"][rows + 3] @ first)[:, None]
            logits = logits + (params["rel_col"][cols + 3] @ second)[None, :]
        p = softmax(logits.reshape(-1))
        out[b, y, z, mine] = p @ v[block].reshape(-1, depth)
    return out


@pytest.mark.sample(4)
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("kind", ["mixed", "plain", "conv"])
@pytest.mark.parametrize(("height", "width"), [(8, 4), (6, 9)])
def test_equals_the_loop_in_value_and_slope(height, width, kind, relative):
    model = abstract(AttentionStem(3, 8, num_heads=2, values=kind, relative=relative))
    params = initialise(model.params, jax.random.key(0))
    rng = np.random.default_rng(1)
    x = np.asarray(rng.standard_normal((2, height, width, 3)), np.float32)
    g = rng.standard_normal((2, height, width, 8))

    def run(params, x):
        out, vjp = jax.vjp(lambda p, x: model.bind(p, {})(x), params, x)
        return out, vjp(np.asarray(g, np.float32))

    out, (grads, dx) = jax.jit(run)(params, x)
    exact = {name: np.asarray(value, np.float64) for name, value in {**params, "x": x}.items()}
    expected = reference(exact["x"], exact, kind, relative, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in {**grads, "x": dx}.items():
        direction = rng.standard_normal(gradient.shape)

        def along(step, name=name, direction=direction):
            moved = {**exact, name: exact[name] + step * direction}
            return np.sum(g * reference(moved["x"], moved, kind, relative, 2))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(gradient * direction) - slope) < 1e-5 * scale, name


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "kernels"),
    [("mixed", "plain"), pytest.param("plain", "interpret", marks=pytest.mark.thorough)],
)
def test_strips_of_blocks_are_the_whole_image(kind, kernels, monkeypatch):
    """2 images of 3 x 2 blocks, one row of blocks at a time; in the kernels too."""
    model = abstract(AttentionStem(3, 4, num_heads=2, values=kind, relative=True))
    params = initialise(model.params, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 12, 8, 3))

    def run(params, x):
        out, vjp = jax.vjp(lambda p, x: model.bind(p, {})(x), params, x)
        return out, vjp(jax.numpy.cos(out))

    expected = jax.jit(run)(params, x)
    monkeypatch.setattr(attention_stem, "STRIP_PIXELS", 8 * 8)
    assert attention_stem.strips_of(x.shape, 4) == (4, 2)
    fits = halo.fits
    monkeypatch.setattr(
        halo, "fits", lambda sizes, *more: sizes.rows.size == 4 and fits(sizes, *more)
    )
    with use_kernels(kernels):
        actual = jax.jit(lambda *args: run(*args))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), actual, expected)


def test_an_image_that_blocks_do_not_divide_is_in_one_piece():
    assert attention_stem.strips_of((8, 642, 640, 3), 4) is None
    assert attention_stem.strips_of((8, 640, 642, 3), 4) == (160, 1)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # 2 * 3 * 64 queries and keys, 4 * 3 * 64 values, (4 + 4 + 4) * 16 embeddings and mixtures:
        # 8,064 less than the 7 * 7 * 3 * 64 = 9,408 of the convolution, as between the published
        # 18,015,504 and 18,007,440.
        ({}, 1_344),
        ({"values": "plain"}, 576),
        ({"values": "conv"}, 3_456),
        ({"relative": True}, 1_456),  # 7 rows and 7 columns of 8 more
    ],
)
def test_parameter_count(options, count):
    assert abstract(AttentionStem(3, 64, **options)).param_count == count


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_heads": 3}, "num_heads=3"), ({"values": "mix"}, "Did you mean 'mixed'")],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        AttentionStem(3, 64, **options)
