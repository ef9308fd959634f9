"""All rows one after another, and a table of their ratios: `python -m benchmarks.peers all`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys

from benchmarks import peers
from benchmarks.harness import timing

_MARK = "RATIOS "


def rows() -> dict[str, str]:
    """Name -> first line of the docstring of every row."""
    names = sorted(m.name for m in pkgutil.iter_modules(peers.__path__) if m.name[0] != "_")
    modules = {name: importlib.import_module(f"{peers.__name__}.{name}") for name in names}
    return {
        name: str(module.__doc__).splitlines()[0]
        for name, module in modules.items()
        if hasattr(module, "main")
    }


def run(name: str) -> tuple[int, list[dict]]:
    """Runs one row, its output shown. Returns (exit code, what its `RATIOS` lines say)."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{peers.__name__}.{name}"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if line.startswith(_MARK):
            said.append(json.loads(line.removeprefix(_MARK)))
        else:
            print(line, end="", flush=True)
    return process.wait(), said


def table(results: dict[str, tuple[int, list[dict]]]) -> str:
    """The ratios of all rows as a table in Markdown."""
    lines = ["| row | ours / peer | times | ratio | goal | |", "|---|---|---|---|---|---|"]
    for name, (code, titles) in results.items():
        if not titles:
            lines.append(f"| {name} | no figures, it ended with {code} | | | | missed |")
        for said in titles:
            for row in said["rows"]:
                pair = [said["times"].get(row[side]) for side in ("ours", "peer")]
                times = " / ".join("-" if time is None else f"{time:.4g}" for time in pair)
                ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
                goal = f"{row['goal']:.2f}" + (f" (aim {row['aim']:.2f})" if "aim" in row else "")
                verdict = "met" if row["met"] else "missed"
                what = f"{said['title']}: {row['ours']} / {row['peer']}"
                lines.append(
                    f"| {name} | {what} | {times} {said['unit']} | {ratio} | {goal} | {verdict} |"
                )
    return "\n".join(lines)


def main() -> int:
    """Lists the rows, or runs some of them; returns 1 if one misses a goal."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("rows", nargs="*", help="names, or `all`; none lists them")
    chosen, known = parser.parse_args().rows, rows()
    if not chosen:
        for name, what in known.items():
            print(f"{name:22} {what}")
        return 0
    if unknown := [name for name in chosen if name != "all" and name not in known]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(known)}")
    results = {name: run(name) for name in (known if "all" in chosen else chosen)}
    load = " ".join(f"{part:.1f}" for part in os.getloadavg()) if hasattr(os, "getloadavg") else "?"
    print(f"\n{timing.header()}\nload     {load}\n\n{table(results)}")
    return 0 if all(code == 0 for code, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
