"""A whole page: styles, script and pictures are in it, nothing is loaded from anywhere, and no
script runs but that of the page, which its policy names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from trainlib.errors import ConfigError, StorageError, shown
from trainlib.files import check_target, write_atomically
from trainlib.pages.markup import text


def document(mark: str, title: str, style: str, body: str, script: str) -> str:
    """A page, UTF-8.

    Args:
      mark: how it begins: the doctype, and a comment by which a page of ours is recognised.
      title: of its window; text.
      style: CSS beside that of all pages.
      body: HTML.
      script: beside that of all pages.
    """
    style = "\n" + asset("trainlib.pages", "base.css") + style
    script = "\n" + asset("trainlib.pages", "tips.js") + script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; script-src 'sha256-{digest}'"
    )
    return (
        f'{mark}<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>"
        f"</head>\n<body>\n{body}\n<script>{script}</script>\n</body></html>\n"
    )


def asset(room: str, name: str) -> str:
    """A file that lies in a package, as text."""
    return resources.files(room).joinpath(name).read_text("utf-8")


def check_page(path: Path, mark: str, flag: str) -> None:
    """Refuses to write over anything but a page of the same kind, before it is made.

    Args:
      path: of the file that is to be written.
      mark: how such a page begins, see `document`.
      flag: the flag of the command line that names it.

    Raises:
      ConfigError: something else lies there, or a link.
    """
    check_target(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        begins = file.read(len(mark.encode()))
    if begins != mark.encode():
        raise ConfigError(
            f"{flag}: {shown(path)} is there already, and is no page that this command wrote. It "
            "is left as it is; name another."
        )


def write_page(path: Path, page: str) -> None:
    """Writes a page as a whole, with the folders above it.

    Raises:
      StorageError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise StorageError(
            f"The page {shown(path)} cannot be written: {error.strerror or error}. Free space or "
            "name another place."
        ) from error
