"""Attention cores against a plain 3x3 convolution and against PyTorch: CPU-time ratios, and memory.

    python -m benchmarks.vision [--rounds=7] [--only=AA] [--no-torch] [--report-only]

Forward and backward pass for all inputs, float32, one pinned thread, without the 1x1 projections.
The convolution is 3x3, C -> C, on the same map and batch in the same process. Needs jax, flax,
optax and numpy; rows against PyTorch appear where it is installed. Every PyTorch structure is first
compared with our own layer, in value and all gradients. Ends with 1 when a target is missed, unless
--report-only.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable

from benchmarks.harness import timing

HEADS = 8
MIB = 2**20

# Map size -> greatest accepted ratio or temporary memory.
AUGMENTED_OVER_CONV = {14: 0.47, 28: 5.5}
AUGMENTED_OVER_BOTNET = {14: 0.78, 28: 0.42}
AUGMENTED_OVER_FLASH = {28: 0.55}
AUGMENTED_MEMORY = {28: 20}
LOCAL_OVER_CONV = {14: 0.64, 28: 1.8, 56: 7.0}
LOCAL_OVER_HALO = {14: 0.52, 28: 0.4, 56: 0.45}
LOCAL_OVER_UNFOLD = {14: 0.05}
LOCAL_MEMORY = {56: 55}


@dataclasses.dataclass
class Row:
    """One check: what is compared, what was measured, and the target."""

    name: str
    detail: str
    target: float
    value: float

    @property
    def met(self) -> bool:
        return self.value <= self.target

    def __str__(self) -> str:
        verdict = "ok" if self.met else "MISSED"
        measured = f"{self.name:45s} {self.detail:18s} target {self.target:<5g}"
        return f"{measured} {verdict:7s} {self.value:.3g}"


def compiled(fn: Callable, args: tuple) -> tuple[Callable[[], object], float]:
    """A candidate that runs fn(*args), and its temporary memory in MiB."""
    import jax

    program = jax.jit(fn).lower(*args).compile()
    stats = program.memory_analysis()
    temp = stats.temp_size_in_bytes / MIB if stats else float("nan")
    return lambda: jax.block_until_ready(program(*args)), temp


def gradient_of(fn: Callable, arguments: int) -> Callable:
    """Value and gradients of the sum of squares of fn's output, as every candidate computes."""
    import jax

    return jax.value_and_grad(lambda *args: (fn(*args) ** 2).sum(), argnums=tuple(range(arguments)))


def normal(*shapes: tuple[int, ...]) -> tuple:
    import jax

    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def numpy(args: tuple) -> list:
    import numpy as np

    return [np.asarray(x) for x in args]


def same(name: str, peer, gradient: Callable, args: tuple) -> Callable[[], object]:
    """The peer as a candidate, once it is seen to compute what we compute.

    Raises:
      SystemExit: its value or a gradient differs by more than 1e-3 of the greatest entry.
    """
    import jax
    import numpy as np

    value, gradients = jax.jit(gradient)(*args)
    pairs = zip(peer.results(), numpy((value, *gradients)), strict=True)
    for number, (actual, want) in enumerate(pairs):
        difference = np.abs(actual - want).max() / np.abs(want).max()
        if not difference < 1e-3:
            what = f"gradient {number - 1}" if number else "value"
            raise SystemExit(f"{name} computes something else: its {what} is off by {difference}")
    return peer.candidate()


def convolution(batch: int, size: int, channels: int) -> Callable[[], object]:
    """3x3 SAME convolution and both of its gradients."""
    import jax

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    args = normal((batch, size, size, channels), (3, 3, channels, channels))
    return compiled(gradient_of(conv, 2), args)[0]


