"""A file of mixed lengths: rows that take the next line, against batches in file order.

The peer is how `launch.predict` worked before: batches of lines as they stand in the file, inputs
padded to data.encoder_length, each batch decoded until its longest answer has ended. It is kept
here alone. Both sides decode the same model token by token with the same program.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from typing import Any

from benchmarks.harness import goals, timing
from benchmarks.harness.goals import Goal

GOAL = 0.5
WORDS = 20  # that are drawn from: answers have so many on average, where none is cut
SIZES = {"d_model": 256, "d_ff": 512, "num_heads": 4, "head_dim": 64, "vocab_size": 4096}


def make(encoder: int, decoder: int, rows: int, **model: Any) -> tuple[Any, dict[str, Any]]:
    """(plan, weights) of a model whose answers have many lengths: the weights are random, and words
    are drawn at a temperature that makes all of them, the end among them, about as likely.
    """
    import jax
    import numpy as np

    from moe import plan as plan_lib
    from moe.config import default_config
    from trainlib.sharding.mesh import make_mesh

    config = default_config("t5_1_1_small")
    config.model.update({**SIZES, "encoder_blocks": 4, "decoder_blocks": 4, "dtype": "float32"})
    config.model.update(model)
    config.data.update(source="sample:copa", vocabulary="bytes")
    config.data.update(encoder_length=encoder, decoder_length=decoder)
    config.decoding.update(method="sample", temperature=4.0)
    config.update(task="finetune", batch_size=rows, eval_batch_size=rows)
    plan = plan_lib.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    rng, weights = np.random.default_rng(0), {}
    for name, spec in sorted(plan.abstract.params.items()):
        values = rng.normal(size=spec.shape, scale=max(spec.shape[-2:-1] or (1,)) ** -0.5)
        if name.endswith("attention.query"):  # T5 does not scale logits
            values *= config.model.head_dim**-0.5
        if spec.axes[-1] == "norm":
            values = np.ones(spec.shape)
        weights[name] = jax.device_put(values.astype(np.float32), plan.shardings.params[name])
    return plan, weights


def lines(count: int, longest: int, size: int) -> list[Any]:
    """Questions of 8 tokens to more than `longest`, most of them short."""
    import numpy as np

    from moe.decoding.waiting import Question

    rng = np.random.default_rng(1)
    lengths = np.exp(rng.uniform(np.log(8), np.log(1.1 * longest), count)).astype(int)
    return [
        Question(rng.integers(3, size, length).astype(np.int32), number)
        for number, length in enumerate(lengths)
    ]


def in_file_order(plan: Any, weights: Any, answerer: Any) -> Callable[[list], list[dict]]:
    """The peer: questions -> what is found for each."""
    import itertools

    import jax
    import numpy as np

    from moe.decoding.model import make_generate
    from moe.decoding.waiting import padded_inputs
    from trainlib.step import step

    size = answerer.batch_size
    settings = answerer.options, answerer.longest, answerer.vocabulary.size
    search = step.compile_eval(make_generate(plan.model, *settings), plan)

    def run(questions: list) -> list[dict]:
        found = []
        for start in range(0, len(questions), size):
            part = questions[start : start + size]
            batch = list(itertools.islice(itertools.cycle(part), size))
            numbers = np.asarray([question.number for question in batch], np.int32)
            inputs = {**padded_inputs(batch, answerer.length), "number": numbers}
            put = step.put_batch(inputs, plan.batch_sharding)
            result = jax.device_get(search(weights, {}, put))
            found += [{n: x[row] for n, x in result.items()} for row in range(len(part))]
        return found

    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16, help="the batch of both sides")
    parser.add_argument("--encoder", type=int, default=256, help="tokens of the longest input")
    parser.add_argument("--decoder", type=int, default=64, help="tokens of the longest answer")
    parser.add_argument("--blocks", type=int, default=4, help="of each stack")
    args = parser.parse_args(argv)
    timing.pin_one_thread()

    import numpy as np

    from moe.decoding.answer import Answerer
    from moe.decoding.waiting import in_order

    print(timing.header())
    blocks = {"encoder_blocks": args.blocks, "decoder_blocks": args.blocks}
    plan, weights = make(args.encoder, args.decoder, args.rows, **blocks)
    words: Any = types.SimpleNamespace(size=WORDS)
    answerer = Answerer(plan, words)
    questions = lines(args.lines, args.encoder, plan.model.vocab_size)
    before = in_file_order(plan, weights, answerer)

    def now(questions: list) -> list[dict]:
        return list(in_order(answerer.results(weights, questions)))

    expected, found = before(questions), now(questions)
    words = np.stack([one["words"] for one in expected])
    if not np.array_equal(words, np.stack([one["words"].reshape(-1) for one in found])):
        sys.exit("The two sides give other words.")
    apart = max(
        float(np.abs(one["score"] - other["score"]).max())
        for one, other in zip(expected, found, strict=True)
    )
    tokens = (words != 0).sum(axis=1)
    asked = np.asarray([len(question.ids) + 1 for question in questions])
    for what, sizes in (("inputs", asked), ("answers", tokens)):
        quarters = " ".join(f"{n:.0f}" for n in np.percentile(sizes, (0, 25, 50, 75, 100)))
        print(f"{what:8} {sizes.mean():.1f} tokens on average, quartiles {quarters}")
    print(f"words    equal; scores at most {apart:.2g} apart")
    times = timing.fastest(
        {"rows": lambda: now(questions), "file order": lambda: before(questions)}, args.rounds
    )
    for name, time in times.items():
        print(f"{name:10} {1e3 * tokens.sum() / time:8.1f} tokens/s")
    title = f"{args.lines} lines, {args.rows} at once, {tokens.sum():,} tokens"
    return goals.report(title, times, [Goal("rows", "file order", GOAL)])


if __name__ == "__main__":
    sys.exit(main())
