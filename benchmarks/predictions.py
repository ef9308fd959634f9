"""Predicted times against what is known of the world: `python -m benchmarks.predictions`.

    limits   a product, a convolution, a memory-bound chain: predicted time over the time at the
             peak or at the bandwidth, on v5e, v6e, v4, v5p. Within 10 % is ok.
    sparse   ST-MoE-32B on v4-1024: step at capacity 2.0 over 1.25, published 4.819 / 4.244 s
             (arXiv 2202.08906, table 9). Within 2 points is ok. Two compilations of 250 CPU s.
    maxtext  MFU of Llama2-70B and Mixtral-8x7B as MaxText publishes it, against its rebuilt
             layers. One factor on all times is fitted to the others and applied to each (leave one
             out). Within 15 % is ok.

Nothing is run on a device: these are the compiler's estimates. `--texts=DIR` keeps the compiled
programs there and reads them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CHIPS = ("v5e:1x1", "v6e:1x1", "v4:1x1x1", "v5p:1x1x1")
LIMIT = 1.10
PUBLISHED_CAPACITY = 4.819 / 4.244
FLOPS_CAPACITY = 1.088  # what FLOPs alone say of the same change
POINTS, MFU_SHARE = 0.02, 0.15


def _ok(good: bool) -> str:
    return "ok" if good else "missed"


# ----------------------------------------------------------------------------------------- limits
def _product(a: Any, b: Any) -> Any:
    return a @ b


def _convolution(x: Any, w: Any) -> Any:
    import jax

    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def _chain(x: Any) -> Any:
    import jax.numpy as jnp

    for _ in range(4):
        x = jnp.tanh(x) * 1.5 + 0.5
    return x


def programs() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Name -> (function, shapes) of programs whose limit is known."""
    import jax
    import jax.numpy as jnp

    def bf16(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    wide = jax.ShapeDtypeStruct((16384, 16384), jnp.float32)
    return {
        "product 4096^3": (_product, (bf16(4096, 4096), bf16(4096, 4096))),
        "product 2048 x 8192 x 4096": (_product, (bf16(2048, 8192), bf16(8192, 4096))),
        "convolution 3x3, 256, 28 px": (
            _convolution,
            (bf16(64, 28, 28, 256), bf16(3, 3, 256, 256)),
        ),
        "chain, float32, 1 GiB": (_chain, (wide,)),
        "chain, bfloat16, 1 GiB": (_chain, (bf16(32768, 16384),)),
    }


def limits() -> Iterator[str]:
    """Lines of a table: predicted time over the limit."""
    from trainlib.planning.ledger import ledger_of

    yield "| program | chip | predicted, ms | limit, ms | ratio | |"
    yield "|---|---|---|---|---|---|"
    for name, (fn, shapes) in programs().items():
        for target in CHIPS:
            found = ledger_of(fn, *shapes, target=target).schedule
            limit = max(found.bounds.values())
            ratio = found.seconds / limit
            times = f"{1e3 * found.seconds:.3f} | {1e3 * limit:.3f} | {ratio:.3f}"
            yield f"| {name} | {target.partition(':')[0]} | {times} | {_ok(ratio <= LIMIT)} |"


# ----------------------------------------------------------------------------------- sparse layers
def sparse(texts: Path | None) -> Iterator[str]:
    """Lines of a table: the step of ST-MoE-32B at two capacities."""
    steps = {}
    yield "| capacity factor | predicted step, s | core | waits | published, s |"
    yield "|---|---|---|---|---|"
    for factor, published in ((1.25, 4.244), (2.0, 4.819)):
        ledger = _st_moe(factor, texts)
        found = ledger.schedule
        steps[factor] = found.seconds
        waits = ", ".join(f"{name} {t:.3f}" for name, t in found.exposed.items())
        core = f"{found.core_seconds:.3f}"
        yield f"| {factor} | {found.seconds:.3f} | {core} | {waits} | {published} |"
    ratio = steps[2.0] / steps[1.25]
    good = abs(ratio - PUBLISHED_CAPACITY) <= POINTS
    yield (
        f"\npredicted {ratio - 1:+.1%}, published {PUBLISHED_CAPACITY - 1:+.1%}, FLOPs alone "
        f"{FLOPS_CAPACITY - 1:+.1%}: {_ok(good)}"
    )


def _st_moe(factor: float, texts: Path | None) -> Any:
    import configs
    from launch import families
    from trainlib import chips
    from trainlib.sharding.mesh import make_mesh
    from trainlib.sharding.topology import devices
    from trainlib.step.step import compile_train

    config = configs.load("st_moe_32b", **{"routing.capacity_factor": factor})
    target = chips.target(config.target)
    sizes = config.mesh.to_dict()
    mesh = make_mesh(data=sizes["data"], model=sizes["model"], devices=devices(target))

    def text() -> str:
        family = families.of(config)
        plan = family.plan.make(config, mesh)
        step = compile_train(family.objective.make_loss(plan), plan)
        lowered = step.trace(plan.abstract_state(), family.plan.abstract_batch(plan)).lower()
        return lowered.compile().as_text()

    name = f"st_moe_32b_v4_cf{round(100 * factor):03d}"
    return _ledger(name, target, mesh, text, texts)


def _ledger(name: str, target: Any, mesh: Any, text: Callable[[], str], texts: Path | None) -> Any:
    """The ledger of a program, whose text is read again where it is kept."""
    from trainlib.planning.hlo import Program
    from trainlib.planning.ledger import ledger_of_program

    kept = texts / f"{name}.txt" if texts else None
    if kept and kept.exists():
        found = kept.read_text()
    else:
        found = text()
        if kept:
            kept.write_text(found)
    program = Program(found, dict(mesh.shape))
    return ledger_of_program(program, target, placed_on=list(mesh.devices.flat))


# ----------------------------------------------------------------------------------------- maxtext
@dataclasses.dataclass(frozen=True)
class Published:
    """A figure of MaxText and how its run was configured, as far as that is public.

    Attributes:
      name: of the kept text.
      model: as people call it.
      target: as in `trainlib.chips`.
      mfu: published, attention counted without its causal half.
      decoder: arguments of `decoders.Decoder`.
      compiled_layers: that stand for all; few enough to save what the run kept on the host.
      source: where it is said.
    """

    name: str
    model: str
    target: str
    mfu: float
    decoder: dict[str, Any]
    compiled_layers: int
    source: str


_LLAMA = {"layers": 80, "d_model": 8192, "d_ff": 28672, "heads": 64, "key_heads": 8}
_MIXTRAL = {
    **{"layers": 32, "d_model": 4096, "d_ff": 14336, "heads": 32, "key_heads": 8},
    "experts": 8,
}
_QKV = ("query_proj", "key_proj", "value_proj")
PUBLISHED = (
    Published(
        "mt_llama_v5p",
        "Llama2-70B",
        "v5p-128",
        0.654,
        _LLAMA | {"batch": 4, "saved": (*_QKV, "out_proj", "mlpwo"), "unmasked": 9 / 16},
        80,
        "maxtext README; MaxText/configs/v5p/llama2_70b.sh: batch 4, save_dot_except_mlpwi",
    ),
    Published(
        "mt_llama_v6e",
        "Llama2-70B",
        "v6e-256",
        0.438,
        _LLAMA | {"batch": 2, "saved": _QKV, "unmasked": 0.70},
        8,
        "tpu-recipes training/trillium/Llama2-70B-MaxText: 402.3 TFLOP/s, 8192 tokens a chip",
    ),
    Published(
        "mt_mixtral_v5p",
        "Mixtral-8x7B, dropless",
        "v5p-128",
        0.526,
        _MIXTRAL | {"batch": 12, "weights": "bfloat16", "unmasked": 9 / 16},
        8,
        "tpu-recipes training/v5p/Mixtral-8X7B-Maxtext: bfloat16 weights, everything recomputed",
    ),
    Published(
        "mt_mixtral_v6e",
        "Mixtral-8x7B, dropping",
        "v6e-256",
        0.352,
        _MIXTRAL | {"batch": 8, "capacity_factor": 1.25, "saved": (*_QKV, "out_proj")},
        8,
        "tpu-recipes training/trillium/Mixtral-8x7B-MaxText: 323.2 TFLOP/s, 32,768 tokens a chip",
    ),
)


def maxtext(texts: Path | None) -> Iterator[str]:
    """Lines of a table: MFU published, predicted, and predicted with a factor fitted to others."""
    yield "| model | target | published | predicted | ratio | fitted to the others | ratio | |"
    yield "|---|---|---|---|---|---|---|---|"
    predicted = [_mfu(one, texts) for one in PUBLISHED]
    fitted = leave_one_out([one.mfu for one in PUBLISHED], predicted)
    for one, mfu, corrected in zip(PUBLISHED, predicted, fitted, strict=True):
        good = abs(corrected / one.mfu - 1) <= MFU_SHARE
        yield (
            f"| {one.model} | {one.target} | {one.mfu:.1%} | {mfu:.1%} | {mfu / one.mfu:.2f} | "
            f"{corrected:.1%} | {corrected / one.mfu:.2f} | {_ok(good)} |"
        )


def leave_one_out(published: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """Each prediction times the one factor that fits all others best, by the mean of logarithms."""
    logs = [math.log(true / guess) for true, guess in zip(published, predicted, strict=True)]
    return [
        guess * math.exp(statistics.mean(logs[:i] + logs[i + 1 :]))
        for i, guess in enumerate(predicted)
    ]


def _mfu(one: Published, texts: Path | None) -> float:
    from benchmarks.world.decoders import Decoder, arguments, gradients
    from trainlib import chips
    from trainlib.sharding.mesh import make_mesh
    from trainlib.sharding.topology import devices

    decoder, target = Decoder(**one.decoder), chips.target(one.target)
    decoder = dataclasses.replace(decoder, layers=one.compiled_layers)
    mesh = make_mesh(devices=devices(target))

    def text() -> str:
        lowered = gradients(decoder, mesh).lower(*arguments(decoder, mesh))
        # Machine code is shared by like operations: the same program, compiled sooner.
        shared = {"xla_tpu_enable_deduplicated_calls": True}
        return lowered.compile(compiler_options=shared).as_text()

    seconds = _ledger(one.name, target, mesh, text, texts).schedule.seconds
    seconds += decoder.attention_flops / target.chip.flops  # its kernels, at the peak
    return decoder.model_flops / target.chip.flops / seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", default=["limits"], choices=["limits", "sparse", "maxtext"]
    )
    parser.add_argument("--texts", type=Path, help="a folder that keeps compiled programs")
    args = parser.parse_args(argv)
    parts = {
        "limits": limits,
        "sparse": lambda: sparse(args.texts),
        "maxtext": lambda: maxtext(args.texts),
    }
    for what in args.what:
        for line in parts[what]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
