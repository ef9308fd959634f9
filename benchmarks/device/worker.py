"""The process that holds the accelerator: compiles, predicts and measures one item after the other.

It is a process of its own because an item may take it down, or never come back: then the command
ends it and starts another one for the items that are left.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import backend

from benchmarks.device.items import ITEMS, Work
from trainlib import chips
from trainlib.model import flops

ROUNDS, ROUND_SECONDS, MOST_CALLS = 9, 0.1, 20
WARM_UP = 2
PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "tokamax")


def serve(pipe: Connection, tiny: bool) -> None:
    """Says what machine this is, then answers the name of an item by its results, until None.

    Results come in parts, the measurement before the prediction, and None ends them.
    """
    pipe.send(machine())
    work = {item.name: item.make for item in ITEMS}
    while (name := pipe.recv()) is not None:
        try:
            for part in measured(work[name](tiny)):
                pipe.send(part)
        except Exception as error:  # whatever it is, the next item is tried
            pipe.send({"status": "failed", "words": _words(error)})
        pipe.send(None)


def _words(error: Exception) -> str:
    said = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {said[:300]}"


def machine() -> dict[str, Any]:
    """Device, memory and versions."""
    device = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "hbm_bytes": _memory(device).get("bytes_limit", 0),
        "python": platform.python_version(),
        "versions": versions,
        "runtime": backend.get_backend().platform_version.splitlines()[0],
    }


def _memory(device: Any) -> Mapping[str, int]:
    """What the device says of its memory; nothing on a CPU."""
    try:
        return device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return {}


def measured(work: Work | None) -> Iterator[dict[str, Any]]:
    """Compiles and runs a program, then predicts it; see `benchmarks.device.report` for what the
    entries are.
    """
    if work is None:
        yield {"status": "skipped", "words": "this machine has not what it needs"}
        return
    start = time.monotonic()
    jitted = work.function if hasattr(work.function, "trace") else jax.jit(work.function)
    traced = jitted.trace(*work.arguments)
    arithmetic = 2.0 * flops.multiply_adds(traced.jaxpr.jaxpr)
    compiled = traced.lower().compile()
    compile_seconds = time.monotonic() - start
    device, planned = jax.devices()[0], compiled.memory_analysis()
    yield timed(compiled, _filled(work.arguments), work.state) | {
        "status": "measured",
        "compile_seconds": compile_seconds,
        "temporary_bytes": planned.temp_size_in_bytes if planned else 0,
        "device_peak_bytes": _memory(device).get("peak_bytes_in_use", 0),
        "flops": arithmetic,
        "peak_flops": (chips.chip_of(device.device_kind) or _NO_CHIP).flops,
        "predicted_seconds": None,
        "how": "no prediction in time",
    }
    yield predicted(compiled, arithmetic, device, work.devices)


_NO_CHIP = chips.Chip("", (), 0.0, 0.0, 0.0, 0.0)


# ------------------------------------------------------------------ prediction
def predicted(compiled: Any, arithmetic: float, device: Any, devices: int) -> dict[str, Any]:
    """`predicted_seconds` of a compiled program, and `how` it was predicted.

    On a TPU by the ledger of the very program that runs; elsewhere the longer of arithmetic at the
    peak and bytes at the bandwidth, which is a bound and no expectation.
    """
    chip = chips.chip_of(device.device_kind)
    if chip is None:
        return {"predicted_seconds": None, "how": f"no figures of {device.device_kind}"}
    if device.platform == "tpu":
        try:
            return _by_ledger(compiled, chip, devices)
        except Exception as error:  # a prediction that fails is no reason not to measure
            how = f"bound; the ledger failed: {_words(error)}"
            return _bound(compiled, arithmetic, chip) | {"how": how}
    return _bound(compiled, arithmetic, chip)


def _by_ledger(compiled: Any, chip: chips.Chip, devices: int) -> dict[str, Any]:
    from trainlib.planning.ledger import ledger_of_compiled

    usual = [chips.target(name) for name in chips.usual(chip.name)]
    target = next((one for one in usual if one.devices == jax.device_count()), usual[0])
    placed = jax.devices()[:devices]
    ledger = ledger_of_compiled(compiled, {"data": devices}, target, placed_on=placed)
    return {
        "predicted_seconds": ledger.schedule.seconds,
        "sum_seconds": ledger.seconds,
        "hbm_bytes": ledger.hbm_bytes,
        "how": "ledger",
    }


def _bound(compiled: Any, arithmetic: float, chip: chips.Chip) -> dict[str, Any]:
    cost = compiled.cost_analysis() or {}
    counted = cost.get("bytes accessed", 0.0)
    work = max(arithmetic, cost.get("flops", 0.0))
    seconds = max(work / chip.flops, counted / chip.hbm_bandwidth)
    return {"predicted_seconds": seconds, "hbm_bytes": counted, "how": "bound"}


# ------------------------------------------------------------------ measurement
def _filled(arguments: Any) -> Any:
    """Numbers of ordinary size for every shape: time must not depend on zeros."""
    generator = np.random.default_rng(0)
    normal = np.abs(generator.standard_normal(2**20, np.float32)) * 0.05
    whole = generator.integers(0, 10, 2**20)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.device_put(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        source = normal if jnp.issubdtype(leaf.dtype, jnp.floating) else whole
        values = np.resize(source.astype(leaf.dtype), leaf.shape)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(fill, arguments)


def timed(run: Callable[..., Any], arguments: tuple[Any, ...], state: bool) -> dict[str, Any]:
    """Seconds of one call: the median and the least of rounds of calls that are issued at once, so
    that the time of the host hides behind that of the device.
    """

    def calls(arguments: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], float]:
        start, result = time.monotonic(), None
        for _ in range(count):
            result = run(*arguments)
            if state:
                arguments = (result[0], *arguments[1:])
        jax.block_until_ready(result)
        return arguments, time.monotonic() - start

    arguments, _ = calls(arguments, WARM_UP)
    arguments, once = calls(arguments, 1)
    count = min(MOST_CALLS, max(1, math.ceil(ROUND_SECONDS / max(once, 1e-6))))
    each = []
    for _ in range(ROUNDS):
        arguments, seconds = calls(arguments, count)
        each.append(seconds / count)
    return {
        "median_seconds": float(np.median(each)),
        "least_seconds": min(each),
        "rounds": ROUNDS,
        "calls": count,
    }
