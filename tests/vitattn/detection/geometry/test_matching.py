"""Matching against loops over anchors and boxes, and each of its corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.detection.geometry.boxes import encode, iou
from vitattn.detection.geometry.matching import BACKGROUND, IGNORED, match

jitted = jax.jit(match, static_argnames=("foreground", "background", "force"))
GRID = np.asarray(
    [(y, x, y + 20, x + 20) for y in range(0, 100, 10) for x in range(0, 100, 10)], np.float32
)


def run(boxes, classes, *, anchors=GRID, foreground=0.5, background=0.4, force=True):
    return jitted(
        jnp.asarray(anchors),
        jnp.asarray(boxes, jnp.float32).reshape(-1, 4),
        jnp.asarray(classes, jnp.int32),
        foreground=foreground,
        background=background,
        force=force,
    )


def reference(anchors, boxes, classes, foreground, background, force):
    """Class and row of each anchor, and boxes without any, by loops."""
    overlap = np.array(iou(jnp.asarray(anchors), jnp.asarray(boxes, jnp.float32)))
    valid = [
        c >= 0 and np.isfinite(b).all() and b[2] > b[0] and b[3] > b[1]
        for b, c in zip(boxes, classes, strict=True)
    ]
    rows = np.full(len(anchors), BACKGROUND)
    for n in range(len(anchors)):
        for m in range(len(boxes)):
            value = overlap[n, m]
            if valid[m] and value > 0 and (rows[n] < 0 or value > overlap[n, rows[n]]):
                rows[n] = m
        value = overlap[n, rows[n]] if rows[n] >= 0 else 0.0
        if value < foreground:
            rows[n] = IGNORED if value >= background else BACKGROUND
    owner = {}
    for m in range(len(boxes)) if force else ():
        if valid[m] and overlap[:, m].max() > 0:
            n = int(overlap[:, m].argmax())
            if n not in owner or overlap[n, m] > overlap[n, owner[n]]:
                owner[n] = m
    for n, m in owner.items():
        rows[n] = m
    kinds = [classes[r] if r >= 0 else r for r in rows]
    return kinds, rows, sum(v and m not in rows for m, v in enumerate(valid))


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_loops(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 90, (12, 2))
    boxes = np.concatenate((low, low + rng.uniform(1, 40, (12, 2))), -1).astype(np.float32)
    classes = rng.integers(-1, 5, 12)
    boxes[3] = boxes[4] + np.float32(0.25)  # nearly the same place
    boxes[5, 2] = boxes[5, 0]
    boxes[6] = np.nan
    force, background = bool(seed % 2), (0.5, 0.4, 0.1)[seed % 3]
    kinds, rows, missed = reference(GRID, boxes, classes, 0.5, background, force)
    result = run(boxes, classes, background=background, force=force)
    np.testing.assert_array_equal(result.classes, kinds)
    np.testing.assert_array_equal(result.positive, rows >= 0)
    assert result.missed == missed
    expected = np.zeros_like(GRID)
    on = rows >= 0
    expected[on] = encode(jnp.asarray(boxes[rows[on]]), jnp.asarray(GRID[on]))
    np.testing.assert_allclose(result.boxes, expected, atol=1e-6)


def test_thresholds_are_met_from_them_on():
    # Beside the anchor (0, 0, 20, 20): the lower 10 of 20 rows are half of it, 8 are 0.4.
    anchors = np.asarray([(0, 0, 20, 20), (40, 40, 60, 60), (80, 80, 100, 100)], np.float32)
    boxes = [(10, 0, 20, 20), (40, 40, 48, 60), (80, 80, 87, 100)]
    result = run(boxes, (0, 1, 2), anchors=anchors, force=False)
    np.testing.assert_array_equal(result.classes, (0, IGNORED, BACKGROUND))
    np.testing.assert_array_equal(run(boxes, (0, 1, 2), anchors=anchors).classes, (0, 1, 2))


def test_an_image_without_boxes_is_background():
    for padding in (-1.0, 0.0, np.nan):
        result = run(np.full((3, 4), padding), [-1] * 3)
        assert (result.classes == BACKGROUND).all()
        assert not result.positive.any()
        assert not result.boxes.any()
        assert result.missed == 0


def test_padding_never_wins():
    """Neither by a forced match (its overlaps are 0, and 0 is the best of them), nor with real
    coordinates in its row."""
    boxes = [(33, 33, 36, 36), (-1, -1, -1, -1), (0, 0, 20, 20)]
    result = run(boxes, (4, -1, -1))
    assert result.positive.sum() == 1
    assert result.classes[result.positive] == 4


def test_boxes_without_area_are_nothing():
    for bad in ((10, 10, 10, 30), (30, 30, 10, 10), (np.nan, 0, 20, 20), (0, 0, np.inf, 20)):
        result = run([bad], [1])
        assert not result.positive.any()
        assert np.isfinite(result.boxes).all()
        assert result.missed == 0


def test_a_box_out_of_reach_is_counted():
    result = run([(500, 500, 520, 520)], [1])
    assert not result.positive.any()
    assert result.missed == 1


def test_one_best_anchor_of_two_boxes():
    """It goes to the box of the larger overlap, of equal ones to the first; the loss is counted."""
    small, large = (22, 22, 26, 26), (22, 22, 38, 38)  # both within (20, 20, 40, 40) alone
    anchors = np.asarray([(20, 20, 40, 40), (70, 70, 90, 90)], np.float32)
    for boxes, winner in (([small, large], 1), ([large, small], 0), ([small, small], 0)):
        result = run(boxes, (0, 1), anchors=anchors)
        np.testing.assert_array_equal(result.classes, (winner, BACKGROUND))
        assert result.missed == 1


def test_the_loser_keeps_what_it_overlaps_most():
    anchors = np.asarray([(0, 0, 20, 20), (3, 3, 23, 23)], np.float32)
    boxes = [(0, 0, 19, 20), (1.5, 1.5, 20, 20)]  # both want the first anchor
    assert (np.argmax(iou(jnp.float32(boxes), jnp.asarray(anchors)), 1) == 0).all()
    result = run(boxes, (0, 1), anchors=anchors)
    np.testing.assert_array_equal(result.classes, (0, 1))
    assert result.missed == 0


def test_a_forced_match_takes_an_anchor_from_a_box_with_others():
    """The box that overlaps the anchor more has a better one elsewhere."""
    anchors = np.asarray([(0, 0, 20, 20), (4, 0, 24, 20)], np.float32)
    boxes = [(4, 0, 24, 20), (0, 0, 5, 20)]
    result = run(boxes, (0, 1), anchors=anchors)
    np.testing.assert_array_equal(result.classes, (1, 0))


def test_a_batch_is_its_images():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 90, (3, 5, 2))
    boxes = jnp.float32(np.concatenate((low, low + rng.uniform(1, 40, (3, 5, 2))), -1))
    classes = jnp.asarray(rng.integers(-1, 3, (3, 5)))

    @jax.jit
    @jax.vmap
    def together(boxes, classes):
        return run(boxes, classes)

    for row, whole in enumerate(zip(*together(boxes, classes), strict=True)):
        for part, expected in zip(whole, run(boxes[row], classes[row]), strict=True):
            np.testing.assert_allclose(part, expected, atol=1e-6)
