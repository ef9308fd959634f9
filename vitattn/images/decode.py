"""From the bytes of an image file, whatever its format and mode, to upright RGB pixels of one size.

H height, W width in pixels; boxes are (left, top, right, bottom) in pixels of the upright image.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from vitattn.images import jpeg
from vitattn.images.resample import MOST_SHRINK, resample
from vitattn.images.size import Box, Size, sides

T = TypeVar("T")
Rgb = tuple[float, float, float]
Pixels = np.ndarray | bytes | Image.Image  # uint8 [H, W, C], an encoded file, an open picture

# A larger image is refused before it is unpacked: a small file can unpack to gigabytes. The number
# is Pillow's own warning threshold, a picture of 256 MiB in RGB.
MAX_PIXELS = 89_478_485
MAX_BYTES = 256 * 2**20

# Formats that are read. Pillow knows more, but some of its readers start other programs (EPS).
_END = 2**16  # bytes: cameras write a little behind the mark that ends a picture
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

# Pillow warns of every odd metadata field; only whether the pixels decode matters here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION_TAG = 0x0112
# EXIF orientation -> the operation that makes the picture upright. From 5 on it swaps width and
# height.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
# Orientations whose upright picture begins with the last columns, or rows, of the file.
_FROM_THE_RIGHT = (2, 3, 6, 7)
_FROM_BELOW = (3, 4, 7, 8)


class BadImage(Exception):
    """An image that cannot be decoded; the message gives the reason, for people."""


class Picture:
    """An image whose header has been read, and whose pixels have not been decoded yet.

    Attributes:
      width: of the upright picture in pixels.
      height: of the upright picture in pixels.
      turned: whether width and height are exchanged in the file, by its EXIF orientation.
    """

    def __init__(self, image: Image.Image, whole: bool = True, encoded: bytes = b""):
        """Takes an open image, and its file where that is in memory; raises BadImage if its size is
        not allowed.

        Unless `whole`, nothing behind the header is looked at: of a PNG, whose orientation may
        stand behind its pixels, it is that before them which counts.
        """
        self._image, self._encoded = image, encoded
        width, height = image.size
        if width < 1 or height < 1:
            raise BadImage(f"has no pixels ({width}x{height})")
        if width * height > MAX_PIXELS:
            raise BadImage(
                f"has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are read"
            )
        self._orientation = _orientation(image, whole)
        self._shrunk = 1  # pixels of the file, in one row, that became one decoded pixel
        self.turned = self._orientation >= 5
        self.width, self.height = (height, width) if self.turned else (width, height)

    def render(
        self, box: Box, size: Size, resample: Image.Resampling = Image.Resampling.BICUBIC
    ) -> Image.Image:
        """Decodes, cuts `box` out and resizes it to an RGB image of this size.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the box then still has as many pixels as
        the result, which saves most of the time that large photographs take.
        """
        high, wide = sides(size)
        self._draft(box, size)
        upright = to_rgb(self._image)
        if self._orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[self._orientation])
        box = self._decoded(box, upright.width, upright.height)
        return upright.resize((wide, high), resample, box=box)

    def planes(
        self, box: Box, size: Size, kernel: str = "cubic", mirrored: bool = False
    ) -> np.ndarray:
        """The same as `render` in half of the time, for training: levels that are not rounded,
        float32 [3, W, H]; `kernel` is "cubic" or "linear".

        They differ from Pillow's, which rounds twice, by 0.3 of a level in the mean and by a few
        levels at edges between black and white, where Pillow clips what overshoots between the two
        axes.
        """
        high, wide = sides(size)
        self._draft(box, size)
        shrink = max((box[2] - box[0]) / wide, (box[3] - box[1]) / high) / self._shrunk
        if shrink > MOST_SHRINK:
            image = np.asarray(self.render(box, size, _FILTERS[kernel]), np.float32)
            return np.ascontiguousarray((image[:, ::-1] if mirrored else image).transpose(2, 1, 0))
        pixels = self._upright(self._array())
        box = self._decoded(box, pixels.shape[1], pixels.shape[0])
        return resample(pixels, box, size, kernel, mirrored)

    def _array(self) -> np.ndarray:
        """Decodes to uint8 RGB [H, W, 3] as it lies in the file, at the size that was drafted."""
        image = self._image
        if self._encoded and (image.format, image.mode) == ("JPEG", "RGB"):
            pixels = jpeg.decode(self._encoded, *image.size, self._shrunk)
            if pixels is not None:
                return pixels
        return np.asarray(to_rgb(image))

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        """A view of pixels [H, W, 3] of the file, turned upright."""
        if self.turned:
            pixels = pixels.swapaxes(0, 1)
        if self._orientation in _FROM_THE_RIGHT:
            pixels = pixels[:, ::-1]
        return pixels[::-1] if self._orientation in _FROM_BELOW else pixels

    def _draft(self, box: Box, size: Size) -> None:
        """Has a JPEG decoded at the least size that `render` allows."""
        high, wide = sides(size)
        shrink = min((box[2] - box[0]) / wide, (box[3] - box[1]) / high)
        if shrink > 1:
            width, height = self._image.size
            least = int(np.ceil(width / shrink)), int(np.ceil(height / shrink))
            if drafted := self._image.draft(None, least):
                self._shrunk = round(width / drafted[1][2])

    def _decoded(self, box: Box, width: int, height: int) -> Box:
        """The box in pixels of the decoded picture, which is upright and has these sides.

        The last of these stand for less than the others where a side is no multiple; a turn can
        make them the first.
        """
        over = width - self.width / self._shrunk, height - self.height / self._shrunk
        left = over[0] if self._orientation in _FROM_THE_RIGHT else 0
        top = over[1] if self._orientation in _FROM_BELOW else 0
        edges = [edge / self._shrunk for edge in box]
        right, bottom = min(edges[2] + left, width), min(edges[3] + top, height)
        return edges[0] + left, edges[1] + top, right, bottom

    @property
    def decoded(self) -> Image.Image | None:
        """The image, if its pixels had to be decoded to know its orientation; it can stand for its
        file, and nothing is decoded twice.
        """
        return None if getattr(self._image, "tile", None) else self._image

    def as_stored(self) -> np.ndarray:
        """Decodes all of it to uint8 RGB [H, W, 3] as it lies in the file, not turned upright."""
        return guarded(lambda: np.asarray(to_rgb(self._image)))


def _orientation(image: Image.Image, whole: bool) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if the metadata cannot be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself
    if image.format == "PNG" and "exif" not in image.info:
        if not whole:
            return 1
        image.load()  # as `getexif` would; here damaged pixels are not taken for odd metadata
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # as many types as there are ways to break it
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def open_picture(image: Pixels) -> Picture:
    """Opens an encoded file, uint8 pixels [H, W, 1, 3 or 4], or a picture that is open already.

    Raises:
      BadImage: the file is empty, too large, of another format, or damaged.
    """
    if isinstance(image, Image.Image):
        return guarded(lambda: Picture(image))
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        return guarded(lambda: Picture(Image.fromarray(pixels)))
    if not image:
        raise BadImage("is empty (zero bytes)")
    if len(image) > MAX_BYTES:
        raise BadImage(f"has {len(image):,} bytes, more than the {MAX_BYTES:,} that are read")
    return guarded(lambda: Picture(Image.open(io.BytesIO(image), formats=FORMATS), encoded=image))


def open_header(file: BinaryIO) -> Picture:
    """Opens an image file to look at its header.

    Raises:
      BadImage: it is of another format, damaged or too large.
    """
    return guarded(lambda: Picture(Image.open(file, formats=FORMATS), whole=False))


def ends(file: BinaryIO) -> bool:
    """Returns whether the mark that ends a JPEG or a PNG stands near the end of a file.

    A file that was cut off lacks it; so do a few that can be decoded, and all of other formats.
    """
    file.seek(0)
    start = file.read(8)
    marks = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
    file.seek(max(0, file.seek(0, io.SEEK_END) - _END))
    return start[:2] in marks and marks[start[:2]] in file.read(_END)


def guarded(decode: Callable[[], T]) -> T:
    """Runs a decoding step, and raises BadImage for whatever Pillow raises on damaged bytes."""
    try:
        return decode()
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(f"is none of the formats {', '.join(FORMATS)}, or is damaged") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files reach every line of every decoder
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in 8-bit RGB.

    Grey is repeated, CMYK and palettes are converted, transparent parts are laid on white, 16-bit
    grey is scaled (65535 becomes 255).

    Raises:
      BadImage: floating-point pixels, which have no agreed range.
    """
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _sixteen_bits(image)
    if image.mode == "F":
        raise BadImage("has floating-point pixels, which have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        ground = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, colour).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"has integer pixels from {values.min()} to {values.max()}, outside 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
