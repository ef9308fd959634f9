"""ST-MoE-32B compiled for its pods, here: `python -m benchmarks.compile_32b [CONFIG...]`.

Each pod in a process of its own, so that the host memory is that of one compilation. Prints the
table and what must hold, and ends with 1 when something does not:

- exactly 269,104,613,376 parameters;
- arguments and temporaries within 85 % of the device's memory, and on the small chips on which it
  is fine-tuned the compiler's peak within all of it;
- all-to-all over mesh rows only, 6 for each of 12 sparse blocks, in 4 chunks where there are no
  columns; the two lookups of words and their
  gradients are the only ones over columns;
- gathers over rows at most what two passes over the dense weights in bfloat16 take, so no expert
  ever is gathered;
- no plain all-reduce over columns above 100 MB: activations are scattered, not summed whole (on v6e
  the compiler leaves the decoder's, of 37 MB each, as they are);
- no array copied to every device because the partitioner knew no better;
- in fine-tuning, a byte for each number of a frozen expert.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

PRETRAINING, FINETUNING = "st_moe_32b", "st_moe_32b_finetune"
VARIANTS = {PRETRAINING: ("v5p_1024", "v5p_2048", "v6e_256"), FINETUNING: ("v6e_32",)}
CONFIGS = [f"{n}:{v}".rstrip(":") for n, variants in VARIANTS.items() for v in ("", *variants)]
PARAMS = 269_104_613_376
EXPERTS, TABLE = 12 * 64 * 3 * 5120 * 20480, 32128 * 5120  # numbers
CPU_SECONDS, HOST_GB = 180, 6  # user and system; printed, not a gate: others' work lengthens both


def compiled(config: str) -> dict[str, Any]:
    """The report of one configuration, from a process of its own, and the CPU seconds of that."""
    command = [sys.executable, "-m", "launch.compile", f"--config={config}", "--json"]
    before = _cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 70):
        raise SystemExit(done.stderr)
    return json.loads(done.stdout) | {"cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def dense_elements() -> int:
    """Elements of the matrices that lie over mesh rows and are gathered for use."""
    import configs
    from moe import plan
    from trainlib.sharding.mesh import make_mesh

    config = configs.load(PRETRAINING, mesh={"data": 1, "model": 1})
    specs = plan.make(config, make_mesh(1, 1, 1)).abstract.params.values()
    return sum(spec.size for spec in specs if "embed" in spec.axes)


def gates(report: dict[str, Any], dense: int) -> dict[str, bool]:
    """What must hold -> whether it does."""
    moved = {(one["kind"], *one["axes"]): one for one in report["collectives"]}

    def figure(kind: str, axis: str, what: str) -> float:
        return moved.get((kind, axis), {}).get(what, 0)

    tuned, columns = report["config"].startswith(FINETUNING), report["mesh"]["model"]
    sizes = report["bytes_per_device"]
    # The table of words, routers and norms are whole on every chip where there are no columns.
    stored = (EXPERTS + 4 * (PARAMS - EXPERTS)) / report["devices"] + 1.05 * 4 * TABLE
    fits = sizes["peak"] <= sizes["hbm"] if tuned else sizes["used_share"] <= 0.85
    return {
        "parameters": report["params"]["total"] == PARAMS,
        "memory": fits,
        "experts": not tuned or sizes["params"] <= stored,
        "exchange": figure("all-to-all", "data", "times") == (72 if columns > 1 else 4 * 72)
        and figure("all-to-all", "model", "times") == (4 if columns > 1 else 0)
        and sum(key[0] == "all-to-all" for key in moved) == 1 + (columns > 1),
        "gathers": figure("all-gather", "data", "bytes") <= 4 * dense / report["mesh"]["model"]
        and ("all-gather", "data", "model") not in moved,
        "reductions": figure("all-reduce", "model", "largest_bytes") <= 100e6,
        "copies": not report["rematerialization_warnings"],
    }


def row(report: dict[str, Any]) -> list[str]:
    """Cells of the table."""
    size = report["bytes_per_device"]
    sent = {"data": 0.0, "model": 0.0}
    for one in report["collectives"]:
        sent["data" if "data" in one["axes"] else "model"] += one["wire_bytes"]
    return [
        report["target"],
        f"{report['chips']}",
        f"{report['mesh']['data']} x {report['mesh']['model']}",
        f"{size['arguments'] / 1e9:.2f} + {size['temporaries'] / 1e9:.2f}",
        f"{size['hbm'] / 1e9:.1f}",
        f"{size['used_share']:.0%}",
        f"{sent['data'] / 1e9:.1f} + {sent['model'] / 1e9:.1f}",
        f"{report['step_time']['seconds']:.2f}",
        f"{report['tokens_per_second'] / 1e6:.2f} M",
        f"{report['cpu_seconds']:.0f} CPU s, {report['host_peak_bytes'] / 1e9:.1f} GB",
    ]


HEADS = [
    *("target", "chips", "rows x columns", "state + temporaries, GB", "memory, GB", "used"),
    *("sent over rows + columns, GB", "predicted step, s", "tokens/s at it", "compiled in"),
]


def main() -> int:
    """Compiles, prints table and gates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    dense, failed = dense_elements(), []
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for config in parser.parse_args().configs:
        report = compiled(config)
        if not report["fits"]:
            print(f"{report['target']} does not fit: {report['shortfall']}", flush=True)
            failed.append(f"{report['target']}: memory")
            continue
        print("| " + " | ".join(row(report)) + " |", flush=True)
        held = gates(report, dense)
        failed += [f"{report['target']}: {name}" for name, holds in held.items() if not holds]
        slow = report["cpu_seconds"] > CPU_SECONDS
        heavy = report["host_peak_bytes"] > HOST_GB * 1e9
        if slow or heavy:
            print(f"  above {CPU_SECONDS} CPU s or {HOST_GB} GB; the limits are for two idle cores")
    print(f"missed: {', '.join(failed)}" if failed else "all of the gates hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
