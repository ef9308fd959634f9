"""Decoding: every mode and format that image folders hold, and every kind of damage."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitattn.images import decode as images
from vitattn.images.decode import BadImage, guarded, open_picture

RNG = np.random.default_rng(0)
# A smooth picture: JPEG keeps it within a few levels, and its corners tell orientations apart.
DOWN, ACROSS = np.mgrid[0:48, 0:64] / (47, 63)[0]
SMOOTH = np.stack([DOWN * 200, ACROSS * 130, (1 - DOWN) * 180], -1).clip(0, 255).astype(np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# The most faithful a lossy format can be: JPEG then differs by rounding only.
FAITHFUL = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}


def decode(content):
    """All pixels, upright, without resizing."""

    def whole():
        picture = open_picture(content)
        size = max(picture.width, picture.height)
        box = (0, 0, picture.width, picture.height)
        return np.asarray(picture.render(box, size)), (picture.width, picture.height)

    return guarded(whole)


def training(content, size, box=None):
    """The same as training sees it."""
    picture = open_picture(content)
    box = box or (0, 0, picture.width, picture.height)
    return guarded(lambda: picture.planes(box, size)).transpose(2, 1, 0)


def pixels(content):
    image = images.to_rgb(Image.open(io.BytesIO(content)))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("WEBP", 0), ("JPEG", 6), ("GIF", 40)],
)
def test_every_format_gives_its_colours(kind, tolerance):
    content = encode(Image.fromarray(SMOOTH), kind, **FAITHFUL.get(kind, {}))
    assert np.abs(pixels(content) - SMOOTH).max() <= tolerance
    found, size = decode(content)
    assert size == (64, 48)
    assert found.shape == (64, 64, 3)


def test_grey_is_repeated_over_the_colours():
    grey = Image.fromarray(SMOOTH[..., 0])
    for content in (encode(grey, "PNG"), encode(grey, "TIFF")):
        np.testing.assert_array_equal(pixels(content), np.repeat(SMOOTH[..., :1], 3, -1))
    assert np.abs(pixels(encode(grey, "JPEG")) - SMOOTH[..., :1]).max() <= 6
    assert set(np.unique(pixels(encode(grey.convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind):
    values = np.array([[0, 257, 32768, 65535], [100, 400, 6000, 40000]], np.uint16)
    found = pixels(encode(Image.fromarray(values), kind))[..., 0]
    np.testing.assert_array_equal(found, np.rint(values / 257))


def test_cmyk_is_converted():
    solid = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for content in (encode(solid, "TIFF"), encode(solid, "JPEG", quality=95)):
        red, green, blue = pixels(content).reshape(-1, 3).mean(0)
        assert red > 240
        assert green < 15
        assert blue < 15


def test_transparent_parts_lie_on_white():
    alpha = np.zeros((4, 4, 4), np.uint8)
    alpha[:2] = (200, 100, 50, 255)
    found = pixels(encode(Image.fromarray(alpha), "PNG"))
    np.testing.assert_array_equal(found[:2], np.broadcast_to((200, 100, 50), (2, 4, 3)))
    np.testing.assert_array_equal(found[2:], np.full((2, 4, 3), 255))
    grey = Image.fromarray(np.array([[[80, 255], [80, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(pixels(encode(grey, "PNG"))[0, :, 0], [80, 255])


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    np.testing.assert_array_equal(pixels(encode(image, "PNG"))[0], [(10, 20, 30), (40, 50, 60)])
    clear = encode(image, "PNG", transparency=1)
    np.testing.assert_array_equal(pixels(clear)[0], [(10, 20, 30), (255, 255, 255)])


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(content)[3, 3], (255, 0, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    """The camera stores pixels turned or mirrored and says so: the upright picture must come
    out."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](SMOOTH)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(stored, kind, exif=exif, **FAITHFUL.get(kind, {}))
    found, size = decode(content)
    assert size == (64, 48)
    whole = np.asarray(Image.fromarray(SMOOTH).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - whole).max() <= 6
    assert np.abs(training(content, 64) - found).max() <= 2


def test_a_box_of_a_turned_photograph_is_cut_from_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    big = np.repeat(np.repeat(SMOOTH, 16, 0), 16, 1)
    content = encode(Image.fromarray(np.rot90(big, 1)), "JPEG", exif=exif, quality=95)
    box = (256.0, 128.0, 768.0, 640.0)
    found = open_picture(content).render(box, 32)
    expected = Image.fromarray(big).resize((32, 32), Image.Resampling.BICUBIC, box=box)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 8
    assert np.abs(training(content, 32, box) - np.asarray(found)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_decoded_small_lies_where_it_does_at_full_size(orientation):
    """1021 x 765 pixels at 1/4: the last decoded column stands for one pixel of the file, the last
    row too. Taken for four, or counted from the other end, they would move edges by up to a pixel.
    """
    stored = np.zeros((765, 1021, 3), np.uint8)
    stored[200:, 300:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(stored), "JPEG", exif=exif, quality=95, subsampling=0)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    picture = open_picture(content)
    found = np.asarray(picture.render((0, 0, *upright.size), 190), np.float32)
    assert max(picture._image.size) == 256
    expected = np.asarray(upright.resize((190, 190), Image.Resampling.BOX), np.float32)
    for axis in (0, 1):  # where the edge lies, in pixels of the result
        edges = [
            np.mean(image[60:160, 60:160], axis=(axis, 2)).sum() / 255
            for image in (found, expected)
        ]
        assert abs(edges[0] - edges[1]) < 0.1
    assert np.abs(training(content, 190) - found).mean() < 0.3


def test_a_large_jpeg_is_decoded_small_but_never_smaller_than_needed():
    content = encode(Image.fromarray(np.repeat(np.repeat(SMOOTH, 16, 0), 16, 1)), "JPEG")
    picture = open_picture(content)
    picture.render((0, 0, 1024, 768), 100)
    # 768/100 allows 1/4 (256x192 pixels); 1/8 would leave 96 rows.
    assert picture._image.size == (256, 192)
    again = open_picture(content)
    again.planes((0, 0, 1024, 768), 100)
    assert again._image.size == (256, 192)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "LA"])
