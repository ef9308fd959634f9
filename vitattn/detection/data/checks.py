"""Looks through a data set with boxes before anything is trained: `prepare --check`.

Both splits are opened by the functions by which training opens them, so that it refuses and mends
the same; beside that, the header of every picture is read, and the two splits are compared.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import DataError, UserError, shown, told_apart
from trainlib.untrusted_files import open_regular
from vitattn.data.source import Checked
from vitattn.detection.annotations.report import Report
from vitattn.detection.data import catalog, coco, voc, yolo
from vitattn.detection.data.files import BoxedFiles, OpenPart, frame
from vitattn.detection.data.source import BoxedSource
from vitattn.detection.data.tfds import TfdsBoxes
from vitattn.images.decode import BadImage, ends, guarded, open_header, open_picture
from vitattn.images.files import UnreadableRecord
from vitattn.labels import matching

PARTS: dict[str, OpenPart] = {
    "coco": coco.open_part,
    "voc": voc.open_part,
    "yolo": yolo.open_part,
}
_WORDS = {"train": "training", "test": "evaluation"}
_AREAS = (32**2, 96**2)  # pixels: COCO's borders of small, medium and large
_CLASSES = 20  # that are listed with the number of their boxes


def look(config: ConfigDict) -> tuple[Checked, dict[str, BoxedSource]]:
    """Looks through the data set of a configuration.

    Args:
      config: all of it.

    Returns:
      What was found, and the parts that could be opened, even where training refuses them:
      "training" and "evaluation".
    """
    checked = Checked([], [])
    found: dict[str, BoxedSource] = {}
    for part, words in _WORDS.items():
        try:
            opened = _open(config.data, part)
        except UserError as error:
            if not any(str(error) in reason for reason in checked.refused):
                checked.refused.append(f"{words}: {error}")
            continue
        if opened is None:
            _of_training(config, found.get("training"), checked)
            continue
        found[words], report = opened
        checked.lines.append(f"{words}: {_counted(found[words])}")
        checked.lines.extend(f"  {line}" for line in _of_boxes(found[words], config.data.max_boxes))
        refused = report.refused(config.data.max_bad_fraction)
        checked.lines.extend(f"  {note}" for note in report.notes)
        checked.lines.extend(f"  {line}" for line in report.each(leave_out=refused))
        checked.refused.extend(f"{words}: {report.reason(trap)}" for trap in refused)
    _compare(found, config.model.num_classes, checked)
    return checked, found


def _open(config: ConfigDict, part: str) -> tuple[BoxedSource, Report] | None:
    """A part of the set and what is wrong with it; None where training images are held out."""
    kind = config.source.partition(":")[0]
    if kind in PARTS:
        opened = PARTS[kind](config, part)
        if opened is None:
            return None
        source, report = opened
        _read_headers(source, report)
        return source, report
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole.holdout = 0.0
    source = catalog.make_source(whole, part)
    report = Report(config.source)
    report.notes.extend(source.left_out)
    _read_records(source, report)
    return source, report


def _read_headers(source: BoxedFiles, report: Report) -> None:
    """Looks at the beginning and the end of each picture: whether it can be read, and has the size
    that its annotations say.
    """
    for record in range(len(source)):
        name = source.table.file_names[record]
        try:
            with open_regular(source.path(record), follow=True, error=DataError) as file:
                picture = open_header(file)
                *_, stored = frame(picture, source.truth(record))
                if not ends(file):
                    _decode(source.bytes_of(record))
        except UnreadableRecord as error:
            report.add("other_size", f"{name} {error}")
        except (BadImage, DataError, OSError) as error:
            report.add("unreadable", f"{name}: {error}")
        else:
            if picture.turned:
                report.add("turned", f"{name}, {'as stored' if stored else 'upright'}")


def _decode(image: bytes) -> None:
    """Raises BadImage if the pixels of a picture cannot be decoded."""
    picture = open_picture(image)
    size = picture.height, picture.width
    guarded(lambda: picture.render((0, 0, size[1], size[0]), size))


def _read_records(source: BoxedSource, report: Report) -> None:
    """Reads each record of a set of any kind."""
    report.images = len(source)
    for record in range(len(source)):
        try:
            boxes = source[record].boxes
            report.annotations += len(boxes)
            if isinstance(source, TfdsBoxes) and (empty := source.without_area(record)):
                report.add("box_empty", source.describe(record), empty)
            if not len(boxes):
                report.add("no_box", source.describe(record))
        except (UnreadableRecord, BadImage) as error:
            report.add("unreadable", f"{source.describe(record)}: {error}")


# ---------------------------------------------------------------- what is said
def _counted(source: BoxedSource) -> str:
    boxes = sum(len(source.truth(record).classes) for record in range(len(source)))
    classes = "1 class" if source.num_classes == 1 else f"{source.num_classes:,} classes"
    return f"{len(source):,} images, {boxes:,} boxes, {classes}"


def _of_boxes(source: BoxedSource, max_boxes: int) -> list[str]:
    """Lines on how many boxes each class has, how large they are, and how many an image has."""
    truths = [source.truth(record) for record in range(len(source))]
    if not truths:
        return []
    counts = np.array([len(truth.classes) for truth in truths])
    classes = np.concatenate([truth.classes for truth in truths])
    sizes = np.searchsorted(_AREAS, np.concatenate([truth.area for truth in truths]), side="right")
    of_class = np.bincount(classes, minlength=source.num_classes)
    order = np.argsort(-of_class, kind="stable").tolist()
    (names,) = told_apart(source.class_names)
    listed = ", ".join(f"{shown(names[n], 60)} {of_class[n]:,}" for n in order[:_CLASSES])
    more = f" and {len(order) - _CLASSES} more" if len(order) > _CLASSES else ""
    share = np.bincount(sizes, minlength=3) / max(1, len(sizes))
    lines = [
        f"boxes of each class: {listed}{more}",
        f"boxes that are small (below 32x32), medium and large (from 96x96): {share[0]:.1%}, "
        f"{share[1]:.1%}, {share[2]:.1%}; {counts.mean():.1f} in an image, at most "
        f"{counts.max():,} ({shown(source.describe(int(counts.argmax())), 100)})",
    ]
    if (over := int((counts > max_boxes).sum())) > 0:
        lines.append(
            f"images of more than data.max_boxes={max_boxes} boxes: {over:,}; training sees the "
            f"first {max_boxes} of those in view"
        )
    return lines


def _of_training(config: ConfigDict, train: BoxedSource | None, checked: Checked) -> None:
    """Says what is evaluated on where the set has no part for that."""
    if config.data.eval_split == "train":
        checked.lines.append("evaluation: the training images (data.eval_split=train)")
    elif not config.data.holdout:
        checked.refused.append(
            "evaluation: there is nothing to evaluate on. Give --config.data.eval_json=FILE.json "
            "(of coco:TRAIN.json), or --config.data.holdout=0.1"
        )
    elif train is not None:
        size = round(config.data.holdout * len(train))
        checked.lines.append(
            f"evaluation: {size:,} of the training images (data.holdout={config.data.holdout:g})"
        )


def _compare(found: dict[str, BoxedSource], outputs: int, checked: Checked) -> None:
    """Compares the classes of the two splits, by their names, with each other and with the model,
    and looks for images that are in both.
    """
    train, test = found.get("training"), found.get("evaluation")
    if train is not None and train.num_classes > outputs:
        checked.refused.append(
            f"the model has {outputs} outputs, and the data {train.num_classes} classes: set "
            f"--config.model.num_classes={train.num_classes}"
        )
    if train is None or test is None:
        return
    theirs, ours, new, gone = matching.difference(test.class_names, train.class_names)
    if set(test.class_names) - set(train.class_names):
        checked.refused.append(
            f"evaluation has classes that training lacks: {new}. Its classes: {theirs}. Those of "
            f"training: {ours}"
        )
    if set(train.class_names) - set(test.class_names):
        checked.lines.append(f"classes of training that evaluation lacks: {gone}")
    ids = dict(zip(train.class_names, train.category_ids, strict=True))
    pairs = zip(test.class_names, test.category_ids, strict=True)
    other = [name for name, identity in pairs if ids.get(name, identity) != identity]
    if other:
        checked.lines.append(
            f"category ids that differ between the splits: {len(other)} (such as that of "
            f"{shown(other[0], 60)}); classes are matched by their names"
        )
    if isinstance(train, BoxedFiles) and isinstance(test, BoxedFiles):
        first = {train.path(record) for record in range(len(train))}
        both = [path for n in range(len(test)) if (path := test.path(n)) in first]
        if both:
            checked.lines.append(
                f"images that are in both splits: {len(both):,} (such as {shown(both[0], 100)}): "
                "what is measured on them is no test"
            )
