"""The names of the commands as their reader starts them, for messages that say what to type.

vitattn-moe train             the program that is installed with the package
python -m vitattn_moe train   the same, as a module of Python
python -m launch.train        a module of a checkout
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = "vitattn-moe"
STARTED_AS = "VITATTN_MOE_STARTED_AS"  # an environment variable, which worker processes inherit
_MODULES = {"import": "import_weights"}  # commands whose module has another name


def started_as(program: str) -> None:
    """Says how this process was started: `vitattn-moe`, or `python -m vitattn_moe`."""
    os.environ[STARTED_AS] = program


def name(command: str) -> str:
    """What to type for a command such as `train` or `import`, without its arguments.

    It follows the way in which this process was started. In a process that runs something else,
    such as a notebook, it is the module of a checkout or the program of an installed package.
    """
    if os.environ.get(STARTED_AS):
        return f"{os.environ[STARTED_AS]} {command}"
    if _started_as_module() or in_checkout():
        return f"python -m launch.{_MODULES.get(command, command)}"
    return f"{PROGRAM} {command}"


def install(extra: str = "") -> str:
    """What to type to install this package again, with the packages of an extra such as `plots`."""
    what = f"[{extra}]" if extra else ""
    if in_checkout():
        return f"pip install -c constraints.txt -e '.{what}'"
    return f"pip install '{PROGRAM}{what}'"


def in_checkout() -> bool:
    """Whether this code lies in a checkout of the repository, and not where pip installs it."""
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()


def _started_as_module() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("launch.")
