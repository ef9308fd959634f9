"""Analyses the routers of a sparse run: `python -m launch.analyse --workdir=DIR`.

Reads text once, records the experts of each token in each sparse layer, and writes a report: what
each expert takes, how sharply classes of words are routed against chance, what is dropped, and how
one row travels. `--input=FILE.jsonl` reads lines of text of your own instead of a split of the
run's data. Exit codes: 0 done, 64 bad argument, a dense model or one of images, 65 no text or
another vocabulary, 66 no such checkpoint, 70 router logits that are not finite, 74 the report
cannot be written.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Sequence

from configs.common import load
from launch import cli, families
from trainlib import compile_cache
from trainlib.errors import ConfigError, shown

SPLITS = ("holdout", "train")


def main(argv: Sequence[str]) -> int:
    """Parses the command line and analyses a checkpoint with the configuration of its run."""
    parser = cli.command_parser("analyse", "Say which tokens the experts of a run take.")
    cli.add_path(
        parser, "--workdir", metavar="DIR", help="directory of the training, or of an export"
    )
    parser.add_argument("--step", type=cli.step, help=cli.STEP_HELP)
    cli.add_path(
        parser,
        "--input",
        metavar="FILE.jsonl",
        help="text to read instead of a split: the field data.text_feature, or `inputs` and "
        "`targets`; `language` is optional",
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="what of the run's data is read; default: holdout"
    )
    cli.add_path(
        parser, "--out", metavar="DIR", help="where the report goes; default: WORKDIR/analysis"
    )
    parser.add_argument(
        "--tokens",
        type=_count,
        default=100_000,
        metavar="N",
        help="about how many tokens are read, of all stacks together; default: 100000, 0 is all",
    )
    parser.add_argument(
        "--row", type=_count, default=0, metavar="N", help="the row that sentence.png shows"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    args, overrides = cli.parse(parser, argv)
    if args.workdir is None:
        parser.error("--workdir is missing: the directory of a training run")
    if args.input is not None and args.split is not None:
        parser.error("--input and --split both say what is read: give one of them")
    config = load.of_workdir(args.workdir, overrides)
    analyse = families.of(config).analyse
    if analyse is None:
        raise ConfigError(
            f"{shown(args.workdir)} holds a run on images, whose model has no router. Give the "
            "--workdir of a run on texts."
        )
    request = analyse.Request(
        out=args.out or args.workdir / "analysis",
        input=args.input,
        split=args.split or SPLITS[0],
        tokens=args.tokens,
        row=args.row,
    )
    step = cli.chosen_step(args.step, config, args.workdir)
    compile_cache.enable(args.compile_cache)
    findings = analyse.run(config, args.workdir, request, step)
    if args.json:
        print(json.dumps(findings, ensure_ascii=False))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"'{text}' is no whole number from 0")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
