"""Crafted files that no loader may accept, as a table of builders, and a process that tries each.

    python -m tests.fuzz.hostile DIR [NAME ...]

prints one JSON object: case -> what happened. A process of its own, so that its memory can be
measured and a crash is one. Each case starts from a good tiny export.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

Build = Callable[[Path], None]
CASES: dict[str, tuple[str, Build]] = {}  # name -> (format, damages the copy of a good export)

ST, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
STEP = "checkpoint_0"


def case(name: str, kind: str = "hf") -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        assert name not in CASES
        CASES[name] = kind, build
        return build

    return add


# ------------------------------------------------------------------------------- safetensors
def raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    size = len(header) if length is None else length
    (path / INDEX).unlink(missing_ok=True)
    (path / ST).write_bytes(size.to_bytes(8, "little") + header + data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def header(path: Path, content: Any, data: bytes = b"") -> None:
    raw(path, json.dumps(content).encode(), data)


RAW: dict[str, tuple[bytes, bytes, int | None]] = {
    "length of 2^64 - 1": (b"{}", b"", 2**64 - 1),
    "length of 2^63": (b"{}", b"", 2**63),
    "length past the end": (b"{}", b"", 3),
    "header of 20 MB": (b"{}" + b" " * (20 << 20), b"", None),
    "header is no JSON": (b"{'a': 1}", b"", None),
    "header is no UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "header is a list": (b"[1, 2]", b"", None),
    "header is a number": (b"7", b"", None),
    "header is cut off": (b'{"a": {"dtype"', b"", None),
    "header is empty": (b"", b"", None),
    "nesting of 100,000 lists": (b"[" * 100_000, b"", None),
    "nesting of 100,000 objects": (b'{"a":' * 100_000, b"", None),
    "number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b"", None),
    "the same name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
        None,
    ),
    "the same key twice in an entry": (
        b'{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}}',
        b"\0" * 4,
        None,
    ),
}
HEADERS: dict[str, tuple[Any, bytes]] = {
    **{
        f"the name {name[:20]!r}": ({name: entry()}, b"\0" * 8)
        for name in ("../evil", "a/../../evil", "/etc/passwd", "a\0b", "x" * 600, "", "a\nb", "~/x")
    },
    "unknown dtype": ({"a": entry("F31")}, b"\0" * 8),
    "dtype is a number": ({"a": entry(32)}, b"\0" * 8),
    "object dtype": ({"a": entry("O")}, b"\0" * 8),
    "negative shape": ({"a": entry(shape=(-2,))}, b"\0" * 8),
    "negative shape twice": ({"a": entry(shape=(-1, -2))}, b"\0" * 8),
    "fraction in a shape": ({"a": entry(shape=(2.0,))}, b"\0" * 8),
    "truth value in a shape": ({"a": entry(shape=(True, 2))}, b"\0" * 8),
    "text in a shape": ({"a": entry(shape=("2",))}, b"\0" * 8),
    "shape is text": ({"a": entry() | {"shape": "2"}}, b"\0" * 8),
    "shape of terabytes": ({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, b"\0" * 8),
    "shape of terabytes, few bytes": ({"a": entry(shape=(2**40,))}, b"\0" * 8),
    "shape whose product wraps to 0": ({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}, b""),
    "shape whose product wraps to 2": (
        {"a": entry(shape=(2**33 + 1, 2**33, 2), offsets=(0, 8))},
        b"\0" * 8,
    ),
    "shape of 2^70": ({"a": entry(shape=(2**70,))}, b"\0" * 8),
    "nine dimensions": ({"a": entry(shape=(1,) * 8 + (2,))}, b"\0" * 8),
    "offsets backwards": ({"a": entry(offsets=(8, 0))}, b"\0" * 8),
    "offsets past the end": ({"a": entry(offsets=(100, 108))}, b"\0" * 8),
    "negative offsets": ({"a": entry(offsets=(-8, 0))}, b"\0" * 8),
    "offsets of 10^400": ({"a": entry(offsets=(0, 10**400))}, b"\0" * 8),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, b"\0" * 8),
    "one offset": ({"a": entry(offsets=(8,))}, b"\0" * 8),
    "tensors that overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
    "tensors that are the same bytes": ({"a": entry(), "b": entry()}, b"\0" * 8),
    "a gap between tensors": ({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20),
    "a gap in front": ({"a": entry(offsets=(4, 12))}, b"\0" * 12),
    "bytes at the end": ({"a": entry()}, b"\0" * 9),
    "data cut off": ({"a": entry()}, b"\0" * 7),
    "an entry with more keys": ({"a": entry(code="import os")}, b"\0" * 8),
    "an entry without shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8),
    "an entry that is a list": ({"a": [1]}, b""),
    "metadata that is a list": ({"__metadata__": [1], "a": entry()}, b"\0" * 8),
    "metadata with numbers": ({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 8),
    "120,000 tensors": (
        {str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(120_000)},
        b"",
    ),
    "no tensors": ({}, b""),
    "a tensor of another model": ({"shared.weight": entry()}, b"\0" * 8),
}
for _name, _raw in RAW.items():
    case(_name)(lambda path, a=_raw: raw(path, *a))
for _name, _header in HEADERS.items():
    case(_name)(lambda path, a=_header: header(path, *a))


def replaced(content: bytes, name: str = ST) -> Build:
    def build(path: Path) -> None:
        (path / INDEX).unlink(missing_ok=True)
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(content)

    return build


def canary() -> Path:
    return Path(os.environ["CANARY"])


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {canary()}",)


def pickled() -> bytes:
    import pickle

    return pickle.dumps(Bomb(), protocol=2)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled())
        file.writestr("../../evil", "x")
    return buffer.getvalue()


def tarred(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as file:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
        inside = tarfile.TarInfo("link/evil")
        inside.size = 1
        file.addfile(inside, io.BytesIO(b"x"))
    return buffer.getvalue()


def saved_object() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    return buffer.getvalue()


for _name, _content in {
    "a pickle": pickled,
    "a zip of a pickle": zipped,
    "a tar with links": lambda: tarred(False),
    "a packed tar with links": lambda: tarred(True),
    "a NumPy file of objects": saved_object,
    "an empty file": lambda: b"",
    "seven bytes": lambda: b"\2\0\0\0\0\0\0",
}.items():
    case(_name)(lambda path, make=_content: replaced(make())(path))


@case("only a pickle beside the configuration")
def _only_pickle(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(pickled())


@case("a sparse file of a terabyte")
def _sparse(path: Path) -> None:
    header(path, {"shared.weight": entry(shape=(2**38,), offsets=(0, 2**40))})
    with open(path / ST, "r+b") as file:
        file.truncate(8 + int.from_bytes(file.read(8), "little") + 2**40)


def linked(name: str, target: str) -> Build:
    def build(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(target)

    return build


@case("weights that are a link out of the directory")
def _weights_link(path: Path) -> None:
    shutil.copy(path / ST, path.parent / "outside.safetensors")
    linked(ST, "../outside.safetensors")(path)


@case("weights that are a pipe")
def _pipe(path: Path) -> None:
    (path / ST).unlink()
    os.mkfifo(path / ST)


@case("weights that are a directory")
def _directory(path: Path) -> None:
    (path / ST).unlink()
    (path / ST).mkdir()


@case("weights that link to themselves")
def _loop(path: Path) -> None:
    linked(ST, ST)(path)


# -------------------------------------------------------------------------------------- index
def index(change: Callable[[dict], Any]) -> Build:
    def build(path: Path) -> None:
        content = json.loads((path / INDEX).read_text())
        changed = change(content["weight_map"])
        (path / INDEX).write_text(json.dumps({"weight_map": changed}))

    return build


INDEXES: dict[str, Callable[[dict], Any]] = {
    "a file above the directory": lambda m: m | {"shared.weight": "../model.safetensors"},
    "an absolute file": lambda m: m | {"shared.weight": "/etc/passwd"},
    "a device": lambda m: m | {"shared.weight": "/dev/zero"},
    "a file that is no safetensors": lambda m: m | {"shared.weight": CONFIG},
    "a hidden file": lambda m: m | {"shared.weight": ".x.safetensors"},
    "a file with a NUL": lambda m: m | {"shared.weight": "a\0.safetensors"},
    "a file that is missing": lambda m: m | {"shared.weight": "model-2.safetensors"},
    "a file that is a number": lambda m: m | {"shared.weight": 1},
    "a map that is a list": lambda m: list(m),
    "an empty map": lambda m: {},
    "a name that no file has": lambda m: m | {"more.weight": ST},
    "a path-like name": lambda m: m | {"../../more": ST},
    "without a name that a file has": lambda m: {
        n: f for n, f in m.items() if n != "shared.weight"
    },
}
for _name, _change in INDEXES.items():
    case(f"index: {_name}")(index(_change))
for _name, _text in {
    "no JSON": b"{",
    "a list": b"[]",
    "nesting of 100,000": b"[" * 100_000,
    "the same key twice": b'{"weight_map": {}, "weight_map": {}}',
}.items():
    case(f"index: {_name}")(lambda path, text=_text: (path / INDEX).write_bytes(text) and None)


@case("index: 65 MiB")
def _long_index(path: Path) -> None:
    (path / INDEX).write_bytes(b'{"weight_map": {}}' + b" " * (65 << 20))


@case("index: a link")
def _index_link(path: Path) -> None:
    shutil.move(path / INDEX, path.parent / "index.json")
    linked(INDEX, "../index.json")(path)


# ------------------------------------------------------------------------------ configuration
CHANGES: dict[str, dict[str, Any]] = {
    "10^12 layers": {"num_layers": 10**12},
    "layers as text": {"num_layers": "4"},
    "a width of 2^60": {"d_model": 2**60},
    "a width of 2^19": {"d_model": 2**19},
    "no heads": {"num_heads": 0},
    "another kind": {"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}},
    "a kind that is a list": {"model_type": ["t5"]},
    "an unknown activation": {"feed_forward_proj": "os.system"},
    "65,536 experts in 2,048 layers": {
        "model_type": "switch_transformers",
        **{"num_experts": 2**16, "num_layers": 1024, "num_decoder_layers": 1024},
        **{"num_sparse_encoder_layers": 1024, "num_sparse_decoder_layers": 1024},
    },
}


def configured(change: dict[str, Any]) -> Build:
    def build(path: Path) -> None:
        content = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps(content | change))

    return build


for _name, _values in CHANGES.items():
    case(f"config: {_name}")(configured(_values))
case("config: no JSON")(lambda path: (path / CONFIG).write_bytes(b"{") and None)
case("config: a list")(lambda path: (path / CONFIG).write_bytes(b"[]") and None)
case("config: missing")(lambda path: (path / CONFIG).unlink())
case("config: a link")(linked(CONFIG, "/etc/hostname"))
case("own: of no family", "safetensors")(configured({"family": "os"}))
case("own: an unknown key", "safetensors")(configured({"model.evil": 1}))
case("own: a value of another type", "safetensors")(configured({"model.d_model": "wide"}))
case("own: a width of 2^60", "safetensors")(configured({"model.d_model": 2**60}))
case("own: 10^12 blocks", "safetensors")(configured({"model.encoder_blocks": 4 * 10**11}))
case("own: a model of images with 10^9 blocks", "safetensors")(
    lambda path: (
        (path / CONFIG).write_text(
            json.dumps({"family": "vitattn", "model.name": "resnet", "model.blocks": [10**9] * 4})
        )
        and None
    )
)
case("own: 65 MiB of configuration", "safetensors")(
    lambda path: (path / CONFIG).write_bytes(b"{}" + b" " * (65 << 20)) and None
)


# ---------------------------------------------------------------------------------------- T5X
def packed(content: Any) -> Build:
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    return lambda path: (path / STEP / "checkpoint").write_bytes(data) and None


def tree(target: Any) -> dict[str, Any]:
    return {"version": 3, "optimizer": {"target": target, "state": {}}}


def array(shape: Any, dtype: Any, data: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def placed(path: str) -> dict[str, Any]:
    return tree({"token_embedder": {"embedding": {"driver": "zarr", "kvstore": {"path": path}}}})


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


PACKED: dict[str, Any] = {
    "empty": b"",
    "garbage": b"\xc1" * 64,
    "a pickle": b"\x80\x02}q\x00.",
    "lists nested 100,000 deep": b"\x91" * 100_000,
    "maps nested 100,000 deep": b"\x81\xa1a" * 100_000,
    "a map of 2^32 entries": b"\xdf\xff\xff\xff\xff",
    "a list of 2^32 entries": b"\xdd\xff\xff\xff\xff",
    "4 GB of bytes announced": b"\xc6\xff\xff\xff\xff",
    "the same name twice": b"\x82\xa1a\x01\xa1a\x02",
    "no optimizer": {"version": 3},
    "another version": tree({}) | {"version": 1},
    "a list": [1, 2],
    "a target that is a number": tree(7),
    "a target that is text": tree({"a": "b"}),
    "path-like names": tree({"..": {"..": array([1], "float32", b"\0" * 4)}}),
    "names with slashes": tree({"a/../b": array([1], "float32", b"\0" * 4)}),
    "40 levels of names": tree(deep(40)),
    "an array of objects": tree({"a": array([1], "object", b"\0" * 8)}),
    "an array of an unknown type": tree({"a": array([1], "float31", b"\0" * 4)}),
    "an array of terabytes": tree({"a": array([2**40], "float32", b"\0" * 4)}),
    "an array whose product wraps": tree({"a": array([2**32, 2**32], "float32", b"")}),
    "an array of negative shape": tree({"a": array([-1, -1], "float32", b"\0" * 4)}),
    "another extension": tree({"a": array([1], "float32", b"\0" * 4, 42)}),
    "an array that is no triple": tree({"a": msgpack.ExtType(1, msgpack.packb([1]))}),
    "an array that is garbage": tree({"a": msgpack.ExtType(1, b"\xc1")}),
    "a place above the directory": placed("../../outside"),
    "an absolute place": placed("/etc"),
    "a place in a bucket": placed("gs://bucket/x"),
    "a place in a directory below": placed("a/b"),
    "a place with a NUL": placed("a\0b"),
    "a place that is missing": placed("nowhere"),
    "a place that is a number": placed(7),  # pyright: ignore[reportArgumentType]
}
for _name, _content in PACKED.items():
    case(f"t5x: {_name}", "t5x")(packed(_content))

TABLE = "target.token_embedder.embedding"


def zarr(**change: Any) -> Build:
    def build(path: Path) -> None:
        where = path / STEP / TABLE / ".zarray"
        where.write_text(json.dumps(json.loads(where.read_text()) | change))

    return build


ZARR: dict[str, dict[str, Any]] = {
    "a shape of terabytes": {"shape": [2**40, 24], "chunks": [2**40, 24]},
    "10^9 chunks": {"shape": [10**9, 24], "chunks": [1, 24]},
    "chunks of nothing": {"chunks": [0, 24]},
    "chunks larger than the array": {"chunks": [10**6, 24]},
    "chunks in three dimensions": {"chunks": [1, 1, 1]},
    "a negative shape": {"shape": [-1, 24]},
    "a shape that is text": {"shape": "12"},
    "objects": {"dtype": "|O"},
    "a structure": {"dtype": [["a", "<f4"]]},
    "another compressor": {"compressor": {"id": "pickle"}},
    "a filter": {"filters": [{"id": "pickle"}]},
    "Fortran's order": {"order": "F"},
    "chunks in directories": {"dimension_separator": "/"},
}
for _name, _values in ZARR.items():
    case(f"zarr: {_name}", "t5x")(zarr(**_values))


def chunk(content: bytes | None) -> Build:
    def build(path: Path) -> None:
        file = path / STEP / TABLE / "0.0"
        file.unlink()
        if content is not None:
            file.write_bytes(content)

    return build


def bomb() -> bytes:
    """A gigabyte of zeros in a few megabytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        for _ in range(1024):
            file.write(b"\0" * 2**20)
    return buffer.getvalue()


