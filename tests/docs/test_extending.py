"""The pages of docs/extending/, followed by a stranger in an empty directory; see `follow`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.commands import ROOT, environment

PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.thorough
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works_as_it_is_written(page, tmp_path, cache):
    extra = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.follow", str(page)],
        cwd=tmp_path,
        env=environment(cache, **extra),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
