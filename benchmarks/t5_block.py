"""The dense parts of a T5 model against the textbook form, by the TPU compiler's account:
`python -m benchmarks.t5_block [--target v5e-1 ...] [--size base ...] [--part norm ...]`.

Forward and backward pass of each part, ours and that of `benchmarks.harness.textbook_t5`, compiled
for one chip in one process. Nothing is executed: times are the compiler's estimates, where it makes
none a bound by bytes. Prints milliseconds, gigabytes through HBM and mebibytes of temporaries of
both, and the ratios ours / textbook.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import textbook_t5 as textbook
from moe.kernels.buckets import BUCKETS
from moe.layers.attention_bias import AttentionBias, RelativeBias
from moe.layers.embed import Embedding, Output
from moe.layers.ffn import FeedForward
from moe.layers.norm import RMSNorm
from moe.layers.token_loss import token_loss
from moe.models.architecture import Architecture
from moe.models.block import Block, Context
from trainlib.model.weights import abstract
from trainlib.planning.ledger import ledger_of
from trainlib.planning.ledger.ledger import compiler_version
from trainlib.sharding.constrain import lowered_for

Size = dict[str, Any]
SIZES: dict[str, Size] = {
    "base": {"d_model": 768, "d_ff": 2048, "num_heads": 12, "head_dim": 64},
    "large": {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "head_dim": 64},
}
WORDS, ENCODER, DECODER = 32128, 512, 114
SEQUENCES = 128  # a batch of 2,048 on 16 chips, as configs/st_moe_base.py has it


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of `shapes`, to be compiled: its value, and gradients of weights and inputs."""

    function: Callable[..., Any]
    shapes: tuple[Any, ...]


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """An argument of a program."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def tokens(*sizes: int) -> jax.ShapeDtypeStruct:
    """int32, for words and segments."""
    return shape(*sizes, dtype=jnp.int32)


def program(forward: Callable[..., Any], weights: Any, inputs: tuple, fixed: tuple = ()) -> Program:
    """`forward(weights, inputs, fixed)` and the gradients of weights and inputs for a cotangent."""

    def run(weights: Any, inputs: Any, fixed: Any, cotangent: Any) -> Any:
        with lowered_for("tpu"):
            value, pull = jax.vjp(lambda *a: forward(*a, fixed), weights, inputs)
            # As in a network, where the cotangent comes after the value.
            value, cotangent = jax.lax.optimization_barrier((value, cotangent))
            return value, pull(cotangent)

    value = jax.eval_shape(forward, weights, inputs, fixed)
    return Program(run, (weights, inputs, fixed, value))


def of_ours(module: Any, call: Callable[..., Any], inputs: tuple, fixed: tuple = ()) -> Program:
    """`call(module, *inputs, *fixed)` of a module of ours."""
    spec = abstract(module)
    weights = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}

    def forward(weights: Any, inputs: tuple, fixed: tuple) -> Any:
        return call(spec.bind(weights, {}), *inputs, *fixed)

    return program(forward, weights, inputs, fixed)


def of_textbook(module: Any, inputs: tuple, fixed: tuple = ()) -> Program:
    """`module(*inputs, *fixed)` of a module of flax.linen."""
    weights = jax.eval_shape(module.init, jax.random.key(0), *inputs, *fixed)
    return program(
        lambda w, inputs, fixed: module.apply(w, *inputs, *fixed), weights, inputs, fixed
    )


Pair = tuple[Program, Program]  # ours, the textbook's


def norm(size: Size, sequences: int) -> Pair:
    """RMSNorm of the encoder's stream."""
    x = (shape(sequences, ENCODER, size["d_model"]),)
    module = RMSNorm(size["d_model"])
    return of_ours(module, lambda m, x: m(x), x), of_textbook(textbook.LayerNorm(), x)


def ffn(size: Size, sequences: int) -> Pair:
    """GEGLU."""
    x = (shape(sequences, ENCODER, size["d_model"]),)
    module = FeedForward(size["d_model"], size["d_ff"])
    return of_ours(module, lambda m, x: m(x), x), of_textbook(textbook.MlpBlock(size["d_ff"]), x)


def encoder(size: Size, sequences: int) -> Pair:
    """A dense block of an encoder; the textbook's is given the bias, ours its table."""
    x, table = shape(sequences, ENCODER, size["d_model"]), _table(size)
    bias = (1, size["num_heads"], ENCODER, ENCODER)
    segments = (tokens(sequences, ENCODER),)

    def call(block: Block, x: Any, table: Any, segments: Any) -> Any:
        bias = AttentionBias(table, segments, segments)
        return block(x, Context(bias, segments > 0), train=True)[0]

    module = Block(Architecture(**size))
    mine = of_ours(module, call, (x, table), segments)
    return mine, of_textbook(textbook.EncoderBlock(**_sizes(size)), (x, shape(*bias)), segments)


