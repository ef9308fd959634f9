"""Programs that decode several answers side by side, each row at a place of its own.

Letters: R rows, G inputs that are encoded at once, M rows that begin at once, K tokens of an input,
L most tokens of an answer, P parts into which a mesh cuts the rows.

`begin` encodes inputs and puts them into rows, `proceed` decodes some words of all rows, `pad`
changes K. Nothing of a row travels to another device: the inputs that begin in a part of the rows
are encoded with that part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.decoding.model import Decoding, choice_of, decoding_model, words_between
from moe.decoding.search import next_word
from moe.models.architecture import Architecture
from moe.text.vocabulary import EOS, PAD
from trainlib.model.weights import Arrays
from trainlib.sharding.compiler import options as compiler_options
from trainlib.sharding.constrain import activate
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.rules import mesh_axes
from trainlib.step.plan import Plan
from trainlib.step.step import put_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What the rows hold; every leaf has the axis R first.

    Attributes:
      cache: of the decoder.
      segments: int32 [R, K], 0 at padding of the input.
      number: int32 [R, 2], what draws follow from: the number of the question, that of the draw.
      words: int32 [R, L], the answer so far, then padding.
      position: int32 [R], how many words that is.
      ended: bool [R]; nothing is decoded here.
      score: float32 [R], log-probability of the words.
    """

    cache: Any
    segments: jax.Array
    number: jax.Array
    words: jax.Array
    position: jax.Array
    ended: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs, of any K; rows that are given are used up,
    but by `pad`.

    Attributes:
      rows: R.
      starts: M.
      inputs: G; the draws of one question are encoded once, if they begin together.
      parts: P.
      empty: K -> rows that have all ended.
      begin: (weights, rows, {"encoder_inputs" [G, K], "encoder_segments" [G, K], "row" [M],
        "input" [M], "number" [M, 2]}) -> rows. `row` and `input` count inside of a part; a row of
        R / P: there is none.
      proceed: (weights, rows, enough) -> (rows, {"ended", "words", "score", "steps"}); it returns
        when so many rows have ended, and after `_MOST_STEPS` steps.
      pad: (rows, K) -> rows.
    """

    rows: int
    starts: int
    inputs: int
    parts: int
    empty: Callable[[int], Rows]
    begin: Callable[[Arrays, Rows, dict[str, jax.Array]], Rows]
    proceed: Callable[[Arrays, Rows, int], tuple[Rows, dict[str, jax.Array]]]
    pad: Callable[[Rows, int], Rows]


_MOST_STEPS = 64  # words after which the host is asked whether to go on


def make_programs(
    plan: Plan[Architecture],
    model_of: Callable[[int], Architecture],
    options: Decoding,
    length: int,
    words: int,
    rows: int,
) -> Programs:
    """Compiles nothing yet.

    Args:
      plan: of the run.
      model_of: K -> the architecture, whose weights are the same.
      options: how to decode, "greedy" or "sample".
      length: L.
      words: size of the vocabulary.
      rows: R, a multiple of the parts of the batch.
    """
    mesh, rules = plan.mesh, plan.rules
    sizes = [math.prod(mesh.shape[axis] for axis in mesh_axes(rules[n])) for n in _BATCHES]
    devices, parts = sizes
    starts = -(-max(1, rows // _SHARE) // devices) * devices  # M
    copies = options.num_return_sequences
    per_part = -(-(starts // parts - 1) // copies) + 1
    inputs = min(starts, -(-per_part * parts // devices) * devices)  # G
    allowed = words_between(words, options.min_length)
    whole = NamedSharding(mesh, P())

    def rows_at(size: int) -> Rows:
        """Shapes of the rows for inputs of K tokens."""
        abstract = decoding_model(model_of(size))

        def cache(weights: Arrays) -> Any:
            config = plan.model
            encoded = jnp.zeros((rows, size, config.d_model), config.dtype)
            return abstract.bind(weights, {}).init_cache(rows, length, encoded)

        specs = {**abstract.params, **abstract.model_state}
        weights = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in specs.items()}
        row = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        shapes: dict[str, Any] = {
            "cache": jax.eval_shape(cache, weights),
            "segments": row((rows, size)),
            "number": row((rows, 2)),
            "words": row((rows, length)),
            "position": row((rows,)),
            "ended": jax.ShapeDtypeStruct((rows,), jnp.bool_),
            "score": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }
        return Rows(**shapes)

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        """Where a leaf of `Rows` lies: those of the cache as `Block.init_cache` puts them."""
        split = [mesh_axes(rules[name]) or None for name in ("layer_batch", "head")]
        return NamedSharding(mesh, P(*split) if leaf.ndim == 4 else P(split[0]))

    placed = jax.tree.map(place, rows_at(_ANY))

    def on_mesh(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with activate(mesh, rules), use_kernels(plan.config.kernels):
                return function(*args)

        return run

    compiled = functools.partial(jax.jit, compiler_options=compiler_options(mesh))

    @functools.partial(compiled, static_argnums=0, out_shardings=placed)
    def empty(size: int) -> Rows:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rows_at(size))
        return dataclasses.replace(zeros, ended=jnp.ones(rows, bool))

    def begin(weights: Arrays, rows: Rows, batch: dict[str, jax.Array]) -> Rows:
        segments = batch["encoder_segments"]
        bound = decoding_model(model_of(segments.shape[1])).bind(weights, {})
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        count = len(batch["row"])
        put = functools.partial(_put, batch["row"], batch["input"], parts)
        here = functools.partial(_put, batch["row"], None, parts)
        return Rows(
            cache=jax.tree.map(put, rows.cache, bound.init_cache(len(segments), length, encoded)),
            segments=put(rows.segments, segments),
            number=here(rows.number, batch["number"]),
            words=here(rows.words, jnp.full((count, length), PAD, jnp.int32)),
            position=here(rows.position, jnp.zeros(count, jnp.int32)),
            ended=here(rows.ended, jnp.zeros(count, bool)),
            score=here(rows.score, jnp.zeros(count)),
        )

    def proceed(
        weights: Arrays, rows: Rows, enough: jax.Array
    ) -> tuple[Rows, dict[str, jax.Array]]:
        bound = decoding_model(model_of(rows.segments.shape[1])).bind(weights, {})
        decoder = bound.token_decoder(length)
        choose = choice_of(options, rows.number[:, 0], rows.number[:, 1])

        def step(state: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
            count, rows = state
            at = jnp.minimum(rows.position, length - 1)  # of rows that have ended: anything
            every = jnp.arange(len(at))
            last = jnp.where(rows.position > 0, rows.words[every, at - 1], PAD)
            logits, cache = decoder.step(last, rows.cache, at, rows.segments)
            word, gained = next_word(logits, at, choose, allowed)
            where = jnp.where(rows.ended, length, at)  # outside: it is not written
            position = rows.position + ~rows.ended
            return count + 1, dataclasses.replace(
                rows,
                cache=cache,
                words=rows.words.at[every, where].set(word, mode="drop"),
                position=position,
                score=rows.score + jnp.where(rows.ended, 0.0, gained),
                ended=rows.ended | (word == EOS) | (position == length),
            )

        def going(state: tuple[jax.Array, Rows]) -> jax.Array:
            return (state[0] < _MOST_STEPS) & (jnp.sum(state[1].ended) < enough)

        steps, rows = jax.lax.while_loop(going, step, (jnp.int32(0), rows))
        names = "ended", "words", "score"
        return rows, {"steps": steps} | {name: getattr(rows, name) for name in names}

    @functools.partial(compiled, static_argnums=1, in_shardings=(placed,), out_shardings=placed)
    def pad(rows: Rows, size: int) -> Rows:
        return jax.tree.map(_fitted, rows, rows_at(size))

    arguments = plan.weight_shardings, placed
    proceed_until = compiled(
        on_mesh(proceed),
        in_shardings=(*arguments, whole),
        out_shardings=(placed, whole),
        donate_argnums=1,
    )

    def proceed_on(weights: Arrays, rows: Rows, enough: int) -> tuple[Rows, dict[str, jax.Array]]:
        return proceed_until(weights, rows, put_batch({"": np.int32(enough)}, whole)[""])

    return Programs(
        rows=rows,
        starts=starts,
        inputs=inputs,
        parts=parts,
        empty=empty,
        begin=compiled(
            on_mesh(begin),
            in_shardings=(*arguments, plan.batch_sharding),
            out_shardings=placed,
            donate_argnums=1,
        ),
        proceed=proceed_on,
        pad=pad,
    )


_BATCHES = "batch", "layer_batch"  # the axes of inputs, and those of rows
_SHARE = 4  # of the rows, one in so many begins at once
_ANY = 8  # a number of tokens where it does not matter which


def _put(
    row: jax.Array, which: jax.Array | None, parts: int, old: jax.Array, new: jax.Array
) -> jax.Array:
    """[R, ..] with `new[which]` [M, ..], or `new`, in some rows."""

    def put(old: jax.Array, new: jax.Array, row: jax.Array, which: jax.Array | None) -> jax.Array:
        new = new if which is None else new[which]
        return old.at[row].set(new.astype(old.dtype), mode="drop")

    if parts == 1:
        return put(old, new, row, which)
    cut = functools.partial(jax.tree.map, lambda x: x.reshape(parts, -1, *x.shape[1:]))
    return jax.vmap(put)(*cut((old, new, row, which))).reshape(old.shape)


def _fitted(x: jax.Array, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """x of another shape: padded with zeros, or without what lies beyond."""
    x = x[tuple(slice(size) for size in shape.shape)]
    return jnp.pad(x, [(0, size - had) for size, had in zip(shape.shape, x.shape, strict=True)])
