"""Pages run their own script and no other, and are written over nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from trainlib.errors import ConfigError, StorageError
from trainlib.pages.document import check_page, document, write_page
from trainlib.pages.markup import data, text

MARK = "<!doctype html>\n<!-- a page of a test -->\n"


def test_the_policy_names_the_one_script_by_its_digest():
    page = document(MARK, "a <b> page", ".x {}", "<main></main>", "let x = 1 < 2;")
    [script] = re.findall(r"<script>(.*)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "unsafe-inline' script" not in page
    assert page.startswith(MARK)
    assert "<title>a &lt;b&gt; page</title>" in page


@pytest.mark.parametrize("evil", ["</script><script>", "<!--", "&lt;", "\u2028", "\x00"])
def test_data_read_back_as_they_were_and_end_no_element(evil):
    element = data("figures", {evil: [evil, 1.5]})
    inside = element.removeprefix('<script type="application/json" id="figures">')
    inside = inside.removesuffix("</script>\n")
    assert not set("<>&\u2028\x00") & set(inside)
    assert json.loads(inside) == {evil: [evil, 1.5]}


def test_data_that_is_no_json_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="JSON"):
        data("figures", [float("nan")])


def test_text_steers_no_browser_and_no_terminal():
    assert text("<a href='x'>\x1b[2J\u202e") == "&lt;a href=&#x27;x&#x27;&gt;\\x1b[2J\\u202e"


def test_a_page_is_written_over_a_page_of_its_kind_alone(tmp_path):
    path = tmp_path / "new" / "page.html"
    check_page(path, MARK, "--html")
    write_page(path, MARK)
    check_page(path, MARK, "--html")
    with pytest.raises(ConfigError, match=r"--html: .*page\.html is there already"):
        check_page(path, "<!doctype html>\n<!-- another -->\n", "--html")
    with pytest.raises(
        ConfigError, match=r"is a folder, and a file .* such as a file in that folder"
    ):
        check_page(tmp_path, MARK, "--html")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", MARK)
