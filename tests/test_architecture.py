"""The house rules that a reader can rely on: import arrow, NNX names, lazy heavy imports, file
length, no pickle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launch", "configs", "vitattn", "moe", "trainlib", "benchmarks")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))

# launch -> configs -> vitattn | moe -> trainlib; never back, never between the families.
ARROW = {
    "trainlib": {"trainlib"},
    "vitattn": {"vitattn", "trainlib"},
    "moe": {"moe", "trainlib"},
    "configs": {"configs", "vitattn", "moe", "trainlib"},
    "launch": {"launch", "configs", "vitattn", "moe", "trainlib"},
    "benchmarks": {"benchmarks", "launch", "configs", "vitattn", "moe", "trainlib"},
}
NNX_NAMES = {
    *("Module", "Param", "Variable", "BatchStat", "Rngs", "List", "split", "merge", "state"),
    *("to_pure_dict", "Linear", "Conv", "BatchNorm", "LayerNorm", "Embed", "GraphDef", "State"),
}
HEAVY = {
    *("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "matplotlib", "sklearn"),
    *("torch", "libtpu", "rich", "tensorboardX", "safetensors", "transformers", "pycocotools"),
}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: not those inside functions or
    TYPE_CHECKING.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


def test_the_rules_see_the_sources():
    assert {p.relative_to(ROOT).parts[0] for p in SOURCES} >= {"launch", "vitattn", "trainlib"}


@pytest.mark.parametrize("package", sorted(ARROW))
def test_imports_follow_the_arrow(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in imported(ast.walk(parsed(path)))
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in ARROW[package]
    ]
    assert not wrong, "\n".join(wrong)


def rooms_of(package: str) -> dict[str, set[str]]:
    """Folder of a package -> the folders of it whose files its own files import, inside functions
    too."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        room = ".".join(path.relative_to(ROOT).parts[:-1])
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for alias in node.names:
                place = ROOT / node.module.replace(".", "/")
                inside = (place / alias.name).is_dir() or (place / f"{alias.name}.py").is_file()
                other = node.module if inside or place.is_dir() else node.module.rpartition(".")[0]
                if other.split(".")[0] == package and other != room:
                    found.setdefault(room, set()).add(other)
    return found


def test_rooms_of_trainlib_are_in_no_circle():
    """Taking away the rooms that need no other that is left takes all of them away."""
    left = rooms_of("trainlib")
    assert "trainlib.run" in left
    while free := {room for room, needs in left.items() if not needs & set(left)}:
        left = {room: needs for room, needs in left.items() if room not in free}
    assert not left, left


def test_only_the_agreed_names_of_nnx_are_used():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} uses nnx.{node.attr}"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "nnx"
        and node.attr not in NNX_NAMES
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imported(ast.walk(parsed(path)))
        if name.startswith(("flax.nnx", "flax.linen"))
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name} at the top"
        for path in SOURCES
        if "benchmarks" not in path.relative_to(ROOT).parts
        for line, name in imported(at_import_time(parsed(path)))
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_pickled():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imported(ast.walk(parsed(path)))
        if name.split(".")[0] in PICKLERS
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{node.lineno} allows pickle"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
    ]
    assert not wrong, "\n".join(wrong)


def test_a_file_is_one_idea():
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.open().readlines())) > 600}
    assert not long, f"split by idea: {long}"


def test_a_loop_is_read_in_one_go():
    for path in (ROOT / "vitattn" / "train.py", ROOT / "moe" / "train.py"):
        assert len(path.open().readlines()) < 400, path


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "describe",
        "predict",
        "prepare",
        "doctor",
        "report",
        "export",
        "import_weights",
    ],
)
def test_help_imports_nothing_heavy(command):
    """What `--help` loads decides its time; a list of modules can be asserted, a time cannot."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['launch.{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('launch.{command}', run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0, done.code\n"
        "heavy = ('jax', 'flax', 'numpy', 'tensorflow', 'grain', 'orbax')\n"
        "bad = [name for name in heavy if name in sys.modules]\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
