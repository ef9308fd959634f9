"""How a checkout is built, counted from its files: `python -m benchmarks.house [--path=CHECKOUT]`.

Prints Markdown: files a folder, floors and circles, equal lines of the two training loops, share of
public functions that say their shapes, lengths of files and functions, comments, untyped
configurations, house dialect, module aliases, errors of pyright, the files that one image and one
token pass from the command to the loss, and the places to touch for five extensions. Everything but
the last is measured; `--quick` leaves out pyright and the two runs. Nothing is written.
"""

from __future__ import annotations

import argparse
import ast
import collections
import difflib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.harness import source_graph

ROOT = Path(__file__).resolve().parents[1]
LOOPS = ("vitattn/train.py", "moe/train.py")
HARD = re.compile(r"(vitattn|moe)[./](layers|models|kernels|routing|dispatch)")
# A bracket with names of dimensions, behind a blank or the name of a dtype: [B, L, D], f32[G, S].
_DIMENSION = r"(?:\.\.\.|[A-Za-z][\w*/+ -]{0,23})"
SHAPE = re.compile(
    r"(?:(?<![\w\]])|(?<=\bf32)|(?<=\bbf16)|(?<=\bint32)|(?<=\bbool)|(?<=\bfloat))"
    rf"\[{_DIMENSION}(?:, ?(?:{_DIMENSION}|\d+))*\]"
)
DIALECT = ("found", "kept", "place", "begin", "began", "told", "made", "own", "stepped", "begun")
IMAGE = ("configs/aa_resnet50.py:digits", {"data.workers": 0, "batch_size": 8})
TOKEN = ("configs/st_moe_tiny.py", {"data.workers": 0, "batch_size": 8})

# Written by hand: extension -> the places to touch beside a new file of its own, each a file and a
# pattern that has to be in it. `extensions` checks that they are there.
EXTENSIONS = {
    "an attention layer of ResNets": [
        ("vitattn/models/resnet/config.py", r"^Attention = .*LocalConfig"),
    ],
    "a policy for the choices of routers": [("moe/routing/policies.py", r"^POLICIES = ")],
    "a data set of images": [("vitattn/data/catalog.py", r"^KINDS\b")],
    "a data set of texts": [("moe/data/data_sets.py", r"^KINDS\b")],
    "a fine-tuning task": [("moe/tasks/superglue.py", r"^TASKS\b")],
    "another task of image models": [("vitattn/task.py", r"^TASKS\b")],
    "an optimiser that optax has": [],
}
# Why there is no place to touch; checked as the places are.
NOTHING_TO_TOUCH = {
    "an optimiser that optax has": ("trainlib/step/optax_rules.py", r"^def names"),
}

# Runs a command with every call watched, and leaves at the first loss. A file is on the way when
# one of its functions is called; what only defines names while it is imported is not.
_FOLLOW = """
import os, runpy, sys, threading
root, stop, argv = os.path.realpath(sys.argv[1]) + os.sep, sys.argv[2], sys.argv[3:]
seen, importing = {}, threading.local()
def watch(frame, event, argument):
    code, path = frame.f_code, str(frame.f_code.co_filename)
    if code.co_name == "<module>":
        if frame.f_globals.get("__name__") != "__main__":
            change = {"call": 1, "return": -1}.get(event, 0)
            importing.depth = getattr(importing, "depth", 0) + change
    elif event == "call" and path.startswith(root) and not getattr(importing, "depth", 0):
        seen.setdefault(path, code.co_name)
    if event == "return" and code.co_name == "mean" and path.endswith(stop):
        with open(os.environ["HOUSE_REPORT"], "w") as file:
            for path, name in seen.items():
                print(path.removeprefix(root), name, file=file)
        os._exit(0)
threading.setprofile(watch)
sys.setprofile(watch)
sys.argv = ["launch.train", *argv]
runpy.run_module("launch.train", run_name="__main__")
"""


