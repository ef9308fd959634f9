"""The source lines and functions that the head of an HLO text lists: who called what.

Four tables of lines `id value`: names of files, names of functions, locations made of both, and
frames, each a location and the frame that called it. An instruction names its innermost frame. A
caller is printed as its id plus one, so that 1 means none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from functools import cached_property

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_FIELD = re.compile(r"(\w+)=(-?\d+)")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One call: `file`, `line` in it, and the qualified name of the function that it stands in."""

    file: str
    line: int
    function: str


class Frames:
    """The tables of a program.

    Args:
      lines: of the text before its first computation.
    """

    def __init__(self, lines: Iterable[str]):
        self._tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        current = None
        for line in lines:
            if line in self._tables:
                current = self._tables[line]
            elif current is not None and line:
                number, _, value = line.partition(" ")
                if not number.isdigit():
                    current = None
                    continue
                current[int(number)] = value

    @cached_property
    def _locations(self) -> dict[int, Frame]:
        files, functions, locations, _ = (self._tables[name] for name in _TABLES)
        found = {}
        for number, value in locations.items():
            fields = dict(_FIELD.findall(value))
            file = files.get(int(fields.get("file_name_id", 0)), "").strip('"')
            function = functions.get(int(fields.get("function_name_id", 0)), "").strip('"')
            found[number] = Frame(file, int(fields.get("line", 0)), function)
        return found

    def stack(self, number: int) -> list[Frame]:
        """The calls of a frame id, the innermost first; empty where it is not known."""
        found: list[Frame] = []
        frames = self._tables["StackFrames"]
        while number in frames and len(found) < 1000:
            fields = dict(_FIELD.findall(frames[number]))
            location = self._locations.get(int(fields.get("file_location_id", 0)))
            if location:
                found.append(location)
            number = int(fields.get("parent_frame_id", 1)) - 1
        return found
