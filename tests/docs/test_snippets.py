"""Every command and every snippet of README.md and docs/ is run, unless a marker gives the reason
why not (see `tests.docs.pages`).
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.docs import pages, run_pages
from tests.docs.pages import PAGES, ROOT, SHELLS
from tests.launch.commands import environment

pytestmark = pytest.mark.thorough


def _runs(path) -> bool:
    languages = ("python", *SHELLS)
    return any(b.language in languages and not b.unrun for b in pages.read(path).blocks)


FIRST = ("README.md", "docs/getting_started.md")  # what lands has run these; all take 8 CPU minutes
RUNNABLE = [str(path.relative_to(ROOT)) for path in PAGES if _runs(path)]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """Page -> what went wrong, of the pages whose tests are run."""
    tests = [item.callspec for item in request.session.items if item.path == request.path]
    names = [test.params["name"] for test in tests]
    folder = tmp_path_factory.mktemp("pages")
    cache = folder / "cache"
    home = {name: str(folder / "home") for name in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_pages", str(folder), *names],
        cwd=ROOT,
        env=environment(cache, VITATTN_MOE_COMPILE_CACHE=str(cache), **home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    print(done.stdout)
    assert done.returncode == 0
    return json.loads((folder / run_pages.RESULTS).read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in RUNNABLE],
)
def test_a_page_runs(name, results):
    assert not results[name], results[name]
