"""Evaluates a checkpoint, or an export, over the full split: `python -m launch.evaluate
--workdir=DIR`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from configs.common import load
from launch import cli, families
from trainlib import compile_cache


def main(argv: Sequence[str]) -> int:
    """Parses the command line and evaluates a checkpoint with the configuration of its run."""
    parser = cli.command_parser("evaluate", "Evaluate a checkpoint on the full evaluation split.")
    cli.add_path(
        parser, "--workdir", metavar="DIR", help="directory of the training, or of an export"
    )
    parser.add_argument("--step", type=cli.step, help=cli.STEP_HELP)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    cli.add_path(
        parser,
        "--write_predictions",
        metavar="DIR",
        help="of a detector: where its detections, figures and curves go, instead of --workdir; "
        "after fine-tuning: write the answers to all tasks, as leader boards take them",
    )
    args, overrides = cli.parse(parser, argv)
    if args.workdir is None:
        parser.error("--workdir is missing: the directory of a training run")
    config = load.of_workdir(args.workdir, overrides)
    step = cli.chosen_step(args.step, config, args.workdir)
    compile_cache.enable(args.compile_cache)
    evaluate = families.of(config).evaluate
    result = evaluate.run(config, args.workdir, step, args.write_predictions)
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
