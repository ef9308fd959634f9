"""Which files and folders of a checkout import which others: circles, floors, files a folder.

An import counts wherever it stands: at the top, inside a function and under TYPE_CHECKING. A reader
who follows one has to follow the others as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGES = ("trainlib", "vitattn", "moe", "configs", "launch", "benchmarks")
Graph = Mapping[str, Mapping[str, int]]  # importer -> imported -> line of the first import


def python_files(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Dotted module -> file, of all packages; a package is the module of its `__init__.py`."""
    files = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(tree: ast.AST, modules: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(module, line) of every import among `modules`; `from a import b` is of `a.b` where that is
    one.
    """
    modules = set(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                name = inner if inner in modules else node.module
                if name in modules:
                    yield name, node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in modules)


def file_graph(files: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """The imports between files."""
    graph: dict[str, dict[str, int]] = {}
    for module, path in files.items():
        edges = graph.setdefault(module, {})
        for name, line in imports(ast.parse(path.read_text(), str(path)), files):
            if name != module:
                edges.setdefault(name, line)
    return graph


def folder_of(module: str, files: Mapping[str, Path]) -> str:
    """Dotted folder of a module; that of a package's `__init__.py` is the package itself."""
    return module if files[module].name == "__init__.py" else module.rpartition(".")[0]


def folder_graph(graph: Graph, files: Mapping[str, Path]) -> dict[str, dict[str, list[str]]]:
    """The imports between folders: folder -> folder -> the imports that make it so."""
    result: dict[str, dict[str, list[str]]] = {}
    for module, edges in graph.items():
        here = folder_of(module, files)
        for name, line in edges.items():
            there = folder_of(name, files)
            result.setdefault(there, {})
            if here != there:
                why = f"{module}:{line} imports {name}"
                result.setdefault(here, {}).setdefault(there, []).append(why)
    return result


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes of which each reaches each other, sorted; nodes in no circle are left out.

    Takes away, again and again, the nodes that nothing left reaches or that reach nothing left;
    what stays is split by who reaches whom.
    """
    left = {node: set(edges) & set(graph) for node, edges in graph.items()}
    while True:
        targets = {name for edges in left.values() for name in edges}
        inner = {node for node, edges in left.items() if edges and node in targets}
        if len(inner) == len(left):
            break
        left = {node: left[node] & inner for node in inner}
    reached = {node: _reach(node, left) for node in left}
    result = []
    for node in sorted(left):
        circle = sorted(other for other in reached[node] if node in reached[other])
        if len(circle) > 1 and circle[0] == node:
            result.append(circle)
    return result


def _reach(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def floors(graph: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Node -> its floor: 0 imports none of the others, the next only what is below it.

    The nodes of a circle stand on one floor, above all that the circle imports.
    """
    circle_of = {node: circle[0] for circle in circles(graph) for node in circle}
    merged: dict[str, set[str]] = {}
    for node, edges in graph.items():
        here = circle_of.get(node, node)
        inner = {circle_of.get(name, name) for name in edges if name in graph}
        merged.setdefault(here, set()).update(inner - {here})
    level: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in level:
            level[node] = 1 + max(map(height, merged[node]), default=-1)
        return level[node]

    return {node: height(circle_of.get(node, node)) for node in graph}


def files_a_folder(files: Mapping[str, Path]) -> dict[str, int]:
    """Folder -> number of its own Python files, `__init__.py` left out."""
    counts: dict[str, int] = {}
    for module, path in files.items():
        counts.setdefault(folder_of(module, files), 0)
        counts[folder_of(module, files)] += path.name != "__init__.py"
    return dict(sorted(counts.items()))
