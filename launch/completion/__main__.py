"""Prints the completion of a shell: `vitattn-moe completion bash`, `zsh` or `fish`.

The script that is printed asks this command what a line that is being typed may go on with:
`--line="vitattn-moe train --conf"` prints one word a line.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch import cli
from launch.completion.scripts import SCRIPTS
from trainlib.errors import one_of


def main(argv: Sequence[str]) -> int:
    """Parses the command line and prints a script, or words."""
    parser = cli.command_parser("completion", "Print the completion of a shell: bash, zsh or fish.")
    parser.add_argument("shell", nargs="?", help=f"one of {', '.join(SCRIPTS)}")
    parser.add_argument("--line", help="print how this line may go on, up to the cursor")
    args, _ = cli.parse(parser, argv)
    if args.line is not None:
        from launch.completion.candidates import complete

        for word in complete(args.line):
            print(word)
        return 0
    if args.shell is None:
        parser.error(f"name a shell: {', '.join(SCRIPTS)}")
    if args.shell not in SCRIPTS:
        raise one_of("the shell", args.shell, SCRIPTS)
    print(SCRIPTS[args.shell], end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
