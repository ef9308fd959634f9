"""Mutations of good files: every loader either reads what is left or refuses it, in time and space.

    python -m tests.fuzz.mutate --count=20000 [--seed=0]

Each mutation takes one file of a good tiny checkpoint and flips bits, cuts, repeats, inserts or
replaces bytes and numbers in it, then opens the whole directory and reads every array. Anything but
success or a `CheckpointError`, two CPU seconds for one file, or 200 MB more memory is a failure.
The seed of a failure gives the same file again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

SLOWEST, GROWTH = 2.0, 200.0  # CPU seconds of one file, MB of all together
NUMBERS = (b"0", b"-1", b"1", b"4294967296", b"18446744073709551616", b"1e400", b"null", b"[]")
WORDS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"..", b"/", b"\x00", b"\xff" * 8, b"\xc6")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to four changes of `data`, most of them near its start, where the structure is."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        size = len(found)
        at = draw.randrange(size + 1) if draw.random() < 0.4 else int(size * draw.random() ** 4)
        kind = draw.randrange(8)
        if kind == 0 and size:
            found[min(at, size - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + draw.randint(1, 16)]
        elif kind == 2:
            found[at:at] = found[at : at + draw.randint(1, 64)]
        elif kind == 3:
            found[at:at] = draw.choice(WORDS)
        elif kind == 4:
            number = _number(found, at)
            found[number] = draw.choice(NUMBERS)
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            found[at : at + 4] = draw.randbytes(4)
        else:
            found[:8] = draw.choice((0, 1, 7, size, 2**24, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(found)


def _number(data: bytearray, at: int) -> slice:
    """The next run of digits after a place."""
    start = next((i for i in range(at, len(data)) if 48 <= data[i] < 58), at)
    stop = next((i for i in range(start, len(data)) if not 48 <= data[i] < 58), len(data))
    return slice(start, stop)


def read_hugging_face(path: Path) -> None:
    """All that an import reads, short of building the model."""
    from moe.interop import hf
    from trainlib.safetensors_io import Reader
    from trainlib.untrusted import read_json

    hf.from_config(read_json(path / "config.json"))
    reader = Reader(path)
    for name in reader.tensors:
        reader.read(name)


def read_t5x(path: Path) -> None:
    """The same of a T5X checkpoint; arrays of the size of the good one, as an import compares."""
    from moe.interop import t5x, t5x_io

    checkpoint = t5x_io.Checkpoint(path)
    t5x.guess(checkpoint.shapes)
    for name, shape in checkpoint.shapes.items():
        if 0 < len(shape) < 4 and max(shape) < 10**4:
            checkpoint.read(name)


READERS: dict[str, Callable[[Path], None]] = {"hf": read_hugging_face, "t5x": read_t5x}


def run(count: int, seed: int, root: Path) -> str:
    """Tries `count` mutations; the last line of the report.

    Raises:
      AssertionError: a loader failed; says which mutation of which file.
    """
    from tests.fuzz.hostile import good_exports, memory
    from trainlib.errors import CheckpointError

    with contextlib.redirect_stdout(io.StringIO()):
        good = good_exports(root)
    files = [(k, p) for k in READERS for p in sorted(good[k].rglob("*")) if p.is_file()]
    # The many arrays of T5X are alike: a few stand for all.
    files = [f for f in files if "/target." not in str(f[1]) or "embed" in str(f[1])]
    for kind, read in READERS.items():
        read(good[kind])
    before, slowest, refused = memory(), 0.0, 0
    signal.signal(signal.SIGALRM, _too_slow)
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        kind, file = draw.choice(files)
        original = file.read_bytes()
        begun = time.process_time()
        try:
            file.write_bytes(mutated(original, draw))
            signal.alarm(30)
            READERS[kind](good[kind])
        except CheckpointError:
            refused += 1
        except Exception as error:
            where = f"mutation {number} of seed {seed}, {file.relative_to(root)}"
            raise AssertionError(f"{where}: {error!r}\n{traceback.format_exc()}") from None
        finally:
            signal.alarm(0)
            file.write_bytes(original)
        slowest = max(slowest, time.process_time() - begun)
    grew = memory() - before
    line = (
        f"{count:,} mutations: {refused:,} refused, {count - refused:,} read, 0 crashes, slowest "
        f"{slowest:.2f} CPU-s, memory grew {grew:.0f} MB"
    )
    assert slowest < SLOWEST, line
    assert grew < GROWTH, line
    return line


def _too_slow(*_: object) -> None:
    raise TimeoutError("one file took more than 30 s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz.mutate")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        print(run(args.count, args.seed, root))
    except AssertionError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
