"""The row on images: both sides compute the same, at a small size."""

import importlib.util

import pytest

from benchmarks.peers import images


def test_ours_runs_the_training_pipeline_and_the_same_crops_give_the_same_pixels(capsys):
    encoded = images.photographs(None, 32)
    assert len(set(encoded)) == 32
    images.check(encoded[:2], 64, with_tf=False)
    assert "Pillow" in capsys.readouterr().out
    for augmentation in ("inception_crop", "inception"):
        images.ours(encoded, 64, augmentation)()


def test_the_check_notices_another_image(monkeypatch):
    from vitattn.images.decode import Picture

    planes = Picture.planes
    monkeypatch.setattr(Picture, "planes", lambda self, *args: 0.98 * planes(self, *args))
    with pytest.raises(SystemExit, match="gives another image"):
        images.check(images.photographs(None, 1), 64, with_tf=False)


def test_tf_data_runs():
    pytest.importorskip("tensorflow")
    encoded = images.photographs(None, 32)
    images.check(encoded[:1], 64, with_tf=True)
    images.tf_data(encoded, 64, "bilinear", True)()


def test_torchvision_runs():
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("no torchvision")
    images.torchvision(images.photographs(None, 32), 64, True)()
