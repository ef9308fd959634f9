"""What a compiled train step will need and can reach on its target, as data and as text.

For TPUs the time of a step is predicted, see `trainlib.planning.ledger`; for GPUs it is a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib.chips import GIB, Target
from trainlib.planning.compile import Memory, Result
from trainlib.planning.profile import figures
from trainlib.planning.step_time import BOUNDS, step_time
from trainlib.run.progress import duration
from trainlib.step.memory import device_bytes
from trainlib.step.plan import Plan
from trainlib.step.train_state import whole_bytes

HEADROOM = 0.85  # share of the memory that a plan should use at most; fragmentation needs the rest

Report = dict[str, Any]


def make_report(
    plan: Plan[Any],
    target: Target,
    facts: Mapping[str, Any],
    result: Result,
    mfu: float | None = None,
) -> Report:
    """Everything that a report says, as plain data.

    Args:
      plan: what was compiled.
      target: for what.
      facts: of the family's `describe`: params, active_params, flops_per_example and so on.
      result: of the compilation.
      mfu: see `step_time`.

    Returns:
      Keys in the order in which they are shown; bytes are on one device unless said otherwise,
      times in seconds.
    """
    state, config = plan.abstract_state(), plan.config
    model_flops = 3.0 * facts["flops_per_example"] * config.batch_size
    report: Report = {
        "config": config.name,
        "target": target.name,
        "device": target.chip.kinds[0],
        "chips": target.chips,
        "devices": target.devices,
        "slices": target.slices,
        "fits": result.memory is not None,
        "params": {
            "total": plan.abstract.param_count,
            "active": facts.get("active_params", plan.abstract.param_count),
        },
        "mesh": dict(plan.mesh.shape),
        "rules": {axis: rule for axis, rule in plan.rules.items() if rule},
        "batch_size": config.batch_size,
        "microbatches": config.microbatches,
        "settings": _settings(config),
        "bytes_per_device": {
            "params": device_bytes(state.params),
            "model_state": device_bytes(state.model_state),
            "optimizer": device_bytes(state.opt_state),
            "weight_average": device_bytes(state.ema),
            "batch": result.batch_bytes,
        },
        "flops": {
            "model_per_step": model_flops,
            "executed_per_step": result.flops,
            "executed_per_device": result.flops / target.devices,
        },
        "checkpoint_bytes": whole_bytes(state),
        "compile_seconds": result.seconds,
        "host_peak_bytes": result.host_bytes,
        "rematerialization_warnings": list(result.warnings),
    }
    if result.memory is None:
        report |= _misfit(result, plan, target)
    else:
        report["bytes_per_device"] |= _memory(result.memory, target)
        report |= _traffic(plan, target, facts, result, mfu)
    return report


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The keys that decide about memory, as far as the family has them."""
    values = {"sharding": config.to_dict().get("sharding"), "optimizer": config.optimizer.name}
    model = config.model.to_dict()
    names = ("dtype", "remat", "decoder_remat", "reduce_dtype")
    return values | {f"model.{name}": model[name] for name in names if name in model}


def _memory(memory: Memory, target: Target) -> dict[str, Any]:
    hbm = target.chip.hbm_bytes
    return {
        "arguments": memory.arguments,
        "temporaries": memory.temporaries,
        "total": memory.total,
        "peak": memory.peak,
        "code": memory.code,
        "on_host": memory.host,
        "hbm": hbm,
        "used_share": memory.total / hbm,
        "margin": hbm - memory.total,
    }


def _misfit(result: Result, plan: Plan[Any], target: Target) -> Report:
    assert result.shortfall is not None
    missing = result.shortfall.required - result.shortfall.available
    state = plan.abstract_state()
    leaves = [(device_bytes(leaf), name) for name, leaf in state.params.items()]
    held = [{"bytes": size, "what": name} for size, name in sorted(leaves, reverse=True)[:3]]
    made = [{"bytes": size, "what": what} for size, what in result.largest]
    return {
        "shortfall": {
            "required": result.shortfall.required,
            "available": result.shortfall.available,
            "missing": missing,
        },
        "largest_weights": held,
        "largest_arrays_whole": made,
        "try": advice(plan.config, target, missing),
    }


