"""Mutations of good files: every loader either reads what is left or refuses it, in time and space.

    python -m tests.fuzz.mutate --count=20000 [--seed=0] [--kinds=hf,t5x]

Each mutation takes one file of those in `tests.fuzz.readers`, flips bits, cuts, repeats, inserts or
replaces bytes and numbers in it, then reads all that is there. Anything but success or the refusal
that the table names, other content than was written where the files are sealed, two CPU seconds for
one file, or 200 MB more memory is a failure. The seed of a failure gives the same file again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.readers import READERS, Reader

REFUSED = object()
SLOWEST, GROWTH = 2.0, 200.0  # CPU seconds of one file, MB of all together
NUMBERS = (b"0", b"-1", b"1", b"4294967296", b"18446744073709551616", b"1e400", b"null", b"[]")
WORDS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"..", b"/", b"\x00", b"\xff" * 8, b"\xc6")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to four changes of `data`, most of them near its start, where the structure is."""
    result = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        size = len(result)
        at = draw.randrange(size + 1) if draw.random() < 0.4 else int(size * draw.random() ** 4)
        kind = draw.randrange(8)
        if kind == 0 and size:
            result[min(at, size - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del result[at : at + draw.randint(1, 16)]
        elif kind == 2:
            result[at:at] = result[at : at + draw.randint(1, 64)]
        elif kind == 3:
            result[at:at] = draw.choice(WORDS)
        elif kind == 4:
            number = _number(result, at)
            result[number] = draw.choice(NUMBERS)
        elif kind == 5:
            del result[at:]
        elif kind == 6:
            result[at : at + 4] = draw.randbytes(4)
        else:
            result[:8] = draw.choice((0, 1, 7, size, 2**24, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(result)


def _number(data: bytearray, at: int) -> slice:
    """The next run of digits after a place."""
    start = next((i for i in range(at, len(data)) if 48 <= data[i] < 58), at)
    stop = next((i for i in range(start, len(data)) if not 48 <= data[i] < 58), len(data))
    return slice(start, stop)


def run(count: int, seed: int, root: Path, kinds: Sequence[str] = ()) -> str:
    """Tries `count` mutations; the last line of the report.

    Args:
      count: how many.
      seed: of the drawing.
      root: an empty folder.
      kinds: names of `READERS`; none: all.

    Raises:
      AssertionError: a loader failed, or took what is damaged for good; says which mutation of
        which file.
    """
    from tests.fuzz.hostile import memory

    table = {kind: READERS[kind] for kind in kinds or READERS}
    places = {kind: reader.make(_folder(root / kind)) for kind, reader in table.items()}
    good = {kind: reader.read(places[kind]) for kind, reader in table.items()}
    files = {kind: _files(places[kind], reader) for kind, reader in table.items()}
    before, slowest, refused = memory(), 0.0, 0
    signal.signal(signal.SIGALRM, _too_slow)
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        kind = draw.choice(sorted(table))
        file = draw.choice(files[kind])
        where = f"mutation {number} of seed {seed}, {kind}: {file.relative_to(root)}"
        begun = time.process_time()
        result = _tried(table[kind], places[kind], file, draw, where)
        slowest = max(slowest, time.process_time() - begun)
        refused += result is REFUSED
        wrong = "" if result is REFUSED else table[kind].silent(good[kind], result)
        assert not wrong, f"{where}: {wrong}"
    grew = memory() - before
    line = (
        f"{count:,} mutations: {refused:,} refused, {count - refused:,} read, 0 crashes, 0 silent, "
        f"slowest {slowest:.2f} CPU-s, memory grew {grew:.0f} MB"
    )
    assert slowest < SLOWEST, line
    assert grew < GROWTH, line
    return line


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _files(place: Path, reader: Reader) -> list[Path]:
    result = sorted(p for p in place.rglob("*") if p.is_file())
    return [p for p in result if reader.damaged(p.relative_to(place))]


def _tried(reader: Reader, place: Path, file: Path, draw: random.Random, where: str) -> Any:
    """What is read with one file damaged, or REFUSED; the file is as it was afterwards."""
    original = file.read_bytes()
    try:
        file.write_bytes(mutated(original, draw))
        signal.alarm(30)
        return reader.read(place)
    except reader.refusal:
        return REFUSED
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}\n{traceback.format_exc()}") from None
    finally:
        signal.alarm(0)
        file.write_bytes(original)


def _too_slow(*_: object) -> None:
    raise TimeoutError("one file took more than 30 s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz.mutate")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help=f"of {', '.join(READERS)}; default: all")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        print(run(args.count, args.seed, root, [k for k in args.kinds.split(",") if k]))
    except AssertionError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