def test_training_reads_every_format_and_mode_as_evaluation_does(kind, mode):
    try:
        content = encode(Image.fromarray(SMOOTH).convert(mode), kind, **FAITHFUL.get(kind, {}))
    except (OSError, ValueError):
        pytest.skip(f"{kind} cannot hold {mode}")
    difference = training(content, (48, 64)) - decode_at(content, (48, 64))
    # Dithered pictures are noise: Pillow clips what overshoots between the axes.
    assert np.abs(difference).mean() < 1.5


def decode_at(content, size):
    picture = open_picture(content)
    return np.asarray(picture.render((0, 0, picture.width, picture.height), size), np.float32)


def test_a_grey_and_a_cmyk_jpeg_are_read_in_training():
    for mode in ("L", "CMYK"):
        content = encode(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95)
        assert np.abs(training(content, 40) - decode_at(content, 40)).max() <= 2


def test_what_shrinks_a_lot_is_left_to_pillow():
    long = np.repeat(SMOOTH, 100, 1)  # 48 x 6400, to 40 x 40: 160 pixels for one
    content = encode(Image.fromarray(long), "PNG")
    np.testing.assert_array_equal(training(content, 40), decode_at(content, 40))
    picture = open_picture(content)
    mirrored = picture.planes((0, 0, 6400, 48), 40, mirrored=True).transpose(2, 1, 0)
    np.testing.assert_array_equal(mirrored[:, ::-1], decode_at(content, 40))


@pytest.mark.parametrize("name", ["empty", "text", "torn jpeg", "torn png", "header", "half zero"])
def test_damaged_files_are_bad_images_with_a_reason(name):
    noise = Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8))
    jpeg, png = encode(noise, "JPEG"), encode(noise, "PNG")
    content, why = {
        "empty": (b"", "zero bytes"),
        "text": (b"<html>404</html>", "none of the formats"),
        "torn jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "torn png": (png[: len(png) // 2], "cannot be decoded"),
        "header": (png[:20], "cannot be decoded|none of the formats"),
        "half zero": (png[:2000] + bytes(len(png) - 2000), "cannot be decoded"),
    }[name]
    with pytest.raises(BadImage, match=why):
        decode(content)


def png_header(width, height):
    """A valid PNG of that size whose pixels would unpack from a few bytes."""

    def chunk(kind, body):
        checked = kind + body
        return len(body).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes((8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (20_000, 20_000), (89_478_486, 1)])
def test_a_decompression_bomb_is_refused_before_it_unpacks(width, height):
    with pytest.raises(BadImage, match=r"pixels|Bomb"):
        open_picture(png_header(width, height))


def test_one_pixel_is_an_image():
    found, size = decode(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"))
    assert size == (1, 1)
    np.testing.assert_array_equal(found, [[[9, 8, 7]]])


def test_floating_point_pixels_are_refused():
    values = Image.fromarray(RNG.random((4, 4)).astype(np.float32))
    with pytest.raises(BadImage, match="floating-point"):
        decode(encode(values, "TIFF"))


def test_other_formats_are_not_opened():
    """Pillow reads EPS by starting Ghostscript on the file's program."""
    with pytest.raises(BadImage, match="none of the formats"):
        open_picture(encode(Image.fromarray(SMOOTH), "EPS"))


def test_a_thousand_damaged_files_decode_or_are_bad_images():
    good = [
        encode(Image.fromarray(SMOOTH), "JPEG"),
        encode(Image.fromarray(SMOOTH), "PNG"),
        encode(Image.fromarray(SMOOTH).quantize(16), "GIF"),
        encode(Image.fromarray(SMOOTH), "TIFF", compression="tiff_lzw"),
        encode(Image.fromarray(SMOOTH), "WEBP"),
    ]
    bad = 0
    for n in range(1000):
        content = bytearray(good[n % len(good)])
        for place in RNG.integers(0, len(content), 1 + n % 5):
            content[place] ^= 1 << RNG.integers(8)
        try:
            found, _ = decode(bytes(content))
            assert found.dtype == np.uint8
        except BadImage:
            bad += 1
    assert 50 < bad < 950
