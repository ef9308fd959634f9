"""Top-k against a sort, and exact sums over any way to cut the examples into padded batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model.metrics import Metric, compute, merge, to_host, top_k_correct


def reference(logits, labels, k):
    """By a stable sort: equal logits in the order of their classes, as `jax.lax.top_k`."""
    order = np.argsort(-logits.astype("f8"), axis=-1, kind="stable")
    return (order[:, :k] == labels[:, None]).any(-1)


@pytest.mark.parametrize("k", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("levels", [3, 1000])
def test_top_k_agrees_with_a_sort_ties_included(k, levels):
    rng = np.random.default_rng(k)
    logits = rng.integers(levels, size=(200, 7)).astype("f4")
    labels = rng.integers(7, size=200)
    weights = rng.integers(2, size=200).astype("f4")
    correct = reference(logits, labels, k)
    total, count = jax.jit(top_k_correct, static_argnums=3)(logits, labels, weights, k)
    assert (total, count) == ((correct * weights).sum(), weights.sum())
    assert top_k_correct(jnp.asarray(logits), jnp.asarray(labels), k=k).total == correct.sum()
    _, best = jax.lax.top_k(logits, min(k, 7))
    assert correct.sum() == (np.asarray(best) == labels[:, None]).any(-1).sum()


def test_a_model_that_says_the_same_for_all_classes_scores_chance():
    labels = jnp.arange(100) % 10
    assert compute({"top1": top_k_correct(jnp.zeros((100, 10)), labels)}) == {"top1": 0.1}


def test_nan_is_never_correct():
    logits = jnp.array([[jnp.nan, 0.0, 1.0], [0.0, jnp.nan, 1.0], [jnp.nan] * 3])
    labels = jnp.array([0, 2, 1])
    assert top_k_correct(logits, labels).total == 0
    assert top_k_correct(logits, labels, k=2).total == 1  # row 1: only the NaN is ahead of the 1.0
    assert top_k_correct(logits, labels, k=5).total == 1


def test_padding_may_hold_anything():
    logits = jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan], [jnp.inf, -jnp.inf]])
    metric = top_k_correct(logits, jnp.array([1, -1, 10**6]), jnp.array([1.0, 0.0, 0.0]))
    assert tuple(map(float, metric)) == (1.0, 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [1, 7, 64, 360, 500])
def test_any_batch_size_gives_the_same_figure_bit_for_bit(batch):
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(360, 10)).astype("f4"), rng.integers(10, size=360)
    expected = reference(logits, labels, 2).sum() / 360
    totals = None
    for start in range(0, 360, batch):
        rows = slice(start, start + batch)
        missing = batch - len(labels[rows])
        padded = np.pad(logits[rows], ((0, missing), (0, 0)), constant_values=np.nan)
        weights = np.pad(np.ones(len(labels[rows]), "f4"), (0, missing))
        metric = top_k_correct(padded, np.pad(labels[rows], (0, missing)), weights, 2)
        totals = merge(totals, to_host({"top2": metric}))
    assert totals["top2"].count == 360
    assert compute(totals) == {"top2": expected}


def test_sharded_over_devices_it_is_the_same():
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(8 * count, 5)).astype("f4"), rng.integers(5, size=8 * count)
    put = [jax.device_put(x, rows) for x in (logits, labels)]
    assert jax.jit(top_k_correct)(*put).total == reference(logits, labels, 1).sum()


def test_host_sums_go_past_the_whole_numbers_of_f32():
    batch = to_host({"tokens": (jnp.float32(2**24), jnp.float32(1))})
    one = to_host({"tokens": (jnp.float32(1), jnp.float32(1))})
    assert merge(merge(None, batch), one)["tokens"] == (2**24 + 1, 2)
    assert isinstance(merge(None, batch)["tokens"], Metric)


def test_merge_refuses_other_names():
    with pytest.raises(ValueError, match=r"\['a'\].*\['b'\]"):
        merge({"a": Metric(1, 1)}, {"b": Metric(1, 1)})


def test_merge_works_inside_jit():
    first, second = {"loss": (jnp.float32(1), jnp.float32(2))}, {"loss": (jnp.float32(3), 4)}
    assert compute(jax.jit(merge)(first, second)) == {"loss": 4 / 6}


def test_nothing_counted_is_nan_not_zero():
    assert math.isnan(compute({"top1": Metric(0.0, 0.0)})["top1"])
