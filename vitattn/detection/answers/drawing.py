"""Detections drawn on the picture that they are of.

A box is x0 y0 x1 y1 in pixels. Sizes follow the picture, so that lines and letters can be read when
it fills a screen; a small picture is enlarged first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from trainlib.errors import plain
from vitattn.detection.answers.fonts import Font, font_for

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom

# Okabe and Ito, "Color Universal Design" (2008), told apart by people of any colour vision; their
# black is left out, which an outline has. Of more classes some share a colour: the label has the
# name.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
READABLE = 640  # pixels of the longer side, below which a picture is enlarged
LONGEST_NAME = 40  # letters
_SHADE = (0, 0, 0)


def colour_of(class_number: int) -> Colour:
    """The colour in which a class is drawn in every picture."""
    return PALETTE[class_number % len(PALETTE)]


def draw(
    picture: Image.Image,
    boxes: np.ndarray,
    scores: np.ndarray,
    class_numbers: np.ndarray,
    names: Sequence[str],
) -> Image.Image:
    """Returns the picture with a box and a label for each detection.

    A picture of fewer than `READABLE` pixels is enlarged by a whole factor. Labels lie within the
    picture, beside other labels where there is room. The best detection is drawn last.

    Args:
      picture: RGB, upright.
      boxes: [n, 4], x0 y0 x1 y1 in its pixels.
      scores: [n], falling; NaN where there is none, as of boxes that a person drew.
      class_numbers: i32 [n].
      names: of the classes; letters that no font holds are replaced by the number of the class.
    """
    factor = max(1, -(-READABLE // max(picture.size)))
    drawn = picture.convert("RGB")
    if factor > 1:
        drawn = drawn.resize(
            (drawn.width * factor, drawn.height * factor), Image.Resampling.BICUBIC
        )
    canvas, width = ImageDraw.Draw(drawn), max(2, max(drawn.size) // 320)
    outlines = [tuple(box) for box in (np.asarray(boxes) * factor).tolist()]
    colours = [colour_of(n) for n in class_numbers.tolist()]
    for box, colour in zip(reversed(outlines), reversed(colours), strict=True):
        _outline(canvas, box, colour, width)
    taken: list[Rectangle] = []
    labels = []
    for box, score, number in zip(outlines, scores.tolist(), class_numbers.tolist(), strict=True):
        text, font = _label(str(names[number]), number, score, drawn.size)
        place = _place(box, _extent(text, font), drawn.size, taken)
        taken.append(place)
        labels.append((text, font, place))
    for (text, font, place), colour in zip(reversed(labels), reversed(colours), strict=True):
        _write(canvas, text, font, place, colour)
    return drawn


def _outline(canvas: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, width: int) -> None:
    """A line within the box, between two dark ones: it shows on any ground."""
    # Pillow counts the last pixel in.
    left, top, right, bottom = round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1
    right, bottom = max(left, right), max(top, bottom)
    shade = max(1, width // 3)
    room = min(right - left, bottom - top) // 2 + 1
    for inset, colour_, thick in ((0, _SHADE, width + 2 * shade), (shade, colour, width)):
        if inset < room:
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            canvas.rectangle(corners, outline=colour_, width=min(thick, room - inset))


def _label(name: str, number: int, score: float, size: tuple[int, int]) -> tuple[str, Font | None]:
    """The text of a label that fits into the picture, and its font."""
    height = max(14, min(max(size) // 45, min(size) // 6))
    name = plain(name)
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    percent = "" if np.isnan(score) else f" {100 * score:.0f} %"
    text = f"{name}{percent}"
    font = font_for(text, height)
    if font is None:
        text = f"class {number}{percent}"
        font = font_for(text, height)
    while font is not None and height > 6 and _extent(text, font)[0] > size[0]:
        height -= 1
        font = font_for(text, height)
    return text, font


def _extent(text: str, font: Font | None) -> tuple[int, int]:
    """Width and height of a label with its margin."""
    if font is None:
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
        return int(right - left) + 4, int(bottom - top) + 4
    ascent, descent = font.getmetrics()
    return int(np.ceil(font.getlength(text))) + ascent // 2, ascent + descent


def _place(
    box: Rectangle, extent: tuple[int, int], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a label stands: above its box, else below or within, where it hides least of others."""
    wide, high = extent
    left, top, right, bottom = box
    corners = (
        (left, top - high),
        (right - wide, top - high),
        (left, bottom),
        (right - wide, bottom),
        (left, top),
        (left, bottom - high),
    )
    inside = [
        (min(max(0.0, x), max(0.0, size[0] - wide)), min(max(0.0, y), max(0.0, size[1] - high)))
        for x, y in corners
    ]
    places = [(x, y, x + wide, y + high) for x, y in inside]

    def cost(place: Rectangle) -> float:
        return sum(_shared(place, other) for other in taken)

    return min(places, key=cost)  # the first of those that hide as little


def _shared(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _write(
    canvas: ImageDraw.ImageDraw, text: str, font: Font | None, place: Rectangle, colour: Colour
) -> None:
    left, top, right, bottom = map(round, place)
    canvas.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    margin = (font.getmetrics()[0] // 4) if font is not None else 2
    canvas.text((left + margin, top), text, fill=_ink(colour), font=font)


def _ink(ground: Colour) -> Colour:
    """Black or white, whichever stands out from the ground (relative luminance, WCAG 2)."""
    parts = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in ground]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
