"""One token of T5 v1.1 small through the decoder, against its bare matrix products.

Letters: B sequences, K length of the encoder's output, D model width.

Both are loops in one compiled program, so that each takes its weights from memory in every turn.
The products are those of a step with matrices of weights, in the order of the model; attention, the
search of the likeliest word, and the slices of the stacked weights, which are taken once before the
loop, belong to our side alone. The steps must find the words that the decoder finds for all tokens
at once before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.harness import goals, timing

MOST = 1.15
_BATCHES = (8, 1)
_MATRICES = [
    *(f"attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"cross_attention.{name}" for name in ("query", "out")),
    *(f"ffn.{name}" for name in ("gate", "up", "down")),
]


def main() -> int:
    """Prints the row; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="tokens of a turn")
    parser.add_argument("--size", default="t5_1_1_small", help="a name of moe.models.sizes")
    parser.add_argument("--cache", type=int, default=64, help="places of the cache, and K")
    options = parser.parse_args()
    timing.pin_one_thread()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moe.config import default_config
    from moe.decoding.model import decoding_model
    from moe.models import architecture

    print(timing.header())
    config = default_config(options.size)
    config.model.dtype, config.model.remat = "float32", "none"
    abstract = decoding_model(architecture(config.model, config.routing))
    params = _weights(abstract.params)
    candidates, limits = {}, []
    for batch in _BATCHES:
        length = options.cache
        segments = jnp.ones((batch, length), jnp.int32)
        words = jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length) % 90 + 5

        @jax.jit
        def begin(params, words=words, segments=segments):
            model = abstract.bind(params, {})
            encoded = model.encode(words, segments)[0]
            decoder = model.token_decoder(words.shape[1])
            return decoder.carried(decoder.init_cache(len(words), encoded))

        @jax.jit
        def ours(params, cache, words=words, segments=segments):
            decoder = abstract.bind(params, {}).token_decoder(words.shape[1])

            def body(position, state):
                word, cache, found = state
                logits, cache = decoder.step(word, cache, position, segments)
                word = jnp.argmax(logits, -1).astype(jnp.int32)
                return word, cache, found.at[position].set(word)

            found = jnp.zeros((options.steps, len(words)), jnp.int32)
            return jax.lax.fori_loop(0, options.steps, body, (words[:, 0], cache, found))[2]

        @jax.jit
        def at_once(params, taken, words=words, segments=segments):
            model = abstract.bind(params, {})
            encoded = model.encode(words, segments)[0]
            hidden = model.decode(taken, jnp.ones_like(taken), encoded, segments)[0]
            return jnp.argmax(model.logits(hidden), -1)

        cache = jax.block_until_ready(begin(params))
        found = np.asarray(ours(params, cache)).T  # [B, steps]
        taken = np.concatenate((words[:, :1], found[:, :-1]), axis=1)
        if not np.array_equal(found, at_once(params, taken)):
            sys.exit("The steps find other words than the decoder does for all tokens at once.")
        bare = _products(params, options.steps)
        x = jnp.ones((batch, config.model.d_model))
        candidates |= {
            f"step, batch {batch}": lambda ours=ours, cache=cache: jax.block_until_ready(
                ours(params, cache)
            ),
            f"its products, batch {batch}": lambda bare=bare, x=x: jax.block_until_ready(bare(x)),
        }
        limits.append(goals.Goal(f"step, batch {batch}", f"its products, batch {batch}", MOST))
    times = timing.fastest(candidates, options.rounds)
    times = {name: time / options.steps for name, time in times.items()}
    title = f"one token of {options.size}, {options.cache} places, float32"
    return goals.report(title, times, limits)


def _weights(specs: Any) -> Any:
    """Random matrices of the size that keeps activations as they are, ones for the norms."""
    import jax
    import jax.numpy as jnp

    found = {}
    for number, (name, spec) in enumerate(specs.items()):
        if "norm" in name:
            found[name] = jnp.ones(spec.shape)
        else:
            drawn = jax.random.normal(jax.random.key(number % 7), spec.shape)
            fan = spec.shape[-1 if "table" in name else -2]
            found[name] = drawn * fan**-0.5 * (0.125 if name.endswith("query") else 1)
    return found


def _products(params: Any, steps: int) -> Callable[[Any], Any]:
    """The loop of all products of a step; each hands on something, so that none is left out."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    stacks = params["decoder.dense.attention.query"].shape[:2]
    layers = [
        [params[f"decoder.dense.{name}"][index] for name in _MATRICES]
        for index in np.ndindex(*stacks)
    ]

    @jax.jit
    def run(x, layers, head):
        def body(_, x):
            for query, key, value, out, cross, cross_out, gate, up, down in layers:
                x = x + (x @ query + x @ key + x @ value) @ out
                x = x + (x @ cross) @ cross_out
                x = x + ((x @ gate) * (x @ up)) @ down
                x = x * 1e-1
            return x + jnp.max(x @ head, -1, keepdims=True) * 1e-6

        return jax.lax.fori_loop(0, steps, body, x)

    return lambda x: run(x, layers, params["output.kernel"])


if __name__ == "__main__":
    sys.exit(main())
