"""The rules of the house that a reader can rely on: the arrow of imports, floors and circles, sizes
of files and folders, NNX names, lazy heavy imports, dependencies, typed configurations, no pickle.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import house
from benchmarks.harness import source_graph

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launch", "configs", "vitattn", "moe", "trainlib", "benchmarks")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
FILES = source_graph.python_files(ROOT)
GRAPH = source_graph.file_graph(FILES)
FOLDERS = source_graph.folder_graph(GRAPH, FILES)

# launch -> configs -> vitattn | moe -> trainlib; never back, never between the families.
ARROW = {
    "trainlib": {"trainlib"},
    "vitattn": {"vitattn", "trainlib"},
    "moe": {"moe", "trainlib"},
    "configs": {"configs", "vitattn", "moe", "trainlib"},
    "launch": {"launch", "configs", "vitattn", "moe", "trainlib"},
    "benchmarks": {"benchmarks", "launch", "configs", "vitattn", "moe", "trainlib"},
}
# The rooms of trainlib from the ground up; each imports what is below its floor, and no neighbour.
FLOORS = (
    ("trainlib",),
    ("trainlib.data", "trainlib.model", "trainlib.pages", "trainlib.papers", "trainlib.report"),
    ("trainlib.sharding",),
    ("trainlib.step",),
    ("trainlib.checkpoint",),
    ("trainlib.run.trackers",),
    ("trainlib.run",),
    ("trainlib.formats", "trainlib.planning.hlo"),
    ("trainlib.planning.kernels",),
    ("trainlib.planning.ledger",),
    ("trainlib.planning.profile",),
    ("trainlib.planning",),
)
FILES_A_FOLDER = 12
LARGER_FOLDERS = {  # folder -> (how many, why)
    "benchmarks": (14, "one file a command"),
    "benchmarks.harness": (13, "one file a means of measuring"),
    "benchmarks.peers": (16, "one file a row"),
    "configs": (30, "one file a published result, and one for tasks of one's own"),
    "launch": (14, "one file a command"),
    "vitattn.data": (13, "one file a kind of data set"),
}
IMPORT_NAMES = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tensorboardx": "tensorboardX",
}
WITHOUT_IMPORT = {
    "flatbuffers": "jax.export writes programs with it",
    "importlib_resources": "tensorflow_datasets reads its sets with it and does not ask for it",
    "scikit-learn": "vitattn.data.digits reads a file that it ships",
}
NNX_NAMES = {
    *("Module", "Param", "Variable", "BatchStat", "Rngs", "List", "split", "merge", "state"),
    *("to_pure_dict", "Linear", "Conv", "BatchNorm", "LayerNorm", "Embed", "GraphDef", "State"),
}
HEAVY = {
    *("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "matplotlib", "sklearn"),
    *("torch", "libtpu", "rich", "tensorboardX", "safetensors", "transformers", "pycocotools"),
    *("pyarrow", "sacrebleu", "rouge_score"),
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


def test_no_file_is_in_a_circle():
    assert not source_graph.circles(GRAPH)


def test_no_folder_is_in_a_circle():
    circles = source_graph.circles(FOLDERS)
    reasons = [
        reason
        for circle in circles
        for folder in circle
        for other in set(FOLDERS[folder]) & set(circle)
        for reason in FOLDERS[folder][other]
    ]
    assert not circles, "\n".join(reasons)


def test_a_circle_is_seen():
    """On a graph with two of them, one within the other's reach, and what hangs on both sides."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"f"}, "f": {"d", "g"}}
    graph |= {"g": set()}
    assert source_graph.circles(graph) == [["b", "c"], ["d", "e", "f"]]
    assert source_graph.floors(graph) == {"g": 0, "d": 1, "e": 1, "f": 1, "b": 2, "c": 2, "a": 3}


def test_trainlib_stands_on_floors():
    """A room imports rooms of lower floors alone, not even its neighbours."""
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {folder for folder in FOLDERS if folder.split(".")[0] == "trainlib"}
    assert rooms == set(floor_of), "a new room needs a floor in FLOORS"
    wrong = [
        reason
        for room in rooms
        for other, reasons in FOLDERS[room].items()
        if floor_of[other] >= floor_of[room]
        for reason in reasons
    ]
    assert not wrong, "\n".join(wrong)


def test_a_folder_can_be_taken_in_at_a_glance():
    counts = source_graph.files_a_folder(FILES)
    crowded = {
        folder: count
        for folder, count in counts.items()
        if count > LARGER_FOLDERS.get(folder, (FILES_A_FOLDER, ""))[0]
    }
    assert not crowded, f"make rooms: {crowded}"
    assert set(LARGER_FOLDERS) <= set(counts)


def test_a_test_of_a_file_lies_where_the_file_does():
    """tests/moe/layers/test_norm.py is of moe/layers/norm.py; other names are free."""
    sources: dict[tuple[str, str], set[Path]] = {}
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        sources.setdefault((relative.parts[0], path.stem), set()).add(relative.parent)
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        relative = path.relative_to(ROOT / "tests")
        folders = sources.get((relative.parts[0], path.stem.removeprefix("test_")))
        if folders and relative.parent not in folders:
            wrong.append(f"tests/{relative}: {', '.join(map(str, sorted(folders)))}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]}
    used = {
        name.split(".")[0]
        for path in SOURCES
        if "benchmarks" not in path.relative_to(ROOT).parts
        for _, name in imported(ast.walk(parsed(path)))
    }
    unused = {n for n in names if IMPORT_NAMES.get(n, n.replace("-", "_")) not in used}
    assert unused == set(WITHOUT_IMPORT)


@pytest.mark.parametrize("package", sorted(ARROW))
def test_a_configuration_has_a_type(package):
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / package).rglob("*.py"))
        if house.untyped_configs(parsed(path))
    ]
    assert not wrong, f"`config: Any` in {wrong}"


def test_the_formatter_decides():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"# fmt: (skip|off)", line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
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


@pytest.mark.slow
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
        "reproduce",
        "analyse",
        "compile",
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
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
