"""Unpacks zstd (RFC 8878), in which Orbax packs the chunks of its arrays.

Python has no zstd before 3.14; tensorstore, which Orbax brings, has. It would unpack whatever a
frame says, so the frame is walked first: it must be one, state the size that is expected, and not
consist of blocks that could become much more.
"""

from __future__ import annotations

import json

MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK = 128 * 1024  # the most that one block can become
_SLACK = 8  # times the size; a writer may end blocks early
_MIB = 2**20


def most_packed(size: int) -> int:
    """The most bytes that an honest frame of `size` bytes has."""
    return size + size // 128 + 1024


def unpack(data: bytes, size: int) -> bytes:
    """The `size` bytes of a frame.

    Raises:
      ValueError: it is not one whole frame of that size, or damaged.
    """
    check(data, size)
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "memory"}).result()
    store["0"] = data
    metadata = {
        "zarr_format": 2,
        "shape": [size],
        "chunks": [size],
        "dtype": "|u1",
        "order": "C",
        "compressor": {"id": "zstd", "level": 1},
        "filters": None,
        "fill_value": None,
    }
    store[".zarray"] = json.dumps(metadata).encode()
    array = tensorstore.open({"driver": "zarr"}, kvstore=store, open=True).result()
    return array.read().result().tobytes()


def check(data: bytes, size: int) -> None:
    """Walks the frame without unpacking it; see `unpack`."""
    if data[:4] != MAGIC or len(data) < 6:
        raise ValueError("no zstd frame")
    descriptor = data[4]
    single, form = descriptor >> 5 & 1, descriptor >> 6
    if descriptor & 0b1011:
        raise ValueError("a zstd frame with reserved bits or a dictionary")
    at = 5 + (not single)  # a window byte follows unless the frame is one segment
    width = (1 if single else 0, 2, 4, 8)[form]
    if not width:
        raise ValueError("a zstd frame that does not state its size")
    stated = int.from_bytes(data[at : at + width], "little") + (256 if form == 1 else 0)
    if stated != size:
        raise ValueError(f"a zstd frame of {stated:,} bytes in place of {size:,}")
    end = _end_of_blocks(data, at + width, _SLACK * (size + _MIB)) + 4 * (descriptor >> 2 & 1)
    if end != len(data):
        raise ValueError("a zstd frame that was cut off, or has something after it")


def _end_of_blocks(data: bytes, at: int, most: int) -> int:
    """Where the last block ends, if all together cannot become more than `most` bytes."""
    last, total = 0, 0
    while not last:
        head = int.from_bytes(data[at : at + 3], "little")
        if at + 3 > len(data):
            raise ValueError("a zstd frame that was cut off")
        last, kind, length = head & 1, head >> 1 & 3, head >> 3
        if length > _BLOCK or kind == 3:
            raise ValueError("a zstd block that cannot be")
        total += _BLOCK if kind == 2 else length
        if total > most:
            raise ValueError("zstd blocks that could unpack to far more than their size")
        at += 3 + (1 if kind == 1 else length)
    return at
