"""The package as others meet it: what its metadata say, what the wheel holds, and what happens
beside packages of the same names.
"""

import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import vitattn_moe
from tests.wheel import check

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in vitattn_moe.PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


# ---------------------------------------------------------------------------------------- metadata
def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "vitattn_moe.__version__"
    }
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == vitattn_moe.__version__
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert latest == vitattn_moe.__version__


def test_every_claimed_python_is_tried():
    claimed = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert list(check.VERSIONS) == claimed
    assert PROJECT["project"]["requires-python"] == f">={claimed[0]}"


def test_extras_are_pinned_and_known():
    """Everything that an extra brings has a version in constraints.txt."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {
        re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
        for line in [*PROJECT["project"]["dependencies"], *itertools.chain(*extras.values())]
    }
    assert needed - known == {"vitattn-moe"}
    named = re.fullmatch(r"vitattn-moe\[(.*)\]", *extras["all"])[1].split(",")
    assert set(named) <= set(extras)


def test_a_citation_as_the_format_wants_it():
    """The fields that Citation File Format 1.2.0 requires, and the three papers."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    papers = citation["references"]
    for paper in papers:
        assert {"type", "title", "authors", "year"} <= set(paper)
        assert all({"family-names", "given-names"} <= set(author) for author in paper["authors"])
    found = [identifier["value"] for paper in papers for identifier in paper["identifiers"]]
    assert found == ["arXiv:1904.09925", "arXiv:1906.05909", "arXiv:2202.08906"]


