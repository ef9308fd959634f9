"""Answers of a model to tokens, as one pure function; and the options of decoding as keywords.

Letters: B sequences, K tokens of the encoder, N answers of a sequence, T most tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from moe.decoding.model import METHODS, Decoding, make_generate
from moe.models.architecture import Architecture
from moe.models.stacked import Members
from moe.models.transformer import Transformer
from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import flatten
from trainlib.sharding.constrain import with_automatic_axes

_BEAM, _SAMPLE = ("num_beams", "beam_rule", "alpha"), ("temperature", "top_k", "top_p", "seed")


class DecodingOptions(TypedDict, total=False):
    """The fields of `moe.decoding.model.Decoding`, which explains them, as keyword arguments."""

    method: str
    max_length: int
    min_length: int
    num_return_sequences: int
    num_beams: int
    beam_rule: str
    alpha: float
    temperature: float
    top_k: int
    top_p: float
    seed: int


class Generated(NamedTuple):
    """The answers of `generate`; with num_return_sequences N above 1 both have an axis N after B.

    Attributes:
      tokens: int32 [B, T], ended by EOS (1) where the model ends, then padded with 0.
      scores: float32 [B], the log-probability of the tokens, EOS included. Beams come best first;
        if fewer than N of them ended, the scores of the last are -1e9 or less.
    """

    tokens: jax.Array
    scores: jax.Array


def with_options(base: Decoding, given: Mapping[str, Any]) -> Decoding:
    """Changes some options. Those of one method choose it, unless `method` is given too: num_beams
    above 1, beam_rule or alpha choose "beam"; temperature, top_k, top_p or seed choose "sample".

    Raises:
      ConfigError: an unknown option (names the nearest), a value that cannot work, options of
        two methods, or of another method than the one that is given.
    """
    names = [field.name for field in dataclasses.fields(Decoding)]
    for name in given:
        if name not in names:
            raise one_of("decoding option", name, names)
    options = dict(given)
    if "method" not in options:
        beam = [name for name in _BEAM if name in options]
        sample = [name for name in _SAMPLE if name in options]
        if beam and sample:
            raise ConfigError(
                f"{beam[0]} is an option of beam search and {sample[0]} one of sampling. Give "
                "method='beam' or method='sample' as well, or leave one of them out."
            )
        if beam or sample:
            options["method"] = "beam" if beam else "sample"
    method = options.get("method", base.method)
    for other, theirs in (("beam", _BEAM), ("sample", _SAMPLE)):
        if method in METHODS and method != other and (found := [n for n in theirs if n in given]):
            raise ConfigError(
                f"{found[0]} is an option of method='{other}' and has no effect with "
                f"method='{method}'. Give method='{other}', or leave it out."
            )
    return dataclasses.replace(base, **options)


def generate(
    model: Transformer,
    encoder_inputs: jax.Array,
    *,
    encoder_segments: jax.Array | None = None,
    vocabulary_size: int = 0,
    numbers: jax.Array | None = None,
    **options: Unpack[DecodingOptions],
) -> Generated:
    """Decodes an answer to each sequence: greedily, by beam search or by sampling.

    The decoder runs token by token with a cache of keys and values, until all sequences have ended.
    It is a pure function of the weights and the tokens, compiled once for each shape and set of
    options; it may also be called inside of `jax.jit`. In the decoder no expert drops a token, so
    that an answer does not depend on how many others are decoded with it.

    Example:
      >>> tokens, scores = moe.generate(model, encoder_inputs, max_length=32)
      >>> best = moe.generate(model, encoder_inputs, max_length=32, num_beams=4, alpha=0.6)
      >>> draws = moe.generate(model, encoder_inputs, max_length=32, temperature=0.7, seed=3)

    Args:
      model: an encoder-decoder of `moe.create_model` or `moe.load(..).model`.
      encoder_inputs: int32 [B, K], one input in each row, ended by EOS (1) as in training, then
        padded with 0.
      encoder_segments: int32 [B, K], 1 at tokens and 0 at padding; None: every token that is not 0.
      vocabulary_size: ids from here on are never chosen, where the table of the model is larger
        than the vocabulary; 0: all ids of the model are words.
      numbers: int32 [B], from which the draws of a sequence follow when sampling; None: 0 to B - 1.
      **options: those of `moe.decoding.model.Decoding`: method ("greedy", "beam", "sample"),
        max_length (T; it is required), min_length, num_return_sequences (N), num_beams, beam_rule,
        alpha, temperature, top_k, top_p, seed. An option of one method chooses that method.

    Returns:
      tokens int32 [B, T] and scores float32 [B], see `Generated`.

    Raises:
      ConfigError: an option that cannot work, no max_length, tokens, segments, numbers or a
        vocabulary that do not fit, or a model that is no encoder-decoder of ours.
    """
    if not isinstance(model, Transformer):
        raise ConfigError(
            "moe.generate takes a model of moe.create_model, or moe.load(..).model, and this is of "
            f"the type {type(model).__name__}."
        )
    chosen = with_options(Decoding(), options)
    if not chosen.max_length:
        raise ConfigError(
            "moe.generate needs max_length, the most tokens of an answer, such as max_length=32."
        )
    tokens = jnp.asarray(encoder_inputs, jnp.int32)
    if tokens.ndim != 2 or not tokens.size:
        raise ConfigError(
            "moe.generate takes tokens of the shape [batch, length], and these have "
            f"{tokens.shape}. A single sequence is encoder_inputs[None]."
        )
    for name, value, shape in (
        ("encoder_segments", encoder_segments, tokens.shape),
        ("numbers", numbers, tokens.shape[:1]),
    ):
        if value is not None and jnp.shape(value) != shape:
            raise ConfigError(
                f"moe.generate takes {name} of the shape {shape} for tokens of the shape "
                f"{tokens.shape}, and these have {jnp.shape(value)}."
            )
    if not 0 <= vocabulary_size <= model.config.vocab_size:
        raise ConfigError(
            f"vocabulary_size={vocabulary_size} is not allowed: the model has "
            f"{model.config.vocab_size} ids, and 0 takes all of them."
        )
    segments = tokens != 0 if encoder_segments is None else encoder_segments
    batch = {"encoder_inputs": tokens, "encoder_segments": jnp.asarray(segments, jnp.int32)}
    if chosen.method == "sample":
        batch["number"] = jnp.arange(len(tokens)) if numbers is None else jnp.asarray(numbers)
    search = _compiled(model.config, chosen, vocabulary_size or model.config.vocab_size)
    weights = flatten(nnx.to_pure_dict(nnx.state(model)))
    result = search(_apart(weights, model.config), batch)
    return Generated(result["words"], result["score"])


def _apart(weights: dict[str, Any], config: Architecture) -> dict[str, Any]:
    """The weights of the decoder's blocks as arrays of their own, where that costs nothing: on a
    CPU, which would else copy them for each call and compile a slice of each.
    """
    if not all(_in_memory(value) for value in weights.values()):
        return weights
    depths = {f"decoder.{name}": x.ndim for name, x in config.trees("decoder").items()}
    found = dict(weights)
    for tree, depth in depths.items():
        for name in weights:
            if name.startswith(f"{tree}.") and not name.startswith(f"{tree}.experts."):
                found[name] = Members.of(weights[name], depth)
    return found


def _in_memory(value: Any) -> bool:
    """Whether it is an array of one CPU device, and no tracer."""
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, Tracer)
        and {device.platform for device in value.devices()} == {"cpu"}
        and len(value.devices()) == 1
    )


@functools.lru_cache(maxsize=64)
def _compiled(model: Architecture, options: Decoding, words: int) -> Callable[..., Any]:
    """The jitted search: calls with the same settings share what is compiled."""
    search = make_generate(model, options, options.max_length, words)

    def run(weights: Any, batch: Any) -> Any:
        return search(weights, {}, batch)

    return jax.jit(lambda weights, batch: with_automatic_axes(run, lambda b: b, weights, batch))
