"""The short form of `make fuzz`, for `make soak`."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from tests.fuzz import mutate
from tests.fuzz.readers import READERS
from tests.launch.commands import ROOT, environment
from trainlib.errors import UserError


@pytest.mark.slow
def test_some_hundred_mutations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.mutate", "--count=600", "--seed=1"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, read = (
        int(n)
        for n in re.match(
            r"600 mutations: (\d+) refused, (\d+) read, .* 0 silent", done.stdout
        ).groups()
    )
    # Both ends are exercised: most damage is seen; other numbers in place of weights are not.
    assert refused > 200
    assert read > 50


def test_mutations_change_the_file_and_repeat():
    data = bytes(range(48, 112)) * 4
    made = [mutate.mutated(data, random.Random(n)) for n in range(50)]
    assert made == [mutate.mutated(data, random.Random(n)) for n in range(50)]
    assert sum(one != data for one in made) > 45


def test_damaged_caches_of_tokens_are_refused_or_harmless(tmp_path):
    """Bits, cuts and forged numbers in every file of a cache, finished or not."""
    kinds = ["cache", "cache_on_disk", "unfinished_cache"]
    said = mutate.run(90, 3, tmp_path, kinds)
    assert " 0 crashes, 0 silent" in said
    assert int(re.search(r"(\d+) refused", said)[1]) > 20


def test_damaged_files_of_pairs_are_refused_or_read(tmp_path):
    """JSON lines, CSV and Parquet, with bytes that are no text and heads that lie."""
    said = mutate.run(300, 11, tmp_path, ["pairs"])
    assert " 0 crashes, 0 silent" in said
    assert int(re.search(r"(\d+) refused", said)[1]) > 50


def test_damaged_sets_with_boxes_are_refused_or_have_sound_boxes(tmp_path):
    """Of COCO, VOC and YOLO: whatever a file says, a box lies in an image that there is."""
    said = mutate.run(150, 5, tmp_path, ["coco", "voc", "yolo"])
    assert " 0 crashes, 0 silent" in said
    assert int(re.search(r"(\d+) refused", said)[1]) > 20


@pytest.mark.parametrize("kind", ["cache", "cache_on_disk", "unfinished_cache"])
def test_no_flipped_bit_changes_a_token_in_silence(tmp_path, kind):
    reader = READERS[kind]
    (tmp_path / kind).mkdir()
    place = reader.make(tmp_path / kind)
    good, draw = reader.read(place), random.Random(kind)
    files = sorted(place.iterdir())
    refused = 0
    for number in range(4 * len(files)):
        file = files[number % len(files)]
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            assert reader.read(place) == good, file
        except UserError:
            refused += 1
        file.write_bytes(content)
    assert refused


def test_damaged_records_of_routing_are_refused_or_whole(tmp_path):
    said = mutate.run(100, 2, tmp_path, ["routing"])
    assert " 0 crashes, 0 silent" in said
    assert int(re.search(r"(\d+) refused", said)[1]) > 50
