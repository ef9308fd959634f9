"""Samples of what a checkpoint answers, with the truth beside them: `report/samples-STEP.json` of a
workdir.

A family makes them (`vitattn.samples`, `moe.samples`), the page of a run draws them, and the file
lies between, so that a page is made again without a model. The file is read as data of anybody:
types, lengths and pictures are checked, and nothing in it is more than text to be shown.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlib.errors import DataError, StorageError, plain, shown
from trainlib.files import make_directory, write_atomically
from trainlib.untrusted_files import MIB, read_json

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "report"  # below a workdir
MOST = 48  # samples of a file
LONGEST = 4000  # characters of a text
MAX_BYTES = 3 * MIB  # of a file: pages stay below 5 MB
MAX_PICTURE = MIB // 4  # bytes of a picture
_MAX_PIXELS = 2**22
_SMALL = 2**15  # bytes of a picture that stays exact
_MOST_PARTS = 64  # fields, rows, shares or pictures of a sample
_FORMAT = 1
_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a sample.

    Attributes:
      caption: what it shows.
      content: a PNG or JPEG file of at most `MAX_PICTURE` bytes.
    """

    caption: str
    content: bytes

    @property
    def media_type(self) -> str:
        """image/png or image/jpeg, by the first bytes.

        Raises:
          ValueError: it is neither.
        """
        for magic, media_type in _MAGIC.items():
            if self.content.startswith(magic):
                return media_type
        raise ValueError("a picture is neither PNG nor JPEG")

    @classmethod
    def of(cls, caption: str, image: Image.Image, side: int = 480) -> Picture:
        """A picture of an image in memory: as PNG where that is small, else as JPEG.

        Args:
          caption: what it shows.
          image: of Pillow.
          side: pixels of the longer side, to which a larger one is shrunk.
        """
        image = image.convert("RGB")
        image.thumbnail((side, side))
        png, jpeg = io.BytesIO(), io.BytesIO()
        image.save(png, "PNG")
        if png.tell() <= _SMALL:
            return cls(caption, png.getvalue())
        image.save(jpeg, "JPEG", quality=88)
        return cls(caption, min(png.getvalue(), jpeg.getvalue(), key=len))


@dataclasses.dataclass(frozen=True)
class Compared:
    """One answer beside its truth.

    Attributes:
      name: what was asked for: "class", "gap 2", "answer".
      truth: what is right; "" where nobody published it.
      answer: what the model says.
      right: whether that is right; None where this cannot be said.
    """

    name: str
    truth: str
    answer: str
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example, what the model makes of it, and what is true.

    Attributes:
      title: which example it is.
      right: whether the answer as a whole is right; None where it is neither right nor wrong.
      fields: (name, text) of what was given, such as ("input", "copa premise: ..").
      compared: answers beside truths.
      shares: (name, probability) of the likeliest answers, the likeliest first.
      pictures: what was seen, and where the model looked.
    """

    title: str
    right: bool | None = None
    fields: tuple[tuple[str, str], ...] = ()
    compared: tuple[Compared, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of one checkpoint.

    Attributes:
      step: of the checkpoint.
      about: what they are samples of, in a sentence.
      samples: at most `MOST`.
      weights: text that tells the weights from others; "" where nobody wrote it.
      asked: how many were asked for; a split may have fewer.
    """

    step: int
    about: str
    samples: tuple[Sample, ...]
    weights: str = ""
    asked: int = 0


def path_of(workdir: Path, step: int) -> Path:
    """Where the samples of a step lie."""
    return workdir / FOLDER / f"samples-{step}.json"


