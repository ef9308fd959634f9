"""Names of slices: what they count, and what is said about names that do not exist."""

from __future__ import annotations

import math
import os

import pytest

from trainlib import chips as targets
from trainlib.chips import CHIPS, SLICES, chip_of, target
from trainlib.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "topology", "slices", "chips", "devices"),
    [
        ("v4-1024", "8x8x8", 1, 512, 512),  # counts cores, two a chip
        ("v5p-1024", "8x8x8", 1, 512, 512),
        ("v5p-2048", "8x8x16", 1, 1024, 1024),
        ("v5p-8", "2x2x1", 1, 4, 4),
        ("v5e-16", "4x4", 1, 16, 16),  # counts chips
        ("v5litepod-16", "4x4", 1, 16, 16),
        ("V6E-256", "16x16", 1, 256, 256),
        ("tpu7x-128", "4x4x4", 1, 64, 128),  # two devices a chip
        ("2xv6e-256", "16x16", 2, 512, 512),
        ("v6e-256x2", "16x16", 2, 512, 512),
        ("v5p:4x4x12", "4x4x12", 1, 192, 192),
        ("3xv5e:2x4", "2x4", 3, 24, 24),
        ("gpu:h200x8", "", 1, 8, 8),
    ],
)
def test_names_count_what_google_counts(name, topology, slices, chips, devices):
    found = target(name)
    assert (found.topology, found.slices, found.chips, found.devices) == (
        topology,
        slices,
        chips,
        devices,
    )


def test_every_usual_name_is_itself_and_unlike_the_others():
    names = targets.names()
    assert len(set(names)) == len(names) == sum(len(shapes) for shapes in SLICES.values())
    for name in names:
        found = target(name)
        assert found.platform == "tpu"
        assert found.chips == math.prod(int(side) for side in found.topology.split("x"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p-1000", "Did you mean 'v5p-1024'"),
        ("v6e-257", "v6e-256"),
        ("v7-8", "v6e-8"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v5e:4x0", "v5e:4x4"),
        ("0xv5e-4", "v5e-4"),
        ("2xv5e-4x2", "v5e-4"),
        ("gpu:h20x8", "gpu:h200x8"),
        ("gpu:h200x0", "gpu:h200x8"),
        ("", "v5p-1024"),
    ],
)
def test_unknown_names_are_told_the_nearest(name, said):
    with pytest.raises(ConfigError, match="--target=") as error:
        target(name)
    assert said in str(error.value)


def test_figures_of_chips_are_plausible_together():
    """FLOPs a byte of memory and of network traffic lie in the range that accelerators have."""
    for chip in CHIPS.values():
        assert 100 < chip.flops / chip.hbm_bandwidth < 700
        assert 500 < chip.flops / chip.ici_bandwidth < 5000
        assert 15e9 < chip.hbm_bytes < 200e9


def test_devices_are_found_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("TPU v5") is CHIPS["v5p"]
    assert chip_of("cpu") is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)


def test_cores_of_a_system_that_knows_no_affinity(monkeypatch):
    assert 1 <= targets.usable_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert targets.usable_cores() == os.cpu_count()
