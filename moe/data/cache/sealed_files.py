"""Files of a cache that guard themselves, written by many processes at once."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any

from trainlib import files
from trainlib.errors import DataError, StorageError, shown
from trainlib.seal import sealed, unsealed
from trainlib.untrusted_files import read_small

_TOKEN = secrets.token_hex(4)  # containers of one image can have the same host name and numbers


def process() -> str:
    """Names this process among all that may write to one directory at once."""
    return f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}"


def make_directory(path: Path) -> None:
    """Makes a directory of the cache; raises StorageError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.make_directory(path)
    except OSError as error:
        raise StorageError(
            f"{shown(path)} cannot be made ({error.strerror}). Tokenised data is kept there: "
            "choose another place with --config.data.cache=DIR."
        ) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON that guards itself, whole or not at all."""
    files.write_atomically(path, sealed(value), process())


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is nothing.

    Raises:
      DataError: it is damaged.
    """
    if not os.path.lexists(path):
        return None
    return unsealed(read_small(path, error=DataError), shown(path), DataError)
