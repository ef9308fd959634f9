"""Names, files and pictures around a prediction; whole commands are in tests/launch."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainlib import commands
from trainlib.errors import ConfigError, DataError, StorageError
from vitattn import config as config_lib
from vitattn.analysis import overlay, plots
from vitattn.analysis.attention_picture import choose_query
from vitattn.data import make_source
from vitattn.data.catalog import statistics
from vitattn.images.files import find_images


@pytest.mark.parametrize("source", ["digits", "synthetic:7", "imagenet", "cifar100"])
def test_statistics_of_a_data_set_that_is_not_there(source, tmp_path):
    data = config_lib.default_config().data
    data.source, data.dir = source, str(tmp_path)
    mean, std = statistics(data)
    assert len(mean) == len(std) == 3
    if source in ("imagenet", "cifar100"):
        with pytest.raises(DataError):
            make_source(data, "test")
    else:
        assert (mean, std) == (make_source(data, "test").mean, make_source(data, "test").std)


def test_images_of_folders_are_found_in_order(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.webp"):
        (tmp_path / "in" / name).write_text("")
    (tmp_path / "odd").write_text("")  # a file that is named is taken whatever it is called
    found = find_images([tmp_path / "odd", tmp_path / "in"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["odd", "in/a.JPG", "in/b.png", "in/deep/c.webp"]
    with pytest.raises(DataError, match=r"no image .*Did you mean 'b.png'"):
        find_images([tmp_path / "in" / "bb.png"])
    with pytest.raises(DataError, match="no image"):
        find_images([tmp_path / "nowhere" / "b.png"])
    (tmp_path / "gone.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: it is a link to nothing\."):
        find_images([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        find_images([tmp_path / "empty"])


def test_the_query_is_the_centre_or_a_pixel_of_the_image():
    assert choose_query(None, (8, 11)) == (4, 5)
    assert choose_query((0, 0), (8, 11)) == (0, 0)
    assert choose_query((7, 10), (8, 11)) == (7, 10)
    for outside in ((8, 0), (0, 11)):
        with pytest.raises(ConfigError, match="rows are 0 to 7, columns 0 to 10"):
            choose_query(outside, (8, 11))


def test_a_map_is_spread_over_the_image_without_new_extremes():
    assert np.allclose(overlay.upsampled(np.full((3, 2), 0.25), 30, 40), 0.25)
    fine = overlay.upsampled(np.array([[1.0, 0.0], [0.0, 0.0]]), 64, 64)
    assert fine.shape == (64, 64)
    assert fine.min() == 0
    assert fine.max() == 1
    assert (fine[:16, :16] == 1).all()  # up to the centre of the cell
    assert fine[32, 32] == pytest.approx(0.25, abs=0.02)  # the mean of the four cells


def rows(heads, beyond=0.0):
    image = np.zeros((12, 16, 3), np.float32)
    maps = np.full((heads, 3, 4), (1 - beyond) / 12, np.float32)
    return plots.AttentionRow(image, "a.png: cat (9 %)", "conv4_x.0", range(heads), maps, (1, 2))


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_pictures_are_drawn_with_as_many_columns_as_the_layer_with_most_heads(suffix, tmp_path):
    path = tmp_path / f"out.{suffix}"
    plots.check_picture(path, 5)
    plots.attention_picture(path, [rows(1), rows(3, beyond=0.5)], (5, 9))
    assert path.stat().st_size > 1000
    if suffix == "png":
        width, height = Image.open(path).size
        assert width / height == pytest.approx(5 * 1.55 / (2 * 2.05), rel=0.02)


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="Allowed: pdf, png, svg"):
        plots.check_picture(tmp_path / "out.gif", 1)
    with pytest.raises(StorageError, match="does not exist"):
        plots.check_picture(tmp_path / "none" / "out.png", 1)
    with pytest.raises(ConfigError, match="Choose fewer images"):
        plots.check_picture(tmp_path / "out.png", 5000)
    (tmp_path / "out.png").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        plots.attention_picture(tmp_path / "out.png", [rows(1)], (0, 0))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=re.escape(commands.install("plots"))):
        plots.check_picture(Path("out.png"), 1)
