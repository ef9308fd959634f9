"""Follows a page of docs/ as a stranger does, in the current directory: every file that the page
shows is written there, and every command is run, in the order of the page.

    python -m tests.docs.follow PAGE.md

A block of Python whose first line is a comment with a name (`# my_layers.py`) is that file; any
other is run, after those before it. Commands follow a `$`. Each begins as a new process would:
without the modules of the page, and without the trust that an earlier command was given.
"""

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

from trainlib import extension

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.M | re.S)
NAME = re.compile(r"# (\w+\.py)\n")


def forget(folder: Path) -> None:
    """What a new process does not know: modules of the folder, and whom the last one trusted."""
    extension._trusted.clear()
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def run(words: list[str], folder: Path) -> None:
    """Runs a command of a page in this process, whose compiled programs it shares."""
    forget(folder)
    if words[0] == "vitattn-moe":
        command = importlib.import_module(f"launch.{words[1]}")
        assert command.main(words[2:]) in (0, None), words
    elif words[:4] == ["python", "-m", "pytest", "-q"]:
        run_tests(folder / words[4])
    else:
        raise AssertionError(f"a page says what nothing here runs: {words}")


def run_tests(path: Path) -> None:
    sys.path.insert(0, str(path.parent))
    tests = importlib.import_module(path.stem)
    functions = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert functions
    for function in functions:
        assert not inspect.signature(function).parameters, "fixtures are not there here"
        function()


def follow(page: Path, folder: Path) -> int:
    """Returns how many commands and programs of the page were run."""
    ran, names = 0, {"__name__": "__main__"}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "console":
            lines = [line for line in text.splitlines() if line.startswith("$ ")]
            for line in lines:
                run(shlex.split(line.removeprefix("$ ")), folder)
            ran += len(lines)
        elif named := NAME.match(text):
            (folder / named[1]).write_text(text)
        else:
            exec(compile(text, page.name, "exec"), names)
            ran += 1
    return ran


if __name__ == "__main__":
    count = follow(Path(sys.argv[1]), Path.cwd())
    assert count, f"{sys.argv[1]} runs nothing"
    print(f"ran {count}")
