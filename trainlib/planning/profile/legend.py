"""The colours of families of operations, and which is what."""

from __future__ import annotations

from collections.abc import Iterable

from trainlib.pages.markup import text
from trainlib.planning.profile.figures import FAMILIES, WAITING

CLASSES = {**{family: f"f-{family}" for family in FAMILIES}, WAITING: "f-waiting", "": "f-mixed"}


def legend(families: Iterable[str]) -> str:
    """Which colour is what."""
    names = (
        f'<span class="key"><i class="{CLASSES[family]}"></i>{text(family.strip("()"))}</span>'
        for family in families
    )
    return f'<p class="legend">{"".join(names)}</p>'