# ----------------------------------------------------------------------------------------- content
@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution of the tracked and new files, built offline."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    beside = ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "vitattn_moe.py"]
    beside += ["CHANGELOG.md", "CITATION.cff", "SECURITY.md", "constraints.txt"]
    for name in [*FILES, *beside, "tests/test_package.py", "benchmarks/house.py"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    code = (
        "import sys; from setuptools import build_meta as b\n"
        "out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.thorough
def test_the_wheel_holds_the_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        metadata = f"vitattn_moe-{vitattn_moe.__version__}.dist-info"
        inside = sorted(name for name in names if not name.startswith(metadata))
        assert inside == sorted([*FILES, "vitattn_moe.py"])
        assert f"{metadata}/licenses/LICENSE" in names
        assert (
            "vitattn-moe = vitattn_moe:main" in wheel.read(f"{metadata}/entry_points.txt").decode()
        )
        words = wheel.read(f"{metadata}/METADATA").decode()
        for name in FILES:
            assert wheel.read(name) == (ROOT / name).read_bytes(), name
    assert f"\nVersion: {vitattn_moe.__version__}\n" in words
    assert {f"{package}/py.typed" for package in vitattn_moe.PACKAGES} <= set(inside)
    assert {"launch/cluster/gke.sh", "launch/cluster/README.md"} <= set(inside)


@pytest.mark.thorough
def test_the_source_distribution_builds_the_same(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert {*FILES, *beside, "constraints.txt", "vitattn_moe.py"} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}


# -------------------------------------------------------------------- other packages of these names
def start(folder, *words, code="", flags=(), **environment):
    """Python in another folder, whose packages of any name come before ours on its path."""
    done = subprocess.run(
        [sys.executable, *flags, *(["-c", code] if code else ["-m"]), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def foreign(folder: Path, name: str) -> Path:
    """A package, or a module `NAME.py`, of another program; it says so if it is run."""
    path = folder / name if name.endswith(".py") else folder / name / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("print('a foreign package was run')\n")
    return path if name.endswith(".py") else path.parent


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("configs", "vitattn_moe"),
        ("configs", "launch.report"),
        ("configs.py", "launch.train"),
        ("launch", "vitattn_moe"),
        ("launch.py", "vitattn_moe"),
        ("trainlib", "launch.describe"),
        ("moe.py", "vitattn_moe"),
        ("vitattn", "vitattn_moe"),
    ],
)
def test_a_foreign_package_is_reported_and_not_run(tmp_path, name, command):
    path = foreign(tmp_path, name)
    code, out, error = start(tmp_path, command, "--help")
    assert (code, out) == (64, "")
    word = name.removesuffix(".py")
    for part in (f"another '{word}'", str(path), "in the current directory", str(ROOT / word)):
        assert part in error
    assert "Start the command in another directory, or rename it" in error
    assert ("remove its __init__.py" in error) == (name == "configs")


def test_where_a_foreign_package_comes_from(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    path = foreign(elsewhere, "configs")
    both = os.pathsep.join((str(elsewhere), str(ROOT)))
    # Without site-packages, where an editable install may put ours before PYTHONPATH.
    code, _, error = start(tmp_path, "vitattn_moe", "--help", flags=["-S"], PYTHONPATH=both)
    assert code == 64
    assert f"{path}, by way of PYTHONPATH." in error
    assert f"Take {elsewhere} out of PYTHONPATH" in error
    record = elsewhere / "others-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (record / "top_level.txt").write_text("configs\n")
    program = f"import sys; sys.path.insert(0, {str(elsewhere)!r}); "
    program += "import vitattn_moe; vitattn_moe.main()"
    code, _, error = start(tmp_path, "--help", code=program)
    assert code == 64
    assert f"{path}, which belongs to the installed others." in error
    assert "Install the two in separate virtual environments." in error


def test_a_package_that_another_one_was_installed_over(tmp_path):
    """Two distributions write one file; the last one installed is what is there."""
    for name in vitattn_moe.PACKAGES:
        foreign(tmp_path, name)
        if name != "launch":
            (tmp_path / name / "__init__.py").write_text(vitattn_moe.MARK)
    (tmp_path / "vitattn_moe.py").write_bytes((ROOT / "vitattn_moe.py").read_bytes())
    code, out, error = start(tmp_path, "vitattn_moe", "--help")
    assert (code, out) == (64, "")
    assert f"{tmp_path}/launch/__init__.py is not that of vitattn-moe" in error
    assert "was installed over it" in error


def test_a_folder_of_configurations_of_ones_own(tmp_path):
    """Without an __init__.py it is no package, and its files are found beside the shipped ones."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(
        "from configs.aa_resnet50 import get_config as base\n"
        "def get_config(variant=''):\n"
        "    config = base('digits')\n"
        "    config.steps = 7\n"
        "    return config\n"
    )
    mine = ("describe", "--config=configs/mine.py", "--explain=steps")
    code, out, error = start(tmp_path, "vitattn_moe", *mine)
    assert (code, out.splitlines()[0], error) == (0, "steps = 7", "")
    # As an editable install has it: a finder that comes after the folders of the path.
    program = (
        "import sys, importlib.machinery as m\n"
        f"root = {str(ROOT)!r}\n"
        "sys.path[:] = [p for p in sys.path if p != root]\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        return m.PathFinder.find_spec(name, [root]) if path is None else None\n"
        "sys.meta_path.append(Finder)\n"
        "import vitattn_moe; vitattn_moe.main()\n"
    )
    code, out, error = start(tmp_path, "--version", code=program, PYTHONPATH="")
    assert (code, out, error) == (0, f"vitattn-moe {vitattn_moe.__version__}\n", "")


def test_the_library_needs_no_configs_and_no_launch(tmp_path):
    """Whatever has these names in a project, models are made, and nothing of it is imported."""
    foreign(tmp_path, "configs")
    foreign(tmp_path, "launch.py")
    code = (
        "import sys, vitattn, moe\n"
        "import vitattn.models, moe.models, trainlib.checkpoint.checkpoints\n"
        "sys.exit([n for n in sys.modules if n.partition('.')[0] in ('configs', 'launch')] or 0)\n"
    )
    assert start(tmp_path, code=code) == (0, "", "")
