"""One file a result: `get_config(variant)` returns the resolved configuration; the docstring is the
claim.

`configs.load("aa_resnet50:digits", steps=400)` gives what a command reads for
`--config=configs/aa_resnet50.py:digits --config.steps=400`. What the files share lies in
`configs.common`.
"""
# A package of vitattn-moe.

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load(name: str | os.PathLike[str], /, **values: Any) -> ConfigDict:
    """The locked configuration of a file, with other values for some keys.

    Args:
      name: a shipped configuration and variant, such as "aa_resnet50:digits"; the path of such a
        file, `DIR/mine.py:variant`; or the `config.json` of an earlier run.
      **values: for single keys, of the type that the key takes. A section takes a mapping, and
        dotted keys are read as well: `steps=400, optimizer={"momentum": 0.8}`.

    Raises:
      ConfigError: no such file, variant or key, a value that its key does not take, or a file that
        makes no configuration. The message names the nearest that there is.
    """
    from configs.common.load import from_python

    return from_python(os.fspath(name), values)
