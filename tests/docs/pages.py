"""What README.md, that of the recipes for clusters and the pages of docs/ hold: blocks of code with
their markers, links, words in backquotes.

A marker is an HTML comment right before a block:

    <!-- run: --config.steps=2 -->            appended to the commands of the block that train
    <!-- run evaluate: --config.x=1 -->       appended to those of another name
    <!-- exits: 70 -->                        the code with which the last command ends, unless 0
    <!-- pod: reason -->                      needs several hosts or chips
    <!-- needs: imagenet -->                  needs a data set or weights that are not here
    <!-- parsed: reason -->                   would take too long, or install something

Commands of the last three are not run; their flags and keys are checked like all others.
Anywhere on a page, `<!-- given: NAME NAME -->` asks for files of `tests.docs.given`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

from tests.launch.commands import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "launch" / "cluster" / "README.md"] + sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.parts
)
UNRUN = ("pod", "needs", "parsed")
SHELLS = ("bash", "console", "sh", "shell")
MARKERS = ("run", "exits", "given", *UNRUN)

_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,}|:{3,})\s*(.*)$")
_MARKER = re.compile(r"^\s*<!-- (\w+)(?: (\w+))?: (.*) -->\s*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the markers before it."""

    page: Path
    line: int
    language: str
    text: str
    markers: dict[tuple[str, str], str]

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Its lines, those that end with a backslash joined with the next."""
        return re.sub(r"\\\n\s*", " ", self.text).splitlines()

    @property
    def unrun(self) -> bool:
        return any(name in UNRUN for name, _ in self.markers)

    def extra(self, command: str) -> list[str]:
        """What a marker appends to the commands of this name."""
        own = self.markers.get(("run", command), "")
        return shlex.split(own or (self.markers.get(("run", ""), "") if command == "train" else ""))


@dataclasses.dataclass(frozen=True)
class Page:
    """A page in its parts; `prose` is what stands outside of fences, with its line numbers."""

    path: Path
    blocks: tuple[Block, ...]
    prose: tuple[tuple[int, str], ...]
    given: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def links(self) -> list[tuple[int, str]]:
        return [
            (number, target)
            for number, line in self.prose
            for target in _LINK.findall(re.sub(r"`[^`]*`", "", line))
        ]

    @property
    def headings(self) -> set[str]:
        """Anchors of the headings, as GitHub and MyST make them."""
        lines = [line.lstrip("#").strip() for _, line in self.prose if line.startswith("#")]
        kept = [re.sub(r"[^\w\- ]", "", line.replace("`", "").lower()) for line in lines]
        return {line.replace(" ", "-") for line in kept}

    @property
    def literals(self) -> list[tuple[int, str]]:
        """Words in backquotes, with the line."""
        return [
            (number, text) for number, line in self.prose for text in re.findall(r"`([^`]+)`", line)
        ]


def read(path: Path) -> Page:
    """Takes a page apart."""
    blocks, prose, given = [], [], []
    markers: dict[tuple[str, str], str] = {}
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if marker := _MARKER.match(line):
            kind, command, value = marker.groups()
            assert kind in MARKERS, f"{path}:{number}: there is no marker '{kind}'"
            if kind == "given":
                given += value.split()
            else:
                markers[kind, command or ""] = value
            continue
        fence = _FENCE.match(line)
        if not fence:
            assert not markers or not line.strip(), f"{path}:{number}: a marker without its block"
            prose.append((number, line))
            continue
        first, inside = number, []
        indent, ticks, info = fence.groups()
        while number < len(lines) and lines[number].strip() != ticks:
            inside.append(lines[number].removeprefix(indent))
            number += 1
        assert number < len(lines), f"{path}:{first}: the block has no end"
        number += 1
        info = re.sub(r"^\{code(-block)?\}\s*", "", info)
        if info.startswith("{"):  # a directive, whose text is prose
            assert not markers, f"{path}:{first}: a directive takes no marker"
            prose += [(first + n, text) for n, text in enumerate(inside, 1)]
            continue
        language = info.split()[0] if info else ""
        blocks.append(Block(path, first, language, "\n".join(inside), markers))
        markers = {}
    return Page(path, tuple(blocks), tuple(prose), tuple(given))


@dataclasses.dataclass(frozen=True)
class Command:
    """One line of a shell block.

    Attributes:
      kind: "launch" (a command of this package), "make", "benchmark", "tests" (of a file that the
        page shows) or "shell".
      name: which one, such as "train".
      arguments: its arguments.
      text: the line as it stands.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    text: str


def commands(block: Block) -> list[Command]:
    """The commands of a shell block; of `console` only lines after `$ ` are commands."""
    lines = block.lines
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        words = shlex.split(line.removesuffix(" &"), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            found.append(_command(words, line))
    return found


def _command(words: list[str], line: str) -> Command:
    program = words[0].rpartition("/")[2]
    if re.match(r"python[\d.]*$", program) and words[1:2] == ["-m"]:
        module, rest = words[2], tuple(words[3:])
        if module.startswith("launch."):
            name = module.removeprefix("launch.").replace("import_weights", "import")
            return Command("launch", name, rest, line)
        if module.startswith("benchmarks."):
            return Command("benchmark", module.removeprefix("benchmarks."), rest, line)
        if module == "pytest" and rest[:1] == ("-q",):
            return Command("tests", rest[1], (), line)
        if module == "vitattn_moe" and rest:
            return Command("launch", rest[0], rest[1:], line)
    if program == "vitattn-moe" and len(words) > 1:
        return Command("launch", words[1], tuple(words[2:]), line)
    if program == "make":
        return Command("make", words[1], tuple(words[2:]), line)
    return Command("shell", program, tuple(words[1:]), line)
