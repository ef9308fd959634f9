"""Prepares the data of a configuration, once: `python -m launch.prepare
--config=configs/st_moe_tiny.py` tokenises texts, `--config=configs/retinanet_resnet50.py --check`
looks through images and boxes and says what is wrong with them.

Finished shards are skipped when the same command is run again. Exit codes: 0 done, 64 bad config,
65 bad data, 74 disk, 75 stopped on request, with the finished shards saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.common import load
from launch import cli, families
from trainlib import commands
from trainlib.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict


def main(argv: Sequence[str]) -> int:
    """Parses the command line and prepares the data of a configuration."""
    parser = cli.command_parser("prepare", "Prepare the data of a configuration, once.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=load.CONFIG_HELP)
    parser.add_argument(
        "--split", choices=("train", "holdout"), help="the split to prepare; default: both"
    )
    parser.add_argument(
        "--workers", type=int, default=-1, help="number of processes; default: one for each core"
    )
    parser.add_argument(
        "--part", metavar="I/N", default="0/1", help="this machine's share of the shards, from 0/N"
    )
    cli.add_path(
        parser, "--tasks", metavar="FILE.py", help="Python file that registers seqio Tasks"
    )
    parser.add_argument("--verify", action="store_true", help="read the prepared data and check it")
    parser.add_argument(
        "--check", action="store_true", help="look through images, and name all that is wrong"
    )
    cli.add_path(
        parser,
        "--boxes",
        metavar="FOLDER",
        help="with --check: draw the boxes of a few images of each split into this folder",
    )
    args, overrides = cli.parse(parser, argv)
    config = load.from_flags(args.config, overrides).config
    if args.check:
        return _check(config, args.boxes)
    if args.boxes:
        parser.error("--boxes goes with --check")
    prepare = families.of(config).prepare
    if prepare is None:
        raise ConfigError(
            f"There is nothing to prepare for the family {config.family}: it reads its data sets "
            f"as they are. Start `{commands.name('train')}` at once; --check looks through them."
        )
    return prepare.run(
        config,
        splits=(args.split,) if args.split else ("train", "holdout"),
        workers=args.workers,
        part=cli.part(args.part),
        tasks=args.tasks,
        verify=args.verify,
    )


def _check(config: ConfigDict, boxes: Path | None) -> int:
    check = families.of(config).check
    if check is None:
        raise ConfigError(
            f"--check is for images, and {config.family} reads texts: `{commands.name('prepare')}` "
            "names what it cannot use, and --verify reads what is prepared already."
        )
    return check.run(config, boxes)


if __name__ == "__main__":
    cli.run(main)
