"""Compiles kernels alone in a process of their own, whose compiler dumps their final bundles.

libtpu reads its flags when it is loaded, which in another process may long have happened. So this
runs as `python -m trainlib.planning.kernels.dump`, with the flags in the environment and a request
on standard input; see `trainlib.planning.kernels.bundles`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# Names of element types in HLO whose NumPy name is another.
_TYPES = {
    "pred": "bool",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3",
    "f8e4m3fn": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e4m3b11fnuz": "float8_e4m3b11fnuz",
}
_LETTERS = {"s": "int", "u": "uint", "f": "float"}
FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    # All passes dumped, compiling takes many times as long.
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
)


def dtype(kind: str) -> str:
    """The NumPy name of an element type in HLO: bf16 -> bfloat16, s32 -> int32."""
    return _TYPES.get(kind) or _LETTERS[kind[0]] + kind[1:]


def compile_alone(call: dict[str, Any], sharding: Any) -> None:
    """Compiles a program that is one custom call.

    Args:
      call: "operands" and "results", lists of (element type, shape), and "config", the custom
        call's configuration as a string.
      sharding: of one device.
    """
    import jax

    def shape(kind: str, sizes: list[int]) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype(kind), sharding=sharding)

    operands, results = ([shape(*one) for one in call[name]] for name in ("operands", "results"))
    run = jax.ffi.ffi_call(
        "tpu_custom_call",
        results if len(results) != 1 else results[0],
        custom_call_api_version=1,
        legacy_backend_config=call["config"],
        has_side_effect=True,
    )
    jax.jit(lambda *arrays: run(*arrays)).lower(*operands).compile()


def main() -> None:
    """Writes N.txt with the bundles of the N-th kernel, or N.error with what the compiler says."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from trainlib import chips
    from trainlib.sharding.topology import devices

    request = json.load(sys.stdin)
    folder, dumped = Path(request["folder"]), Path(request["dumped"])
    device = devices(chips.target(request["target"]))[:1]
    sharding = NamedSharding(Mesh(np.array(device), ("x",)), PartitionSpec())
    for number, call in enumerate(request["calls"]):
        shutil.rmtree(dumped)
        os.mkdir(dumped)
        try:
            compile_alone(call, sharding)
        except (jax.errors.JaxRuntimeError, KeyError, ValueError) as error:
            (folder / f"{number}.error").write_text(str(error).split("\n")[0])
            continue
        # The names of an operation's dumps: time, its name, a number, the pass.
        for path in dumped.glob("*ffi_call*-final_bundles.txt"):
            path.rename(folder / f"{number}.txt")


if __name__ == "__main__":
    main()
