"""Batch statistics of whole models: which rows they see, and that they move once a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from trainlib.model import statistics
from trainlib.model import weights as nn
from trainlib.step import step
from trainlib.step import train_state as state
from vitattn.classification import objective as classify
from vitattn.layers import norm
from vitattn.layers.conv import Classifier, Conv
from vitattn.models import build

SMALL = {"image_size": 8, "num_classes": 3}
MODELS = {
    "basic": SMALL | {"name": "resnet", "depth": 18, "gate": "cbam"},
    "bottleneck": SMALL | {"name": "resnet", "depth": 50, "gate": "se"},
    "attention_stem": SMALL | {"name": "resnet", "depth": 26, "stem": "attention"},
    "wide_resnet": SMALL | {"name": "wide_resnet", "depth": 10, "widening": 1, "gate": "cbam"},
    "mnasnet": SMALL | {"name": "mnasnet", "dropout": 0.0},
}


class Small(nnx.Module):
    """Normalisation, convolution, normalisation, classifier: compiles in a moment."""

    def __init__(self, decay: float):
        self.norm1 = norm.BatchNorm(3, decay=decay)
        self.conv = Conv(3, 8, 3)
        self.norm2 = norm.BatchNorm(8, decay=decay)
        self.head = Classifier(8, 3)

    def __call__(self, images, *, train, key=None, weights=None):
        x = self.conv(self.norm1(images, train=train, weights=weights))
        x = jax.nn.relu(self.norm2(x, train=train, weights=weights))
        return self.head(jnp.mean(x, (1, 2)))


def begun(decay=0.9):
    abstract, optimizer = nn.abstract(Small(decay)), optax.sgd(0.05, 0.9)
    params = nn.initialise(abstract.params, jax.random.key(0))
    first = state.TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=nn.initialise(abstract.model_state, jax.random.key(0)),
        opt_state=optimizer.init(params),
        ema={},
        skipped=jnp.zeros(2, jnp.int32),
        counts=statistics.fresh(abstract.model_state),
    )
    return abstract, optimizer, first


def train_step(abstract, optimizer, parts=1):
    loss = classify.loss_function(abstract, 0.0)
    return jax.jit(step.make_train_step(loss, optimizer, seed=0, microbatches=parts))


def make_batch(rows=24, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(rows, 8, 8, 3)).astype("f4") * 3 + 5,
        "label": rng.integers(0, 3, rows).astype("i4"),
        "weight": np.ones(rows, "f4"),
    }


def padded(batch, filler):
    """The batch with two more rows, of weight 0."""
    rows = {"image": np.full((2, 8, 8, 3), filler, "f4"), "label": np.zeros(2, "i4")}
    rows["weight"] = np.zeros(2, "f4")
    return {name: np.concatenate([value, rows[name]]) for name, value in batch.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_every_normalisation_of_a_model_is_told_which_rows_count(name, monkeypatch):
    told, plain = [], norm.batch_normalise

    def listen(x, scale, bias, eps, weights=None, *rest):
        told.append(weights)
        return plain(x, scale, bias, eps, weights, *rest)

    monkeypatch.setattr(norm, "batch_normalise", listen)
    abstract = nn.abstract(build(MODELS[name]))
    shapes = (
        {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in specs.items()}
        for specs in (abstract.params, abstract.model_state)
    )
    loss = classify.loss_function(abstract, 0.1)
    _, out = jax.eval_shape(loss, *shapes, make_batch(), jax.random.key(0))
    assert len(told) == len(out.moments) == len(abstract.model_state) / 2
    assert all(weights is not None for weights in told)
    assert {f"{layer}.var" for layer in out.moments} <= set(abstract.model_state)


def test_rows_that_do_not_count_are_in_no_statistics():
    abstract, _, first = begun()
    loss = jax.jit(jax.value_and_grad(classify.loss_function(abstract, 0.1), has_aux=True))

    def run(batch):
        (value, out), gradients = loss(first.params, first.model_state, batch, jax.random.key(0))
        return value, gradients, out.moments

    plain = run(make_batch())
    for filler in (0.0, 99.0):
        found = run(padded(make_batch(), filler))
        for one, other in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("fillers", [False, True])
def test_microbatches_move_statistics_once_by_all_pieces(fillers):
    batch = make_batch()
    if fillers:
        batch["weight"][[1, 5, 6, 9]] = 0
    rows = batch["image"][batch["weight"] > 0].reshape(-1, 3).astype("f8")
    for parts in (1, 4):
        abstract, optimizer, first = begun()
        # As after many updates, when a batch counts 1 - decay = 0.1.
        first = dataclasses.replace(first, counts=first.counts + 1000)
        after, _ = train_step(abstract, optimizer, parts)(first, batch)
        assert after.counts.tolist() == [1002] * 2
        # Four updates would move the mean 3.44 times as far.
        np.testing.assert_allclose(after.model_state["norm1.mean"], 0.1 * rows.mean(0), rtol=1e-5)
        expected = 0.9 + 0.1 * rows.var(0, ddof=1)
        np.testing.assert_allclose(after.model_state["norm1.var"], expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_in_which_no_row_counts_moves_nothing(parts):
    batch = make_batch() | {"weight": np.zeros(24, "f4")}
    abstract, optimizer, first = begun()
    after, sums = train_step(abstract, optimizer, parts)(first, batch)
    assert float(sums["skipped"][0]) == 0
    for part in ("params", "model_state", "counts"):
        pairs = zip(*(jax.tree.leaves(getattr(s, part)) for s in (after, first)), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_an_update_that_is_left_out_is_not_counted():
    abstract, optimizer, first = begun()
    bad = make_batch()
    bad["image"][0] = np.nan
    after, _ = train_step(abstract, optimizer)(first, bad)
    assert after.skipped.tolist() == [1, 1]
    assert after.counts.tolist() == first.counts.tolist()
    np.testing.assert_array_equal(after.model_state["norm1.var"], 1)


def test_weights_cost_nothing_that_a_step_would_notice():
    abstract, _, first = begun()
    costs = []
    for weighted in (False, True):

        def loss(params, batch, weighted=weighted):
            weights = batch["weight"] if weighted else None
            model = abstract.bind(params, first.model_state)
            return model(batch["image"], train=True, weights=weights).sum(), nn.observed(model)

        run = jax.jit(jax.grad(loss, has_aux=True)).lower(first.params, make_batch(256)).compile()
        costs.append(run.cost_analysis())
    for figure in ("flops", "bytes accessed"):
        plain, with_weights = (cost[figure] for cost in costs)
        assert with_weights <= 1.02 * plain, (figure, with_weights / plain)


def test_a_slow_decay_evaluates_a_short_run_as_it_trained():
    """40 steps at 0.9999: the plain average would still be 99.6 % what statistics start as."""
    abstract, optimizer, now = begun(decay=0.9999)
    made, measure = train_step(abstract, optimizer), jax.jit(classify.evaluate_function(abstract))

    def separable(seed):
        batch = make_batch(48, seed)
        batch["image"] += 6.0 * np.eye(3, dtype="f4")[batch["label"]][:, None, None, :]
        return batch

    for number in range(40):
        now, sums = made(now, separable(number))
    result = measure(now.params, now.model_state, separable(99))
    assert float(sums["top1"][0]) == float(result["top1"][0]) == 48
