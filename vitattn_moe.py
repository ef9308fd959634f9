"""The program `vitattn-moe`, and the version of this package.

`vitattn-moe train --config=...`, or `python -m vitattn_moe train --config=...`, does what
`python -m launch.train --config=...` does; `launch.program` lists the commands. Before any of the
packages below is imported, it is made sure that Python finds ours: `configs` and `launch` are names
that other projects use as well.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

__version__ = "0.2.0"

PACKAGES = ("trainlib", "vitattn", "moe", "configs", "launch")
MARK = "# A package of vitattn-moe."  # a line of the __init__.py of each
ROOT = Path(__file__).resolve().parent
EXIT_CONFIG = 64  # that of `trainlib.errors.ConfigError`, which cannot be imported yet


class ForeignPackage(ImportError):
    """Python finds the package of another program under the name of one of ours."""


def main() -> None:
    """Entry point of the program."""
    refuse_foreign_packages()
    module = sys.modules.get("__main__")
    as_module = getattr(module, "__spec__", None) is not None
    program = importlib.import_module("launch.program")
    program.main("python -m vitattn_moe" if as_module else "vitattn-moe", sys.argv[1:])


def refuse_foreign_packages() -> None:
    """Ends the process with one paragraph and 64 where `check_packages` finds something."""
    try:
        check_packages()
    except ForeignPackage as error:
        leave(str(error))


def leave(message: str) -> NoReturn:
    """Prints an error as a paragraph and ends the process."""
    words = f"error: {' '.join(message.split())}"
    print(
        textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False), file=sys.stderr
    )
    sys.exit(EXIT_CONFIG)


def check_packages() -> None:
    """Makes sure that Python imports the packages that lie beside this file.

    Raises:
      ForeignPackage: it would import another one, or one of ours was overwritten or is missing.
    """
    for name in PACKAGES:
        found = _found(name)
        if found is not None and found.is_dir():
            # A folder without __init__.py stands in for a package if ours is an editable install.
            sys.path.insert(0, str(ROOT))
            found = _found(name)
        own = ROOT / name / "__init__.py"
        if found is None:
            raise ForeignPackage(
                f"This installation of vitattn-moe is not whole: there is no package '{name}'. "
                "Install it again."
            )
        if found != own:
            raise ForeignPackage(_another(name, found))
        if MARK not in own.read_text(encoding="utf-8").splitlines():
            raise ForeignPackage(_overwritten(name, own))


def _found(name: str) -> Path | None:
    """The file that `import name` reads; the folder of a package without __init__.py."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that was put into sys.modules by hand
        spec = None
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location and spec.origin else spec.submodule_search_locations
    return Path(next(iter(places or ["."]))).resolve()


def _another(name: str, found: Path) -> str:
    package = found.name in ("__init__.py", "__init__.pyc")
    shown = found.parent if package else found
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    by_path = shown.parent in (Path(entry).resolve() for entry in path)
    if by_path:
        where = "by way of PYTHONPATH"
        remedy = f"Take {shown.parent} out of PYTHONPATH, or rename it"
    elif shown.parent == Path.cwd():
        where = "in the current directory"
        remedy = "Start the command in another directory, or rename it"
    else:
        where = f"which belongs to {_owner(name) or 'another program'}"
        remedy = "Install the two in separate virtual environments"
    if name == "configs" and package and (by_path or shown.parent == Path.cwd()):
        remedy += (
            "; if it holds configurations of yours, remove its __init__.py: "
            "--config=configs/FILE.py reads a file that lies in no package"
        )
    return (
        f"Python finds another '{name}' where vitattn-moe has a package of that name: {shown}, "
        f"{where}. Its own lies in {ROOT / name}. {remedy}."
    )


def _overwritten(name: str, own: Path) -> str:
    owner = _owner(name)
    return (
        f"{own} is not that of vitattn-moe: {owner or 'another program'} has a package '{name}' as "
        "well, and was installed over it. Install the two in separate virtual environments: "
        "make a new one, and install vitattn-moe there."
    )


def _owner(name: str) -> str:
    """The other installed distributions that bring a package of this name; "" for none."""
    owners = importlib.metadata.packages_distributions().get(name, [])
    others = sorted({owner for owner in owners if owner != "vitattn-moe"})
    return f"the installed {' and '.join(others)}" if others else ""


if __name__ == "__main__":
    main()