def clipped(text: str, most: int = LONGEST) -> str:
    """A text as a sample holds it: control characters written out, the end of what is too long left
    out, which three dots say. Line ends stay.
    """
    text = "\n".join(map(plain, text[: most + 1].splitlines()))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def spread(count: int, total: int) -> list[int]:
    """Numbers of `count` records at equal distances in a split of `total`; all where it has no
    more.
    """
    count = min(count, total)
    return [number * total // count for number in range(count)]


def bounded(samples: Samples) -> Samples:
    """Samples as a file may hold them: texts of at most `LONGEST` characters, and as many samples
    as fit into `MAX_BYTES`.
    """
    some, left = [], MAX_BYTES - MIB // 16
    for sample in map(_bounded, samples.samples[:MOST]):
        left -= len(json.dumps(_as_json(sample)))
        if left < 0:
            break
        some.append(sample)
    return dataclasses.replace(samples, about=clipped(samples.about), samples=tuple(some))


def write(workdir: Path, samples: Samples) -> Samples:
    """Writes samples below a workdir; returns what was written, which is `bounded`.

    Raises:
      ConfigError: a link, or anything but a file, has the name.
      StorageError: the disk refuses.
    """
    kept = bounded(samples)
    values = {field.name: getattr(kept, field.name) for field in dataclasses.fields(kept)}
    values |= {"format": _FORMAT, "samples": list(map(_as_json, kept.samples))}
    path = path_of(workdir, samples.step)
    try:
        make_directory(path.parent)
        write_atomically(path, json.dumps(values) + "\n")
    except OSError as error:
        raise StorageError(f"{shown(path)} cannot be written: {error.strerror or error}.") from None
    return kept


def _bounded(sample: Sample) -> Sample:
    """A sample whose texts and numbers of parts are those that `read` takes."""
    compared = (
        Compared(clipped(row.name), clipped(row.truth), clipped(row.answer), row.right)
        for row in sample.compared[:_MOST_PARTS]
    )
    pictures = (
        Picture(clipped(picture.caption), picture.content)
        for picture in sample.pictures[:_MOST_PARTS]
        if len(picture.content) <= MAX_PICTURE
    )
    return Sample(
        clipped(sample.title),
        sample.right,
        tuple((clipped(name), clipped(text)) for name, text in sample.fields[:_MOST_PARTS]),
        tuple(compared),
        tuple((clipped(name), float(share)) for name, share in sample.shares[:_MOST_PARTS]),
        tuple(pictures),
    )


def _as_json(sample: Sample) -> dict[str, Any]:
    values = dataclasses.asdict(sample)
    for picture in values["pictures"]:
        picture["content"] = base64.b64encode(picture["content"]).decode()
    return values


def read(workdir: Path, step: int) -> Samples | None:
    """The samples of a step; None where there are none, or those of another version of this format.

    Raises:
      DataError: the file is none that `write` made; names what is wrong.
    """
    path = path_of(workdir, step)
    if not path.exists() and not path.is_symlink():
        return None
    values = read_json(path, MAX_BYTES + MIB, error=DataError)
    if values.get("format") != _FORMAT:
        return None
    try:
        found = _samples(values)
    except (ValueError, KeyError, TypeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{shown(path)} is no file of samples that this program wrote: {shown(what)}. Remove "
            "it; it is made again."
        ) from None
    if found.step != step:
        raise DataError(f"{shown(path)} holds samples of step {found.step}. Remove it.")
    return found


def _samples(values: dict[str, Any]) -> Samples:
    for name in ("step", "asked"):
        if type(values[name]) is not int:
            raise ValueError(f"`{name}` is no whole number")
    parts = tuple(_sample(one) for one in _list(values["samples"], "samples", MOST))
    about, weights = _text(values["about"]), _text(values["weights"])
    return Samples(values["step"], about, parts, weights, values["asked"])


def _sample(value: Any) -> Sample:
    return Sample(
        _text(value["title"]),
        _verdict(value["right"]),
        tuple((_text(name), _text(text)) for name, text in _list(value["fields"], "fields")),
        tuple(map(_compared, _list(value["compared"], "compared"))),
        tuple((_text(name), _share(share)) for name, share in _list(value["shares"], "shares")),
        tuple(_picture(picture) for picture in _list(value["pictures"], "pictures")),
    )


def _compared(row: Any) -> Compared:
    name, truth, answer = (_text(row[key]) for key in ("name", "truth", "answer"))
    return Compared(name, truth, answer, _verdict(row["right"]))


def _list(value: Any, name: str, most: int = _MOST_PARTS) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"`{name}` is no list of at most {most}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"a text is none of at most {LONGEST:,} characters")
    return value


def _verdict(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("`right` is neither true, false nor null")
    return value


def _share(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError("a share is no number from 0 to 1")
    return float(value)


def _picture(value: Any) -> Picture:
    """A picture that is a small file of a small picture: browsers unpack it."""
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error:
        raise ValueError("a picture is not base64") from None
    if len(content) > MAX_PICTURE:
        raise ValueError(f"a picture is larger than {MAX_PICTURE // 1024} KiB")
    picture = Picture(_text(value["caption"]), content)
    formats = [picture.media_type.removeprefix("image/").upper()]
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            pixels = image.width * image.height
    except (OSError, Image.DecompressionBombError):
        raise ValueError("a picture cannot be read") from None
    if pixels > _MAX_PIXELS:
        raise ValueError(f"a picture has {pixels:,} pixels, more than {_MAX_PIXELS:,}")
    return picture