def augmented(size: int, channels: int, peers, rounds: int) -> list[Row]:
    """Global attention: batch 16, 8 heads, key width 20, value width 4 a head."""
    from vitattn.kernels.relative import relative_attention_2d

    batch, d, e = 16, 20, 4
    maps = [(batch, HEADS, size, size, width) for width in (d, d, e)]
    args = normal(*maps, *[(2 * size - 1, d)] * 2)
    args = (args[0] * d**-0.5, *args[1:])

    def attention(q, k, v, *tables):
        """In the peers' order of axes, [B, N, H, W, d]; the compiler drops the transpositions."""
        q, k, v = (x.transpose(0, 2, 3, 1, 4) for x in (q, k, v))
        return relative_attention_2d(q, k, v, *tables, scale=1.0).transpose(0, 3, 1, 2, 4)

    gradient = gradient_of(attention, 5)
    ours, temp = compiled(gradient, args)
    runs = {"ours": ours, "conv": convolution(batch, size, channels)}
    if peers:
        arrays = numpy(args)
        runs["botnet"] = same("torch BoTNet", peers.botnet(arrays), gradient, args)
        if size in AUGMENTED_OVER_FLASH:
            runs["flash"] = same("torch flash", peers.augmented_flash(arrays), gradient, args)
    checks = [
        (f"own 3x3 convolution {channels}", "conv", AUGMENTED_OVER_CONV),
        ("torch, BoTNet structure", "botnet", AUGMENTED_OVER_BOTNET),
        ("torch, flash on augmented features", "flash", AUGMENTED_OVER_FLASH),
    ]
    rows = ratios(f"AA {size} px", runs, checks, size, rounds)
    if size in AUGMENTED_MEMORY:
        rows.append(Row(f"AA {size} px temporary memory", "MiB", AUGMENTED_MEMORY[size], temp))
    return rows


def local(size: int, channels: int, peers, rounds: int) -> list[Row]:
    """Local attention: batch 8, window 7, 8 heads."""
    from vitattn.kernels.local import halo_attention, local_attention

    batch, window, d = 8, 7, channels // HEADS
    args = normal(*[(batch, size, size, HEADS, d)] * 3, *[(window, d // 2)] * 2)
    args = (args[0] * d**-0.5, *args[1:])
    gradient = gradient_of(functools.partial(local_attention, window=window, scale=1.0), 5)
    ours, temp = compiled(gradient, args)
    runs = {"ours": ours, "conv": convolution(batch, size, channels)}
    if peers:
        # The halo structure attends to whole blocks: it is what our halo attention computes.
        unscaled_halo = functools.partial(halo_attention, scale=1.0)
        whole = (*args[:3], *normal(*[(2 * (7 + 3) - 1, d // 2)] * 2))
        peer, blocks = peers.halo(numpy(whole)), gradient_of(unscaled_halo, 5)
        runs["halo"] = same("torch halo", peer, blocks, whole)
        if size in LOCAL_OVER_UNFOLD:
            runs["unfold"] = same("torch unfold", peers.unfolded(numpy(args)), gradient, args)
    checks = [
        (f"own 3x3 convolution {channels}", "conv", LOCAL_OVER_CONV),
        ("torch, halo structure", "halo", LOCAL_OVER_HALO),
        ("torch, unfold as published", "unfold", LOCAL_OVER_UNFOLD),
    ]
    rows = ratios(f"SASA {size} px", runs, checks, size, rounds)
    if size in LOCAL_MEMORY:
        rows.append(Row(f"SASA {size} px temporary memory", "MiB", LOCAL_MEMORY[size], temp))
    return rows


def ratios(name: str, runs: dict, checks: list, size: int, rounds: int) -> list[Row]:
    times = timing.fastest(runs, rounds)
    return [
        Row(
            f"{name} / {peer}",
            f"{times['ours']:.1f} / {times[key]:.1f} ms",
            target[size],
            times["ours"] / times[key],
        )
        for peer, key, target in checks
        if key in times and size in target
    ]


CASES = {
    "AA 14": (augmented, 14, 256),
    "AA 28": (augmented, 28, 128),
    "SASA 14": (local, 14, 256),
    "SASA 28": (local, 28, 128),
    "SASA 56": (local, 56, 64),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the least time counts")
    parser.add_argument(
        "--only", default="", help="cases whose name contains this, such as 'AA 28'"
    )
    parser.add_argument("--no-torch", action="store_true", help="leaves the PyTorch peers out")
    parser.add_argument("--core", type=int, default=None, help="processor core to be pinned to")
    parser.add_argument("--report-only", action="store_true", help="a missed target is no error")
    options = parser.parse_args()
    timing.pin_one_thread(options.core, kept=False)
    peers = None
    packages = ["jax", "jaxlib", "flax", "numpy"]
    if not options.no_torch and importlib.util.find_spec("torch"):
        from benchmarks.harness import torch_peers as peers

        peers.prepare()
        packages.append("torch")
    print(timing.header(tuple(packages)), flush=True)
    missed = 0
    for name, (case, size, channels) in CASES.items():
        if options.only in name:
            for row in case(size, channels, peers, options.rounds):
                print(row, flush=True)
                missed += not row.met
    return 1 if missed and not options.report_only else 0


if __name__ == "__main__":
    sys.exit(main())