case("zarr: no JSON", "t5x")(
    lambda path: (path / STEP / TABLE / ".zarray").write_bytes(b"{") and None
)
case("zarr: a chunk is missing", "t5x")(chunk(None))
case("zarr: an empty chunk", "t5x")(chunk(b""))
case("zarr: a chunk of garbage", "t5x")(chunk(b"garbage" * 99))
case("zarr: a chunk that is too short", "t5x")(chunk(gzip.compress(b"\0" * 100)))
case("zarr: a chunk cut off", "t5x")(chunk(gzip.compress(os.urandom(12288))[:6000]))
case("zarr: a chunk that unpacks to a gigabyte", "t5x")(lambda path: chunk(bomb())(path))


@case("zarr: a chunk that is a link", "t5x")
def _chunk_link(path: Path) -> None:
    chunk(None)(path)
    (path / STEP / TABLE / "0.0").symlink_to("/dev/zero")


@case("zarr: a chunk that is a pipe", "t5x")
def _chunk_pipe(path: Path) -> None:
    chunk(None)(path)
    os.mkfifo(path / STEP / TABLE / "0.0")


@case("zarr: an array that is a link", "t5x")
def _array_link(path: Path) -> None:
    shutil.move(path / STEP / TABLE, path.parent / "outside")
    (path / STEP / TABLE).symlink_to("../../outside")