def advice(config: ConfigDict, target: Target, missing: float) -> list[str]:
    """What to change so that a step fits, cheapest first; `missing` is in bytes."""
    values, model = config.to_dict(), config.model.to_dict()
    lines = []
    if values.get("sharding") == "replicated":
        lines.append("--config.sharding=fsdp: weights and optimiser split over the mesh rows")
    if model.get("remat", "full") != "full":
        lines.append("--config.model.remat=full: every block is recomputed in the backward pass")
    if model.get("dtype") == "float32":
        lines.append("--config.model.dtype=bfloat16: activations of half the size")
    if config.optimizer.name in ("adamw", "rmsprop") and "routing" in values:
        lines.append("--config.optimizer.name=adafactor: factored moments, almost no bytes")
    pieces = config.microbatches * 2
    parts = target.devices
    if config.batch_size % (pieces * parts) == 0:
        lines.append(f"--config.microbatches={pieces}: activations of half the size, more gathers")
    if config.batch_size > parts:
        smaller = max(parts, config.batch_size // 2 // parts * parts)
        lines.append(f"--config.batch_size={smaller}")
    lines.append(
        "a larger slice; --search finds the smallest, the largest batch and the cheapest remat "
        f"({missing / GIB:.2f} GiB a device are missing)"
    )
    return lines


def _traffic(
    plan: Plan[Any],
    target: Target,
    facts: Mapping[str, Any],
    result: Result,
    mfu: float | None,
) -> Report:
    """Collectives, the time of a step, and the throughput at it."""
    assert result.program is not None
    config = plan.config
    times = step_time(target, result, mfu)
    model_flops = 3.0 * facts["flops_per_example"] * config.batch_size
    examples = config.batch_size / times["seconds"]
    report: Report = {
        "collectives": [
            {
                "kind": one.kind,
                "axes": list(one.axes),
                "times": one.times,
                "bytes": one.bytes,
                "largest_bytes": one.largest,
                "wire_bytes": one.wire_bytes,
            }
            for one in result.program.totals()
        ],
        "step_time": times,
        "mfu": model_flops / target.devices / target.chip.flops / times["seconds"],
        "examples_per_second": examples,
    }
    if "tokens_per_example" in facts:
        report["tokens_per_second"] = examples * facts["tokens_per_example"]
    return report


# ---------------------------------------------------------------------------------------- as text
def amount(size: float) -> str:
    """Bytes as people read them: 12.34 GiB, 512.00 MiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size / 2**10:,.2f} KiB"


def verdict(report: Report) -> str:
    """One line: fits or not, with the margin."""
    place = f"{report['config']} on {report['target']}"
    if not report["fits"]:
        short = report["shortfall"]
        return (
            f"{place}: DOES NOT FIT, {amount(short['missing'])} a device too much "
            f"({amount(short['required'])} of {amount(short['available'])})"
        )
    size = report["bytes_per_device"]
    tight = "" if size["used_share"] <= HEADROOM else f", above the {HEADROOM:.0%} to plan with"
    return (
        f"{place}: fits, {amount(size['total'])} of {amount(size['hbm'])} a device "
        f"({size['used_share']:.0%}{tight}), {amount(size['margin'])} spare"
    )


def columns(name: str, report: Report | None = None) -> str:
    """One line of a comparison, or its heading: time, what it moves, what is kept and computed."""
    if report is None:
        cells = ["step", "MFU", "through HBM", "temporaries", "together", "of memory", "sent"]
    elif not report["fits"]:
        return f"{name:<16}does not fit: {amount(report['shortfall']['missing'])} too much"
    else:
        size, times = report["bytes_per_device"], report["step_time"]
        sent = sum(one["wire_bytes"] for one in report["collectives"])
        moved = times.get("hbm_bytes")
        cells = [figures.time(times["seconds"]), figures.percent(report["mfu"])]
        cells += [amount(moved) if moved is not None else "-", amount(size["temporaries"])]
        cells += [amount(size["total"]), f"{size['used_share']:.0%}", amount(sent)]
    return f"{name:<16}" + "".join(f"{cell:>12}" for cell in cells)


def to_text(report: Report) -> str:
    """The report to be read."""
    params, size, flops = report["params"], report["bytes_per_device"], report["flops"]
    mesh = " x ".join(f"{axis} {n}" for axis, n in report["mesh"].items() if n > 1) or "1 device"
    rules: dict[Any, list[str]] = {}
    for axis, rule in report["rules"].items():
        rules.setdefault("+".join([rule] if isinstance(rule, str) else rule), []).append(axis)
    slices = f" in {report['slices']} slices" if report["slices"] > 1 else ""
    lines = [
        verdict(report),
        "",
        _row(
            "target", f"{report['chips']} chips{slices}, {report['devices']} x {report['device']}"
        ),
        _row(
            "parameters", f"{params['total']:,}; used for one token or image {params['active']:,}"
        ),
        _row("mesh", mesh),
        *(_row("", f"over {axis}: {', '.join(names)}") for axis, names in rules.items()),
        _row("batch", f"{report['batch_size']:,} in {report['microbatches']} microbatch(es)"),
        _row("settings", ", ".join(f"{k} {v}" for k, v in report["settings"].items() if v)),
        "",
        "memory of one device",
    ]
    lines += [_row(f"  {name.replace('_', ' ')}", amount(n)) for name, n in _sizes(size) if n]
    lines += _misfit_text(report) if not report["fits"] else []
    lines += ["", "arithmetic of one step"]
    lines.append(
        _row(
            "  model",
            f"{figures.arithmetic(flops['model_per_step'])}, three times the forward pass",
        )
    )
    executed = f"{figures.arithmetic(flops['executed_per_step'])}, recomputation included"
    lines.append(_row("  executed", executed))
    lines.append(_row("  one device", figures.arithmetic(flops["executed_per_device"])))
    lines += _traffic_text(report) if report["fits"] else []
    for warning in report["rematerialization_warnings"]:
        lines.append(f"warning: {warning[:200]}")
    lines += [
        "",
        _row("checkpoint", f"{amount(report['checkpoint_bytes'])} in all"),
        _row("compiled in", f"{duration(report['compile_seconds'])}; nothing was run on a device"),
        _row("host memory", f"{amount(report['host_peak_bytes'])} at most"),
    ]
    return "\n".join(lines)


def _row(name: str, value: str) -> str:
    return f"{name:<20}{value}"


def _sizes(size: Mapping[str, float]) -> list[tuple[str, float]]:
    left_out = ("used_share", "margin", "hbm")
    return [(name, value) for name, value in size.items() if name not in left_out]


def _misfit_text(report: Report) -> list[str]:
    weights = [f"  {amount(one['bytes']):>12}  {one['what']}" for one in report["largest_weights"]]
    arrays = [
        f"  {amount(one['bytes']):>12}  {one['what']}" for one in report["largest_arrays_whole"]
    ]
    tries = [f"  {line}" for line in report["try"]]
    return [
        *("", "largest weights on one device", *weights),
        *("", "largest arrays of the step, over all devices together", *arrays),
        *("", "what to try", *tries),
    ]


def _traffic_text(report: Report) -> list[str]:
    heads = f"{'times':>7}  {'buffers':>12}  {'a device sends':>14}"
    lines = ["", f"{'between devices, one step':<38}{heads}"]
    for one in report["collectives"]:
        name = f"  {one['kind']} over {'+'.join(one['axes'])}"
        sizes = f"{one['times']:>7,}  {amount(one['bytes']):>12}  {amount(one['wire_bytes']):>14}"
        lines.append(f"{name:<38}{sizes}")
    lines += ["", *_time_text(report["step_time"], report["mfu"])]
    speed = f"{report['examples_per_second']:,.0f} examples/s"
    if "tokens_per_second" in report:
        speed += f", {report['tokens_per_second']:,.0f} tokens/s"
    return [*lines, _row("  throughput", speed)]


def _time_text(times: Mapping[str, Any], mfu: float) -> list[str]:
    """The prediction and what it is made of, or the bounds; `mfu` is that of the model."""
    seconds, bounds = times["seconds"], times["bounds"]
    reached = f"{figures.time(seconds)}, MFU {figures.percent(mfu)} (recomputation not counted)"
    assumed = figures.percent(times.get("assumed_mfu", 1.0))
    shown = [
        _row(f"  {what.format(assumed=assumed)}", figures.time(value))
        for name, what in BOUNDS.items()
        if (value := bounds.get(name))
    ]
    if not times["predicted"]:
        heading = "step time: bounds, not measured"
        return [heading, *shown, _row("  the longest", reached)]
    moved = f"{amount(times['hbm_bytes'])} through HBM, {figures.percent(times['of_bandwidth'])}"
    lines = [
        f"step time: expected by the compiler (libtpu {times['compiler']}), not measured",
        _row("  predicted", reached),
        _row(
            "  at the least",
            f"{figures.time(times['at_bandwidth'])}, if what only streams ran at the bandwidth",
        ),
        _row("  one by one", f"{figures.time(times['sum'])}, nothing beside anything else"),
        _row("  traffic", f"{moved} of its bandwidth"),
        "  made of",
    ]
    for name, value in times["made_of"].items():
        if name != "(waiting)":
            lines.append(_row(f"    {name}", _part(value, seconds)))
    for name, value in times["waits"].items():
        lines.append(_row("    waiting", f"{_part(value, seconds)} for {name}"))
    sentences = [f"    {sentence}" for sentence in times["assumptions"]]
    bounds_of_step = ["  no step takes less than", *(f"  {line}" for line in shown)]
    return [*lines, *bounds_of_step, "  assumed", *sentences]


def _part(value: float, whole: float) -> str:
    return f"{figures.time(value)}, {figures.percent(value / whole)}"
