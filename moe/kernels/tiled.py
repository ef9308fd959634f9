"""The products of the experts on a TPU, with what lies between them done where a product ends.

Letters: E experts, N tokens of each, D model width, F hidden width.

    forward    gate, up, h = x Wg, x Wu, hidden(gate, up)                    one kernel
               y = h Wd                                                      one
    backward   dgate, dup, h = pull back of hidden at (gate, up), dy Wd^T    one
               dx = dgate Wg^T + dup Wu^T                                    one
               dWg, dWu = x^T dgate, x^T dup                                 one
               dWd = h^T dy                                                  one

Left to XLA these are nine products. What lies between them is then computed anew for every tile at
the start of the products that read it, or costs passes over arrays [E, N, F]. Here tokens are read
once for both projections, weights are rounded on the way in, and gradients of weights leave in
float32. Weights in int8 become bfloat16 on the way in, which is exact, and their scales multiply
float32 results where a product ends; they have no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.batched import Weights, hidden
from moe.kernels.int8 import scale_of
from trainlib.model.remat import PRODUCT, keep
from trainlib.sharding.kernels import core_memory

_LANES, _SUBLANES = 128, 16  # of a tile of bfloat16
_CHUNK = 256  # rows computed on at a time; the code of a kernel grows with them
_MOST = 2048  # rows and columns of a block
_LEAST_DEPTH = 256  # with less, adding to the sums takes longer than the products
_SHARE = 0.6  # of a core's memory, for blocks: the rest is for registers and the program around

# Contracted dimensions of the left and the right block: product, by the transpose, of the transpose
_FORMS = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}


class Tiles(NamedTuple):
    """Rows and columns of a block of the results, and how much is contracted at a time."""

    rows: int
    columns: int
    depth: int


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of one kernel and one expert: rows, columns, depth; and bytes, for an element of the left
    and right operands, and of what lies over the results; for an element of right operands in the
    type of the left, half of them unless it is said.
    """

    rows: int
    columns: int
    depth: int
    left: int
    right: int
    results: int
    sums: int
    rounded: int = 0

    def memory(self, tiles: Tiles) -> int:
        """Bytes of VMEM."""
        area = tiles.rows * tiles.columns
        right = tiles.depth * tiles.columns
        # Blocks are fetched while others are computed on.
        blocks = 2 * (tiles.depth * tiles.rows * self.left + right * self.right)
        blocks += 2 * area * self.results
        parts = 4 * self.sums * (0 if tiles.depth == self.depth else area)
        rounded = right * (self.rounded or self.right // 2)
        chunk = 4 * min(tiles.rows, _CHUNK) * tiles.columns * (self.sums + 3)
        return blocks + parts + rounded + chunk

    def traffic(self, tiles: Tiles) -> int:
        """Bytes that the operands move; results are written once, whatever the tiles."""
        whole = tiles.depth == self.depth
        over_rows, over_columns = self.rows // tiles.rows, self.columns // tiles.columns
        # Rows turn faster than columns: a whole block of the right operand stays meanwhile.
        right = self.columns * self.depth * self.right * (1 if whole else over_rows)
        stays = whole and over_rows == 1
        left = self.rows * self.depth * self.left * (1 if stays else over_columns)
        return left + right


def _parts(size: int, unit: int, most: int) -> list[int]:
    """Divisors of a size up to `most` that are multiples of the unit."""
    return [n for n in range(unit, min(size, most) + 1, unit) if size % n == 0]


@functools.cache
def _tiles(sizes: _Sizes, form: str, memory: int) -> Tiles | None:
    """The tiles that move the fewest bytes, the largest of equal ones; None if none fit."""
    rows, depth = (_LANES, _SUBLANES) if form == "tn" else (_SUBLANES, _LANES)
    found = itertools.product(
        _parts(sizes.rows, rows, _MOST),
        _parts(sizes.columns, _LANES, _MOST),
        _parts(sizes.depth, depth, sizes.depth),
    )
    fitting = [tiles for tiles in map(Tiles._make, found) if sizes.memory(tiles) <= memory]

    def cost(tiles: Tiles) -> tuple[bool, int, int]:
        shallow = tiles.depth < min(sizes.depth, _LEAST_DEPTH)
        return shallow, sizes.traffic(tiles), -math.prod(tiles)

    return min(fitting, key=cost, default=None)


def _memory() -> int:
    """Bytes of VMEM that the blocks of a kernel may take, on the device traced for."""
    return int(_SHARE * core_memory())


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A product, or several of the same sizes, with what is made of the results.

    Attributes:
      form: one of `_FORMS`.
      sums: of each result, the pairs of operands whose products it adds up, by position.
      finish: float32 results and what lies over them, all [rows, columns], and what lies across
        them, [1, columns] -> what is written.
      outputs: types of what is written.
      replaces: so many of what lies over the results are overwritten by the first outputs.
    """

    form: str
    sums: tuple[tuple[tuple[int, int], ...], ...]
    finish: Callable[..., Sequence[jax.Array]]
    outputs: tuple[jnp.dtype, ...]
    replaces: int = 0

    def sizes(self, left: jax.Array, right: jax.Array, over: Sequence[jax.Array]) -> _Sizes:
        depth, rows = left.shape[1:] if self.form == "tn" else left.shape[:0:-1]
        columns = right.shape[1 if self.form == "nt" else 2]
        pairs = [pair for pairs in self.sums for pair in pairs]
        lefts, rights = (len({pair[side] for pair in pairs}) for side in (0, 1))
        results = sum(jnp.dtype(kind).itemsize for kind in self.outputs)
        results += sum(value.dtype.itemsize for value in over)
        per_left, per_right = left.dtype.itemsize, right.dtype.itemsize
        rounded = rights * per_left if per_right < per_left else 0
        return _Sizes(
            *(rows, columns, depth, lefts * per_left, rights * per_right, results),
            *(len(self.sums), rounded),
        )

    def body(self, tiles: Tiles, steps: int, counts: tuple[int, int, int, int], rounds: bool):
        """The function of one block; `steps` are the parts of the depth, `counts` the operands on
        the left, on the right, over the results and across them, `rounds` says that those on the
        right are of another type than those on the left.
        """
        from jax.experimental import pallas as pl

        lefts, rights, over, across = counts
        chunk = _parts(tiles.rows, _LANES if self.form == "tn" else _SUBLANES, _CHUNK)[-1]
        rows, columns = _FORMS[self.form]
        contracted = ((rows,), (columns,))

        def run(*refs):
            refs = iter(refs)
            given = (lefts, rights, over, across, len(self.outputs))
            left, right, above, wide, out = (list(itertools.islice(refs, n)) for n in given)
            rounded = list(itertools.islice(refs, rights)) if rounds else right
            parts = list(refs)
            step = pl.program_id(3)
            if rounds:

                @pl.when((pl.program_id(2) == 0) | (steps > 1))
                def _():
                    for stored, same in zip(right, rounded, strict=True):
                        _convert(stored, same)

            def one_chunk(i, _):
                at = pl.ds(pl.multiple_of(i * chunk, chunk), chunk)
                side = (slice(None), at) if self.form == "tn" else (at, slice(None))

                def product(pair):
                    return lax.dot_general(
                        left[pair[0]][side],
                        rounded[pair[1]][...],
                        (contracted, ((), ())),
                        preferred_element_type=jnp.float32,
                    )

                def write(sums):
                    rows = (ref[at, :] for ref in above)
                    values = self.finish(*sums, *rows, *(ref[...] for ref in wide))
                    for ref, value in zip(out, values, strict=True):
                        ref[at, :] = value.astype(ref.dtype)

                sums = [functools.reduce(jnp.add, map(product, pairs)) for pairs in self.sums]
                if steps == 1:
                    write(sums)
                else:
                    _add_up(parts, sums, step, step == steps - 1, at, write)

            lax.fori_loop(0, tiles.rows // chunk, one_chunk, None)

        return run

    def __call__(
        self,
        lefts: Sequence[jax.Array],
        rights: Sequence[jax.Array],
        over: Sequence[jax.Array] = (),
        across: Sequence[jax.Array] = (),
        *,
        interpret: bool,
    ) -> list[jax.Array]:
        """Runs it for every expert: operands and results [E, .., ..], `across` [E, columns]."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        sizes = self.sizes(lefts[0], rights[0], over)
        memory = _memory()
        tiles = _tiles(sizes, self.form, memory)
        assert tiles is not None  # `fits` was asked
        steps = sizes.depth // tiles.depth
        rounds = rights[0].dtype != lefts[0].dtype
        left, right = (tiles.rows, tiles.depth), (tiles.depth, tiles.columns)
        specs = {
            "n_": pl.BlockSpec((None, *left), lambda e, j, i, k: (e, i, k)),
            "t_": pl.BlockSpec((None, *left[::-1]), lambda e, j, i, k: (e, k, i)),
            "_n": pl.BlockSpec((None, *right), lambda e, j, i, k: (e, k, j)),
            "_t": pl.BlockSpec((None, *right[::-1]), lambda e, j, i, k: (e, j, k)),
        }
        block = (tiles.rows, tiles.columns)
        result = pl.BlockSpec((None, *block), lambda e, j, i, k: (e, i, j))
        row = pl.BlockSpec((None, 1, tiles.columns), lambda e, j, i, k: (e, 0, j))
        transposed = self.form[1] == "t"
        scratch = []
        if rounds:
            shape = right[::-1] if transposed else right
            scratch += [pltpu.VMEM(shape, lefts[0].dtype)] * len(rights)
        if steps > 1:
            scratch += [pltpu.VMEM(block, jnp.float32)] * len(self.sums)
        shape = (lefts[0].shape[0], sizes.rows, sizes.columns)
        return pl.pallas_call(
            self.body(tiles, steps, (len(lefts), len(rights), len(over), len(across)), rounds),
            grid=(
                shape[0],
                sizes.columns // tiles.columns,
                sizes.rows // tiles.rows,
                steps,
            ),
            in_specs=[
                *[specs[self.form[0] + "_"]] * len(lefts),
                *[specs["_" + self.form[1]]] * len(rights),
                *[result] * len(over),
                *[row] * len(across),
            ],
            out_specs=[result] * len(self.outputs),
            out_shape=[jax.ShapeDtypeStruct(shape, kind) for kind in self.outputs],
            scratch_shapes=scratch,
            input_output_aliases={len(lefts) + len(rights) + n: n for n in range(self.replaces)},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=int(memory / _SHARE * 0.9),
            ),
            cost_estimate=self.cost(sizes, tiles, shape, over),
            interpret=interpret,
        )(*lefts, *rights, *over, *(scale[:, None] for scale in across))

    def cost(
        self, sizes: _Sizes, tiles: Tiles, shape: tuple[int, ...], over: Sequence[jax.Array]
    ) -> Any:
        """What the scheduler of the compiler is told, without which it takes a kernel to cost
        nothing and lets nothing travel meanwhile.
        """
        from jax.experimental import pallas as pl

        pairs = sum(len(pairs) for pairs in self.sums)
        area = math.prod(shape[1:])
        return pl.CostEstimate(
            flops=2 * pairs * shape[0] * area * sizes.depth,
            transcendentals=shape[0] * area if over else 0,
            bytes_accessed=shape[0] * (sizes.traffic(tiles) + area * sizes.results),
        )


