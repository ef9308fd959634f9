"""Applies a trained model: `python -m launch.predict --workdir=DIR IMAGE...` classifies images,
or finds the objects in them, `--input=file.jsonl --output=out.jsonl` answers texts.

With `--attention=out.png` it also draws which pixels a query attends to, and with `--boxes=out/`
the boxes that a detector finds. Answers come in the order of the input; rerun the same command to
resume after a stop. Exit codes: 0 done, 64 bad argument or no run in DIR, 65 an image or text that
is missing or cannot be read, 66 no such checkpoint, 70 numbers that are not finite, 74 the output
cannot be written, 75 stopped on request.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence

from configs.common import load
from launch import cli, families
from trainlib import compile_cache


def main(argv: Sequence[str]) -> int:
    """Parses the command line and applies the newest weights of a run."""
    parser = cli.command_parser(
        "predict", "Classify images, find objects in them, or answer texts, with a trained model."
    )
    cli.add_path(
        parser, "images", nargs="*", metavar="IMAGE", help="image files, or folders of them"
    )
    cli.add_path(
        parser, "--workdir", metavar="DIR", help="directory of the training, or of an export"
    )
    parser.add_argument("--step", type=cli.step, help=cli.STEP_HELP)
    cli.add_path(
        parser,
        "--class_names",
        metavar="FILE",
        help="names of the classes, one a line, instead of those of the run",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object an image, each on a line"
    )
    cli.add_path(
        parser,
        "--attention",
        metavar="PICTURE",
        help="draw attention maps to this .png, .pdf or .svg",
    )
    parser.add_argument(
        "--layers",
        metavar="A,B",
        type=_words,
        default=(),
        help="attention layers or parts (conv4_x), or all; default: the last of those that attend "
        "at the highest resolution",
    )
    parser.add_argument(
        "--heads", metavar="N,M", type=_numbers, default=(), help="heads, from 0; default: all"
    )
    parser.add_argument(
        "--query",
        metavar="Y,X",
        type=_pixel,
        help="the pixel that attends, from the top left of the image as the model sees it; "
        "default: the centre",
    )
    cli.add_path(
        parser,
        "--boxes",
        metavar="FOLDER",
        help="draw what a detector finds on each picture, into this folder, with all of it as "
        "detections.json in COCO's result format",
    )
    parser.add_argument(
        "--min_score",
        metavar="SCORE",
        type=_share,
        help="score from which a box is drawn, 0 to 1; default: 0.3. detections.json has all above "
        "detection.score_threshold",
    )
    cli.add_path(
        parser, "--input", metavar="FILE.jsonl", help="texts to answer, in the field `inputs`"
    )
    cli.add_path(parser, "--output", metavar="FILE.jsonl", help="the same lines with `prediction`")
    args, overrides = cli.parse(parser, argv)
    if args.workdir is None:
        parser.error("--workdir is missing: the directory of a training run")
    config = load.of_workdir(args.workdir, overrides)
    family = families.of(config)
    request = family.request(args, parser.error)
    step = cli.chosen_step(args.step, config, args.workdir)
    compile_cache.enable(args.compile_cache)
    return family.predict.run(config, args.workdir, request, step)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    if not all(word.strip().isdecimal() for word in text.split(",")):
        raise ArgumentTypeError(f"'{text}' is not a list of numbers such as 0,3")
    return tuple(int(word) for word in text.split(","))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return share


def _pixel(text: str) -> tuple[int, int]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise ArgumentTypeError(f"'{text}' is not a row and a column, such as 112,112")
    return numbers[0], numbers[1]


if __name__ == "__main__":
    cli.run(main)
