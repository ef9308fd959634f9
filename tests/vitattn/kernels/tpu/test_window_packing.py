"""How maps are packed for windowed attention on a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.kernels.tpu.window import projection
from vitattn.kernels.tpu.window.packing import Packing
from vitattn.kernels.tpu.window.projection import packing_of

SIZES = [
    (1, 1, 1, 1, 3),
    (3, 8, 14, 14, 7),
    (2, 3, 5, 9, 11),
    (9, 8, 4, 7, 5),
    (4, 4, 2, 80, 7),
    (5, 3, 2, 1, 11),
]


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", SIZES)
def test_a_pixel_lies_where_the_formula_says_and_the_rest_is_zero(sizes):
    packing = Packing(*sizes)
    batch, heads, height, width, _ = sizes
    maps = 1 + np.arange(batch * height * width * heads * 2, dtype=np.float32)
    maps = maps.reshape(batch, height, width, heads, 2)
    packed = np.asarray(packing.pack(jnp.asarray(maps)))
    assert packed.shape == packing.shape(2)
    assert np.count_nonzero(packed) == maps.size
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        at, sublane = divmod(b * heads + n, 8)
        tile, place = divmod(at, packing.across)
        found = packed[tile, y, :, sublane, place * packing.pitch + x]
        np.testing.assert_array_equal(found, maps[b, y, x, n])
    assert np.all(packed.any((0, 1, 2, 3)) <= np.asarray(packing.valid()))
    np.testing.assert_array_equal(packing.unpack(jnp.asarray(packed)), maps)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_rotation_brings_zeros_over_every_border(sizes):
    """The lanes next to a map, as far as a window reaches, hold no pixel of another one."""
    packing = Packing(*sizes)
    valid = np.asarray(packing.valid())
    for shift in range(1, packing.reach + 1):
        inside = np.arange(packing.lanes) % packing.pitch + shift < packing.width
        assert not np.any(np.roll(valid, -shift) & valid & ~inside)


@pytest.mark.parametrize(
    ("width", "lanes", "across"),
    [(7, 128, 12), (14, 128, 7), (28, 128, 4), (56, 128, 2), (80, 256, 3), (126, 896, 6)],
)
def test_lane_tiles_hold_as_many_maps_as_fit(width, lanes, across):
    packing = Packing(96, 8, width, width, 7)
    assert (packing.lanes, packing.across) == (lanes, across)


@pytest.mark.parametrize("batch", [32, 64, 128, 200])
@pytest.mark.parametrize("width", [7, 14, 28, 56])
def test_lanes_of_narrow_maps_do_not_grow_with_the_batch(width, batch):
    """What the memory of a core holds of a tile does not depend on the batch then."""
    assert packing_of(batch, 8, width, width, 7).lanes == 128


def test_packing_and_unpacking_transpose_each_other():
    packing = Packing(*SIZES[2])
    maps = jax.random.normal(jax.random.key(0), (2, 5, 9, 3, 4))
    packed = jax.random.normal(jax.random.key(1), packing.shape(4))
    left = jnp.vdot(packing.pack(maps), packed)
    np.testing.assert_allclose(left, jnp.vdot(maps, packing.unpack(packed)), rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 12, 24, 64])
@pytest.mark.parametrize("width", [7, 28, 56])
def test_every_block_of_heads_has_whole_tiles_of_its_own(width, heads):
    """Also where fewer lanes would be unused if a tile held maps of two blocks, as with 12 heads
    of 32 images of 56 pixels."""
    blocks = -(-heads // 8)
    for batch in range(1, 65):
        one = Packing(batch, 8, width, width, 7)
        packing = packing_of(batch, heads, width, width, 7)
        assert packing.lanes == one.lanes
        assert packing.tiles == blocks * one.tiles


@pytest.mark.parametrize(
    ("batch", "memory", "taken"), [(32, 128, True), (1024, 128, False), (128, 16, False)]
)
def test_projections_of_more_images_than_the_memory_holds_are_left_alone(
    monkeypatch, batch, memory, taken
):
    """A step has a row of all images where these are a multiple of eight and the width is not."""
    monkeypatch.setattr(projection, "core_memory", lambda: memory << 20)
    packing = packing_of(batch, 8, 14, 14, 7)
    assert projection.fits(packing, (batch, 14, 14, 256), (32, 32, 32), 2) == taken
