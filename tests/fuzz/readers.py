"""Everything that is read and may come from others, as a table: who makes good files, who reads
them, and what must not be accepted without a word.

A new kind is one `Reader` in `READERS`. `tests.fuzz.mutate` damages one of its good files at a
time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlib.errors import CheckpointError, ConfigError, DataError, UserError


def unsealed(good: Any, result: Any) -> str:
    """For files without a checksum: another value in them is another value."""
    return ""


def sealed(good: Any, result: Any) -> str:
    """For files with one: what is read must be what was written."""
    return "" if result == good else f"it was read as {str(result)[:300]!r}"


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of files of others.

    Attributes:
      make: an empty folder -> the folder that holds good files (that one or another); called once.
      read: that folder -> what is read from it, to be compared; everything a command would read.
      refusal: the class of error that says that the files are bad; any other is a failure.
      silent: (what the good files give, what damaged ones gave) -> what is wrong with accepting
        them, or "".
      damaged: whether a file, by its path below the folder, is damaged at all.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    refusal: type[UserError] | tuple[type[UserError], ...]
    silent: Callable[[Any, Any], str] = unsealed
    damaged: Callable[[Path], bool] = lambda path: True


# --------------------------------------------------------------------------------- weights
@functools.cache
def _exports(root: Path) -> dict[str, Path]:
    from tests.fuzz.hostile import good_exports

    with contextlib.redirect_stdout(io.StringIO()):
        return good_exports(root)


def _export(kind: str) -> Callable[[Path], Path]:
    return lambda folder: _exports(folder.parent / "exports")[kind]


def read_hugging_face(path: Path) -> None:
    """All that an import reads, short of building the model."""
    from moe.interop import hf
    from trainlib.formats.safetensors import Reader as Tensors
    from trainlib.untrusted_files import read_json

    hf.from_config(read_json(path / "config.json"))
    reader = Tensors(path)
    for name in reader.tensors:
        reader.read(name)


def read_t5x(path: Path) -> None:
    """The same of a T5X checkpoint; arrays of the size of the good one, as an import compares."""
    from moe.interop import t5x, t5x_io

    checkpoint = t5x_io.Checkpoint(path)
    t5x.guess(checkpoint.shapes)
    for name, shape in checkpoint.shapes.items():
        if 0 < len(shape) < 4 and max(shape) < 10**4:
            checkpoint.read(name)


def _few_arrays(path: Path) -> bool:
    """The many arrays of T5X are alike: a few stand for all."""
    return "/target." not in f"/{path}" or "embed" in str(path)


# --------------------------------------------------------------------------------- token caches
def _build(directory: Path, texts: Path) -> None:
    from moe.data.cache.build import build
    from moe.text.text_folder import TextFolder
    from moe.text.vocabulary import ByteVocabulary

    build(
        directory,
        TextFolder(str(texts), 0.0, False),
        ByteVocabulary(100),
        shards=2,
        workers=0,
        max_bad_fraction=1.0,
        report=lambda line: None,
    )


def make_cache(folder: Path) -> Path:
    """A finished cache of two shards, with documents that could not be used."""
    (texts := folder.with_name(f"{folder.name}.texts")).mkdir()
    for n in range(6):
        (texts / f"{n}.txt").write_text(f"some text {n}\n" * 500)
    (texts / "bad.txt").write_bytes(b"\xff")
    folder.rmdir()
    _build(folder, texts)
    return folder


def make_unfinished_cache(folder: Path) -> Path:
    """What a preparation leaves that was stopped before its last file."""
    cache = make_cache(folder)
    (cache / "manifest.json").unlink()
    return cache


def read_cache(path: Path, in_memory: bool = True) -> Any:
    """All that training reads of a cache."""
    from moe.data.cache import read as cache_lib
    from trainlib.errors import DataError

    limit, cache_lib._IN_MEMORY_TOKENS = cache_lib._IN_MEMORY_TOKENS, (1 << 25) * in_memory
    try:
        cache = cache_lib.Cache(path)
        kinds = ("ends", "counts")
        arrays = [array.tobytes() for kind in kinds for array in cache.array(kind)]
        return cache.read(0, cache.tokens).tobytes(), arrays, cache.left_out(), cache.unknown
    except cache_lib.DamagedRecord as error:
        raise DataError(str(error)) from error
    finally:
        cache_lib._IN_MEMORY_TOKENS = limit


def read_unfinished_cache(path: Path) -> Any:
    """The same of the cache that the next call makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path, f"{folder}/cache.partial")
        _build(Path(folder) / "cache", path.with_name(f"{path.name}.texts"))
        return read_cache(Path(folder) / "cache")


