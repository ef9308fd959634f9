"""`trainlib.report.samples`: what is written is read, and a file of anybody is checked."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from trainlib.errors import ConfigError, DataError
from trainlib.report import samples
from trainlib.report.samples import Compared, Picture, Sample, Samples


def drawn(side: int = 8) -> Image.Image:
    return Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3))


@pytest.fixture
def given():
    sample = Sample(
        "test 3",
        False,
        (("input", "copa premise: <b>The glass\nfell.</b>"),),
        (Compared("answer", "True", "False", False), Compared("gap 1", "", "x")),
        (("cat", 0.75), ("dog", 0.25)),
        (Picture.of("the image", drawn()),),
    )
    return Samples(40, "2 of 100 images", (sample, Sample("test 60")), "0123")


def test_what_is_written_is_read(tmp_path, given):
    assert samples.read(tmp_path, 40) is None
    assert samples.write(tmp_path, given) == given
    assert samples.read(tmp_path, 40) == given
    assert samples.read(tmp_path, 41) is None
    picture = given.samples[0].pictures[0]
    assert picture.media_type == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.content))), np.asarray(drawn()))


def test_photographs_become_small_jpegs():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    picture = Picture.of("noise", Image.fromarray(noise))
    assert picture.media_type == "image/jpeg"
    assert len(picture.content) <= samples.MAX_PICTURE
    assert Image.open(io.BytesIO(picture.content)).size == (480, 360)


def test_what_is_written_is_bounded(tmp_path):
    long = Sample("a\x1b[31m" + "x" * 9000, fields=(("input", "line\n" * 3000),) * 100)
    written = samples.write(tmp_path, Samples(1, "all", (long,) * 14))
    assert samples.read(tmp_path, 1) == written
    assert 5 < len(written.samples) < 14  # 64 fields of 4,000 characters in each
    assert samples.path_of(tmp_path, 1).stat().st_size <= samples.MAX_BYTES + 1
    assert written.samples[0].title.startswith("a\\x1b[31mxxx")
    assert written.samples[0].title.endswith(" ...")
    assert written.samples[0].fields[0][1].startswith("line\nline")


def test_records_lie_all_over_a_split():
    assert samples.spread(4, 100) == [0, 25, 50, 75]
    assert samples.spread(6, 3) == [0, 1, 2]
    assert samples.spread(0, 3) == []


BOMB = b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452000186a0000186a008020000005d2d0e9b")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda v: v.pop("about"), "it lacks 'about'"),
        (lambda v: v.update(step="40"), "no whole number"),
        (lambda v: v.update(samples={}), "`samples` is no list"),
        (lambda v: v.update(samples=[3]), "subscriptable"),
        (lambda v: v["samples"][0].update(title=3), "a text is none"),
        (lambda v: v["samples"][0].update(title="x" * 5000), "at most 4,000"),
        (lambda v: v["samples"][0].update(right="yes"), "neither true"),
        (lambda v: v["samples"][0].update(fields=[["a"]]), "not enough values"),
        (lambda v: v["samples"][0].update(shares=[["a", 2.0]]), "no number from 0 to 1"),
        (lambda v: v["samples"][0].update(shares=[["a", float("nan")]]), "no number from 0 to 1"),
        (lambda v: v["samples"][0]["compared"][0].pop("truth"), "it lacks 'truth'"),
        (lambda v: v["samples"][0]["pictures"][0].update(content="***"), "not base64"),
        (lambda v: _picture(v, b"<svg onload='x'/>"), "neither PNG nor JPEG"),
        (lambda v: _picture(v, b"\x89PNG\r\n\x1a\n" + b"0" * 300_000), "larger than 256 KiB"),
        (lambda v: _picture(v, b"\x89PNG\r\n\x1a\n1234"), "cannot be read"),
        (lambda v: _picture(v, BOMB), "a picture"),
    ],
)
def test_files_of_anybody_are_refused(tmp_path, given, change, what):
    samples.write(tmp_path, given)
    path = samples.path_of(tmp_path, 40)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=what) as refused:
        samples.read(tmp_path, 40)
    assert "samples-40.json" in str(refused.value)


def _picture(values, content):
    values["samples"][0]["pictures"][0]["content"] = base64.b64encode(content).decode()


def test_other_steps_versions_and_links(tmp_path, given):
    samples.write(tmp_path, given)
    path = samples.path_of(tmp_path, 40)
    values = json.loads(path.read_text())
    samples.path_of(tmp_path, 41).write_text(json.dumps(values))
    with pytest.raises(DataError, match="of step 40"):
        samples.read(tmp_path, 41)
    path.write_text(json.dumps(values | {"format": 2}))
    assert samples.read(tmp_path, 40) is None
    (tmp_path / "other.json").write_text(json.dumps(values))
    path.unlink()
    path.symlink_to(tmp_path / "other.json")
    with pytest.raises(DataError, match="symbolic link"):
        samples.read(tmp_path, 40)
    with pytest.raises(ConfigError, match="a link"):
        samples.write(tmp_path, dataclasses.replace(given, step=40))
