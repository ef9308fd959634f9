"""From examples to the batch that the model reads: end of sequence, packing, segments, shifting.

b records, Le encoder tokens, Ld decoder tokens. An example is a pair of id arrays without EOS. The
arrays that `fill_batch` makes, int32 unless said:
  encoder_inputs     [b, Le]
  encoder_segments   [b, Le]  1, 2, ... for the examples of a record, 0 for padding
  encoder_positions  [b, Le]  from 0 in each segment
  decoder_inputs     [b, Ld]  the targets shifted right by one in each segment, which starts with 0
  decoder_targets    [b, Ld]
  decoder_segments   [b, Ld]
  decoder_positions  [b, Ld]
  decoder_weights    [b, Ld]  float32, 1 for every target, EOS included, and 0 for padding
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe.data.denoisers.denoiser import Example
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError

_ENCODER = ("encoder_inputs", "encoder_segments")
_DECODER = ("decoder_inputs", "decoder_segments", "decoder_targets", "decoder_weights")


def batch_fields(kind: str) -> tuple[str, ...]:
    """The arrays of a batch that a model reads, for `model.kind`.

    Raises:
      ConfigError: an encoder alone, which has no targets here.
    """
    if kind == "encoder":
        raise ConfigError(
            "model.kind='encoder' has no decoder, and pre-training predicts the decoder's targets. "
            "Use model.kind='encoder_decoder' or 'decoder'."
        )
    return _ENCODER + _DECODER if kind == "encoder_decoder" else _DECODER


def pack_starts(
    encoder: np.ndarray, decoder: np.ndarray, encoder_length: int, decoder_length: int
) -> np.ndarray:
    """Puts examples in records in their order; a record takes what fits, then the next one begins.

    Args:
      encoder: int64 [N], encoder tokens of each example, EOS included, at most `encoder_length`.
      decoder: int64 [N], the same for the decoder.
      encoder_length: Le.
      decoder_length: Ld.

    Returns:
      int64 [records + 1]: record r holds the examples [starts[r], starts[r + 1]).
    """
    ends = []
    for lengths, limit in ((encoder, encoder_length), (decoder, decoder_length)):
        total = np.concatenate([[0], np.cumsum(lengths)])
        ends.append(np.searchsorted(total, total[:-1] + limit, side="right") - 1)
    following = np.minimum(*ends).tolist()
    starts = [0]
    while starts[-1] < len(following):
        starts.append(following[starts[-1]])
    return np.asarray(starts, np.int64)


def fill_batch(
    records: Sequence[Sequence[Example]],
    encoder_length: int,
    decoder_length: int,
    ends: bool = True,
) -> dict[str, np.ndarray]:
    """Lays the examples of records out, each with EOS appended, trimmed first where it is too long.

    Args:
      records: the examples of each record, which together fit; an empty record stays padding.
      encoder_length: Le.
      decoder_length: Ld.
      ends: whether EOS is appended.

    Returns:
      The arrays that the module describes.
    """
    encoder = _Side(len(records), encoder_length)
    decoder = _Side(len(records), decoder_length)
    for record, examples in enumerate(records):
        for segment, (inputs, targets) in enumerate(examples, start=1):
            encoder.add(record, segment, inputs, ends)
            decoder.add(record, segment, targets, ends)
    shifted = np.zeros_like(decoder.tokens)
    shifted[:, 1:] = decoder.tokens[:, :-1] * (decoder.positions[:, 1:] > 0)
    return {
        "encoder_inputs": encoder.tokens,
        "encoder_segments": encoder.segments,
        "encoder_positions": encoder.positions,
        "decoder_inputs": shifted,
        "decoder_targets": decoder.tokens,
        "decoder_segments": decoder.segments,
        "decoder_positions": decoder.positions,
        "decoder_weights": (decoder.segments > 0).astype(np.float32),
    }


class _Side:
    """Tokens, segments and positions of the encoder or the decoder, filled from the left."""

    def __init__(self, records: int, length: int):
        self.tokens, self.segments, self.positions = (
            np.zeros((records, length), np.int32) for _ in range(3)
        )
        self._filled = [0] * records

    def add(self, record: int, segment: int, ids: np.ndarray, ends: bool) -> None:
        length = self.tokens.shape[1]
        start = self._filled[record]
        size = min(len(ids), length - ends)
        stop = start + size + ends
        assert stop <= length, "the examples of a record do not fit it"
        self.tokens[record, start : start + size] = ids[:size]
        self.tokens[record, start + size : stop] = EOS
        self.segments[record, start:stop] = segment
        self.positions[record, start:stop] = np.arange(stop - start)
        self._filled[record] = stop
