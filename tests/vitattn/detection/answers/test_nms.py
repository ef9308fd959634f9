"""Non-maximum suppression against a loop over pairs in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_compiler import needs_figures
from trainlib.sharding.kernels import use_kernels
from vitattn.detection.answers.nms import greedy_nms


def by_loops(boxes, keys, classes, iou, most):
    """The greedy rule as it is told, O(n^2), in float32 as the compiled program has it."""
    keys = np.where(np.isnan(keys), np.inf, keys)
    iou, kept = np.float32(iou), []
    for n in sorted(range(len(keys)), key=lambda n: (-keys[n], n)):
        if len(kept) == most or keys[n] == -np.inf:
            break
        if not any(classes[m] == classes[n] and overlaps(boxes[m], boxes[n], iou) for m in kept):
            kept.append(n)
    return kept + [-1] * (most - len(kept))


def overlaps(a, b, iou):
    if np.isnan(a).any() or np.isnan(b).any():
        return False
    height = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    width = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    areas = (b[2] - b[0]) * (b[3] - b[1]) + (a[2] - a[0]) * (a[3] - a[1])
    return height * width > iou * (areas - height * width)


def case(rng, n):
    """Boxes on a coarse grid, so that many coincide or overlap by exactly a half; keys of few
    values, so that many tie; some NaN of both, some infinities, some that are no candidates."""
    corner = rng.integers(0, 12, (n, 2))
    boxes = np.concatenate((corner, corner + rng.integers(0, 8, (n, 2))), -1).astype(np.float32)
    if rng.random() < 0.5:
        boxes += rng.normal(0, 1, boxes.shape).astype(np.float32) ** 2 * [0, 0, 1, 1]
        boxes = boxes.astype(np.float32)
    keys = (rng.integers(-6, 6, n) / 2).astype(np.float32)
    keys[rng.random(n) < 0.1] = -np.inf
    keys[rng.random(n) < 0.05] = rng.choice([np.nan, np.inf])
    boxes[rng.random((n, 4)) < 0.02] = np.nan
    return boxes, keys, rng.integers(0, 3, n).astype(np.int32)


# Sizes are few, so that few programs are compiled for the thousand cases.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("n", "most", "cases"), [(1, 3, 40), (7, 4, 320), (24, 24, 480), (60, 9, 160)]
)
def test_a_thousand_cases_agree_with_the_loop(n, most, cases):
    rng = np.random.default_rng(n)
    batches = [case(rng, n) for _ in range(cases)]
    boxes, keys, classes = map(np.stack, zip(*batches, strict=True))
    for iou in (0.5, 0.3):
        run = jax.jit(functools.partial(greedy_nms, iou=iou, most=most))
        got = np.asarray(run(boxes, keys, classes))
        want = [by_loops(*one, iou, most) for one in batches]
        np.testing.assert_array_equal(got, want)


@pytest.mark.thorough
@pytest.mark.parametrize(("images", "n", "most"), [(1, 5, 8), (9, 40, 12)])
def test_the_kernel_agrees_with_the_loop(images, n, most):
    rng = np.random.default_rng(n)
    batches = [case(rng, n) for _ in range(images)]
    # A NaN in a box is compared by the chip in its own way, and `detect` marks the whole image.
    batches = [(np.nan_to_num(boxes), keys, classes) for boxes, keys, classes in batches]
    with use_kernels("interpret"):
        run = jax.jit(functools.partial(greedy_nms, iou=0.5, most=most))
        got = np.asarray(run(*map(np.stack, zip(*batches, strict=True))))
    np.testing.assert_array_equal(got, [by_loops(*one, 0.5, most) for one in batches])


def test_without_jit_it_is_the_same():
    boxes, keys, classes = case(np.random.default_rng(3), 12)
    with jax.disable_jit():
        given = (jnp.asarray(value[None]) for value in (boxes, keys, classes))
        got = greedy_nms(*given, iou=0.5, most=5)
    np.testing.assert_array_equal(got[0], by_loops(boxes, keys, classes, 0.5, 5))


@needs_figures
@pytest.mark.thorough
def test_on_a_tpu_the_picks_of_eight_images_take_a_kernel_of_a_twentieth_of_a_millisecond():
    """In operations of XLA 100 picks took 1.25 ms."""
    from trainlib.planning.ledger import ledger_of

    def shape(*size, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(size, dtype)

    run = functools.partial(greedy_nms, iou=0.5, most=100)
    given = shape(8, 5000, 4), shape(8, 5000), shape(8, 5000, dtype=jnp.int32)
    ledger = ledger_of(run, *given)
    assert sum(one.kind == "kernel" for one in ledger.operations) == 1
    assert 1e6 * ledger.seconds < 60
