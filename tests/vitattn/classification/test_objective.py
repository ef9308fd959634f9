"""The training loss of mixed images against NumPy; with a share of 1 it is that of plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import configs
from trainlib.model.weights import abstract, declare
from trainlib.sharding.mesh import make_mesh
from vitattn.classification import objective
from vitattn.plan import make

ROWS, CLASSES, SMOOTHING = 7, 5, 0.1


class Logits(nnx.Module):
    """A model whose logits are its weights, for a loss of known logits."""

    def __init__(self):
        self.logits = declare((ROWS, CLASSES), ("batch", "classes"), jax.nn.initializers.zeros)

    def __call__(self, image, train, key, weights):
        return self.logits[...]


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": np.zeros((ROWS, 2, 2, 3), np.float32),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
        "weight": np.array([1, 1, 0, 1, 1, 1, 1], np.float32),
        "partner": rng.integers(0, CLASSES, ROWS).astype(np.int32),
        "share": rng.uniform(size=ROWS).astype(np.float32),
    }


def loss_of(logits, arrays, smoothing=SMOOTHING):
    loss = objective.loss_function(abstract(Logits()), smoothing)
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, out), grads = compiled({"logits": logits}, {}, arrays, jax.random.key(0))
    return value, out, grads["logits"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_are_those_of_the_mixed_target(dtype):
    arrays = batch()
    logits = jax.random.normal(jax.random.key(1), (ROWS, CLASSES), dtype)
    value, out, grad = loss_of(logits, arrays)
    # q = (1 - a) (share onehot(label) + (1 - share) onehot(partner)) + a / C
    eye, exact = np.eye(CLASSES), np.asarray(logits, np.float64)
    share = arrays["share"][:, None].astype(np.float64)
    hard = share * eye[arrays["label"]] + (1 - share) * eye[arrays["partner"]]
    target = (1 - SMOOTHING) * hard + SMOOTHING / CLASSES
    probabilities = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    rows = -(target * np.log(probabilities)).sum(-1)
    counted = arrays["weight"] > 0
    np.testing.assert_allclose(value, rows[counted].mean(), rtol=1e-6)
    expected = (probabilities - target) * counted[:, None] / counted.sum()
    np.testing.assert_allclose(
        grad.astype(float), expected, atol=2e-3 if dtype != jnp.float32 else 1e-6
    )
    assert float(out.count) == 6
    # An image counts by what its likeliest class has of its target.
    hits = hard[np.arange(ROWS), exact.argmax(-1)][counted].sum()
    total, count = out.metrics["top1"]
    np.testing.assert_allclose(total, hits, rtol=1e-6)
    assert float(count) == 6


def test_a_share_of_1_is_the_loss_without_mixing_bit_for_bit():
    arrays = batch() | {"share": np.ones(ROWS, np.float32)}
    logits = jax.random.normal(jax.random.key(1), (ROWS, CLASSES))
    mixed = loss_of(logits, arrays)
    plain = loss_of(logits, {name: arrays[name] for name in objective.FIELDS})
    np.testing.assert_array_equal(mixed[0], plain[0])
    np.testing.assert_array_equal(mixed[1].metrics["top1"], plain[1].metrics["top1"])
    np.testing.assert_array_equal(mixed[2], plain[2])


def test_blank_rows_add_nothing_though_their_logits_are_nan():
    logits = jax.random.normal(jax.random.key(1), (ROWS, CLASSES)).at[2].set(jnp.nan)
    value, _, grad = loss_of(logits, batch())
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert not grad[2].any()


def test_a_plan_has_the_fields_of_its_batches():
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    plain = make(configs.load("resnet50:digits"), mesh)
    mixed = make(configs.load("resnet50:digits", **{"data.cutmix": 1.0}), mesh)
    assert objective.fields(plain) == ("image", "label", "weight")
    shapes = objective.abstract_batch(mixed)
    assert tuple(shapes) == objective.fields(mixed)
    assert shapes["share"].shape == shapes["partner"].shape == (96,)
    assert set(objective.abstract_batch(plain)) == set(objective.FIELDS)