@case("t5x: the tree is a link", "t5x")
def _tree_link(path: Path) -> None:
    shutil.move(path / STEP / "checkpoint", path.parent / "tree")
    (path / STEP / "checkpoint").symlink_to("../../tree")


@case("t5x: the step is a link", "t5x")
def _step_link(path: Path) -> None:
    shutil.move(path / STEP, path.parent / "step")
    (path / STEP).symlink_to("../step")


# ------------------------------------------------------------------------------------ torchvision
case("torchvision: a pickle", "torchvision")(lambda path: replaced(pickled())(path))
case("torchvision: another model", "torchvision")(lambda path: None)
case("torchvision: 10^6 blocks", "torchvision")(
    lambda path: header(
        path,
        {
            f"layer{n}.{b}.conv1.weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
            for n in range(1, 5)
            for b in range(1000)
        }
        | {"fc.weight": {"dtype": "U8", "shape": [0, 2], "data_offsets": [0, 0]}},
    )
)


# ------------------------------------------------------------------------------------- running
def memory() -> float:
    """Largest resident memory of this process so far, MB; getrusage would include its parent's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def good_exports(root: Path) -> dict[str, Path]:
    """Format -> a directory that imports, made of one tiny model."""
    from launch import export
    from tests.moe.interop import models

    models.workdir(models.config("t5"), root / "run")
    exports = {}
    for kind, names, form in (
        ("hf", "hf", "safetensors"),
        ("t5x", "t5", "t5x"),
        ("safetensors", "own", "safetensors"),
    ):
        out = root / f"good_{kind}"
        flags = [f"--workdir={root / 'run'}", f"--format={form}", f"--names={names}"]
        export.main([*flags, f"--out={out}"])
        exports[kind] = out
    return exports | {"torchvision": exports["hf"]}


def attempt(kind: str, path: Path, out: Path) -> dict[str, Any]:
    """Imports, and says what came of it."""
    from launch import import_weights
    from trainlib.errors import UserError

    begun, before = time.process_time(), memory()
    try:
        import_weights.main([f"--format={kind}", f"--path={path}", f"--out={out}"])
        outcome: dict[str, Any] = {"code": 0, "text": ""}
    except UserError as error:
        outcome = {"code": error.exit_code, "text": str(error)}
    except Exception as error:
        outcome = {"code": 1, "text": f"{type(error).__name__}: {error}"}
    return outcome | {"seconds": time.process_time() - begun, "grew": memory() - before}


def main(root: Path, names: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        good = good_exports(root)
        outcome = {"good": attempt("hf", good["hf"], root / "imported")}
        for number, (name, (kind, build)) in enumerate(CASES.items()):
            if names and name not in names:
                continue
            folder = root / "cases" / str(number)
            shutil.copytree(good[kind], folder / "weights")
            build(folder / "weights")
            there = sorted(str(p) for p in folder.rglob("*"))
            outcome[name] = attempt(kind, folder / "weights", folder / "out")
            more = sorted(set(map(str, folder.rglob("*"))) - set(there))
            outcome[name]["written"] = more
            shutil.rmtree(folder)
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
