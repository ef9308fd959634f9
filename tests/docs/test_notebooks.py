"""The notebooks of docs/notebooks/ run from top to bottom in a process of their own, and what is
kept of them in the repository is as small as it looks.
"""

import json
import os

import pytest

from tests.docs.pages import DOCS, ROOT

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_what_is_kept_is_small_and_of_no_machine(path):
    text = path.read_text()
    assert path.stat().st_size < MOST_BYTES
    for word in ("/home/", "/work/", "/root/", "site-packages", "Traceback"):
        assert word not in text
    cells = json.loads(text)["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert all(
        output["output_type"] != "error" for cell in cells for output in cell.get("outputs", ())
    )


@pytest.mark.slow
@each
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
        env=dict(os.environ),
    )
    client.execute()
    pictures = [
        cell
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 4
