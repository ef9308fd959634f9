"""docs/reading_the_code.md leads to what is there: each name of a row is defined in its file."""

import ast
import re

from tests.docs.pages import DOCS

PAGE = DOCS / "reading_the_code.md"
ROW = re.compile(r"^\| \[([\w/.]+)\]\(\.\./([\w/.]+)\) \| (.*) \|$", re.M)
# What a row says in backquotes and does not define itself.
ELSEWHERE = {"data.source", "get_config", "lax.scan", "shard_map"}


def defined(path) -> set[str]:
    """Names of functions, classes, methods and tables of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_row_names_what_its_file_defines():
    rows = ROW.findall(PAGE.read_text().partition("## Where a question leads")[0])
    assert len(rows) > 40
    for shown, target, text in rows:
        assert shown == target
        first, *others = re.findall(r"`([^`]+)`", text) or [""]
        there = defined(PAGE.parents[1] / target)
        assert first in there, (shown, first)
        assert set(others) <= there | ELSEWHERE, (shown, others)