def _convert(stored, same) -> None:
    """Writes a block [.., ..] of weights in the type of the tokens; whole numbers a part at a time,
    since the code that unpacks them grows with it.
    """
    from jax.experimental import pallas as pl

    if jnp.issubdtype(stored.dtype, jnp.floating):
        same[...] = stored[...].astype(same.dtype)
        return
    rows = stored.shape[0]
    part = _parts(rows, _LANES, _CHUNK)[-1]

    def one_part(i, _):
        at = pl.ds(pl.multiple_of(i * part, part), part)
        same[at, :] = stored[at, :].astype(same.dtype)

    lax.fori_loop(0, rows // part, one_part, None)


def _add_up(parts, sums, step: jax.Array, last: jax.Array, at, write: Callable) -> None:
    """Adds the sums of one step over the depth to those before it; the last one writes them."""
    from jax.experimental import pallas as pl

    @pl.when(step == 0)
    def _():
        for ref, value in zip(parts, sums, strict=True):
            ref[at, :] = value

    @pl.when(step > 0)
    def _():
        for ref, value in zip(parts, sums, strict=True):
            ref[at, :] += value

    @pl.when(last)
    def _():
        write([ref[at, :] for ref in parts])


def fits(x: jax.Array, weights: Weights) -> bool:
    """Whether `tiled` computes these: bfloat16 tokens, no bias, and sizes that tiles divide.

    Args:
      x: [E, N, D].
      weights: of the experts, see `tiled`.
    """
    tokens, width = x.shape[1:]
    hidden_width = weights["up"].shape[-1]
    if x.dtype != jnp.bfloat16 or "bias" in weights or 0 in x.shape:
        return False
    return tokens % _SUBLANES == 0 and width % _LANES == 0 and hidden_width % _LANES == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def tiled(
    x: jax.Array, weights: Weights, hidden_scale: jax.Array | None, interpret: bool = False
) -> jax.Array:
    """Every expert on its own tokens, as `moe.kernels.batched.batched` without a bias.

    Args:
      x: bfloat16 [E, N, D]; see `fits`.
      weights: bfloat16, or float32: they are then rounded to the type of x in the kernels, and
        their gradients are not; or int8 with scales (`moe.kernels.int8`), without gradients.
      hidden_scale: [E, N, F] factor of the hidden vectors (dropout), or None.
      interpret: run the kernels step by step on any backend, for tests.

    Returns:
      [E, N, D] in the type of x; with F split over devices, the part that this one contributes.
    """
    return _forward(x, weights, hidden_scale, interpret, kept=False)[0]


def _projections(weights: Weights) -> list[str]:
    return [name for name in ("gate", "up") if name in weights]


def _scales(weights: Weights, names: Sequence[str]) -> list[jax.Array]:
    """float32 [E, columns] of each of these matrices; none where they are no whole numbers."""
    return [weights[scale_of(name)] for name in names if scale_of(name) in weights]


def _times(values: Sequence[jax.Array], scales: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return [v * s for v, s in zip(values, scales, strict=True)] if scales else values


def _dropped(names: Sequence[str], values: Sequence[jax.Array], scale: Sequence[jax.Array]):
    """The hidden vectors from float32 projections, in float32."""
    h = hidden(dict(zip(names, values, strict=True)), None, "none")
    return h * scale[0].astype(h.dtype) if scale else h


def _forward(x, weights, hidden_scale, interpret, kept=True):
    names, count = _projections(weights), len(_projections(weights))
    over = [] if hidden_scale is None else [hidden_scale]

    def project(*values):
        sums, above, scales = _apart(values, count, len(over))
        sums = _times(sums, scales)
        h = _dropped(names, sums, above)
        return (*sums, h) if kept else (h,)

    into = _Kernel(
        form="nn",
        sums=tuple(((0, i),) for i in range(count)),
        finish=project,
        outputs=(x.dtype,) * (count * kept + 1),
    )
    matrices = [weights[name] for name in names]
    *projected, h = into([x], matrices, over, _scales(weights, names), interpret=interpret)
    down = _Kernel("nn", (((0, 0),),), lambda y, *s: _times([y], s), (x.dtype,))
    (y,) = down([h], [weights["down"]], (), _scales(weights, ["down"]), interpret=interpret)
    projected = [keep(PRODUCT, value) for value in projected]
    return y, (x, projected, weights, hidden_scale)


def _backward(interpret, residuals, dy):
    x, projected, weights, hidden_scale = residuals
    names, count = _projections(weights), len(_projections(weights))
    over = [] if hidden_scale is None else [hidden_scale]

    def pull_back(dh, *values):
        values, above, scales = _apart(values, count, len(over))
        values = [v.astype(jnp.float32) for v in values]
        h, pull = jax.vjp(lambda *values: _dropped(names, values, above), *values)
        return (*_times(pull(dh), scales), h)

    if scales := _scales(weights, ["down"]):
        dy = (dy.astype(jnp.float32) * scales[0][:, None]).astype(dy.dtype)
    out = _Kernel("nt", (((0, 0),),), pull_back, (x.dtype,) * (count + 1), replaces=count)
    *dprojected, h = out(
        *([dy], [weights["down"]], [*projected, *over], _scales(weights, names)),
        interpret=interpret,
    )
    pairs = tuple((i, i) for i in range(count))
    back = _Kernel("nt", (pairs,), lambda dx: (dx,), (x.dtype,))
    (dx,) = back(dprojected, [weights[name] for name in names], interpret=interpret)

    if scales:
        return dx, None, None

    def gradient(right: Sequence[jax.Array], kinds: Sequence[jnp.dtype]) -> _Kernel:
        sums = tuple(((0, i),) for i in range(len(right)))
        return _Kernel("tn", sums, lambda *sums: sums, tuple(kinds))

    kinds = [weights[name].dtype for name in names]
    into = gradient(dprojected, kinds)([x], dprojected, interpret=interpret)
    (down,) = gradient([dy], [weights["down"].dtype])([h], [dy], interpret=interpret)
    # In a loop over layers XLA would write them into the stack of all gradients from within the
    # kernels, in a fusion that has not the memory that the kernels ask for (libtpu 0.0.42).
    into, down = lax.optimization_barrier((into, down))
    return dx, dict(zip((*names, "down"), (*into, down), strict=True)), None


def _apart(values: Sequence[jax.Array], count: int, over: int) -> Any:
    """Results or projections, what lies over them, and what lies across them."""
    return values[:count], values[count : count + over], values[count + over :]


tiled.defvjp(_forward, _backward)
