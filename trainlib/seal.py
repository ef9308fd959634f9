"""JSON that guards its own content: a SHA-256 lies beside it, so that no damage changes a number
without a word. It guards against accidents, not against people.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainlib.errors import UserError
from trainlib.untrusted_files import parse_json


def canonical(value: Any) -> str:
    """The one text of a JSON value that its digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)


def seal_of(value: Any) -> str:
    """SHA-256 of a JSON value, as hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sealed(value: dict[str, Any], key: str = "content") -> bytes:
    """The content of a file that `unsealed` reads: `{"sha256": .., key: value}`."""
    return f'{{"sha256": "{seal_of(value)}",\n"{key}": {canonical(value)}}}\n'.encode()


def unsealed(
    data: bytes, what: str, error: type[UserError], key: str = "content"
) -> dict[str, Any]:
    """The value that was sealed.

    Args:
      data: the content of a file.
      what: names the file in errors.
      error: the class of the refusal.
      key: as when it was sealed.

    Raises:
      error: it is not what was written.
    """
    outer = parse_json(data, what, error=error)
    if not isinstance(outer, dict) or set(outer) != {"sha256", key}:
        raise error(f"{what} is damaged, or was not written by this version.")
    if not isinstance(outer[key], dict) or seal_of(outer[key]) != outer["sha256"]:
        raise error(f"{what} is damaged: its SHA-256 is not the one noted when it was written.")
    return outer[key]