# ------------------------------------------------------------------------------ a run's own files
def _run(folder: Path) -> Path:
    """A finished run's summary and metrics, as the loops write them."""
    from trainlib.run.metric_writers import Writers
    from trainlib.run.summary import save_summary

    with contextlib.redirect_stdout(io.StringIO()):
        save_summary(folder, "done", {"top-1": "75 %"}, {"step": 20, "top1": 0.75})
    writers = Writers(folder, tensorboard=False)
    for step in range(1, 21):
        routed = {"router/encoder.3/load_0": 0.25, "router/encoder.3/load_1": 0.75}
        values = {"loss": 3.0 / step, "learning_rate": 0.1, "note": "NaN"}
        writers.write(step, "train", values | routed)
    writers.write(20, "eval", {"top1": 0.75, "loss": 0.5})
    writers.write(20, "goodput", {"steps": 0.5, "input_wait": 0.5, "mfu": 0.4, "seconds": 9})
    writers.write(20, "alert", {"alert": "collapse", "where": "encoder.3", "value": 1.0})
    writers.close()
    (folder / "config.json").write_text('{"family": "moe", "name": "small", "steps": 20}')
    return folder


def read_summary(path: Path) -> Any:
    """What a start of a finished run repeats."""
    from trainlib.run.summary import read_summary

    return read_summary(path)


def read_metrics(path: Path) -> list[Any]:
    """What a report, its page, the curves and a resumed run make of the metrics: [records, lines
    that were said to be damaged, finished lines in the file].
    """
    from launch import report
    from launch.reporting import gather, page
    from trainlib.run import curves as plots
    from trainlib.run import metric_writers as writers
    from trainlib.run import progress

    lines = (path / "metrics.jsonl").read_bytes().count(b"\n")
    damaged: list[int] = []
    records = list(writers.read(path / "metrics.jsonl", damaged.append))
    with contextlib.redirect_stderr(io.StringIO()):
        progress.summary("", report.rows(report.report(path)))
        runs, _ = gather.gather([path], report.report)
        page.to_html(runs, *gather.settings(runs[0]), [], "", (), 0.0)
        plots.series(path / "metrics.jsonl")
        writers.truncate(path / "metrics.jsonl", 10)
    return [records, sum(damaged), lines]


def lines_that_vanish(good: Any, result: Any) -> str:
    """A line without a checksum can say another number, but none goes without being counted."""
    records, damaged, lines = result
    plain = all(
        isinstance(r["step"], int)
        and all(isinstance(v, str | bool | int | float | None) for v in r.values())
        for r in records
    )
    counted = len(records) + damaged == lines
    return "" if plain and counted else f"{lines} lines, {damaged} damaged: {records!r}"[:300]


