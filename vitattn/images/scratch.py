"""Memory that is used again for the next image: new memory costs its pages, a third of the time
that decoding and resizing take."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import DTypeLike

# More than this is not kept: a large photograph would keep it for good.
_MOST_BYTES = 16 * 2**20

_kept = threading.local()


def empty(use: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """Returns an array with arbitrary contents, valid in this thread until the next one for the
    same use."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    if count > _MOST_BYTES:
        return np.empty(shape, dtype)
    memory = getattr(_kept, use, None)
    if memory is None or memory.nbytes < count:
        memory = np.empty(count, np.uint8)
        setattr(_kept, use, memory)
    return memory[:count].view(dtype).reshape(shape)
