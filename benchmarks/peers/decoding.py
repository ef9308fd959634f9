"""Decoding of T5 v1.1 small: greedy, beams and candidates, against `transformers`.

Letters: B sequences, K tokens of the encoder, C candidates, L tokens of a candidate.

Both sides hold the same random weights in float32. Answers are as long as they may be, for EOS is
never likely. The same words must come out of both before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.harness import goals, timing

MOST = 0.85
AIM = {"greedy, batch 8": 0.70}
_SMALLER = {"greedy, batch 1": 0.55}


def cases(tiny: bool, length: int) -> dict[str, tuple[Callable, Callable]]:
    """Name -> (ours, theirs), each a call that returns words, or scores of candidates."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import moe
    from benchmarks.harness import t5_pair
    from moe.decoding.model import make_score
    from moe.models import architecture

    sizes = t5_pair.TINY if tiny else t5_pair.SMALL
    both = t5_pair.pair(sizes)
    found: dict[str, tuple[Callable, Callable]] = {}
    for beams in (1, 4):
        for batch in (8, 1):
            words = t5_pair.inputs(sizes, batch, 64)
            # Ranks of `transformers`; with one beam nothing is ranked.
            rule = {"num_beams": beams, "beam_rule": "transformers", "alpha": 1.0}

            def ours(words=words, rule=rule if beams > 1 else {}):
                return np.asarray(moe.generate(both.ours, words, max_length=length, **rule).tokens)  # pyright: ignore[reportArgumentType]

            def theirs(words=words, beams=beams):
                return both.generate(words, length, num_beams=beams)

            name = "greedy" if beams == 1 else f"beam {beams}"
            found[f"{name}, batch {batch}"] = ours, theirs
    words = t5_pair.inputs(sizes, 8, 64)
    random = np.random.default_rng(2)
    candidates = random.integers(2, sizes["vocab_size"], (8, 4, 8), dtype=np.int32)
    routing = both.config.routing if "routing" in both.config else {"num_experts": 0}
    score = jax.jit(make_score(architecture(both.config.model, routing)))
    batch = {
        "encoder_inputs": jnp.asarray(words),
        "encoder_segments": jnp.ones_like(words),
        "candidates": jnp.asarray(candidates),
    }
    found["4 candidates of 8 words, batch 8"] = (
        lambda: np.asarray(score(both.params, {}, batch)),
        lambda: both.scores(words, candidates),
    )
    return found


def check(name: str, ours: Callable, theirs: Callable) -> None:
    """Stops the row unless both find the same words, or scores within 1e-3 of about -100."""
    import numpy as np

    found, expected = ours(), theirs()
    same = (
        np.array_equal(found, expected)
        if np.issubdtype(found.dtype, np.integer)
        else np.allclose(found, expected, atol=1e-3)
    )
    if not same:
        sys.exit(f"{name}: ours and transformers differ\n{found}\n{expected}")


def main() -> int:
    """Prints the row; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=64, help="words of an answer")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, for tests")
    options = parser.parse_args()
    timing.need_peers("torch", "transformers")
    timing.pin_one_thread()
    print(timing.header(("jax", "jaxlib", "torch", "transformers")))
    candidates, limits = {}, []
    for name, (ours, theirs) in cases(options.tiny, options.length).items():
        if options.only in name:
            check(name, ours, theirs)
            candidates |= {f"ours, {name}": ours, f"transformers, {name}": theirs}
            most = _SMALLER.get(name, MOST)
            limits.append(goals.Goal(f"ours, {name}", f"transformers, {name}", most, AIM.get(name)))
    title = f"T5 v1.1 {'tiny' if options.tiny else 'small'}, 64 in, {options.length} out, float32"
    return goals.report(title, timing.fastest(candidates, options.rounds), limits)


if __name__ == "__main__":
    sys.exit(main())
