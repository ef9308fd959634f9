"""Looks at a data set of images with one class each: `prepare --check`."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from trainlib.errors import ConfigError, UserError
from vitattn.data import check_classes, make_source
from vitattn.data.source import Checked, Source
from vitattn.labels import matching


def check_data(config: ConfigDict, boxes: Path | None) -> Checked:
    """Opens the splits of a configuration as training does, and says what it finds.

    Args:
      config: all of it.
      boxes: None, since there are none.

    Raises:
      ConfigError: boxes were asked for.
    """
    if boxes is not None:
        raise ConfigError("--boxes is for detection, and a classifier has no boxes to draw.")
    checked = Checked([], [])
    found: list[Source] = []
    for split, words in (("train", "training"), (config.data.eval_split, "evaluation")):
        try:
            source = make_source(config.data, split)
            check_classes(source, config.model.num_classes)
        except UserError as error:
            checked.refused.append(f"{words}: {error}")
            continue
        found.append(source)
        checked.lines.append(f"{words}: {len(source):,} images, {source.num_classes:,} classes")
        checked.lines.extend(f"  {line}" for line in source.left_out)
    if len(found) == 2:
        train, held_out = found
        _, _, new, gone = matching.difference(held_out.class_names, train.class_names)
        if set(held_out.class_names) - set(train.class_names):
            checked.refused.append(f"evaluation has classes that training lacks: {new}")
        if set(train.class_names) - set(held_out.class_names):
            checked.lines.append(f"classes of training that evaluation lacks: {gone}")
    return checked
