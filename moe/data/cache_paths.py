"""Where the token cache of a source lies: its name tells source and split, and a digest all that
decides its content except the files themselves.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from moe.data.cache.shard import FORMAT
from moe.data.data_sets import kind_of
from moe.text.vocabulary import Vocabulary
from trainlib import extension, paths


def cache_root(config: ConfigDict) -> Path:
    """The directory of all caches."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return paths.resolve(config.cache or home / "vitattn-moe" / "text", "data.cache")


def cache_directory(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> Path:
    """Where the cache of a source lies.

    Lengths, noise and packing decide nothing: they are applied to what is read from it.

    Args:
      config: the `data` section of a configuration.
      source: what `data.source` names, or one part of it.
      split: train or holdout.
      vocabulary: how it is tokenised.
    """
    kind = kind_of(source)
    further = kind.deciding(config, source, split) if kind else []
    resolved = _resolved(source)
    deciding = [FORMAT, resolved, split, vocabulary.digest, *further]
    return cache_root(config) / _named(resolved, split, repr(deciding))


def notes_path(config: ConfigDict, source: str) -> Path:
    """Where digests of the files of a source are noted."""
    deciding = repr((_resolved(source), config.dir))
    return cache_root(config) / f"{_named(source, 'files', deciding)}.json"


def _resolved(source: str) -> str:
    """The source with its path written out from the root: a relative one names other files in each
    directory.
    """
    kind, (name, argument) = kind_of(source), extension.split(source)
    if kind is None or not kind.is_path or not argument:
        return source
    return f"{name}:{os.path.realpath(paths.resolve(argument, 'data.source'))}"


def _named(source: str, what: str, deciding: str) -> str:
    digest = hashlib.sha256(os.fsencode(deciding)).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", source).strip("_")[-60:]
    return f"{readable}-{what}-{digest}"
