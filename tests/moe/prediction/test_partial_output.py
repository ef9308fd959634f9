"""What was damaged in the finished lines of a prediction is answered again, and stops nothing."""

from __future__ import annotations

import json

import pytest

from moe.prediction.lines import added_fields
from moe.prediction.partial_output import PartialOutput

LINE = {"inputs": "a", "prediction": "b", "truncated": False, "unfinished": False}


def _partial(folder) -> PartialOutput:
    texts = folder / "in.jsonl"
    texts.write_text('{"inputs": "a"}\n' * 9)
    return PartialOutput(texts, folder / "out.jsonl", "weights", added_fields(1))


@pytest.mark.parametrize("file", ["path", "ahead"])
@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        json.dumps(LINE | {"prediction": "\ud800"}).encode(),
        json.dumps({"number": 4, "line": LINE | {"prediction": "\ud800"}}).encode(),
    ],
    ids=["bytes", "deep array", "deep object", "half a pair", "half a pair within"],
)
def test_damage_ends_what_is_known(tmp_path, file, damage):
    before = _partial(tmp_path)
    before.resume()
    before.write([LINE], {3: LINE})
    with getattr(before, file).open("ab") as stream:
        stream.write(damage + b"\n")
    done, early, counts, lost = _partial(tmp_path).resume()
    assert (done, early, counts.answers, lost) == (1, {3: LINE}, 1, 0)