def decoder(size: Size, sequences: int) -> Pair:
    """A dense block of a decoder."""
    x, y = (shape(sequences, length, size["d_model"]) for length in (DECODER, ENCODER))
    bias = (1, size["num_heads"], DECODER, DECODER)
    segments = tokens(sequences, DECODER), tokens(sequences, ENCODER)

    def call(block: Block, x: Any, source: Any, table: Any, own: Any, others: Any) -> Any:
        bias = AttentionBias(table, own, own, bidirectional=False, causal=True)
        source_bias = AttentionBias(None, own, others)
        return block(x, Context(bias, own > 0, source, source_bias), train=True)[0]

    module = Block(Architecture(**size), causal=True, cross=True)
    mine = of_ours(module, call, (x, y, _table(size)), segments)
    peer = textbook.DecoderBlock(**_sizes(size))
    return mine, of_textbook(peer, (x, y, shape(*bias)), segments)


def _table(size: Size) -> jax.ShapeDtypeStruct:
    return shape(BUCKETS, size["num_heads"], dtype=jnp.float32)


def _sizes(size: Size) -> Size:
    return {name: size[name] for name in ("num_heads", "head_dim", "d_ff")}


def bias(size: Size, sequences: int) -> Pair:
    """The relative bias of an encoder from its table."""
    module = RelativeBias(size["num_heads"], bidirectional=True)
    mine = of_ours(module, lambda m: m(ENCODER, ENCODER), ())
    peer = textbook.RelativePositionBiases(size["num_heads"], bidirectional=True)
    weights = jax.eval_shape(lambda key: peer.init(key, ENCODER, ENCODER), jax.random.key(0))
    return mine, program(lambda w, i, f: peer.apply(w, ENCODER, ENCODER), weights, ())


def embedding(size: Size, sequences: int) -> Pair:
    """Words to vectors, against a product with a one-hot matrix (T5X's setting)."""
    return _embedding(size, sequences, True)


def embedding_take(size: Size, sequences: int) -> Pair:
    """Words to vectors, against indexing."""
    return _embedding(size, sequences, False)


def _embedding(size: Size, sequences: int, one_hot: bool) -> Pair:
    words = (tokens(sequences, ENCODER),)
    module = Embedding(WORDS, size["d_model"])
    mine = of_ours(module, lambda m, words: m(words, jnp.bfloat16), (), words)
    return mine, of_textbook(textbook.Embed(WORDS, size["d_model"], one_hot), (), words)


def loss(size: Size, sequences: int) -> Pair:
    """Logits of 32,128 words, cross-entropy with z-loss, accuracy."""
    x = (shape(sequences, DECODER, size["d_model"]),)
    fixed = tokens(sequences, DECODER), shape(sequences, DECODER, dtype=jnp.float32)

    def call(output: Output, x: Any, targets: Any, weights: Any) -> Any:
        shares = weights / jnp.sum(weights)
        mean, values = token_loss(x, output.kernel, targets, shares, z_loss=1e-4)
        return mean, jnp.sum(weights * values.right)

    module = Output(size["d_model"], WORDS)
    return of_ours(module, call, x, fixed), of_textbook(textbook.Loss(WORDS), x, fixed)


PARTS: dict[str, Callable[[Size, int], Pair]] = {
    part.__name__: part
    for part in (norm, ffn, encoder, decoder, bias, embedding, embedding_take, loss)
}
COLUMNS = ("ms", "GB of HBM", "MiB temporary")


def figures(program: Program, target: str) -> tuple[tuple[float, ...], str]:
    """Predicted milliseconds, gigabytes through HBM and mebibytes of temporaries of a program, and
    which operations in it are bounded by bytes.
    """
    ledger = ledger_of(program.function, *program.shapes, target=target)
    uncounted = sorted({one.kind for one in ledger.uncounted})
    numbers = (
        1e3 * ledger.schedule.seconds,
        ledger.hbm_bytes / 1e9,
        ledger.temporaries / 2**20,
    )
    return numbers, ", ".join(uncounted)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", nargs="*", default=["v5e-1", "v6e-1"])
    parser.add_argument("--size", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    print(f"libtpu {compiler_version()}; ours / textbook = ratio")
    print("part | size | chip | " + " | ".join(COLUMNS) + " | bounded by bytes")
    for part in arguments.part:
        for size in arguments.size:
            pair = PARTS[part](SIZES[size], SEQUENCES)
            for target in arguments.target:
                (mine, bounded), (peer, _) = (figures(one, target) for one in pair)
                cells = [
                    f"{a:.3f} / {b:.3f} = {a / b:.3f}" if b else f"{a:.3f} / {b:.3f}"
                    for a, b in zip(mine, peer, strict=True)
                ]
                print(" | ".join((part, size, target, *cells, bounded)), flush=True)


if __name__ == "__main__":
    main()
