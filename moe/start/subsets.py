"""Parameter subsets of ST-MoE's fine-tuning study (arXiv 2202.08906, section 4.3, figure 5).

attention: the four matrices of self- and cross-attention, and relative position biases; ffn: dense
feed-forward layers; moe: experts, and their routers unless these count as dense
(`router_with_moe`, which the paper leaves open); non_moe: all but these. Norms, the embedding and
the output matrix belong to `all` and `non_moe` alone.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

from trainlib.errors import ConfigError
from trainlib.keys import choice, fit, key, switch

SUBSETS = ("all", "non_moe", "moe", "attention", "ffn")
_ATTENTION = re.compile(r"\.(cross_)?attention\.|\.bias\.table$")


def defaults() -> dict[str, tuple[Any, str]]:
    """Keys of the section `finetune`: default and meaning."""
    return {
        "train": key("all", f"weights that learn: {', '.join(SUBSETS)}", choice(*SUBSETS)),
        "router_with_moe": key(True, "whether routers count as moe (True) or as non_moe", switch()),
        "as_init_from": key(
            False,
            "take the keys of model. and routing. and the vocabulary from the configuration of "
            "init_from, but for those that are set with it by hand",
            switch(),
        ),
        "keep_slots": key(True, "take the optimiser's slots from init_from along, too", switch()),
    }


def kind_of(name: str, router_with_moe: bool) -> str:
    """What a weight is: "moe", "attention", "ffn" or "other"."""
    if ".experts.router" in name:
        return "moe" if router_with_moe else "other"
    if ".experts." in name:
        return "moe"
    if _ATTENTION.search(name):
        return "attention"
    return "ffn" if "ffn." in name else "other"


def trained(train: str, router_with_moe: bool, names: Iterable[str]) -> set[str]:
    """The names of the weights that learn.

    Raises:
      ConfigError: no such subset, or one that this model has no weight of.
    """
    fit("finetune.train", train, choice(*SUBSETS))
    kinds = {name: kind_of(name, router_with_moe) for name in names}
    if train == "all":
        return set(kinds)
    if train == "non_moe":
        return {name for name, kind in kinds.items() if kind != "moe"}
    learned = {name for name, kind in kinds.items() if kind == train}
    if not learned:
        raise ConfigError(
            f"finetune.train={train!r} leaves nothing to learn: the model has no such weights "
            "(routing.num_experts=0 makes every block dense). Use all or non_moe."
        )
    return learned


def frozen_patterns(learned: Container[str], names: Iterable[str]) -> tuple[str, ...]:
    """The names that do not learn as patterns of `optimizer.frozen`."""
    return tuple(f"^{re.escape(name)}$" for name in names if name not in learned)
