"""README and docs say what is there: links lead somewhere, flags, keys and files exist, and every
block of code is run by `test_snippets` or says why not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch import program
from tests.docs import known, pages
from tests.docs.pages import PAGES, ROOT, SHELLS

LANGUAGES = {*SHELLS, "python", "text", "json", "yaml", "toml", "csv", "bibtex"}
MOST_WORDS = 1_200
SECTIONS = ("data", "model", "routing", "optimizer", "schedule", "checkpoint", "decoding", "mesh")
SECTIONS += ("evaluation", "finetune", "objective", "upcycle", "published")
# Flags of other programs.
FOREIGN = {"--dry_run", "--logdir", "--spot", "--type"}
FOREIGN |= {"--xla_force_host_platform_device_count"}

page_by_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@page_by_page
def test_links_lead_somewhere(path):
    page, dead = pages.read(path), []
    for line, target in page.links:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists():
            dead.append(f"{page.name}:{line}: {target}")
        elif anchor and goal.suffix == ".md" and anchor not in pages.read(goal).headings:
            dead.append(f"{page.name}:{line}: {target} (no such heading)")
    assert not dead, "\n".join(dead)


@page_by_page
def test_benchmarks_that_are_named_are_there(path):
    found = re.findall(r"python -m (benchmarks(?:\.\w+)+)", path.read_text())
    places = {name: ROOT / name.replace(".", "/") for name in found}
    gone = [
        n
        for n, p in places.items()
        if not ((p / "__main__.py").is_file() or p.with_suffix(".py").is_file())
    ]
    assert not gone, f"{path.name}: {gone}"


@page_by_page
def test_blocks_are_marked_and_their_flags_exist(path):
    page = pages.read(path)
    wrong = [problem for block in page.blocks for problem in problems(block)]
    wrong += [
        f"{page.name}:{line}: a command that is no fenced block is not checked"
        for line, text in page.prose
        if re.match(r"(    |\t)+(vitattn-moe|python\S* -m|make|pip|\.venv)", text)
    ]
    assert not wrong, "\n".join(wrong)


def problems(block: pages.Block) -> list[str]:
    """What keeps a block from being checked, and what the real parsers object to."""
    wrong = []
    if block.language not in LANGUAGES:
        wrong.append(f"{block.name}: a block of language '{block.language}'")
    if block.language == "text" and re.search(r"^\s*(vitattn-moe|python -m) ", block.text, re.M):
        wrong.append(f"{block.name}: commands in a block of text are not checked")
    if not all(reason.strip() for reason in block.markers.values()):
        wrong.append(f"{block.name}: a marker without a reason")
    for command in pages.commands(block) if block.language in SHELLS else ():
        foreign = command.kind == "benchmark" or (
            command.kind == "shell" and command.name not in known.SHELL
        )
        if foreign and not block.unrun:
            wrong.append(f"{block.name}: '{command.text}' is not run and has no marker")
        if ("exits", "") in block.markers:  # may be for what is checked here; it is run
            continue
        try:
            known.check(command, runs=not block.unrun)
        except Exception as error:
            wrong.append(f"{block.name}: {command.text}\n    {error}")
    return wrong


@page_by_page
def test_words_in_backquotes_exist(path):
    """Keys (`data.source`, `--config.KEY=..`), flags (`--step`) and files (`moe/train.py`)."""
    page = pages.read(path)
    wrong = [
        f"{page.name}:{line}: {problem}"
        for line, text in page.literals
        for problem in unknown_words(text, to_be=path.parent.name == "extending")
    ]
    assert not wrong, "\n".join(wrong)


def unknown_words(text: str, *, to_be: bool = False) -> list[str]:
    """What a text in backquotes names and the code does not have.

    Args:
      text: between backquotes.
      to_be: whether files may be those that a reader is going to add.
    """
    wrong = []
    for key in re.findall(r"--config\.([a-z_][a-z_.0-9]*)", text):
        if not _is_key(key.rstrip(".")):
            wrong.append(f"no key '{key}'")
    for flag in re.findall(r"(?<![\w-])(--[a-z_]+)(?![\w-])", text.replace("--config.", "")):
        if flag not in known.every_flag() | FOREIGN:
            wrong.append(f"no flag '{flag}'")
    key = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(?:=.*)?", text)
    is_file = text.endswith((".json", ".yaml"))
    if key and key[1].split(".")[0] in SECTIONS and not is_file and not _is_key(key[1]):
        wrong.append(f"no key '{key[1]}'")
    folders = "vitattn|moe|trainlib|configs|launch|benchmarks|tests"
    path = ROOT / text.replace("NAME", "")
    there = path.exists() or (to_be and path.parent.exists())
    if re.fullmatch(rf"(?:{folders})/[\w/.]+", text) and not there:
        wrong.append(f"no file '{text}'")
    return wrong


def _is_key(name: str) -> bool:
    names = known.all_keys()
    return name in names or any(key.startswith(f"{name}.") for key in names)


@pytest.mark.parametrize(
    "text", ["--config.optimiser.name=x", "data.sources", "--stepp", "moe/nothing.py"]
)
def test_words_that_do_not_exist_are_seen(text):
    assert unknown_words(text)


@pytest.mark.parametrize("command", ["pip install x", "vitattn-moe train --confg=x", "make trane"])
def test_commands_that_cannot_run_are_seen(command):
    assert problems(pages.Block(ROOT / "x.md", 1, "bash", command, {}))


def test_every_command_has_its_table():
    page = (pages.DOCS / "commands.md").read_text()
    assert re.findall(r"^```\{flags\} (\w+)$", page, re.M) == list(program.COMMANDS)


def test_every_page_is_in_the_table_of_contents():
    listed = [line.strip() for _, line in pages.read(pages.DOCS / "index.md").prose]
    for path in filter(lambda path: pages.DOCS in path.parents, PAGES):
        name = path.relative_to(pages.DOCS).with_suffix("").as_posix()
        entries = [entry for entry in listed if entry and Path(name).match(entry)]
        assert entries or name == "index", f"docs/{name}.md is in no toctree of index.md"
