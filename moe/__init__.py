"""Sparse mixture-of-experts encoder-decoders: ST-MoE (arXiv 2202.08906), Switch (2101.03961), T5
v1.1.

The names below are the library; each is imported when it is first used, so that `import moe` is
quick.

Example:
  >>> model = moe.create_model("st_moe_tiny", rngs=nnx.Rngs(0))
  >>> out = model(encoder_inputs, decoder_inputs, train=True, key=jax.random.key(0))
  >>> loss = cross_entropy(out.logits, targets) + out.auxiliary_loss
  >>> answers = moe.load("runs/superglue").answer(["copa premise: The glass fell. .."])
  >>> print(answers[0].text, answers[0].score)
"""
# A package of vitattn-moe.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.decoding.generate import Generated, generate
    from moe.layers.sparse import SparseFFN, SparseOutput, TokenChoices
    from moe.library import Answer, LoadedModel, create_model, list_models, load
    from moe.models.architecture import Architecture
    from moe.models.output import ModelOutput
    from moe.models.transformer import Transformer
    from moe.routing.config import RoutingConfig
    from moe.routing.dispatch import combine, dispatch
    from moe.routing.losses import auxiliary_loss
    from moe.routing.route import Routing, route
    from trainlib.sharding.rules import shard_module

__all__ = [
    "Answer",
    "Architecture",
    "Generated",
    "LoadedModel",
    "ModelOutput",
    "Routing",
    "RoutingConfig",
    "SparseFFN",
    "SparseOutput",
    "TokenChoices",
    "Transformer",
    "auxiliary_loss",
    "combine",
    "create_model",
    "dispatch",
    "generate",
    "list_models",
    "load",
    "route",
    "shard_module",
]

_HOMES = {
    "moe.decoding.generate": ("Generated", "generate"),
    "moe.layers.sparse": ("SparseFFN", "SparseOutput", "TokenChoices"),
    "moe.library": ("Answer", "LoadedModel", "create_model", "list_models", "load"),
    "moe.models.architecture": ("Architecture",),
    "moe.models.output": ("ModelOutput",),
    "moe.models.transformer": ("Transformer",),
    "moe.routing.config": ("RoutingConfig",),
    "moe.routing.dispatch": ("combine", "dispatch"),
    "moe.routing.losses": ("auxiliary_loss",),
    "moe.routing.route": ("Routing", "route"),
    "trainlib.sharding.rules": ("shard_module",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'moe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
