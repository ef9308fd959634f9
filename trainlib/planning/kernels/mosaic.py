"""The module of a Pallas kernel for TPU, as it stands in the custom call of a compiled program.

The body of `custom_call_target="tpu_custom_call"` is a serialised Mosaic module: the kernel with
its grid, the blocks (windows) of its operands, functions that map a step of the grid to the index
of a block, and all its operations. It is read here without running any of Pallas.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from trainlib.planning.hlo import Instruction

TARGET = "tpu_custom_call"
_DYNAMIC = -(2**63)  # how a grid whose size is known only when it runs is written
_PREFIX = "stable_mosaic."


class Unknown(Exception):
    """A value that only the running kernel knows."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The blocks of one operand or result.

    Attributes:
      block: sizes of a block.
      space: the kernel's memory that blocks are copied to: vmem, smem; any or hbm where the kernel
        copies by itself.
      by_element: the index of a block is that of its first element.
      transform: the function of the index; None where the block is the whole array.
    """

    block: tuple[int, ...]
    space: str
    by_element: bool
    transform: Any | None


def config_of(line: Instruction) -> dict[str, Any]:
    """What the custom call of a kernel was compiled with."""
    start = line.rest.index("backend_config=") + len("backend_config=")
    return json.JSONDecoder().raw_decode(line.rest, start)[0]


def name_of(operation: Any) -> str:
    """`arith.addi`, without the prefix of the serialised form."""
    return operation.name.removeprefix(_PREFIX)


def numbers(attribute: Any) -> tuple[int, ...]:
    """Of `array<i64: 8, 128>`."""
    return tuple(int(n) for n in re.findall(r"-?\d+", str(attribute).partition(":")[2]))


def shape_of(kind: Any) -> tuple[tuple[int, ...], str]:
    """Sizes and element type of `vector<8x128xbf16>` or `memref<8x128xf32, ..>`."""
    found = re.match(r"(?:vector|memref)<((?:\d+x)*)([\w!.]+)", str(kind))
    if not found:
        return (), str(kind)
    return tuple(int(n) for n in re.findall(r"\d+", found[1])), found[2]


class Module:
    """A parsed module.

    Args:
      config: of the custom call, see `config_of`.

    Raises:
      ValueError: it cannot be read, as one of another version.
    """

    def __init__(self, config: dict[str, Any]):
        from jax.experimental.mosaic.dialects import tpu
        from jaxlib.mlir import ir

        context = ir.Context()
        context.allow_unregistered_dialects = True
        tpu.register_dialect(context)  # pyright: ignore[reportAttributeAccessIssue] of C++
        body = base64.b64decode(config["custom_call_config"]["body"])
        try:
            with context, ir.Location.unknown(context):
                self._module = ir.Module.parse(body, context)
        except ir.MLIRError as error:
            raise ValueError(f"its module cannot be read: {error}") from error
        self._functions = {
            self._symbol(f): f for f in self._module.body.operations if "sym_name" in f.attributes
        }
        self.main = next(iter(self._functions.values()))

    @staticmethod
    def _symbol(function: Any) -> str:
        return str(function.attributes["sym_name"]).strip('"')

    def _attribute(self, name: str) -> Any | None:
        try:
            return self.main.attributes[name]
        except KeyError:
            return None

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self._symbol(self.main)

    @property
    def body(self) -> Any:
        """The block of the kernel's operations."""
        return self.main.regions[0].blocks[0]

    @cached_property
    def grid(self) -> tuple[int | None, ...]:
        """Its sizes, None where one is known only when the kernel runs."""
        bounds = self._attribute("iteration_bounds")
        sizes = numbers(bounds) if bounds is not None else ()
        return tuple(None if size == _DYNAMIC else size for size in sizes)

    @property
    def parallel(self) -> tuple[bool, ...]:
        """Dimensions of the grid that the cores of a chip may divide between them."""
        kinds = re.findall(
            r"dimension_semantics<(\w+)>", str(self._attribute("dimension_semantics"))
        )
        return tuple("parallel" in kind for kind in kinds)

    @property
    def prefetched(self) -> int:
        """Number of operands that lie in scalar memory before the first step."""
        return self._count("scalar_prefetch")

    def _count(self, name: str) -> int:
        attribute = self._attribute(name)
        return 0 if attribute is None else int(str(attribute).split(":")[0])

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Of the operands, then of the results."""
        arguments = list(self.body.arguments)
        first = len(self.grid) + self.prefetched
        arguments = arguments[first : len(arguments) - self._count("scratch_operands")]
        params = self._attribute("window_params")
        listed = list(params) if params is not None else [None] * len(arguments)
        return tuple(map(self._window, arguments, listed))

    def _window(self, argument: Any, params: Any) -> Window:
        shape, _ = shape_of(argument.type)
        space = re.search(r"#tpu\.memory_space<(\w+)>", str(argument.type))
        named = space[1] if space else "any"
        if params is None or "transform_indices" not in params:
            return Window(shape, named, by_element=False, transform=None)
        block = numbers(params["window_bounds"]) if "window_bounds" in params else shape
        transform = self._functions[str(params["transform_indices"]).lstrip("@")]
        kind = str(params["window_kind"]) if "window_kind" in params else ""
        return Window(block, named, "element" in kind, transform)

    def walk(self) -> Iterator[Any]:
        """All operations of the kernel, those in loops and branches after what holds them."""

        def inside(block: Any) -> Iterator[Any]:
            for operation in block.operations:
                yield operation
                for region in operation.regions:
                    for inner in region.blocks:
                        yield from inside(inner)

        return inside(self.body)


# ---------------------------------------------------------------------- values of scalars
_COMPARE = (
    *(np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal),
    *(np.less, np.less_equal, np.greater, np.greater_equal),  # unsigned: nothing is negative here
)


def _divide(a: Any, b: Any) -> Any:
    """Towards zero, as integers of the machine; a division by zero does not happen."""
    b = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": _divide,
    "arith.divui": _divide,
    "arith.floordivsi": lambda a, b: a // np.where(b == 0, 1, b),
    "arith.ceildivsi": lambda a, b: -(-a // np.where(b == 0, 1, b)),
    "arith.remsi": lambda a, b: a - _divide(a, b) * b,
    "arith.remui": lambda a, b: a - _divide(a, b) * b,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shli": np.left_shift,
    "arith.shrsi": np.right_shift,
    "arith.shrui": np.right_shift,
    "arith.minsi": np.minimum,
    "arith.minui": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.maxui": np.maximum,
    "arith.select": np.where,
    "arith.index_cast": lambda a: a,
    "arith.extsi": lambda a: -a.astype(np.int64) if a.dtype == bool else a,
    "arith.extui": lambda a: a.astype(np.int64),
    "arith.trunci": lambda a: a,
}


class Scalars:
    """Values of scalar operations at many steps of the grid at once.

    Args:
      arguments: values of the arguments of a block.
      load: value of a prefetched scalar: (operand, its index) -> values; it may raise Unknown.
      grid: sizes of the grid, where they may be asked for.
    """

    def __init__(
        self,
        arguments: dict[Any, np.ndarray],
        load: Callable[[Any, np.ndarray], np.ndarray],
        grid: tuple[int, ...] = (),
    ):
        self._values: dict[Any, np.ndarray] = dict(arguments)
        self._load, self._grid = load, grid

    def value(self, value: Any) -> np.ndarray:
        """Of one value of the module, a number or one for each step.

        Raises:
          Unknown: it depends on what the kernel reads or computes.
        """
        if value not in self._values:
            owner = value.owner
            if not hasattr(owner, "operands"):  # an argument of a block: a loop's counter
                raise Unknown("a value that a loop carries")
            self._values[value] = np.asarray(self._computed(owner))
        return self._values[value]

    def _computed(self, operation: Any) -> Any:
        name = name_of(operation)
        if name == "arith.constant":
            return self._constant(operation)
        if name == "tpu.iteration_bound":
            return self._grid[int(str(operation.attributes["dim"]).split(":")[0])]
        if name == "memref.load" and len(operation.operands) == 2:
            return self._load(operation.operands[0], self.value(operation.operands[1]))
        if name == "arith.cmpi":
            predicate = int(str(operation.attributes["predicate"]).split(":")[0])
            return _COMPARE[predicate](*map(self.value, operation.operands))
        if name not in _OPERATIONS:
            raise Unknown(f"the result of {name}")
        return _OPERATIONS[name](*map(self.value, operation.operands))

    @staticmethod
    def _constant(operation: Any) -> np.ndarray:
        text = str(operation.attributes["value"])
        if text in ("true", "false"):
            return np.asarray(text == "true")
        if not re.match(r"-?\d+( :|$)", text):
            raise Unknown("a number that is not whole")
        return np.asarray(int(text.split(":")[0]))
