"""Runs the blocks of pages, each page in a directory of its own: `python -m tests.docs.run_pages
FOLDER PAGE...` writes FOLDER/results.json, page -> what went wrong.

A block of Python whose first line is a comment with a name (`# my_layers.py`) is that file; any
other is run. Commands begin as a new process does: without the modules of the page, and without
the trust that an earlier command was given.

All pages share this process, so that JAX is loaded once and programs are compiled once; it has one
device, as a laptop has.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

from tests.docs import given, known, pages
from tests.docs.pages import ROOT, SHELLS, Block, Command
from trainlib import extension
from trainlib.errors import run_command

RESULTS = "results.json"
_FILE = re.compile(r"# (\w+\.py)\n")


def main(folder: str, *names: str) -> None:
    """Runs pages and writes the results after each, so that a crash shows where it was."""
    results = {}
    for number, name in enumerate(names):
        work = Path(folder) / str(number)
        work.mkdir()
        begun = time.process_time()
        print(f"\n======== {name}", flush=True)
        try:
            with contextlib.chdir(work):
                run_page(pages.read(ROOT / name), Path(folder) / "given")
            results[name] = ""
        except (Exception, SystemExit):
            results[name] = traceback.format_exc()
        print(f"======== {name}: {time.process_time() - begun:.1f} s of CPU", flush=True)
        (Path(folder) / RESULTS).write_text(json.dumps(results))


def run_page(page: pages.Page, store: Path) -> None:
    """Runs the blocks of a page in their order, in the current directory."""
    given.provide(page.given, store, Path.cwd())
    # A module, because dataclasses look up the names of their annotations in one.
    module = sys.modules["page"] = types.ModuleType("page")
    for block in page.blocks:
        with told_where(block):
            if block.language == "python":
                run_python(block, module)
            elif block.language in SHELLS and not block.unrun:
                run_shell(block)


@contextlib.contextmanager
def told_where(block: Block) -> Iterator[None]:
    """Adds the block to an error."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the block at {block.name}:\n{block.text}")
        raise


def run_python(block: Block, module: types.ModuleType) -> None:
    """Runs a block of Python, or writes the file that it is; one that is not to be run is
    compiled.
    """
    program = compile("\n" * block.line + block.text, str(block.page), "exec")
    if named := _FILE.match(block.text):
        Path(named[1]).write_text(block.text)
    elif not block.unrun:
        exec(program, vars(module))


def run_shell(block: Block) -> None:
    """Runs the commands of a block; each has to end with 0, the last as its marker says, and what
    `console` shows has to be printed (not a line with three dots, nor where lines are broken).
    """
    commands = pages.commands(block)
    expected = int(block.markers.get(("exits", ""), 0))
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        if block.language == "console":
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
        for command in commands:
            code = run_one(command, block)
            wanted = expected if command is commands[-1] else 0
            assert code == wanted, f"'{command.text}' ended with {code}"
    words = " ".join(printed.getvalue().split())
    for line in block.lines if block.language == "console" else ():
        if not line.startswith("$ ") and "..." not in line:
            assert " ".join(line.split()) in words, f"'{line}' is not printed:\n{words}"


def run_one(command: Command, block: Block) -> int:
    """Runs a command and returns its exit code."""
    print(f"-------- {command.text}", flush=True)
    forget(Path.cwd())
    if command.kind == "tests":
        return run_tests(Path(command.name))
    if command.kind == "make":
        inner = launched_by_make(command)
        assert inner, f"'{command.text}' starts no command of this package: it needs a marker"
        return max(run_one(each, block) for each in inner)
    if command.kind == "shell":
        return subprocess.run(command.text, shell=True, timeout=60).returncode
    extra = block.extra(command.name)
    flags = [flag for word in extra for flag in given.PRESETS.get(word, (word,))]
    module = known.module_of(command)
    return run_command(lambda: module.main([*command.arguments, *flags]), debug=True)


def forget(folder: Path) -> None:
    """Forgets what a new process does not know: modules of the folder, and whom the command before
    was told to trust.
    """
    extension._trusted.clear()
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def run_tests(path: Path) -> int:
    """Runs the tests of a file as `python -m pytest FILE` would; fixtures are not there."""
    sys.path.insert(0, str(path.parent.resolve()))
    tests = importlib.import_module(path.stem)
    functions = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert functions, f"{path} has no tests"
    for function in functions:
        assert not inspect.signature(function).parameters, "fixtures are not there"
        function()
    return 0


def launched_by_make(command: Command) -> list[Command]:
    """The commands of this package that a target of the Makefile starts."""
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", command.name, *command.arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line for line in dry.stdout.splitlines() if " -m launch." in line]
    return pages.commands(Block(ROOT / "Makefile", 0, "bash", "\n".join(lines), {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
