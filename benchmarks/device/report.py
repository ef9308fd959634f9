"""The results of `benchmarks.device` as lines, as a page of Markdown and as JSON."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

HEADS = (
    *("program", "measured, ms", "least, ms", "predicted, ms", "measured / predicted", "by"),
    *("of its peak", "temporaries, MiB", "compiled in, s"),
)


def header(machine: dict[str, Any]) -> str:
    """What machine it was."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = machine["hbm_bytes"]
    said = f", {memory / 2**30:.1f} GiB each" if memory else ""
    return "\n".join(
        [
            f"device    {machine['devices']} x {machine['kind']} ({machine['platform']}){said}",
            f"versions  python {machine['python']}, {versions}",
            f"runtime   {machine['runtime']}",
        ]
    )


def cells(name: str, result: dict[str, Any]) -> list[str]:
    """One row of the table."""
    if result["status"] != "measured":
        return [name, result["status"], result["words"], *[""] * (len(HEADS) - 3)]
    seconds, predicted = result["median_seconds"], result["predicted_seconds"]
    peak = result["peak_flops"]
    return [
        name,
        f"{seconds * 1e3:.3f}",
        f"{result['least_seconds'] * 1e3:.3f}",
        f"{predicted * 1e3:.3f}" if predicted else "-",
        f"{seconds / predicted:.2f}" if predicted else "-",
        result["how"],
        f"{result['flops'] / seconds / peak:.0%}" if peak else "-",
        f"{result['temporary_bytes'] / 2**20:,.0f}",
        f"{result['compile_seconds']:.1f}",
    ]


def line(name: str, result: dict[str, Any]) -> str:
    """What is printed when an item has ended."""
    return f"{name:28} " + "  ".join(cell for cell in cells(name, result)[1:] if cell)


def ratios(results: dict[str, dict[str, Any]], beside: dict[str, str]) -> list[str]:
    """Sentences of items that are measured beside another one."""
    sentences = []
    for name, other in beside.items():
        pair = results.get(name, {}), results.get(other, {})
        if all(one.get("status") == "measured" for one in pair):
            ratio = pair[0]["median_seconds"] / pair[1]["median_seconds"]
            text = f"{name} takes {ratio:.2f} of the time of {other}"
            expected = [one["predicted_seconds"] for one in pair]
            if all(expected):
                text += f"; predicted {expected[0] / expected[1]:.2f}"
            sentences.append(text + ".")
    return sentences


def summary(results: dict[str, dict[str, Any]]) -> str:
    """How many items came to what end."""
    ends = Counter(result["status"] for result in results.values())
    return ", ".join(f"{number} {end}" for end, number in ends.items()) or "nothing to measure"


def page(
    machine: dict[str, Any],
    results: dict[str, dict[str, Any]],
    beside: dict[str, str],
    tiny: bool,
) -> str:
    """The whole as Markdown."""
    small = "Tiny sizes: a check of the script, not of the machine.\n\n" if tiny else ""
    today = datetime.datetime.now(datetime.UTC)
    rows = [list(HEADS), ["---"] * len(HEADS)]
    rows += [cells(name, result) for name, result in results.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"# {today:%Y-%m-%d}, {machine['kind']}: `python -m benchmarks.device`\n\n"
        f"```\n{header(machine)}\n```\n\n"
        "Time of one call: median and least of rounds of calls that are issued at once, after a\n"
        "warm-up. Predicted: on a TPU by the ledger of the same compiled program; elsewhere it\n"
        "is a bound, the longer of arithmetic at the peak and bytes at the bandwidth. Temporaries\n"
        "are what the compiler plans.\n\n"
        f"{small}"
        f"{table}\n\n" + "".join(f"- {text}\n" for text in ratios(results, beside))
    )


def write(folder: Path, machine: dict[str, Any], results: dict[str, Any], text: str) -> list[Path]:
    """Writes DATE_device_KIND.md and .json; a second run of a day takes the place of the first."""
    kind = re.sub(r"[^a-z0-9]+", "_", machine["kind"].lower()).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}_device_{kind}"
    paths = [stem.with_suffix(".md"), stem.with_suffix(".json")]
    paths[0].write_text(text)
    paths[1].write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return paths
