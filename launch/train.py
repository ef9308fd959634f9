"""Trains a configuration: `python -m launch.train --config=configs/aa_resnet50.py:digits
--workdir=DIR`, on one host or many.

Rerun the same command to resume a run in DIR that was stopped. Exit codes: 0 done, 64 bad config,
65 bad data, 66 bad checkpoint, 70 numeric abort, 74 disk, 75 stopped on request and saved, 76
another process was lost or this one is stuck.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.common import load
from launch import cli, families
from launch.hosts.find import add_flags
from launch.hosts.run import run_on_all_hosts
from trainlib import compile_cache

PROFILE_HELP = (
    "write a trace of these steps into WORKDIR/profile: FIRST:LAST, as metrics.jsonl numbers them, "
    "or N, which leaves out the two that follow a start. Of many hosts the first one writes. Open "
    "its .trace.json.gz at https://ui.perfetto.dev, or WORKDIR/profile with `tensorboard --logdir` "
    "(pip install xprof)"
)


def main(argv: Sequence[str]) -> int:
    """Parses the command line, picks the family of the configuration, and calls its loop."""
    parser = cli.command_parser("train", "Train a model, or resume a run that was stopped.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=load.CONFIG_HELP)
    cli.add_path(
        parser,
        "--workdir",
        metavar="DIR",
        help="directory of the run: configuration, checkpoints and metrics",
    )
    add_flags(parser)
    parser.add_argument(
        "--on_corrupt",
        metavar="skip|fail",
        help="on a damaged checkpoint, resume from an older one or stop with 66 "
        "(--config.checkpoint.on_corrupt)",
    )
    parser.add_argument("--profile", metavar="STEPS", help=PROFILE_HELP)
    args, overrides = cli.parse(parser, argv)
    if args.on_corrupt is not None:
        overrides["checkpoint.on_corrupt"] = args.on_corrupt
    if args.workdir is None:
        parser.error("--workdir is missing: the directory where checkpoints and metrics are kept")
    config = load.from_flags(args.config, overrides).config
    from trainlib.step import profile

    traced = profile.steps(args.profile) if args.profile is not None else None

    def train() -> int:
        from trainlib.run.workdir import given_back

        compile_cache.enable(args.compile_cache)
        with given_back():
            # vitattn.train.run or moe.train.run
            return families.of(config).train.run(config, args.workdir, traced)

    return run_on_all_hosts(args, config, train)


if __name__ == "__main__":
    cli.run(main, saves=True)
