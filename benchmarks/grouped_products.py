"""Grouped products of the sparse configurations on TPUs: `python -m benchmarks.grouped_products`.

For each size and chip what the tiles of `moe.kernels.grouped_tiles` can reach at most: the share of
the peak that blocks fetched and whole tiles leave, the lowest of up and down projections, each with
both of its gradients. Beside it the ceiling of tiles of 128 in all directions.

    --compile [--chip=v5e] [--size=l]    compiles them too (seconds each), and prints the memory
                                         that each kernel holds, and its time over that at the peak

Rows are those of an even assignment of all choices of the encoder, without a capacity. Sizes are of
one device of the configuration's own mesh, on whichever chip.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import configs
from moe.kernels.grouped_tiles import MIB, PRODUCTS, VMEM, Shape, Tiling, cost, tilings
from trainlib import chips
from trainlib.chips import CHIPS

SIZES = {
    "32b": "st_moe_32b",
    "32b, 16 parts": "st_moe_32b:v5p_2048",
    "32b, 4 parts": "st_moe_32b:v6e_256",
    "l": "st_moe_l",
    "base": "st_moe_base",
}
TARGETS = {"v4": "v4:1x1x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}
TARGETS["tpu7x"] = "tpu7x:1x1x1"


@dataclasses.dataclass(frozen=True)
class Product:
    """One product of a size, with its tiles.

    Attributes:
      matrix: "up" or "down", of the expert.
      product: one of `PRODUCTS`.
      shape: of it; of "inputs" with depth and columns as that product takes them.
      tiling: chosen for the chip.
      ceiling: share of the peak.
      before: the same with tiles of 128.
      vmem: bytes, as they are estimated.
    """

    matrix: str
    product: str
    shape: Shape
    tiling: Tiling
    ceiling: float
    before: float
    vmem: float


def expert_shape(size: str) -> Shape:
    """The up projection of one device's experts."""
    config = configs.load(SIZES[size])
    parts, experts = config.mesh.model, config.routing.num_experts
    data = config.mesh.data
    if data < 0:
        data = chips.target(config.target).devices // (parts * config.mesh.replica)
    local = max(experts // data, 1)
    choices = config.batch_size * config.data.encoder_length * config.routing.top_k
    rows = choices * local // experts
    return Shape(rows, config.model.d_model, config.model.d_ff // parts, local)


def ceilings(size: str, chip: str) -> Iterator[Product]:
    """Of all products of a size on a chip."""
    up = expert_shape(size)
    down = dataclasses.replace(up, depth=up.columns, columns=up.depth)
    for matrix, shape, back in (("up", up, down), ("down", down, up)):
        chosen = tilings(shape.rows, shape.depth, shape.columns, shape.experts, 2, chip)
        for product in PRODUCTS:
            taken, tiling = (
                back if product == "inputs" else shape,
                getattr(chosen, product),
            )
            priced = cost(product, taken, tiling)
            before = cost(product, taken, (128, 128, 128)).ceiling(taken, CHIPS[chip])
            ceiling = priced.ceiling(taken, CHIPS[chip])
            yield Product(matrix, product, taken, tiling, ceiling, before, priced.vmem)


def compiled(one: Product, chip: str) -> str:
    """What the compiler makes of a product, in words."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from trainlib.planning.hlo import Program
    from trainlib.planning.kernels import kernels
    from trainlib.sharding.topology import devices

    place = NamedSharding(
        Mesh(np.array(devices(chips.target(TARGETS[chip]))[:1]), ("data",)), PartitionSpec()
    )
    shape, experts = one.shape, one.shape.experts
    left = (shape.rows, shape.depth)
    if one.product == "weights":
        right = (shape.rows, shape.columns)
        run = lambda x, y, n: tgmm(x.swapaxes(0, 1), y, n, jnp.bfloat16, one.tiling)  # noqa: E731
    elif one.product == "inputs":
        right = (experts, shape.columns, shape.depth)
        run = lambda x, w, n: gmm(x, w, n, jnp.bfloat16, one.tiling, transpose_rhs=True)  # noqa: E731
    else:
        right = (experts, shape.depth, shape.columns)
        run = lambda x, w, n: gmm(x, w, n, jnp.bfloat16, one.tiling)  # noqa: E731
    kinds = ((left, jnp.bfloat16), (right, jnp.bfloat16), ((experts,), jnp.int32))
    arguments = [jax.ShapeDtypeStruct(*kind, sharding=place) for kind in kinds]
    try:
        text = jax.jit(run).lower(*arguments).compile().as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        return f"does not compile: {str(error).splitlines()[0][:120]}"
    (kernel,) = kernels(Program(text, {"data": 1}), CHIPS[chip]).values()
    peak = shape.flops / CHIPS[chip].flops
    parts = (kernel.bundle_seconds, kernel.product_seconds, kernel.memory_seconds)
    shares = ", ".join(f"{share / peak:.2f}" for share in parts)
    return (
        f"{kernel.scoped_vmem / MIB:.1f} MiB, {1e3 * kernel.seconds:.3f} ms = "
        f"{kernel.seconds / peak:.2f} x peak (bundles, products, bytes: {shares})"
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--chip", choices=list(VMEM), action="append")
    parser.add_argument("--size", choices=list(SIZES), action="append")
    options = parser.parse_args(arguments)
    print("| size | rows, D, F of a device | chip | ceiling | with tiles of 128 | VMEM, MiB |")
    print("|---|---|---|---|---|---|")
    for size in options.size or SIZES:
        up = expert_shape(size)
        for chip in options.chip or VMEM:
            found = list(ceilings(size, chip))
            low, before = (min(getattr(p, key) for p in found) for key in ("ceiling", "before"))
            most = max(p.vmem for p in found) / MIB
            sides = f"{up.rows:,}, {up.depth}, {up.columns}"
            print(f"| {size} | {sides} | {chip} | {low:.0%} | {before:.0%} | {most:.0f} |")
            for one in found if options.compile else ():
                print(f"    {one.matrix} {one.product} {one.tiling}: ", end="", flush=True)
                print(compiled(one, chip), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
