"""The cache of tokenised data: content, going on after a kill, damage, and bad documents."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe.data.cache import read as cache_module
from moe.data.cache.build import build
from moe.data.cache.read import BLOCK, Cache
from moe.data.catalog import unknown
from moe.text.reader import Document
from moe.text.vocabulary import ByteVocabulary
from trainlib.errors import DataError, StorageError
from trainlib.seal import sealed

ROOT = Path(__file__).resolve().parents[4]
VOCABULARY = ByteVocabulary(100)


class Lines:
    """Documents of 0 to 400 letters, or pairs; `stop_at` raises as a kill would."""

    name, size_bytes, most_shards = "lines", 1000, 8

    def __init__(self, count=60, pairs=False, bad=(), stop_at=None, mark="1"):
        self.count, self.bad, self.stop_at, self.mark = count, bad, stop_at, mark
        self.features = ("inputs", "targets") if pairs else ("targets",)

    def fingerprint(self):
        return self.mark

    def text(self, number, feature):
        rng = np.random.default_rng((number, len(feature)))
        return "".join(rng.choice(list("abcdef gh"), number * 7))

    def documents(self, shard, shards):
        for number in range(shard, self.count, shards):
            if number == self.stop_at:
                raise KeyboardInterrupt
            if number in self.bad:
                yield Document(f"line {number}", {}, "is broken")
            else:
                yield Document(f"line {number}", {f: self.text(number, f) for f in self.features})


def make(directory, reader, shards=3, max_bad_fraction=0.001, vocabulary=VOCABULARY, **kwargs):
    kwargs = {"workers": 0, "report": lambda line: None} | kwargs
    return build(
        directory, reader, vocabulary, shards=shards, max_bad_fraction=max_bad_fraction, **kwargs
    )


def files(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "manifest.json"}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_reads_what_was_written(tmp_path, monkeypatch, in_memory, pairs):
    if not in_memory:
        monkeypatch.setattr(cache_module, "_IN_MEMORY_TOKENS", 0)
    reader = Lines(pairs=pairs)
    make(tmp_path / "c", reader)
    cache = pickle.loads(pickle.dumps(Cache(tmp_path / "c")))
    assert cache.in_memory == in_memory
    # Shard s holds the documents s, s + 3, ... but the first, which is empty.
    order = [n for shard in range(3) for n in range(shard, 60, 3) if n]
    ids = [[VOCABULARY.encode(reader.text(n, f)) for f in reader.features] for n in order]
    stream = np.concatenate([np.concatenate(parts) for parts in ids])
    assert cache.tokens == len(stream)
    assert cache.tokens > 3 * BLOCK
    np.testing.assert_array_equal(cache.read(0, cache.tokens), stream)
    for start, stop in ((0, 1), (BLOCK - 3, BLOCK + 3), (5000, 9000), (len(stream) - 1, 10**9)):
        got = cache.read(start, stop)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, stream[start:stop])
    ends = np.concatenate([e + s for e, s in zip(cache.array("ends"), cache.starts, strict=False)])
    np.testing.assert_array_equal(np.diff(ends, prepend=0), [sum(map(len, p)) for p in ids])
    if pairs:
        inputs = np.concatenate(cache.array("inputs"))
        np.testing.assert_array_equal(inputs, [len(p[0]) for p in ids])
    targets = np.concatenate([p[-1] for p in ids])
    np.testing.assert_array_equal(cache.counts(), np.bincount(targets, minlength=359))


def test_goes_on_from_the_finished_shards(tmp_path):
    make(tmp_path / "whole", Lines())
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", Lines(stop_at=31))  # in shard 1
    assert not (tmp_path / "cut").exists()
    first = tmp_path / "cut.partial" / "00000-of-00003.tokens"
    inode = first.stat().st_ino
    # The number of shards is that of the start, whatever the second call says.
    make(tmp_path / "cut", Lines(), shards=5)
    assert (tmp_path / "cut" / first.name).stat().st_ino == inode
    assert not (tmp_path / "cut.partial").exists()
    assert Cache(tmp_path / "cut").digest == Cache(tmp_path / "whole").digest


KILLED = """
import os, signal, sys
from pathlib import Path
from moe.text.text_folder import TextFolder
from moe.data.cache.build import build
from moe.text.vocabulary import ByteVocabulary
replace, left = os.replace, [int(sys.argv[3])]
def replace_or_die(path, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return replace(path, target)
os.replace = replace_or_die
build(Path(sys.argv[1]), TextFolder(sys.argv[2], 0.0, False), ByteVocabulary(100), shards=4,
      workers=0, max_bad_fraction=0.0, private=len(sys.argv) > 4)
"""


def test_survives_a_kill_at_any_write(tmp_path):
    """SIGKILL just before each of the renames; then the same command to the end."""
    data = tmp_path / "data"
    data.mkdir()
    for n in range(8):
        (data / f"{n}.txt").write_text(f"text {n} " * 700)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(data)]
    kills = 0
    # Four files a shard, the plan and the manifest: each run gets 5 renames further at most.
    for _ in range(10):
        run = subprocess.run([*command, "5"], cwd=ROOT, capture_output=True, timeout=1200)
        if run.returncode != -signal.SIGKILL:
            break
        kills += 1
        assert not (tmp_path / "c").exists()
    assert run.returncode == 0, run.stderr
    assert kills >= 3
    subprocess.run([*command[:3], str(tmp_path / "whole"), str(data), "99"], cwd=ROOT, check=True)
    whole, resumed = Cache(tmp_path / "whole"), Cache(tmp_path / "c")
    assert resumed.digest == whole.digest
    assert resumed.documents == 8
    assert sorted(files(tmp_path / "c")) == sorted(files(tmp_path / "whole"))


def test_several_processes_at_once(tmp_path):
    """As when every host of a pod meets an unprepared small source at the same moment."""
    data = tmp_path / "data"
    data.mkdir()
    for n in range(8):
        (data / f"{n}.txt").write_text(f"text {n} " * 700)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(data), "99", "private"]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [run.communicate(timeout=1200)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    assert Cache(tmp_path / "c").documents == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "data"]


def test_changed_source_starts_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", Lines(stop_at=31))
    make(tmp_path / "c", Lines(count=30, mark="2"))
    assert Cache(tmp_path / "c").documents == 29


def test_a_source_that_changes_meanwhile_is_no_cache(tmp_path):
    class Growing(Lines):
        def documents(self, shard, shards):
            yield from super().documents(shard, shards)
            self.mark = "2"

    with pytest.raises(DataError, match="changed while it was tokenised"):
        make(tmp_path / "c", Growing())
    assert not (tmp_path / "c").exists()


def test_parts_of_several_machines(tmp_path):
    make(tmp_path / "whole", Lines(), shards=5)
    done = [make(tmp_path / "c", Lines(), shards=5, part=(i, 3)) for i in range(3)]
    assert done == [False, False, True]
    assert files(tmp_path / "c") == files(tmp_path / "whole")


def test_finished_shards_of_other_files_are_not_lost_in_silence(tmp_path):
    make(tmp_path / "c", Lines(), shards=5, part=(0, 3))
    kept = files(tmp_path / "c.partial")
    with pytest.raises(DataError, match=r"holds 2 finished shards of other files.*same files"):
        make(tmp_path / "c", Lines(mark="2"), shards=5, part=(1, 3))
    assert files(tmp_path / "c.partial") == kept
    said = []
    assert make(tmp_path / "c", Lines(mark="2"), shards=5, report=said.append)
    assert "2 finished shards of other files, vocabulary or definitions: they are" in said[0]


def test_processes_write_the_same(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for n in range(6):
        (data / f"{n}.txt").write_text(f"text {n} " * 700)
    from moe.text.text_folder import TextFolder

    reader = TextFolder(str(data), 0.0, False)
    make(tmp_path / "one", reader)
    make(tmp_path / "two", reader, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_unusable_documents_are_kept_in_mind(tmp_path):
    make(tmp_path / "c", Lines(bad=(4, 5)), max_bad_fraction=0.05)
    cache = Cache(tmp_path / "c")
    unusable = [tuple(entry) for shard in cache.shards for entry in shard.unusable]
    # Document 0 is empty.
    expected = {("line 0", "has no tokens"), ("line 4", "is broken"), ("line 5", "is broken")}
    assert set(unusable) == expected
    assert cache.documents == 57


def test_too_many_unusable_documents(tmp_path):
    message = r"7 of the 60 records.*line 0: has no tokens; line 4: is broken.*max_bad_fraction"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "c", Lines(bad=range(4, 10)), shards=1)
    with pytest.raises(DataError, match="1 of the 60"):
        make(tmp_path / "d", Lines(), shards=1, max_bad_fraction=0.0)


def test_nothing_usable(tmp_path):
    with pytest.raises(DataError, match=r"has no text: none of .*: line 0: is broken; line 1"):
        make(tmp_path / "c", Lines(count=3, bad=(0, 1, 2)), max_bad_fraction=1.0)
    with pytest.raises(
        DataError, match=r"^a \(holdout\) has no text: no document that can be used"
    ):
        make(tmp_path / "d", Lines(count=0), title="a (holdout)")


class WrongIds(Lines):
    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def documents(self, shard, shards):
        yield Document("example 7", {"targets": np.asarray([5, self.wrong, 6])})


def test_unknown_tokens_are_counted(tmp_path):
    """926 of 2,404, in inputs and targets alike."""

    class Unknown(Lines):
        features = ("inputs", "targets")

        def __init__(self):
            self.mark = "1"

        def documents(self, shard, shards):
            ids = np.full(1202, 5)
            ids[: 926 // 2] = 2
            yield Document("one", {"inputs": ids, "targets": ids})

    make(tmp_path / "c", Unknown(), shards=1)
    cache = Cache(tmp_path / "c")
    assert unknown("text:mine", cache) == [
        "unknown: 926 of 2,404 tokens of text:mine (39 %) are what the vocabulary bytes has no "
        "piece for"
    ]
    make(tmp_path / "d", Lines())
    assert unknown("lines", Cache(tmp_path / "d")) == []


@pytest.mark.parametrize("wrong", [-1, 359, 70_000])
def test_ids_outside_the_vocabulary(tmp_path, wrong):
    message = rf"lines, example 7: 'targets' has the id {wrong}, outside the 359"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "c", WrongIds(wrong))
    assert not (tmp_path / "c").exists()


def test_large_vocabularies_keep_their_ids(tmp_path):
    class Large(ByteVocabulary):
        def encode(self, text):
            return super().encode(text) + 200_000

    vocabulary = Large(300_000)
    make(tmp_path / "c", Lines(), vocabulary=vocabulary)
    assert Cache(tmp_path / "c").read(0, 100).min() > 200_000


def damage_shard(tmp_path, change):
    make(tmp_path / "c", Lines())
    path = tmp_path / "c" / "00001-of-00003.tokens"
    content = path.read_bytes()
    change(path, content)


@pytest.mark.parametrize(
    "change",
    [
        lambda path, content: path.unlink(),
        lambda path, content: path.write_bytes(content[: len(content) // 2]),
        lambda path, content: path.write_bytes(b""),
    ],
)
def test_missing_and_truncated_shards(tmp_path, change):
    damage_shard(tmp_path, change)
    with pytest.raises(
        DataError, match=r"00001-of-00003.tokens (is missing: the|has [\d,]+ bytes, wh)"
    ):
        Cache(tmp_path / "c")


def flip(path, content):
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    path.write_bytes(changed)


def test_a_flipped_bit_is_noticed(tmp_path, monkeypatch):
    damage_shard(tmp_path, flip)
    with pytest.raises(DataError, match=r"00001-of-00003.tokens is damaged: its SHA-256"):
        Cache(tmp_path / "c")
    # A cache too large for memory is not read through; its records have check sums of their own.
    monkeypatch.setattr(cache_module, "_IN_MEMORY_TOKENS", 0)
    cache = Cache(tmp_path / "c")
    with pytest.raises(OSError, match="cannot be read"):
        cache.read(0, cache.tokens)
    with pytest.raises(DataError, match="SHA-256"):
        cache.verify()


@pytest.mark.parametrize("kind", ["ends", "inputs", "counts"])
def test_a_damaged_index_is_noticed(tmp_path, kind):
    """A document that ends elsewhere would be read as another, without a word."""
    make(tmp_path / "c", Lines(pairs=True))
    path = tmp_path / "c" / f"00001-of-00003.{kind}.npy"
    flip(path, path.read_bytes())
    with pytest.raises(DataError, match=rf"00001-of-00003\.{kind}\.npy is damaged: its SHA"):
        Cache(tmp_path / "c")
    path.unlink()
    with pytest.raises(DataError, match=rf"{kind}\.npy is missing"):
        Cache(tmp_path / "c")


def test_a_source_that_cannot_be_read_is_no_failing_disk(tmp_path):
    class Gone(Lines):
        def documents(self, shard, shards):
            yield from itertools.islice(super().documents(shard, shards), 3)
            raise FileNotFoundError(2, "No such file or directory", "/data/b.txt")

    with pytest.raises(DataError, match=r"lines cannot be read .*b\.txt"):
        make(tmp_path / "c", Gone())


def test_other_formats_are_refused(tmp_path):
    make(tmp_path / "c", Lines())
    path = tmp_path / "c" / "manifest.json"
    content = json.loads(path.read_text())["content"]
    path.write_bytes(sealed(content | {"format": 0}))
    with pytest.raises(DataError, match="not a cache of this version"):
        Cache(tmp_path / "c")
    path.write_text(json.dumps(content | {"format": 2}))  # as versions before the seal wrote it
    with pytest.raises(DataError, match=r"was not written by this version.*remove .*/c: a small"):
        Cache(tmp_path / "c")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be made.*data.cache=DIR"):
        make(tmp_path / "file" / "c", Lines())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    from moe.data.cache import write_shard

    class Full(write_shard._StreamWriter):
        def __init__(self, path, dtype):
            super().__init__(Path("/dev/full"), dtype)

    monkeypatch.setattr(write_shard, "_StreamWriter", Full)
    with pytest.raises(StorageError, match=r"cannot be written.*No space left"):
        make(tmp_path / "c", Lines())


def manifest_as(change):
    def apply(path):
        content = json.loads(path.read_text())["content"]
        change(content)
        path.write_bytes(sealed(content))

    return apply


def sparse(path):
    with path.open("r+b") as file:
        file.truncate(5 << 30)


def link_to(target):
    def apply(path):
        path.unlink()
        path.symlink_to(target)

    return apply


HOSTILE = {
    "five gigabytes": (sparse, "larger than 64 MiB"),
    "a link to a device": (link_to("/dev/zero"), "is a symbolic link"),
    "a link to a file": (link_to("/etc/hostname"), "is a symbolic link"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is a named pipe"),
    "a path": (manifest_as(lambda m: m["shards"][0].update(name="../x")), "not what was written"),
    "a text": (manifest_as(lambda m: m["shards"][0].update(tokens="7")), "not what was written"),
    "a negative": (manifest_as(lambda m: m["shards"][1].update(documents=-1)), "not what was"),
    "no shards": (manifest_as(lambda m: m.update(shards=[])), "not what was written"),
    "too few shards": (manifest_as(lambda m: m["shards"].pop()), "not what was written"),
    "a list": (lambda path: path.write_text("[]"), "is damaged"),
    "nesting": (lambda path: path.write_text("[" * 10**6), "is not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_manifests_are_refused(tmp_path, kind):
    make(tmp_path / "c", Lines())
    damage, message = HOSTILE[kind]
    damage(tmp_path / "c" / "manifest.json")
    with pytest.raises(DataError, match=message):
        Cache(tmp_path / "c")


@pytest.mark.parametrize("name", ["00001-of-00003.tokens", "00001-of-00003.ends.npy"])
@pytest.mark.parametrize("damage", [sparse, link_to("/dev/zero")])
def test_hostile_shards_are_refused(tmp_path, name, damage):
    make(tmp_path / "c", Lines())
    damage(tmp_path / "c" / name)
    with pytest.raises(DataError, match=r"has 5,368,709,120 bytes, where|is a symbolic link"):
        Cache(tmp_path / "c")


def test_fewer_tokens_in_the_manifest_are_noticed(tmp_path):
    """342258 became 337258 by one digit, and 36 rows vanished."""
    make(tmp_path / "c", Lines())
    path = tmp_path / "c" / "manifest.json"
    tokens = json.loads(path.read_text())["content"]["shards"][0]["tokens"]
    path.write_text(path.read_text().replace(f'"tokens":{tokens}', f'"tokens":{tokens - 1000}'))
    with pytest.raises(DataError, match="damaged: its SHA-256"):
        Cache(tmp_path / "c")


def test_shards_of_a_damaged_plan_are_not_taken(tmp_path):
    """Without its plan nobody knows what the finished shards are of."""
    make(tmp_path / "c", Lines(), shards=5, part=(0, 3))
    plan = tmp_path / "c.partial" / "plan.json"
    flip(plan, plan.read_bytes())
    with pytest.raises(DataError, match="the plan that says what of is damaged"):
        make(tmp_path / "c", Lines(), shards=5, part=(1, 3))
    said = []
    assert make(tmp_path / "c", Lines(mark="2"), shards=5, report=said.append)
    assert "2 finished shards, and the plan" in said[0]
