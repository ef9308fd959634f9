"""CPU time of one pre-training example, from the tokenised cache to the arrays of a batch:
`python -m benchmarks.text_data`.

The reference in the same process is the published preprocessor written for one example at a time
in plain NumPy (random segmentation, sentinels, end of sequence, padding); the floor copies the
finished arrays. One core makes 1 / time examples a second; 596 was measured for the seqio + t5
pipeline in TensorFlow on such a machine.
"""

from __future__ import annotations

from benchmarks.harness import timing

timing.pin_one_thread()

import tempfile  # noqa: E402

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from moe.data import data_defaults, make_source  # noqa: E402
from moe.data.cache import read as cache  # noqa: E402
from moe.data.pipeline import _train_piece  # noqa: E402
from moe.data.sources.source import Source  # noqa: E402
from moe.data.sources.windows import Windows  # noqa: E402

_ROWS = 64  # of one piece, as workers make them
_PIECES = 4
_LENGTHS = (512, 114)


def _segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    starts = np.zeros(items, np.int64)
    starts[1:] = rng.permutation(np.arange(items - 1) < segments - 1)
    return np.bincount(np.cumsum(starts), minlength=segments)


def reference(tokens: np.ndarray, rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """One row of a batch: 85 of 568 tokens hidden in 28 spans."""
    hidden = round(len(tokens) * 0.15)
    spans = round(hidden / 3)
    lengths = np.stack(
        [_segmentation(len(tokens) - hidden, spans, rng), _segmentation(hidden, spans, rng)], 1
    )
    mask = np.repeat(np.arange(2 * spans) % 2, lengths.ravel()).astype(bool)
    sides = []
    for away in (mask, ~mask):
        first = away & ~np.concatenate([[False], away[:-1]])
        marked = np.where(first, size - np.cumsum(first), tokens)
        sides.append(np.append(marked[~away | first], 1))
    arrays = []
    for side, length in zip(sides, _LENGTHS, strict=True):
        padded = np.zeros(length, np.int32)
        padded[: len(side)] = side
        present = (padded > 0).astype(np.int32)
        arrays += [padded, present, np.arange(length, dtype=np.int32) * present]
    targets = arrays[3]
    shifted = np.concatenate([[0], targets[:-1]]).astype(np.int32) * (arrays[5] > 0)
    return [*arrays, shifted, (targets > 0).astype(np.float32)]


def _pieces(source: Source) -> None:
    for piece in range(_PIECES):
        _train_piece(source, _LENGTHS, 0, _ROWS, 0, _ROWS, piece, 0)


def _one_at_a_time(source: Windows) -> None:
    for piece in range(_PIECES):
        rng = np.random.default_rng(piece)
        rows = [
            reference(source.cache.read(start, start + 568), rng, source.vocabulary.size)
            for start in range(0, _ROWS * 568, 568)
        ]
        for arrays in zip(*rows, strict=True):
            np.stack(arrays)


def _copies(batch: dict[str, np.ndarray]) -> None:
    for _ in range(_PIECES):
        for array in batch.values():
            np.copy(array)


def main() -> None:
    """Prints microseconds of one example, ratios to the reference, and examples a second."""
    print(timing.header(("numpy", "array_record", "grain")))
    config = ConfigDict({key: default for key, (default, _) in data_defaults().items()})
    with tempfile.TemporaryDirectory() as directory:
        config.cache = directory
        in_memory = make_source(config, "train")
        cache._IN_MEMORY_TOKENS = 0
        on_disk = make_source(config, "train")
        assert isinstance(in_memory, Windows)
        assert in_memory.in_memory
        assert not on_disk.in_memory
        batch = _train_piece(in_memory, _LENGTHS, 0, _ROWS, 0, _ROWS, 0, 0)
        arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
        times = timing.fastest(
            {
                "reference, one at a time": lambda: _one_at_a_time(in_memory),
                "pipeline, cache in memory": lambda: _pieces(in_memory),
                "pipeline, cache on disk": lambda: _pieces(on_disk),
                "floor: copying the arrays": lambda: _copies(arrays),
            }
        )
    base = times["reference, one at a time"]
    print(f"{'512 + 114 tokens':28}{'us/example':>12}{'of reference':>14}{'examples/s/core':>17}")
    for name, milliseconds in times.items():
        each = milliseconds * 1e3 / (_ROWS * _PIECES)
        print(f"{name:28}{each:12.1f}{milliseconds / base:14.3f}{1e6 / each:17,.0f}")


if __name__ == "__main__":
    main()
