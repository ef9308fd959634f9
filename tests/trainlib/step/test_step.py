"""The train step on a small regression, against the same step written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainlib.model import losses
from trainlib.model import weights as nn
from trainlib.model.weights import Abstract, Spec
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from trainlib.step import step
from trainlib.step import train_state as state

NORMAL = jax.nn.initializers.normal(0.5)
ZEROS = jax.nn.initializers.zeros
RATE, MOMENTUM = 0.1, 0.9
RULES = {"batch": ("replica", "data"), "features": None, "classes": None}


def abstract_weights() -> Abstract:
    def spec(shape, axes, init):
        return Spec(shape, jnp.dtype("float32"), axes, init)

    params = {
        "w": spec((8, 2), ("features", "classes"), NORMAL),
        "b": spec((2,), ("classes",), ZEROS),
    }
    return Abstract(None, params, {"seen": spec((2,), ("classes",), ZEROS)})


def loss_fn(params, statistics, batch, key):
    """Weighted mean squared error; a running sum of predictions; one random number a call."""
    prediction = batch["x"] @ params["w"] + params["b"]
    weight = batch["weight"]
    errors = jnp.sum((prediction - batch["y"]) ** 2, -1) * weight
    count = weight.sum()
    seen = statistics["seen"] + (prediction * weight[:, None]).sum(0)
    metrics = {"error": (errors.sum(), count), "draw": (jax.random.uniform(key), jnp.ones(()))}
    return losses.mean(errors.sum(), count), step.LossOutput(count, {"seen": seen}, metrics)


def make_batch(seed: int, rows: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(rows, n)).astype(np.float32) for n in (8, 2))
    return {"x": x, "y": y, "weight": (rng.random(rows) < 0.8).astype(np.float32)}


def train(steps, *, mesh=None, rules=RULES, batches=None, **options):
    mesh = mesh or make_mesh(data=1, devices=jax.devices()[:1])
    abstract = abstract_weights()
    optimizer = optax.sgd(RATE, MOMENTUM, nesterov=True)
    shardings = state.state_shardings(
        abstract, optimizer, mesh, rules, with_ema=bool(options.get("ema_decay"))
    )
    current = state.create(abstract, optimizer, jax.random.key(0), shardings)
    run = step.make_train_step(loss_fn, optimizer, seed=7, **options)
    compiled = step.compile_step(run, shardings, mesh, rules)
    rows = batch_sharding(rules, mesh)
    history = []
    for number in range(steps):
        batch = batches[number] if batches else make_batch(number)
        current, metrics = compiled(current, step.put_batch(batch, rows))
        history.append({k: np.float64(t) / np.float64(c) for k, (t, c) in metrics.items()})
    assert compiled._cache_size() == 1, "the step must compile once"
    return current, history


def numpy_training(start, steps):
    w, b = np.float64(start["w"]), np.float64(start["b"])
    velocity_w, velocity_b, seen, expected = 0.0, 0.0, np.zeros(2), []
    for number in range(steps):
        batch = {k: np.float64(v) for k, v in make_batch(number).items()}
        weight = batch["weight"][:, None]
        prediction = batch["x"] @ w + b
        error = (prediction - batch["y"]) * weight
        expected.append((error**2).sum() / weight.sum())
        gradient = 2 * error / weight.sum()
        grad_w, grad_b = batch["x"].T @ gradient, gradient.sum(0)
        velocity_w = MOMENTUM * velocity_w + grad_w
        velocity_b = MOMENTUM * velocity_b + grad_b
        w -= RATE * (grad_w + MOMENTUM * velocity_w)
        b -= RATE * (grad_b + MOMENTUM * velocity_b)
        seen += (prediction * weight).sum(0)
    return w, b, seen, expected


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_steps_equal_numpy_whatever_the_microbatches(microbatches):
    start = nn.initialise(abstract_weights().params, jax.random.key(0))
    w, b, seen, expected = numpy_training(start, 5)
    found, history = train(5, microbatches=microbatches)
    np.testing.assert_allclose(found.params["w"], w, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found.params["b"], b, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found.model_state["seen"], seen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([h["loss"] for h in history], expected, rtol=1e-5)
    # Unequal weights in the pieces: the metric is exact as a sum, not a mean of means.
    np.testing.assert_allclose([h["error"] for h in history], expected, rtol=1e-5)
    assert int(found.step) == 5


def test_norms_of_gradients_are_told_for_each_index_of_the_first_axis():
    """Of two weights one after the other, over microbatches; nothing of one that does not learn."""
    start = nn.initialise(abstract_weights().params, jax.random.key(0))
    batch = {name: np.float64(value) for name, value in make_batch(0).items()}
    weight = batch["weight"][:, None]
    error = batch["x"] @ np.float64(start["w"]) + np.float64(start["b"]) - batch["y"]
    gradient = 2 * error * weight / weight.sum()
    expected = [*np.linalg.norm(batch["x"].T @ gradient, axis=1), *np.abs(gradient.sum(0))]
    watched = {"rows": ("w", "b"), "bias": ("b",)}
    _, (found,) = train(1, microbatches=2, gradient_norms=watched)
    np.testing.assert_allclose(found["rows"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["bias"], expected[-2:], rtol=1e-5)
    learned = {"b": jnp.asarray(gradient.sum(0))}  # of a step in which `w` is frozen
    assert set(step.norms_of(learned, watched)) == {"bias"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mesh_sizes", "rules"),
    [
        ((1, 8, 1), RULES),
        ((2, 4, 1), RULES),
        ((1, 8, 1), RULES | {"features": "data"}),
        ((2, 4, 1), RULES | {"features": "data"}),
    ],
)
def test_eight_devices_train_as_one(mesh_sizes, rules):
    one, history_one = train(4)
    many, history_many = train(4, mesh=make_mesh(*mesh_sizes), rules=rules, microbatches=2)
    for name in one.params:
        np.testing.assert_allclose(one.params[name], many.params[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(history_one, history_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    trace = jax.tree.leaves(many.opt_state)[-1]
    assert trace.sharding.is_equivalent_to(many.params["w"].sharding, 2), "slots follow weights"


def test_keys_come_from_seed_and_step():
    _, history = train(3)
    draws = [h["draw"] for h in history]
    assert len(set(draws)) == 3
    assert draws == [h["draw"] for h in train(3)[1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_left_out_and_counted(bad):
    batches = [make_batch(0), make_batch(1), make_batch(1), make_batch(2)]
    batches[1] = {k: v.copy() for k, v in batches[1].items()}
    batches[1]["x"][3, 2], batches[1]["weight"][3] = bad, 1.0
    with_bad, history = train(4, batches=batches, ema_decay=0.9)
    clean, _ = train(3, batches=[batches[0], batches[2], batches[3]])
    assert [h["skipped"] for h in history] == [0, 1, 1, 1]
    assert [h["skipped_in_row"] for h in history] == [0, 1, 0, 0]
    assert with_bad.skipped.tolist() == [1, 0]
    assert int(with_bad.step) == 4
    for name in clean.params:
        np.testing.assert_array_equal(with_bad.params[name], clean.params[name])
        assert np.isfinite(with_bad.ema[name]).all()
    np.testing.assert_array_equal(with_bad.model_state["seen"], clean.model_state["seen"])


def test_moving_average_follows_weights_and_statistics():
    found, _ = train(3, ema_decay=0.5)
    start = nn.initialise(abstract_weights().params, jax.random.key(0))
    average = np.float64(start["w"])
    for number in range(3):
        # The decay rises as (1 + t) / (10 + t) until it reaches 0.5.
        decay = min(0.5, (1 + number) / (10 + number))
        now = np.float64(train(number + 1)[0].params["w"])
        average = decay * average + (1 - decay) * now
    np.testing.assert_allclose(found.ema["w"], average, rtol=1e-5, atol=1e-6)
    assert set(found.ema) == {"w", "b", "seen"}


def test_the_state_is_donated():
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    abstract, optimizer = abstract_weights(), optax.sgd(RATE, MOMENTUM)
    shardings = state.state_shardings(abstract, optimizer, mesh, RULES, with_ema=False)
    first = state.create(abstract, optimizer, jax.random.key(0), shardings)
    compiled = step.compile_step(
        step.make_train_step(loss_fn, optimizer, seed=0), shardings, mesh, RULES
    )
    compiled(first, step.put_batch(make_batch(0), batch_sharding(RULES, mesh)))
    assert first.params["w"].is_deleted()


def test_abstract_state_describes_the_real_one():
    mesh, optimizer = make_mesh(), optax.sgd(RATE, MOMENTUM)
    rules = RULES | {"features": "data"}
    shardings = state.state_shardings(abstract_weights(), optimizer, mesh, rules, with_ema=True)
    real = state.create(abstract_weights(), optimizer, jax.random.key(0), shardings)
    shapes = state.abstract_state(abstract_weights(), optimizer, shardings)
    same = jax.tree.map(
        lambda x, s: (x.shape, x.dtype, x.sharding) == (s.shape, s.dtype, s.sharding), real, shapes
    )
    assert all(jax.tree.leaves(same))
    assert dataclasses.is_dataclass(shapes)


@pytest.mark.parametrize("bad", [False, True])
def test_a_branch_updates_as_choosing_every_number_does(bad, monkeypatch):
    """A CPU branches on the finite check, an accelerator chooses."""
    batches = [make_batch(number) for number in range(3)]
    if bad:
        batches[1]["x"][3] = np.inf
    branched, history = train(3, batches=batches, ema_decay=0.9)
    monkeypatch.setattr(step, "platform", lambda: "tpu")
    chosen, same_history = train(3, batches=batches, ema_decay=0.9)
    for one, other in zip(jax.tree.leaves(branched), jax.tree.leaves(chosen), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert [h["skipped"] for h in history] == [h["skipped"] for h in same_history]
    assert history[-1]["skipped"] == bad


def test_no_weight_is_copied_before_it_is_replaced():
    """With a weight average, whose formula reads the new weight: fused with that it would read the
    old one after its memory was due, and the compiler would keep a copy.
    """
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    abstract, optimizer = abstract_weights(), optax.sgd(RATE, MOMENTUM)
    shardings = state.state_shardings(abstract, optimizer, mesh, RULES, with_ema=True)
    run = step.make_train_step(loss_fn, optimizer, seed=7, ema_decay=0.9)
    shapes = state.abstract_state(abstract, optimizer, shardings)
    rows = batch_sharding(RULES, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows)
        for name, value in make_batch(0).items()
    }
    text = step.compile_step(run, shardings, mesh, RULES).lower(shapes, batch).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and "f32[8,2]" in line]
    assert not copies, copies
