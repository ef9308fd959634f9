"""A configuration that takes the model from the run it starts from, so that nobody copies keys."""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from moe.config import schema
from trainlib.checkpoint.find import find
from trainlib.config import flatten, override
from trainlib.errors import ConfigError, shown
from trainlib.formats.load import saved_config

# Keys of the model that are of the recipe and not of the weights.
_RECIPE = ("model.dropout", "model.expert_dropout", "model.dtype", "model.remat")
_TAKEN = ("data.vocabulary", "data.extra_ids")
_BYTES = 259  # ids of the vocabulary of bytes, without sentinels


def settle(config: ConfigDict, by_hand: Collection[str]) -> list[str]:
    """Where `finetune.as_init_from` asks for it, gives a configuration the model, the routers and
    the vocabulary of the run that `init_from` names; returns the keys that it set.

    Args:
      config: of this family; changed in place.
      by_hand: keys that a person set with it, which stay.

    Raises:
      CheckpointError: there is no checkpoint.
      ConfigError: there is no configuration beside it, or one of another program; or nothing says
        what the vocabulary of an import is.
    """
    if not (config.finetune.as_init_from and config.init_from):
        return []
    directory, _ = find(config.init_from)
    saved = saved_config(directory.parent, "moe", schema)
    taken = []
    for key, value in flatten(saved).items():
        of_model = key.startswith(("model.", "routing.")) and key not in _RECIPE
        if (of_model or key in _TAKEN) and key not in by_hand:
            override(config, key, value, shown(directory.parent / "config.json"), typed=True)
            taken.append(key)
    # An import does not know its vocabulary, and has the default.
    ids = _BYTES + config.data.extra_ids
    unsaid = "data.vocabulary" not in by_hand and config.data.vocabulary == "bytes"
    if unsaid and config.model.vocab_size > 2 * ids:
        raise ConfigError(
            f"init_from={shown(config.init_from)} has a model of {config.model.vocab_size:,} ids, "
            f"of which a vocabulary of bytes uses {ids:,}. Say which vocabulary it was trained "
            "with: --config.data.vocabulary=sentencepiece:FILE, or =bytes if it is so."
        )
    return taken
