"""Vocabularies: text to ids and back, with the ids that seqio's vocabularies give.

Ids 0, 1, 2 are padding, end of sequence (EOS) and unknown. The highest `extra_ids` ids are the
sentinels of span corruption: sentinel k is id `size - 1 - k`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from trainlib import commands, paths
from trainlib.errors import ConfigError, DataError, one_of

PAD, EOS, UNKNOWN = 0, 1, 2

_BYTES = tuple(bytes([b]) for b in range(256))


class Vocabulary(Protocol):
    """What the pipeline needs to know. It pickles to worker processes."""

    name: str
    # Number of ids, sentinels included.
    size: int
    extra_ids: int
    # Changes when any id means something else.
    digest: str

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 [tokens], without EOS."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of the ids; padding, EOS and sentinels give nothing."""
        ...

    def pieces(self, ids: np.ndarray) -> list[bytes]:
        """Returns the UTF-8 bytes that each id stands for, part of a letter perhaps; b"" for
        padding, EOS, unknown and sentinels.
        """
        ...


class ByteVocabulary:
    """UTF-8 bytes: byte b is id b + 3 (ByT5, Xue et al. 2021, arXiv 2105.13626)."""

    name = "bytes"

    def __init__(self, extra_ids: int):
        self.extra_ids = extra_ids
        self.size = 3 + 256 + extra_ids
        self.digest = _digest(b"bytes", extra_ids)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids)
        text = ids[(ids >= 3) & (ids < 3 + 256)] - 3
        return text.astype(np.uint8).tobytes().decode(errors="ignore")

    def pieces(self, ids: np.ndarray) -> list[bytes]:
        return [_BYTES[i - 3] if 3 <= i < 3 + 256 else b"" for i in np.asarray(ids).tolist()]


class SentencePieceVocabulary:
    """A SentencePiece model file, with the sentinels above its own pieces.

    A model that ends in the pieces <extra_id_N> to <extra_id_0>, as mT5's does, has its sentinels
    already: none are added.

    Attributes:
      added: sentinels that the model does not have, `extra_ids` or 0.
    """

    def __init__(self, path: str, extra_ids: int):
        """Reads the model.

        Raises:
          DataError: it is absent, no SentencePiece model, or has other ids for padding, EOS and
            unknown than 0, 1 and 2.
          ConfigError: the package sentencepiece is not installed, or the model has another number
            of sentinels than `extra_ids`.
        """
        self.name, self.path, self.extra_ids = f"sentencepiece:{path}", path, extra_ids
        file = paths.resolve(path, "data.vocabulary")
        try:
            self._model = file.read_bytes()
        except OSError as error:
            raise DataError(
                f"the vocabulary {path} cannot be read ({error.strerror}). Give the SentencePiece "
                "model with --config.data.vocabulary=sentencepiece:FILE, or use bytes."
            ) from None
        self._loaded: Any = None
        pieces = self._processor()
        ids = pieces.pad_id(), pieces.eos_id(), pieces.unk_id()
        if ids != (PAD, EOS, UNKNOWN):
            raise DataError(
                f"the vocabulary {path} has the ids {ids} for padding, end of sequence and unknown "
                f"(-1 is none); this framework, like T5, needs {(PAD, EOS, UNKNOWN)}. Train it "
                "with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1."
            )
        inside = _sentinels_of(pieces)
        if inside and inside != extra_ids:
            raise ConfigError(
                f"the vocabulary {path} ends in {inside} sentinels of its own, <extra_id_0> the "
                f"last, and data.extra_ids={extra_ids}. Set --config.data.extra_ids={inside}: "
                "these are used, and none are added."
            )
        self.added = 0 if inside else extra_ids
        self._base = pieces.get_piece_size() - inside
        self.size = self._base + extra_ids
        self.digest = _digest(self._model, self.added)

    def _processor(self) -> Any:
        if self._loaded is None:
            try:
                import sentencepiece  # pyright: ignore[reportMissingImports]  # an extra
            except ImportError:
                raise ConfigError(
                    f"data.vocabulary={self.name!r} needs the package sentencepiece: "
                    f"{commands.install('text')}, or use --config.data.vocabulary=bytes."
                ) from None
            try:
                self._loaded = sentencepiece.SentencePieceProcessor(model_proto=self._model)
            except RuntimeError as error:
                raise DataError(
                    f"the vocabulary {self.path} is not a SentencePiece model: {error}."
                ) from None
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor().encode(text), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids)
        return self._processor().decode(ids[(ids > EOS) & (ids < self._base)].tolist())

    def pieces(self, ids: np.ndarray) -> list[bytes]:
        model = self._processor()

        def piece(number: int) -> bytes:
            if not UNKNOWN < number < self._base or model.is_control(number):
                return b""
            text = model.id_to_piece(number)
            if model.is_byte(number):  # written <0x0A>
                return bytes([int(text[1:-1], 16)])
            return text.replace("\u2581", " ").encode()  # how SentencePiece writes a blank

        return [piece(number) for number in np.asarray(ids).tolist()]


def _sentinels_of(model: Any) -> int:
    """How many pieces at the top are <extra_id_0> (the last), <extra_id_1> and so on."""
    count, size = 0, model.get_piece_size()
    while count < size and model.id_to_piece(size - 1 - count).lstrip("\u2581") == (
        f"<extra_id_{count}>"
    ):
        count += 1
    return count


def _digest(content: bytes, extra_ids: int) -> str:
    return hashlib.sha256(content + f"+{extra_ids}".encode()).hexdigest()[:16]


def make_vocabulary(config: ConfigDict) -> Vocabulary:
    """Makes the vocabulary that `config.vocabulary` and `config.extra_ids` name.

    Raises:
      ConfigError: no such kind of vocabulary, or a negative number of sentinels.
      DataError: the file does not serve (see `SentencePieceVocabulary`).
    """
    kind, _, path = config.vocabulary.partition(":")
    if config.extra_ids < 0:
        raise ConfigError(f"data.extra_ids={config.extra_ids} is negative: T5 has 100.")
    if kind == "sentencepiece" and path:
        return SentencePieceVocabulary(path, config.extra_ids)
    if config.vocabulary != "bytes":
        raise one_of("data.vocabulary", config.vocabulary, ("bytes", "sentencepiece:FILE"))
    return ByteVocabulary(config.extra_ids)


def check_vocabulary(vocabulary: Vocabulary, vocab_size: int) -> None:
    """Raises DataError when the vocabulary has ids that a model of `vocab_size` ids does not.

    Called before anything is compiled: JAX would read another row of the table without a word.
    """
    if vocabulary.size > vocab_size:
        raise DataError(
            f"the vocabulary {vocabulary.name} has {vocabulary.size} ids, of which "
            f"{vocabulary.extra_ids} are sentinels at the top, and the model has "
            f"{vocab_size}. Set --config.model.vocab_size={-(-vocabulary.size // 128) * 128} or "
            "more, or give the vocabulary that the model was made for."
        )