def _named(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.name in names


# ---------------------------------------------------------------------------------- TFDS folders
def _tfds(folder: Path) -> Path:
    from tests.vitattn.data.test_tfds import prepare_imagenet

    with contextlib.redirect_stderr(io.StringIO()):
        prepare_imagenet(folder)
    return folder


def read_tfds(path: Path) -> Any:
    """The description of a data set and the number of its records; no record is read."""
    from ml_collections import ConfigDict

    from vitattn.data import data_defaults, make_source

    values = {key: value for key, (value, _) in data_defaults().items()}
    make_source(ConfigDict(values | {"source": "imagenet", "dir": str(path)}), "train")


# ------------------------------------------------------------------------------------ IDX files
def _idx(folder: Path) -> Path:
    """Four small files, plain for training and gzip for the test."""
    from tests.vitattn.data.test_idx import written

    written(folder, names=("train",), counts=(12,), zipped=False)
    written(folder, names=("t10k",), counts=(4,))
    return folder


def read_idx(path: Path) -> list[tuple[int, ...]]:
    """The labels of both splits, each with the sum of its pixels."""
    import numpy as np
    from ml_collections import ConfigDict

    from vitattn.data import data_defaults, make_source

    values = {key: value for key, (value, _) in data_defaults().items()}
    config = ConfigDict(values | {"source": f"idx:{path}"})
    sources = [make_source(config, split) for split in ("train", "test")]
    return [
        (example.label, int(np.sum(np.asarray(example.image))))
        for source in sources
        for example in (source[record] for record in range(len(source)))
    ]


def impossible_labels(good: Any, result: Any) -> str:
    """Of a file without a checksum: other numbers are other images, but as many."""
    fits = len(result) == len(good) and all(label >= 0 for label, _ in result)
    return "" if fits else f"it was read as {str(result)[:300]}"


# ------------------------------------------------------------------------------ images with boxes
def _boxed(form: str) -> Callable[[Path], Path]:
    """A set of a few images in one of the forms that are read."""

    def make(folder: Path) -> Path:
        from tests.vitattn.detection.data import sets, test_voc, test_yolo

        if form == "coco":
            content = sets.good()
            content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 5, 9.5]]
            content["annotations"][1].update(bbox=[], segmentation={"size": [30, 40], "counts": ""})
            content["annotations"][1]["segmentation"]["counts"] = [100, 20, 1080]
            sets.coco(folder, content)
        elif form == "voc":
            test_voc.official(folder)
        else:
            test_yolo.ultralytics(folder)
        return folder

    return make


def _read_boxed(source: str) -> Callable[[Path], Any]:
    """Everything that training and evaluation read, however little of the set is left."""

    def read(path: Path) -> Any:
        import numpy as np

        from tests.vitattn.detection.data.sets import config
        from vitattn.detection.data.catalog import make_source
        from vitattn.images.decode import BadImage
        from vitattn.images.files import UnreadableRecord

        values = {"source": source.format(path), "max_bad_fraction": 1.0}
        found = make_source(config(**values), "train")
        examples = []
        for record in range(len(found)):
            with contextlib.suppress(UnreadableRecord, BadImage):
                image, boxes, classes, _ = found[record]
                sides = np.asarray(boxes[:, 2:] - boxes[:, :2])
                sane = np.isfinite(boxes).all() and (sides > 0).all() and (boxes >= 0).all()
                known = ((classes >= 0) & (classes < found.num_classes)).all()
                examples.append(bool(sane and known and image is not None))
        return examples, found.ground_truth(), found.left_out

    return read


def boxes_of_nothing(good: Any, result: Any) -> str:
    """Boxes without a checksum can be others; but they are boxes, of images that there are."""
    import json

    examples, truth, _ = result
    images = [image["id"] for image in truth["images"]]
    categories = {category["id"] for category in truth["categories"]}
    json.dumps(truth, allow_nan=False)
    if not all(examples):
        return "a box is not in its image"
    if len(set(images)) < len(images):
        return "two images have one id"
    wrong = [
        entry
        for entry in truth["annotations"]
        if entry["image_id"] not in images or entry["category_id"] not in categories
    ]
    return f"annotations of nothing: {wrong}"[:300] if wrong else ""


