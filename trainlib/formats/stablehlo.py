"""The evaluation forward as a portable program: StableHLO by `jax.export`, weights beside it.

The directory needs nothing of this package: `load.py` in it is plain JAX and NumPy. Weights are
arguments of the program, not constants in it, so it stays small and they stay in safetensors.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import Abstract
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.kernels import use_kernels

PROGRAM, SIGNATURE, LOADER = "forward.jax_export", "signature.json", "load.py"
FILES = (PROGRAM, SIGNATURE, LOADER)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Inputs = Mapping[str, tuple[tuple, str]]  # name -> (shape, dtype); a dimension "batch" is free


def program(
    forward: Callable[..., Any],
    abstract: Abstract,
    inputs: Inputs,
    *,
    dtypes: Mapping[str, np.dtype],
    platforms: Sequence[str],
    batch: int = 0,
) -> tuple[bytes, dict[str, Any]]:
    """Exports `forward(params, model_state, inputs)`.

    A program for one platform holds the kernels of that platform, where the batch is fixed; one for
    several platforms has the plain forms.

    Args:
      forward: pure, to one array or arrays by name; weights in the dtypes that the model declares.
      abstract: the model.
      inputs: of the forward.
      dtypes: name -> dtype of the weights that will be given.
      platforms: of `PLATFORMS`.
      batch: a fixed batch, or 0 for any.

    Returns:
      The serialised program `f(weights, inputs) -> output`, and its signature as JSON values: under
      "output" that of the one array, or under "outputs" those of each by name.

    Raises:
      ConfigError: a platform that does not exist, or a model that has no form for any batch.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise one_of("--platforms", platform, PLATFORMS)
    size = batch or jax_export.symbolic_shape("batch")[0]
    given = {
        name: jax.ShapeDtypeStruct(
            tuple(size if n == "batch" else n for n in shape), np.dtype(dtype)
        )
        for name, (shape, dtype) in inputs.items()
    }
    specs = {**abstract.params, **abstract.model_state}
    weights = {name: jax.ShapeDtypeStruct(s.shape, dtypes[name]) for name, s in specs.items()}

    def run(weights: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]) -> Any:
        declared = {name: value.astype(specs[name].dtype) for name, value in weights.items()}
        params = {name: declared[name] for name in abstract.params}
        statistics = {name: declared[name] for name in abstract.model_state}
        return forward(params, statistics, dict(inputs))

    def run_on(name: str, *args: Any) -> jax.Array:
        with lowered_for(name):
            return run(*args)

    # JAX lowers the forms of all platforms for each of them, and a kernel for one only.
    kernels = "auto" if len(platforms) == 1 else "plain"

    def portable(*args: Any) -> jax.Array:
        forms = {name: functools.partial(run_on, name) for name in platforms}
        with use_kernels(kernels):
            return jax.lax.platform_dependent(*args, **forms)

    try:
        exported = jax_export.export(jax.jit(portable), platforms=list(platforms))(weights, given)
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ConfigError(
            "This model cannot be exported for any batch size: "
            f"{str(error).splitlines()[0][:200]}. Fix the size by --batch=N."
        ) from None
    outputs = exported.out_tree.unflatten(exported.out_avals)
    signature = {
        "inputs": {name: _described(value) for name, value in given.items()},
        **(
            {"outputs": {name: _described(value) for name, value in outputs.items()}}
            if isinstance(outputs, Mapping)
            else {"output": _described(outputs)}
        ),
        "weights": len(weights),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    return bytes(exported.serialize()), signature


def _described(array: Any) -> dict[str, Any]:
    """Shape and dtype as JSON values."""
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"shape": shape, "dtype": array.dtype.name}


def files(program: bytes, signature: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> content: program, signature and loader."""
    described = json.dumps(dict(signature), indent=2) + "\n"
    return dict(zip(FILES, (program, described.encode(), _LOADER.encode()), strict=True))


def about(platforms: Sequence[str]) -> str:
    """What the model card says of the files, as markdown."""
    return (
        f"`{PROGRAM}` is the evaluation forward as a program (StableHLO, serialised by "
        f"`jax.export`, for {', '.join(platforms)}), the `.safetensors` files are its weights, "
        f'`{SIGNATURE}` describes inputs and outputs. A dimension "batch" may have any size. '
        f"`python {LOADER}` runs the program once on zeros; "
        "[jax.export](https://docs.jax.dev/en/latest/export/export.html) says how long a program "
        "stays readable"
    )


_LOADER = '''"""Loads this directory: needs jax, numpy and flatbuffers, nothing else.

    from load import load
    forward, signature = load(".")
    output = forward({name: array for each name in signature["inputs"]})

The output is an array, or for several a dictionary of those in signature["outputs"].

`python load.py` runs it once on zeros.
"""

import json
import math
import stat
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
          "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}


def small(path, limit=64 << 20):
    """The bytes of a regular file: no link, device or pipe, and of bounded size."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ValueError(f"{path} is no regular file of at most {limit:,} bytes")
    return path.read_bytes()


def tensors(path):
    """Name -> array of a safetensors file: header length, JSON header, data."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(100_000_000, status.st_size - 8):
            raise ValueError(f"{path} is cut off or damaged: its header has {size:,} bytes")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        dtype, count = jnp.dtype(DTYPES[entry["dtype"]]), math.prod(entry["shape"])
        if not 0 <= start <= stop <= status.st_size - 8 - size or (
            stop - start != count * dtype.itemsize
        ):
            raise ValueError(f"{path} is cut off or damaged at the tensor {name!r}")
        values = np.fromfile(path, dtype, count, offset=8 + size + start)
        yield name, jnp.asarray(values.reshape(entry["shape"]))


def load(directory="."):
    """(forward, signature): forward(inputs) is the program with these weights."""
    directory = Path(directory)
    program = export.deserialize(bytearray(small(directory / "forward.jax_export", 4 << 30)))
    index = json.loads(small(directory / "model.safetensors.index.json"))
    weights = {}
    for file in sorted(set(index["weight_map"].values())):
        if Path(file).name != file:  # a name in this directory, never a path out of it
            raise ValueError(f"the index names {file!r}, which is no file of this directory")
        weights.update(tensors(directory / file))
    if set(weights) != set(index["weight_map"]):
        raise ValueError("the weights are not those that the index names")
    call = jax.jit(program.call)
    return lambda inputs: call(weights, inputs), json.loads(small(directory / "signature.json"))


if __name__ == "__main__":
    forward, signature = load(Path(__file__).resolve().parent)
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    zeros = {
        name: jnp.zeros([n if isinstance(n, int) else batch for n in entry["shape"]],
                        entry["dtype"])
        for name, entry in signature["inputs"].items()
    }
    output = forward(zeros)
    for name, array in (output if isinstance(output, dict) else {"output": output}).items():
        print(name, array.shape, array.dtype, "on", jax.default_backend())
'''
