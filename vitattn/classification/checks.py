"""Looks at a data set of images with one class each: `prepare --check`."""

from __future__ import annotations

from ml_collections import ConfigDict

from trainlib.errors import UserError
from vitattn.data import check_classes, make_source
from vitattn.data.source import Checked, Source
from vitattn.labels import matching


def check_data(config: ConfigDict) -> Checked:
    """Opens the splits of a configuration as training does, and says what it finds.

    Args:
      config: all of it.
    """
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
