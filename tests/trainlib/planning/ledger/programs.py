"""Small programs of several kinds, and what the TPU compiler made of them.

`recorded/NAME.txt` is the optimised HLO of one, `recorded/costs.json` what the compiler says of it,
so that most tests need no compiler. After an update of libtpu, record again and look at the
differences:

    python -m tests.trainlib.planning.ledger.programs
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from trainlib import chips
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import Ledger, ledger_of_program

FOLDER = Path(__file__).parent / "recorded"
ROOT = Path(__file__).parents[4]
BF16, F32, I32 = jnp.bfloat16, jnp.float32, jnp.int32


def shape(*sizes: int, dtype: Any = BF16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def convolve(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        *(x, w, (stride, stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def matmul(a, b):
    return a @ b


def matmul_int8(a, b):
    return jax.lax.dot(a, b, preferred_element_type=I32)


def chain(x):
    return jnp.tanh(x.astype(F32) * 2 + 1).astype(BF16)


def row_sums(x):
    return jnp.sum(x, axis=1)


def gather(table, rows):
    return table[rows]


def scatter(table, rows, updates):
    return table.at[rows].add(updates)


def update(table, rows):
    return jax.lax.dynamic_update_slice(table, rows, (5, 0))


def scan(x, weights):
    def body(carry, weight):
        with jax.named_scope("step"):
            return jnp.tanh(carry @ weight), None

    return jax.lax.scan(body, x, weights)[0]


def add_one(x):
    return x + 1


def batched(a, b):
    return jnp.einsum("bqd,bkd->bqk", a, b)


def max_pool_gradient(x):
    def loss(x):
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")
        return jnp.sum(pooled.astype(F32) ** 2)

    return jax.grad(loss)(x)


def residual_block(weights, x):
    """Gradients of two convolutions with a shortcut."""

    def loss(weights, x):
        with jax.named_scope("block"):
            with jax.named_scope("conv1"):
                y = jax.nn.relu(convolve(x, weights["a"]))
            with jax.named_scope("conv2"):
                y = convolve(y, weights["b"])
            return jnp.sum(jax.nn.relu(y + x).astype(F32) ** 2)

    return jax.grad(loss)(weights, x)


def layout_copy(x):
    """The barrier keeps the transposed array from being read in place."""
    with jax.named_scope("swap"):
        return jax.lax.optimization_barrier(jnp.transpose(x, (0, 2, 1))) * 2


def unfused_convert(x, w):
    with jax.named_scope("cast"):
        y = jax.lax.optimization_barrier(x.astype(BF16))
    with jax.named_scope("dense"):
        return y @ w


def _mlp_gradients(checkpoint: bool, w, x):
    def block(w, x):
        with jax.named_scope("block"):
            return x + jnp.tanh(x @ w) @ w.T

    def loss(w, x):
        return jnp.sum((jax.checkpoint(block) if checkpoint else block)(w, x).astype(F32) ** 2)

    return jax.grad(loss)(w, x)


# Larger than the memory of the core where bytes through HBM are to be seen.
PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "matmul_odd": (matmul, (shape(1000, 777), shape(777, 333))),
    "matmul": (matmul, (shape(4096, 4096), shape(4096, 4096))),
    "matmul_int8": (matmul_int8, (shape(2048, 2048, dtype=jnp.int8),) * 2),
    "few_rows": (matmul, (shape(8, 4096), shape(4096, 8192))),
    "convolution": (
        functools.partial(convolve, stride=2),
        (shape(32, 56, 56, 64), shape(3, 3, 64, 128)),
    ),
    "depthwise": (
        functools.partial(convolve, groups=128),
        (shape(32, 28, 28, 128), shape(3, 3, 1, 128)),
    ),
    "chain": (chain, (shape(8192, 8192),)),
    "row_sums": (row_sums, (shape(8192, 4096, dtype=F32),)),
    "gather": (gather, (shape(1 << 18, 1024), shape(4096, dtype=I32))),
    "scatter": (
        scatter,
        (
            shape(32768, 1024, dtype=F32),
            shape(4096, dtype=I32),
            shape(4096, 1024, dtype=F32),
        ),
    ),
    "update": (update, (shape(32768, 1024, dtype=F32), shape(64, 1024, dtype=F32))),
    "scan": (scan, (shape(2048, 1024), shape(8, 1024, 1024))),
    "lanes_64": (add_one, (shape(8 << 20, 64),)),
    "batched": (batched, (shape(64, 512, 64), shape(64, 512, 64))),
    "max_pool_gradient": (max_pool_gradient, (shape(64, 112, 112, 64),)),
    "residual_block": (
        residual_block,
        ({"a": shape(3, 3, 128, 128), "b": shape(3, 3, 128, 128)}, shape(64, 28, 28, 128)),
    ),
    "layout_copy": (layout_copy, (shape(64, 2048, 512),)),
    "unfused_convert": (unfused_convert, (shape(16384, 2048, dtype=F32), shape(2048, 2048))),
    "rematerialised": (
        functools.partial(_mlp_gradients, True),
        (shape(1024, 1024), shape(8192, 1024)),
    ),
    "clean": (functools.partial(_mlp_gradients, False), (shape(1024, 1024), shape(8192, 1024))),
}


def costs() -> dict[str, Any]:
    """What the compiler said of each recorded program, and under "libtpu" its version."""
    return json.loads((FOLDER / "costs.json").read_text())


@functools.cache
def recorded(name: str, target: str = "v5e-1") -> Ledger:
    """The ledger of a recorded program."""
    text = (FOLDER / f"{name}.txt").read_text()
    return ledger_of_program(Program(text, {"data": 1}), chips.target(target))


def said(compiled: Any) -> dict[str, Any]:
    """What the compiler says of a program."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": cost.get("flops", 0.0),
        "bytes": cost["bytes accessed"],
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes + memory.output_size_in_bytes,
    }


def compiled_bytes(ledger: Ledger) -> float:
    """What `cost_analysis` calls "bytes accessed", from the bytes of a ledger.

    It takes no account of where arrays lie, and counts asynchronous copies at both ends: copies
    twice, slices one and a half times.
    """
    again = {"copy-start": 1.0, "slice-start": 0.5}
    return sum(
        (o.hbm_bytes + o.vmem_bytes) * (1 + again.get(o.opcode, 0)) for o in ledger.operations
    )


def compile_for_v5e(name: str) -> Any:
    """Compiles one of `PROGRAMS`."""
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from trainlib.sharding.topology import devices

    fn, shapes = PROGRAMS[name]
    mesh = Mesh(np.array(devices(chips.target("v5e-1"))[:1]), ("data",))
    placed = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(
            s.shape, s.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        ),
        shapes,
    )
    return jax.jit(fn).lower(*placed).compile()


def _record() -> None:
    found: dict[str, Any] = {"libtpu": importlib.metadata.version("libtpu")}
    for name in PROGRAMS:
        compiled = compile_for_v5e(name)
        text = compiled.as_text().replace(str(ROOT), "/project")
        (FOLDER / f"{name}.txt").write_text(text)
        found[name] = said(compiled)
        print(name, found[name])
    (FOLDER / "costs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _record()
