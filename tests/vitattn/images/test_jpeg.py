"""The fast decoder of JPEG against Pillow: the same pixels, and the same files refused."""

import io

import numpy as np
import pytest
from PIL import Image

from vitattn.images import jpeg
from vitattn.images.decode import BadImage, guarded, open_picture

RNG = np.random.default_rng(0)
DOWN, ACROSS = np.mgrid[0:93, 0:131]
PICTURE = np.stack([DOWN * 2, ACROSS, 250 - DOWN - ACROSS], -1) + RNG.integers(
    -20, 20, (93, 131, 3)
)
PICTURE = PICTURE.clip(0, 255).astype(np.uint8)


def encode(image=PICTURE, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True, "subsampling": "4:4:4"},
        {"optimize": True, "quality": 30},
    ],
)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_pixels_are_those_of_pillow_bit_for_bit(options, shrink):
    content = encode(**{"quality": 90, **options})
    image = Image.open(io.BytesIO(content))
    image.draft(None, (131 // shrink, 93 // shrink))
    found = jpeg.decode(content, *image.size, shrink)
    np.testing.assert_array_equal(found, np.asarray(image))


def test_a_file_that_says_another_size_is_left_to_pillow():
    assert jpeg.decode(encode(), 131, 92, 1) is None
    assert jpeg.decode(encode(), 60, 60, 2) is None
    assert jpeg.decode(encode()[:-200], 131, 93, 1) is None
    assert jpeg.decode(b"\xff\xd8", 131, 93, 1) is None


def outcome(content, way):
    """The levels of a crop, or why there are none."""

    def crop():
        picture = open_picture(content)
        box = (0.2 * picture.width, 0.1 * picture.height, picture.width, 0.9 * picture.height)
        if way == "planes":
            return picture.planes(box, 32).transpose(2, 1, 0)
        return np.asarray(picture.render(box, 32))

    try:
        return guarded(crop)
    except BadImage as error:
        return str(error)


def agree(content):
    fast, slow = outcome(content, "planes"), outcome(content, "render")
    if isinstance(fast, str) or isinstance(slow, str):
        assert isinstance(fast, str) == isinstance(slow, str)
        assert fast == slow, "the same message too"
    else:
        assert np.abs(fast - slow.astype(float)).mean() < 1
    return isinstance(fast, str)


def test_damaged_files_are_read_or_refused_as_pillow_does():
    """Cut files, flipped bits, torn blocks: each gives the same pixels or the same message."""
    good = [encode(quality=90), encode(quality=80, progressive=True), encode(restart_marker_rows=2)]
    refused = 0
    for number in range(600):
        content = bytearray(good[number % 3])
        for place in RNG.integers(0, len(content), 1 + number % 4):
            content[place] ^= 1 << RNG.integers(8)
        if number % 5 == 0:
            del content[RNG.integers(0, len(content)) :]
        refused += agree(bytes(content))
    assert 60 < refused < 500


def test_headers_are_damaged_too():
    """The tables and sizes before the pixels, byte by byte."""
    content = encode(quality=90)
    refused = sum(
        agree(content[:place] + bytes([value]) + content[place + 1 :])
        for place in range(150, 640, 7)
        for value in (0, 255)
    )
    assert refused > 5
