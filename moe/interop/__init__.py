"""Weights of this family in the formats of others: Hugging Face, T5X, our own names, StableHLO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moe import config as config_lib
from moe.interop import hf, t5x, t5x_io
from moe.interop.card import subject
from moe.interop.merged import Merged, notes
from moe.interop.parity import COMPARED, compare
from moe.models import architecture
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.start.tuned import base, tuned
from trainlib import config as settings
from trainlib.errors import CheckpointError, ConfigError, one_of, shown
from trainlib.formats.layout import Foreign, Layout, own_layout
from trainlib.formats.weight_source import Weights
from trainlib.model import weights as nn
from trainlib.untrusted_files import read_json

START = "--config.finetune.keep_slots=false"  # beside init_from: an import has no optimiser slots
__all__ = [
    "COMPARED",
    "Foreign",
    "abstract",
    "base",
    "beside",
    "check_size",
    "compare",
    "layout",
    "merged",
    "open_foreign",
    "serving",
    "subject",
]

NAMES = ("auto", "hf", "own", *t5x.NAMES)


def abstract(config: ConfigDict) -> nn.Abstract:
    """The model of a configuration, as its checkpoints store it, without arrays."""
    return nn.abstract(Transformer(tuned(config)))


def merged(config: ConfigDict, source: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The weights of a run as those of `base(config)`, and notes on the way there, a line each."""
    model = tuned(config)
    if model.tuned is None:
        return source, ()
    plain = abstract(base(config))
    specs = {**plain.params, **plain.model_state}
    return Merged(source, model.tuned, specs), notes(model.tuned)


def layout(config: ConfigDict, kind: str, names: str = "auto", dtype: str = "float32") -> Layout:
    """The table of an export or import.

    Args:
      config: of the model.
      kind: "safetensors" or "t5x".
      names: one of `NAMES` that the format has; "auto" takes Hugging Face's where the model has a
        place there, else ours; for T5X the unscanned ones.
      dtype: of the exported weights, for Hugging Face's config.json.

    Raises:
      ConfigError: the model cannot be written in these names, or is one that fine-tuning stores
        otherwise.
    """
    model = tuned(config)
    if model.tuned is not None:
        raise ConfigError(
            "An import or export has the weights of the plain model. Leave finetune.frozen_dtype "
            "and finetune.lora out: the run that starts from an import by init_from sets them."
        )
    if kind == "t5x":
        names = t5x.default_names(model) if names == "auto" else names
        if names not in t5x.NAMES:
            raise one_of("--names", names, t5x.NAMES)
        t5x.check_names(names, model)
        return t5x.layout(model, names)
    if names not in ("auto", "hf", "own"):
        raise one_of("--names", names, ("auto", "hf", "own"))
    wrong = hf.obstacles(model)
    if names == "hf" and wrong:
        raise ConfigError(
            f"Neither T5 v1.1 nor Switch Transformers of Hugging Face has {'; '.join(wrong)}. "
            "Export with --names=own."
        )
    if names == "own" or wrong:
        whole = nn.abstract(Transformer(model))
        specs = {**whole.params, **whole.model_state}
        return own_layout(specs, {"config.json": settings.to_json(config)})
    lengths = {"encoder": config.data.encoder_length, "decoder": config.data.decoder_length}
    return hf.layout(model, dtype=dtype, lengths=lengths)


def check_size(config: ConfigDict) -> None:
    """Refuses a configuration from a file of weights whose model would take for ever to build:
    none, since blocks and experts are dimensions of stacks.
    """


def open_foreign(kind: str, path: Path, strip: str = "") -> Foreign:
    """Opens Hugging Face's directory ("hf") or a T5X checkpoint ("t5x"); `strip` is taken off the
    beginning of the first one's names.

    Raises:
      CheckpointError: damaged, hostile, or of another kind of model.
    """
    if kind == "hf":
        content = read_json(path / "config.json")
        model, routing = hf.from_config(content)
        shapes, read = hf.tensors(content, path, strip)
        config = _config(path, str(content["model_type"]), model, routing)
        return Foreign(config, "safetensors", "hf", shapes, read)
    checkpoint = t5x_io.Checkpoint(path)
    found = t5x.guess(checkpoint.shapes)
    config = _config(path, f"t5x_{found.names}", found.model, found.routing)
    return Foreign(config, "t5x", found.names, checkpoint.shapes, checkpoint.read)


def _config(
    path: Path, name: str, model: Mapping[str, Any], routing: Mapping[str, Any]
) -> ConfigDict:
    config = settings.from_schema(config_lib.schema())
    config.name = name
    config.model.update(dict(model))
    config.routing.update(dict(routing))
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"
    config.schedule.learning_rate = 1.0
    config.finetune.keep_slots = False  # there are none
    # One sequence a group divides any batch.
    if config.routing.num_experts and not config.routing.group_sequences:
        config.routing.group_sequences = 1
    try:
        settings.check_values(config, config_lib.schema())
    except ConfigError as error:
        raise CheckpointError(
            f"{shown(path)} asks for a model that cannot be made: {error}"
        ) from None
    return config


def serving_model(model: Architecture) -> Architecture:
    """The same model with routing that does not depend on which sequences share a batch.

    Each sequence is a group of its own, so that an answer is the same alone and among others. A
    model without capacity limit keeps none: its capacity is the whole sequence.
    """
    routing = model.routing
    if routing is None:
        return dataclasses.replace(model, remat="none")
    routing = dataclasses.replace(routing, group_size=0, group_sequences=1)
    if routing.dropless:
        free = {"dispatch": "index", "capacity_factor_eval": float(routing.num_experts)}
        routing = dataclasses.replace(routing, capacity_per_choice=False, **free)
    return dataclasses.replace(model, routing=routing, remat="none")


def beside(config: ConfigDict, workdir: Path, step: int) -> dict[str, str]:
    """Files of a run that go along with its weights: none."""
    del config, workdir, step
    return {}


def to_import(config: ConfigDict, path: Path, names: Path | None) -> dict[str, str]:
    """Files that an import writes beside its weights: none.

    Raises:
      ConfigError: names of classes, which these models have not.
    """
    del config, path
    if names is not None:
        raise ConfigError(f"--class_names={names} is for models of images.")
    return {}


def serving(
    config: ConfigDict,
) -> tuple[Callable[..., jax.Array], dict[str, tuple[tuple, str]], dict[str, Any]]:
    """The evaluation forward as a pure function, for export.

    Returns:
      `(params, {}, inputs) -> float32 logits [B, L, V]`; the inputs: name -> (shape, dtype), where
      a dimension "batch" is free; what a caller must know of them.
    """
    model = serving_model(architecture(config.model, config.routing))
    bound = nn.abstract(Transformer(model))

    def forward(params: nn.Arrays, model_state: nn.Arrays, inputs: nn.Arrays) -> jax.Array:
        model = bound.bind(params, model_state)
        return model.logits(model.hidden(inputs)[0])

    lengths = {"encoder": config.data.encoder_length, "decoder": config.data.decoder_length}
    inputs = {
        f"{stack}_{part}": (("batch", lengths[stack]), "int32")
        for stack in model.stacks
        for part in ("inputs", "segments")
    }
    facts = {
        "segments": "1 at tokens, 0 at padding; several texts in a row have numbers of their own",
        "decoder_inputs": "targets shifted right by one, starting with 0",
        "vocabulary": config.data.vocabulary,
        "routing": "each row is a group of its own",
    }
    return forward, inputs, facts
