"""Hot paths on the accelerator that is here, beside what was predicted of them:
`python -m benchmarks.device`.

One run of under eight minutes on a machine that nobody has seen: a TPU, a GPU, or, with tiny sizes
as a check of the script itself, a CPU. The most important programs come first; what would not fit
into `--seconds` is left out, and the report says so. An item that fails, crashes or hangs does not
end the others. Prints a line for each item and writes a page and JSON to `--out`.

Ends with 0 when every item that was tried was measured, and with 1 otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device import report
from benchmarks.device.items import ITEMS, Item
from benchmarks.device.worker import serve

RESULTS = Path(__file__).parents[1] / "results"
START_SECONDS = 150  # to load the libraries and to find the devices
SPARED = 3.0  # for the report
PATIENCE, LEAST_LIMIT = 2.5, 40.0  # an item may take so many times, and seconds, as expected
CPU_SHARE = 0.3  # of the expected seconds, with tiny sizes


class _Lost(Exception):
    """The process that holds the accelerator is gone; in words, why."""


class Worker:
    """The process that holds the accelerator; it is started anew after an item has ended it.

    Args:
      tiny: sizes for a CPU.
      serve: what the process runs, `benchmarks.device.worker.serve`.
    """

    def __init__(self, tiny: bool, serve: Callable[..., None]):
        self._context = multiprocessing.get_context("spawn")
        self._tiny, self._serve = tiny, serve
        self._process: Any = None

    def start(self, seconds: float) -> dict[str, Any] | None:
        """Starts it; what machine it sees, or None when it does not say so in time."""
        self._pipe, other = self._context.Pipe()
        self._process = self._context.Process(
            target=self._serve, args=(other, self._tiny), daemon=True
        )
        self._process.start()
        other.close()
        try:
            return self._received(seconds)
        except _Lost:
            return None

    def measure(self, name: str, seconds: float) -> dict[str, Any]:
        """The results of an item, as far as it gives any in `seconds`, and what it did instead."""
        end, results = time.monotonic() + seconds, {"status": "failed"}
        if self._process is None and self.start(min(seconds, START_SECONDS)) is None:
            return results | {"words": "no device answers any more"}
        try:
            self._pipe.send(name)
            while (part := self._received(end - time.monotonic())) is not None:
                results |= part
        except _Lost as lost:
            results |= {"words": str(lost)}
        except OSError:  # it ended between two items
            self.stop()
            results |= {"words": "its process had ended"}
        return results

    def _received(self, seconds: float) -> dict[str, Any] | None:
        """What the process sends next.

        Raises:
          _Lost: it has ended, or sends nothing in time and was ended.
        """
        try:
            if self._pipe.poll(max(seconds, 0)):
                return self._pipe.recv()
            words = "not done in its time"
        except (EOFError, OSError):
            self._process.join(5)
            words = f"its process ended with exit code {self._process.exitcode}"
        self.stop()
        raise _Lost(words)

    def stop(self) -> None:
        """Ends the process and gives the accelerator back."""
        if self._process is not None:
            self._process.kill()
            self._process.join(20)
            self._process = None


def measure_all(
    worker: Worker, items: Sequence[Item], left: Callable[[], float], share: float
) -> dict[str, dict[str, Any]]:
    """Name -> results of each item, in order; prints each.

    Args:
      worker: that measures.
      items: the most important first.
      left: seconds that are left.
      share: of an item's expected seconds that it takes here.
    """
    results: dict[str, dict[str, Any]] = {}
    for item in items:
        needed, now = item.seconds * share, left()
        if needed > now:
            words = f"it takes about {needed:.0f} s, and {max(now, 0):.0f} s were left"
            results[item.name] = {"status": "left out", "words": words}
        else:
            limit = min(now, max(PATIENCE * item.seconds, LEAST_LIMIT))
            results[item.name] = worker.measure(item.name, limit)
        print(report.line(item.name, results[item.name]), flush=True)
    return results


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="of the whole run")
    parser.add_argument("--only", default="", help="items whose name contains this")
    parser.add_argument("--out", type=Path, help="folder of the report; not written on a CPU alone")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as on a CPU")
    parser.add_argument("--list", action="store_true", help="print the names of the items and end")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes."""
    start, options = time.monotonic(), parse(argv)

    def left() -> float:
        return options.seconds - SPARED - (time.monotonic() - start)

    chosen = [item for item in ITEMS if options.only.lower() in item.name.lower()]
    if options.list:
        print("\n".join(f"{item.name:28} about {item.seconds:.0f} s" for item in chosen))
        return 0
    worker = Worker(options.tiny, serve)
    machine = worker.start(min(left(), START_SECONDS))
    if machine is None:
        print("No device answers, so that nothing was measured.", file=sys.stderr)
        return 1
    tiny = options.tiny or machine["platform"] == "cpu"
    if tiny and not options.tiny:
        worker.stop()
        worker = Worker(True, serve)
    print(report.header(machine), flush=True)
    results = measure_all(worker, chosen, left, CPU_SHARE if tiny else 1.0)
    worker.stop()
    # Tiny sizes are not those of the textbook forms.
    beside = {item.name: item.beside for item in chosen if item.beside and not tiny}
    print("\n".join([*report.ratios(results, beside), report.summary(results)]))
    if options.out or not tiny:
        text = report.page(machine, results, beside, tiny)
        for path in report.write(options.out or RESULTS, machine, results, text):
            print(f"written: {path}")
    return int(any(result["status"] == "failed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