def main(argv: Sequence[str]) -> int:
    """Prints the report of one checkout."""
    parser = argparse.ArgumentParser(prog="benchmarks.house", description=__doc__)
    parser.add_argument("--path", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--quick", action="store_true", help="without pyright and the two runs")
    args = parser.parse_args(argv)
    for line in report(args.path.resolve(), quick=args.quick):
        print(line, flush=True)
    return 0


def report(root: Path, *, quick: bool = False) -> Iterator[str]:
    """The report of a checkout as lines of Markdown."""
    files = source_graph.python_files(root)
    yield from ("| measure | value |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in _structure(root, files))
    yield from (f"| {name} | {value} |" for name, value in _text(files))
    if not quick:
        yield f"| errors of pyright, all packages | {pyright(root)} |"
        for what, (config, values) in {"image": IMAGE, "token": TOKEN}.items():
            way = files_on_the_way(root, config, values)
            yield f"| files on the way of one {what}, command to loss | {len(way)} |"
            yield f"| in order | {', '.join(path for path, _ in way)} |"
    for name, places in extensions(root).items():
        yield f"| places to touch for {name}, beside its own file | {places} |"


def _structure(root: Path, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    graph = source_graph.file_graph(files)
    folders = source_graph.folder_graph(graph, files)
    counts = source_graph.files_a_folder(files)
    yield "files, folders", f"{sum(counts.values())}, {len(counts)}"
    most = sorted(counts.items(), key=lambda item: -item[1])[:8]
    yield "files a folder, most", ", ".join(f"{name} {count}" for name, count in most)
    for title, nodes in (("files", graph), ("folders", folders)):
        levels = []
        for package in source_graph.PACKAGES:
            part = {name: nodes[name] for name in nodes if name.split(".")[0] == package}
            levels.append(f"{package} {1 + max(source_graph.floors(part).values())}")
        yield f"floors of {title}", ", ".join(levels)
    for title, nodes in (("files", graph), ("folders", folders)):
        rings = source_graph.circles(nodes)
        listed = "; ".join(" - ".join(ring) for ring in rings)
        yield f"circles of {title}", f"{len(rings)}{': ' if rings else ''}{listed}"
    equal, lengths = equal_lines(root / LOOPS[0], root / LOOPS[1])
    yield "equal lines of run() in the two loops", f"{equal} of {lengths[0]} and {lengths[1]}"


def equal_lines(one: Path, other: Path, *, name: str = "run") -> tuple[int, list[int]]:
    """Equal non-blank lines of a function in two files (difflib), and how many each has."""
    bodies = []
    for path in (one, other):
        text = path.read_text()
        node = next(
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef) and node.name == name
        )
        lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
        bodies.append([line.strip() for line in lines if line.strip()])
    blocks = difflib.SequenceMatcher(None, *bodies, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks), [len(body) for body in bodies]


def _text(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    texts = {module: path.read_text() for module, path in files.items()}
    trees = {module: ast.parse(text) for module, text in texts.items()}
    lengths = {m: len(text.splitlines()) for m, text in texts.items() if text.strip()}
    functions = {
        f"{module}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for what, sizes in (("file", lengths), ("function", functions)):
        longest = max(sizes, key=lambda name: sizes[name])
        middle = statistics.median(sizes.values())
        yield f"lines of a {what}: median, longest", f"{middle:g}, {sizes[longest]} ({longest})"
    lines = [line.strip() for text in texts.values() for line in text.splitlines() if line.strip()]
    alone = sum(line.startswith("#") for line in lines)
    trailing = sum(bool(re.search(r"\S\s\s# ", line)) for line in lines)
    yield (
        "comments: lines of their own, and at the end of a line",
        f"{alone} and {trailing} of {len(lines)} ({100 * (alone + trailing) / len(lines):.1f} %)",
    )
    hard = {module: tree for module, tree in trees.items() if HARD.match(module)}
    for title, methods in (("functions", False), ("functions and methods of arrays", True)):
        said, count = documented_shapes(hard.values(), methods=methods)
        yield (
            f"public {title} of layers, models, routing and kernels that say shapes",
            f"{said} of {count} ({100 * said / count:.0f} %)",
        )
    yield "parameters `config: Any`", str(sum(map(untyped_configs, trees.values())))
    words = collections.Counter(word for tree in trees.values() for word in bound(tree))
    spoken = {word: words[word] for word in DIALECT if words[word]}
    listed = ", ".join(f"{word} {count}" for word, count in spoken.items())
    yield "names bound in house dialect", f"{sum(spoken.values())} ({listed})"
    aliases = [alias for tree in trees.values() for alias in module_aliases(tree, files)]
    yield "own modules imported under another name", str(len(aliases))
    dodges = sum(len(re.findall(r"# fmt: (?:skip|off)", text)) for text in texts.values())
    yield "lines kept from the formatter", str(dodges)


def documented_shapes(trees: Iterable[ast.Module], *, methods: bool) -> tuple[int, int]:
    """(how many say a shape in docstring or signature, how many there are).

    Counted are public functions of a module; with `methods` also public methods and `__call__` of
    public classes, and then only what has an array in its signature.
    """
    said = count = 0
    for tree in trees:
        nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        if methods:
            public = (
                node
                for node in tree.body
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
            )
            nodes += [n for node in public for n in node.body if isinstance(n, ast.FunctionDef)]
        for node in nodes:
            signature = ast.unparse(node.args)
            signature += f" {ast.unparse(node.returns)}" if node.returns else ""
            if node.name.startswith("_") and node.name != "__call__":
                continue
            if methods and not re.search(r"Array|ndarray", signature):
                continue
            count += 1
            said += bool(SHAPE.search(f"{signature} {ast.get_docstring(node) or ''}"))
    return said, count


def untyped_configs(tree: ast.Module) -> int:
    """Parameters and fields named `config` that are annotated with Any."""
    annotated = (
        node.annotation
        for node in ast.walk(tree)
        if (isinstance(node, ast.arg) and node.arg == "config")
        or (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "config"
        )
    )
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in annotated)


def bound(tree: ast.Module) -> Iterator[str]:
    """Every name that is bound: variables, attributes, parameters, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def module_aliases(tree: ast.Module, modules: dict[str, Path]) -> Iterator[str]:
    """`from x import y as z` and `import x.y as z` where y is a module of the checkout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                if alias.asname not in (None, alias.name) and start + alias.name in modules:
                    yield f"{start}{alias.name} as {alias.asname}"


def pyright(root: Path) -> str:
    """Errors of pyright on all packages, or that it is not installed."""
    beside = Path(sys.executable).with_name("pyright")
    program = str(beside) if beside.exists() else shutil.which("pyright")
    if program is None:
        return "pyright is not installed"
    command = [program, "--pythonpath", sys.executable, *source_graph.PACKAGES]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    summary = re.search(r"(\d+) errors?", done.stdout)
    return summary[1] if summary else f"pyright failed: {done.stderr[:200]}"


def files_on_the_way(root: Path, config: str, values: dict[str, int]) -> list[tuple[str, str]]:
    """(file, first function) in order of first call, from `launch.train` to the first mean loss."""
    with tempfile.TemporaryDirectory() as scratch:
        listing = Path(scratch) / "way.txt"
        settings = [f"--config.{key}={value}" for key, value in values.items()]
        if "st_moe" in config:
            settings.append(f"--config.data.cache={scratch}/cache")
        command = [sys.executable, "-c", _FOLLOW, str(root), "trainlib/model/losses.py"]
        command += [f"--config={config}", f"--workdir={scratch}/run", *settings]
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "JAX_PLATFORMS": "cpu",
            "HOUSE_REPORT": str(listing),
        }
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=900
        )
        if not listing.exists():
            reason = done.stderr[-2000:]
            raise SystemExit(f"{config} reached no loss (exit {done.returncode}):\n{reason}")
        pairs = [line.split() for line in listing.read_text().splitlines()]
    return [(path, name) for path, name in pairs]


def extensions(root: Path) -> dict[str, str]:
    """Extension -> number of places to touch and their files, or what is not in this checkout."""
    result = {}
    for name, places in EXTENSIONS.items():
        needed = places or [NOTHING_TO_TOUCH[name]]
        missing = [path for path, pattern in needed if not _holds(root / path, pattern)]
        files = ", ".join(path for path, _ in places)
        result[name] = (
            f"not as listed: {', '.join(missing)}" if missing else f"{len(places)} {files}".strip()
        )
    return result


def _holds(path: Path, pattern: str) -> bool:
    return path.is_file() and re.search(pattern, path.read_text(), re.M) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
