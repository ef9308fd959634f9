"""Fonts that hold the letters of a text.

The font that comes with Pillow holds Latin letters. Names in other scripts are looked for in the
font of matplotlib, where that is installed, and in those of the system.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont

_MOST_FONTS = 500  # that are opened in search of one letter
_MISSING = "\uffff"  # no character: drawn as a font draws what it lacks
_FOLDERS = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}


def font_for(text: str, size: int) -> Font | None:
    """Returns a font that holds every letter of a text; None where none is found.

    Args:
      text: what will be drawn.
      size: of the letters in pixels.
    """
    letters = frozenset(letter for letter in text if not letter.isspace())
    file = _file_with(letters)
    return None if file is None else _opened(file, size)


@functools.lru_cache(maxsize=1024)
def _file_with(letters: frozenset[str]) -> str | None:
    """The first font that holds the letters; "" is that of Pillow."""
    for file in itertools.islice(
        itertools.chain(("",), _known_files(), _system_files()), _MOST_FONTS
    ):
        try:
            if _holds(_opened(file, 20), letters):
                return file
        except OSError:  # no font that FreeType reads
            continue
    return None


def _holds(font: Font, letters: frozenset[str]) -> bool:
    missing = _drawn(font, _MISSING)
    return all(_drawn(font, letter) != missing for letter in letters)


def _drawn(font: Font, letter: str) -> bytes:
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
    return image.tobytes()


@functools.lru_cache(maxsize=64)
def _opened(file: str, size: int) -> Font:
    if file:
        return ImageFont.truetype(file, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, Font):
        raise OSError("Pillow was built without FreeType")
    return font


def _known_files() -> Iterator[str]:
    """DejaVu Sans, as matplotlib brings it along: Latin, Greek, Cyrillic and more."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        yield str(Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf")


def _system_files() -> Iterator[str]:
    for folder in _FOLDERS.get(sys.platform, ("/usr/share/fonts", "/usr/local/share/fonts")):
        for file in sorted(Path(folder).rglob("*")):
            if file.suffix.lower() in (".ttf", ".otf", ".ttc"):
                yield str(file)
