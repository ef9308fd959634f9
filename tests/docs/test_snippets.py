"""Every command and every snippet of README.md and docs/ is run, page by page, each page in a
directory of its own. `tests.docs.pages` says how a block asks for less.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types

import pytest

from tests.docs import given, known, pages
from tests.docs.pages import PAGES, ROOT, SHELLS, Block, Command
from trainlib.errors import run_command

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("compiled_once")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Where what pages are given is kept between them."""
    return tmp_path_factory.mktemp("given")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The directory in which a page is run; caches lie beside it and not in the user's home."""
    for name in ("VITATTN_MOE_COMPILE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")
    return tmp_path / "page"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_runs(path, store, folder, monkeypatch):
    page = pages.read(path)
    runnable = [block for block in page.blocks if block.language in ("python", *SHELLS)]
    if not any(not block.unrun for block in runnable):
        pytest.skip("nothing to run")
    given.provide(page.given, store, folder)
    # A module, because dataclasses and pickling workers look their names up in one.
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in runnable:
        with told_where(block):
            if block.language == "python":
                run_python(block, module)
            elif not block.unrun:
                run_shell(block)


@contextlib.contextmanager
def told_where(block: Block):
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the block at {block.name}:\n{block.text}")
        raise


def run_python(block: Block, module: types.ModuleType) -> None:
    program = compile("\n" * block.line + block.text, str(block.page), "exec")
    if not block.unrun:
        exec(program, vars(module))


def run_shell(block: Block) -> None:
    commands = pages.commands(block)
    expected = int(block.markers.get(("exits", ""), 0))
    for command in commands:
        code = run_one(command, block)
        assert code == (expected if command is commands[-1] else 0), command.text


def run_one(command: Command, block: Block) -> int:
    """Runs a command and returns its exit code."""
    if command.kind == "make":
        inner = launched_by_make(command)
        assert inner, f"`{command.text}` starts no command of this package, so it needs a marker"
        return max(run_one(each, block) for each in inner)
    if command.kind == "shell":
        return subprocess.run(command.text, shell=True, timeout=60).returncode
    main = known.module_of(command).main
    return run_command(lambda: main([*command.arguments, *block.extra(command.name)]), debug=True)


def launched_by_make(command: Command) -> list[Command]:
    """The commands of this package that a target of the Makefile starts."""
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", command.name, *command.arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    block = Block(ROOT / "Makefile", 0, "bash", dry.stdout, {})
    lines = [line for line in block.text.splitlines() if " -m launch." in line]
    return pages.commands(Block(block.page, 0, "bash", "\n".join(lines), {}))
