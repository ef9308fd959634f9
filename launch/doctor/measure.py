"""The doctor's measurements: matrix products on one device, and a sum over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from launch.doctor.report import FAILED, MACHINE, NOTE, OK, Finding


def _timed(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call: the least of as many as fit into `seconds`, after one that compiles.

    Several processes must call equally often whatever their clocks say: ten times.
    """
    import jax

    jax.block_until_ready(run())
    together = jax.process_count() > 1
    best, calls, end = float("inf"), 0, time.monotonic() + seconds
    while calls < 10 if together else calls == 0 or time.monotonic() < end:
        start = time.monotonic()
        jax.block_until_ready(run())
        best, calls = min(best, time.monotonic() - start), calls + 1
    return best


def products(seconds: float) -> Finding:
    """Speed of bf16 matrix products (f32 on a CPU) on one device, against its peak."""
    import jax
    import jax.numpy as jnp

    from trainlib import chips

    device = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    size, repeats = (1024, 1) if on_cpu else (8192, 8)
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    x = jax.device_put(jnp.ones((size, size), dtype), device)

    @jax.jit
    def multiply(x):
        y = x
        for _ in range(repeats):
            y = (x @ y) / size  # of ones: ones again
        return y

    value = float(multiply(x)[0, 0])
    rate = 2 * size**3 * repeats / _timed(lambda: multiply(x), seconds)
    chip = chips.chip_of(device.device_kind)
    text = f"{rate / 1e12:,.3g} TFLOP/s, {size} x {size}, {jnp.dtype(dtype).name}"
    if chip is not None:
        text += f", {100 * rate / chip.flops:.0f} % of its peak"
    if value != 1.0:
        return Finding("matrix products", FAILED, f"{text}: wrong result", MACHINE)
    slow = chip is not None and rate < 0.4 * chip.flops
    return Finding("matrix products", NOTE if slow else OK, text)


def all_reduce(seconds: float) -> Finding:
    """Speed of a sum over all devices, in bytes that each one sends and receives."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from trainlib.sharding.mesh import make_mesh

    mesh = make_mesh()
    count = mesh.size
    if count == 1:
        return Finding("all-reduce", OK, "one device, nothing to add up")
    cells = 2**20 if jax.devices()[0].platform == "cpu" else 2**26
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    values = jax.make_array_from_callback(
        (count, cells), split, lambda index: np.ones((1, cells), np.float32)
    )
    total = jax.jit(lambda x: jnp.sum(x, axis=0), in_shardings=split, out_shardings=whole)
    value = float(np.asarray(total(values).addressable_data(0))[0])
    moved = 2 * (count - 1) / count * 4 * cells
    rate = moved / _timed(lambda: total(values), seconds)
    text = f"{rate / 1e9:,.3g} GB/s over {count} devices, {4 * cells / 2**20:.0f} MiB"
    if value != count:
        return Finding("all-reduce", FAILED, f"{text}: wrong result", MACHINE)
    return Finding("all-reduce", OK, text)
