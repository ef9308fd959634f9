"""The fast decoder of JPEG: libjpeg-turbo straight into an array, in two thirds of Pillow's time.

H W of the decoded picture in pixels. Pillow wraps the same library, so the pixels are the same, bit
for bit. It stays the judge of what is a picture: it reads the header before, and has the last word
on every file that this decoder does not take without a warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg

from vitattn.images import scratch


def decode(encoded: bytes, width: int, height: int, shrink: int) -> np.ndarray | None:
    """Returns uint8 RGB [H, W, 3] as it lies in the file, or None if Pillow has to decide.

    Args:
      encoded: the file.
      width: W as Pillow expects it, of the picture at 1/shrink. What the file says for this decoder
        is compared before anything is allocated.
      height: H.
      shrink: 1, 2, 4 or 8 pixels of the file, in a row, for one decoded pixel.
    """
    scaled: dict[str, Any] = {}
    if shrink > 1:
        scaled = {"min_width": width, "min_height": height, "min_factor": shrink}
    try:
        found = simplejpeg.decode_jpeg_header(encoded, **scaled)
        if found[:2] != (height, width):
            return None
        buffer = scratch.empty("jpeg", (height, width, 3), np.uint8)
        return simplejpeg.decode_jpeg(encoded, "RGB", buffer=buffer, **scaled)
    except ValueError:  # an error or a warning of the library
        return None