def _suffixes(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix in suffixes


# --------------------------------------------------------------------------------- configurations
def make_configurations(folder: Path) -> Path:
    """What runs of both families keep beside their checkpoints, flat and nested."""
    import json

    from configs.common import load
    from trainlib.config import to_json

    for name in ("aa_resnet50:digits", "st_moe_tiny"):
        flat = to_json(load.from_flags(f"{name}", {}).config)
        (folder / f"{name[:6]}.json").write_text(flat)
        nested: dict[str, Any] = {}
        for key, value in json.loads(flat).items():
            *sections, leaf = key.split(".")
            section = functools.reduce(lambda at, part: at.setdefault(part, {}), sections, nested)
            section[leaf] = value
        (folder / f"{name[:6]}-nested.json").write_text(json.dumps(nested, indent=1))
    return folder


def read_configurations(path: Path) -> dict[str, Any]:
    """All values, and what their patterns find."""
    from configs.common import load
    from trainlib import patterns
    from trainlib.config import flatten

    result = {}
    for file in sorted(path.iterdir()):
        values = flatten(load.from_flags(str(file), {}).config)
        names, budget = [f"encoder.{n}.attention.kernel" for n in range(20)], [patterns.BUDGET]
        for pattern in (values["optimizer.decay_pattern"], *values["optimizer.frozen"]):
            patterns.matching("optimizer.frozen", pattern, names, budget)
        result[file.name] = values
    return result


def in_range(good: Any, result: Any) -> str:
    """Every value that is taken is one that its key takes."""
    import importlib

    from trainlib import keys

    for values in result.values():
        schema = importlib.import_module(f"{values['family']}.config").schema(values)
        for name, value in values.items():
            if keys.kind_of(schema[name]).take(value) != value:
                return f"{name}={value!r} is not what the key takes"
    return ""


def make_pairs(folder: Path) -> Path:
    """One's own rows, as all formats that are read."""
    import json

    import pyarrow
    from pyarrow import parquet

    rows = [
        {"inputs": f"is it so, {n}?", "targets": "yes", "choices": ["yes", "no"]} for n in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = [f'"{row["inputs"]}",yes,"[""yes"", ""no""]"' for row in rows]
    (folder / "rows.csv").write_text("\n".join(["inputs,targets,choices", *cells]) + "\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder


def read_pairs(folder: Path) -> Any:
    from moe.pairs.survey import survey

    return [list(survey(path, "data.train").tasks) for path in sorted(folder.glob("rows.*"))]


def make_routing(folder: Path) -> Path:
    """A record of routing, as the analysis writes it."""
    import numpy as np

    from moe.analysis.record import Record, StackRecord, write

    ones = np.ones((2, 3, 5, 2), np.uint8)
    tokens = np.arange(15, dtype=np.int32).reshape(3, 5)
    stack = StackRecord(
        *(tokens, tokens, tokens, ones, ones.astype(np.float16), ones > 0),
        ones[..., 0].astype(np.float16),
        blocks=(1, 3),
        experts=4,
    )
    write(Record({"encoder": stack}, tokens[:, 0] // 5, ("a", "b", "c"), {"step": 3}), folder / "r")
    return folder


def read_routing(path: Path) -> Any:
    """Everything in it, as text."""
    from moe.analysis.record import read

    found = read(path / "r")
    (stack,) = found.stacks.values()
    values = [v.tolist() if hasattr(v, "tolist") else v for v in vars(stack).values()]
    return [values, found.label.tolist(), found.labels, found.facts]


READERS: dict[str, Reader] = {
    "routing": Reader(make_routing, read_routing, DataError, sealed),
    "configurations": Reader(make_configurations, read_configurations, ConfigError, in_range),
    "cache": Reader(make_cache, read_cache, UserError, sealed),
    "cache_on_disk": Reader(make_cache, lambda p: read_cache(p, False), UserError, sealed),
    "unfinished_cache": Reader(make_unfinished_cache, read_unfinished_cache, UserError, sealed),
    "hf": Reader(_export("hf"), read_hugging_face, CheckpointError),
    "t5x": Reader(_export("t5x"), read_t5x, CheckpointError, damaged=_few_arrays),
    "pairs": Reader(make_pairs, read_pairs, DataError),
    "summary": Reader(_run, read_summary, DataError, sealed, _named("summary.json")),
    "metrics": Reader(_run, read_metrics, DataError, lines_that_vanish, _named("metrics.jsonl")),
    "tfds": Reader(
        _tfds,
        read_tfds,
        (DataError, ConfigError),
        unsealed,
        _named("dataset_info.json", "features.json"),
    ),
    "idx": Reader(_idx, read_idx, DataError, impossible_labels),
    "coco": Reader(
        _boxed("coco"),
        _read_boxed("coco:{}/instances_train.json"),
        (DataError, ConfigError),
        boxes_of_nothing,
        _suffixes(".json"),
    ),
    "voc": Reader(
        _boxed("voc"),
        _read_boxed("voc:{}"),
        (DataError, ConfigError),
        boxes_of_nothing,
        _suffixes(".xml", ".txt"),
    ),
    "yolo": Reader(
        _boxed("yolo"),
        _read_boxed("yolo:{}"),
        (DataError, ConfigError),
        boxes_of_nothing,
        _suffixes(".yaml", ".txt"),
    ),
}
