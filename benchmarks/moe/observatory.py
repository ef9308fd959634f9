"""What watching the routers costs of a train step: `python -m benchmarks.moe.observatory`.

On this CPU: the step of `st_moe_tiny` with `router.log_every=10`, the default, and with 0, which
measures no router, in pairs; and what the host does beside each step, over 100 steps and so ten
samples. With `--target=v5p-1024` the step of `--config` (st_moe_32b) is compiled for that target
both ways (extra aot), and its predicted times are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import timing

STEPS = 100  # of the host's part


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", help="predict for this target in place of measuring")
    parser.add_argument("--config", default="st_moe_32b", help="what is predicted")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each step (%(default)s)")
    args = parser.parse_args()
    if args.target:
        predict(args.config, args.target)
    else:
        measure(args.rounds)


def measure(rounds: int) -> None:
    """CPU time of a step with and without, and of the host beside it."""
    timing.pin_one_thread()
    import configs
    from benchmarks.peers.language_step import Ours, batch_of

    print(timing.header())
    made: dict[int, Any] = {}
    for every in (0, 10):
        config = configs.load("st_moe_tiny", router={"log_every": every})
        data = config.data
        sizes = {"batch": config.batch_size, "encoder": data.encoder_length}
        made[every] = Ours(config, batch_of(sizes | {"decoder": data.decoder_length}))
    best = timing.fastest({str(every): step for every, step in made.items()}, rounds)
    without, watched = best["0"], best["10"]
    print(f"step     {without:.1f} ms without, {watched:.1f} ms with: {_change(without, watched)}")
    host = {every: _host(step, every) for every, step in made.items()}
    share = (host[10] - host[0]) / without
    print(
        f"host     {host[0]:.3f} ms a step without, {host[10]:.3f} ms with: "
        f"{100 * share:+.2f} % of a step"
    )


def _host(step: Any, every: int) -> float:
    """CPU milliseconds of what the loop does beside a step, a mean over many: values, records,
    samples.
    """
    from moe.observatory import watch
    from moe.train import step_values
    from trainlib.run.metric_writers import Writers

    plan = step.plan
    step.state, sums = step.step(step.state, step.batch)
    with tempfile.TemporaryDirectory() as folder:
        look = watch.routers(plan.config, plan.model, Path(folder), 0)
        writers = Writers(folder)
        start = time.process_time()
        for number in range(1, STEPS + 1):
            values = step_values(plan.model, sums)
            writers.write(number, "train", values)
            for note in look(number, values):
                writers.write(number, note.kind, note.values)
        spent = time.process_time() - start
        writers.close()
    return 1e3 * spent / STEPS


def predict(name: str, target: str) -> None:
    """The predicted step with and without."""
    import configs
    from launch.planning import plans

    seconds = {}
    for every in (0, 10):
        config = configs.load(name, router={"log_every": every})
        report = plans.compiled_report(*plans.planned(config, target))
        seconds[every] = report["step_time"]["seconds"]
        print(
            f"{name} on {target}, router.log_every={every}: {1e3 * seconds[every]:.2f} ms",
            flush=True,
        )
    print(f"step     {_change(seconds[0], seconds[10])}")


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.2f} %"


if __name__ == "__main__":
    main()
