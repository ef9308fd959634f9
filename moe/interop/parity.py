"""Runs a model of `transformers` and the imported one on the same tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moe.models import architecture
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from trainlib.errors import CheckpointError
from trainlib.model import weights as nn

LENGTHS = {"encoder": 24, "decoder": 12}
SEQUENCES = 2
COMPARED = {"hf": ("torch", "transformers")}  # format -> what a comparison takes
TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order give about 1e-6


def tokens(vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random tokens; the second sequence of each stack ends in padding."""
    random, batch = np.random.default_rng(seed), {}
    for stack, length in LENGTHS.items():
        words = random.integers(1, vocabulary, (SEQUENCES, length), dtype=np.int32)
        seen = np.ones_like(words)
        seen[1, length * 2 // 3 :] = 0
        batch[f"{stack}_inputs"] = words * seen
        batch[f"{stack}_segments"] = seen
    return batch


def our_logits(config: ConfigDict, params: nn.Arrays, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits float32 [B, L, V] of the model of a configuration, in evaluation."""
    model = {**config.model.to_dict(), "dtype": "float32", "remat": "none", "dropout": 0.0}
    forward = _forward(architecture(model, config.routing))
    return np.asarray(forward(params, {name: jnp.asarray(x) for name, x in batch.items()}))


@functools.lru_cache(maxsize=8)
def _forward(model: Architecture) -> Callable[[nn.Arrays, nn.Arrays], jax.Array]:
    """The compiled forward; models that compute the same share it."""
    bound = nn.abstract(Transformer(model))
    return jax.jit(lambda params, batch: bound.bind(params, {})(**batch).logits)


def transformers_logits(path: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits float32 [B, L, V] of the model that `transformers` loads from a directory.

    Raises:
      CheckpointError: it cannot load them, or has another idea of what weights there are.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            path,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers cannot load {path}: {str(error).splitlines()[0][:300]}"
        ) from None
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise CheckpointError(f"transformers does not find in {path} what it needs: {info}.")
    model.eval()
    inputs = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch.items()}
    with torch.no_grad():
        out = model(
            input_ids=inputs["encoder_inputs"],
            attention_mask=inputs["encoder_segments"],
            decoder_input_ids=inputs["decoder_inputs"],
            decoder_attention_mask=inputs["decoder_segments"],
        )
    return out.logits.float().numpy()


def compare(config: ConfigDict, params: nn.Arrays, path: Path) -> str:
    """One line with the largest difference of the logits of real tokens.

    Raises:
      CheckpointError: they differ by more than rounding.
    """
    batch = tokens(config.model.vocab_size)
    ours, theirs = our_logits(config, params, batch), transformers_logits(path, batch)
    real = batch["decoder_segments"] > 0
    difference = float(np.max(np.abs(ours - theirs)[real]))
    largest = float(np.max(np.abs(theirs[real])))
    line = f"largest difference of logits to transformers {difference:.2e}, of {largest:.3g}"
    if not difference <= TOLERANCE * max(1.0, largest):
        raise CheckpointError(f"The imported model is another one: {line}.")
    return line
