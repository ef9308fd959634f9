"""What one row of a batch holds, for each kind of source: windows of running text, or packed
examples.

N records (rows) of a source, n tokens of a window. A record's content is a pure function of (seed,
epoch, record), or of the record alone in evaluation.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from moe.data.cache.read import Cache, Damage, DamagedRecord
from moe.data.packing import Example, pack_starts
from moe.data.shuffle import places
from moe.data.span_corruption import SpanCorruption, window_length
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.data.order import generator, record_order
from trainlib.errors import ConfigError, DataError

# Fixed by definition, not settings: the order in which examples are put into rows, the noise of
# evaluation.
_PACK_SEED = 22_02_08906
_EVAL_SEED = 22_02_08906

# Keeps where an epoch's windows begin apart from the other random streams of a seed.
_SHIFT_ROLE = 2
_MIX_ROLE = 3


# Mixture rates are exact in every cycle of so many rows.
_CYCLE = 1 << 16

Row = list[Example] | Damage  # the examples of a row, or what of it cannot be read


class Source(Protocol):
    """Rows with random access. It pickles to worker processes, so files are opened on first use."""

    name: str
    vocabulary: Vocabulary
    # Changes when the data, the vocabulary or the division into rows does; kept in checkpoints.
    digest: str
    # The whole set lies in memory, and reading it costs nothing.
    in_memory: bool
    # Examples end with the end of sequence; else rows are cut from a stream that has its own.
    ends: bool
    # What to say of the source when a run starts: files that are not read, unknown tokens.
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (epochs, records), int64, of global positions in the training stream."""
        ...

    def rows(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Row]:
        """Reads records; `epochs` None is evaluation."""
        ...

    def counts(self) -> np.ndarray:
        """Returns float64 [V]: how often each id occurs in the text (by rate, in a mixture)."""
        ...

    def target_counts(self) -> np.ndarray:
        """Returns float64 [V]: how often the decoder has to predict each id, EOS and sentinels
        included; expected counts, to any scale."""
        ...

    def parts(self) -> list[tuple[Source, float]]:
        """Returns the sources of a mixture with their shares of the rows, or itself alone."""
        ...


class _Cached:
    """What the sources that read one cache share."""

    ends = True
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, cache: Cache, vocabulary: Vocabulary, settings: Any):
        self.name, self.cache, self.vocabulary = name, cache, vocabulary
        self.in_memory = cache.in_memory
        content = repr((cache.digest, vocabulary.digest, settings))
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        raise NotImplementedError

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return places(positions, seed, len(self))

    def counts(self) -> np.ndarray:
        return self.cache.counts().astype(np.float64)

    def parts(self) -> list[tuple[Any, float]]:
        return [(self, 1.0)]

    def _read(self, start: int, stop: int) -> np.ndarray | Damage:
        """Returns ids, or the first record of the cache that spoils them."""
        try:
            ids = self.cache.read(start, stop)
        except DamagedRecord as error:
            return error.damage
        if ids.max() < self.vocabulary.size:
            return ids
        first = int(np.argmax(ids >= self.vocabulary.size))
        why = f"has the id {ids[first]}, outside the vocabulary of {self.vocabulary.size}"
        return Damage(self.cache.place(start + first), why)


def _random_words(seed: int, epoch: int, record: int, count: int) -> np.ndarray:
    return generator(seed, epoch, record).bit_generator.random_raw(count)  # pyright: ignore


def _corrupt(
    corruption: SpanCorruption, texts: Sequence[np.ndarray], keys: Sequence[tuple[int, int, int]]
) -> list[Example]:
    """Corrupts texts, those of equal length together; `keys` are (seed, epoch, record)."""
    examples: list[Example | None] = [None] * len(texts)
    lengths = np.asarray([len(text) for text in texts])
    for length in np.unique(lengths).tolist():
        same = np.flatnonzero(lengths == length).tolist()
        words = np.stack([_random_words(*keys[i], corruption.words(length)) for i in same])
        inputs, targets = corruption.apply(np.stack([texts[i] for i in same]), words)
        for i, pair in zip(same, zip(inputs, targets, strict=True), strict=True):
            examples[i] = pair
    return [example for example in examples if example is not None]


def _corrupted_counts(text: np.ndarray, lengths: np.ndarray, c: SpanCorruption) -> np.ndarray:
    """Expected target counts when texts of `lengths` are corrupted: hidden tokens as the text has
    them, each sentinel once for every text that has so many spans, one EOS a text."""
    sizes, number = np.unique(lengths, return_counts=True)
    _, targets = c.lengths(sizes)
    spans = np.asarray([c.spans(size) for size in sizes.tolist()])
    counts = text * ((targets - spans) * number).sum() / text.sum()
    counts[EOS] += number.sum()
    for k, n in zip(spans, number, strict=True):
        counts[c.vocabulary_size - k : c.vocabulary_size] += n
    return counts


class Windows(_Cached):
    """Running text, joined end to end and cut into windows of n tokens; a row is one window,
    corrupted.

    In training the cuts lie elsewhere in each epoch and the last window goes on at the beginning;
    in evaluation they start at 0 and the last window is short.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        vocabulary: Vocabulary,
        corruption: SpanCorruption | None,
        tokens: int,
    ):
        super().__init__(name, cache, vocabulary, (corruption, tokens))
        self.corruption = corruption
        self.total = self._total()
        self.window = min(tokens, self.total)

    def _total(self) -> int:
        """Returns how many tokens the stream has."""
        return self.cache.tokens

    def __len__(self) -> int:
        return -(-self.total // self.window)

    def _start(self, record: int, epoch: int, seed: int) -> int:
        return (_shift(seed, epoch) + record * self.window) % self.total

    def _text(self, start: int, wrap: bool) -> np.ndarray | Damage:
        text = self._read(start, min(start + self.window, self.total))
        if wrap and not isinstance(text, Damage) and len(text) < self.window:
            begin = self._read(0, self.window - len(text))
            return begin if isinstance(begin, Damage) else np.concatenate([text, begin])
        return text

    def rows(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Row]:
        numbers = records.tolist()
        if epochs is None:
            keys = [(_EVAL_SEED, 0, record) for record in numbers]
            texts = [self._text(record * self.window, False) for record in numbers]
        else:
            keys = [(seed, int(e), r) for r, e in zip(numbers, epochs.tolist(), strict=True)]
            texts = [self._text(self._start(r, e, s), True) for s, e, r in keys]
        good = [i for i, text in enumerate(texts) if not isinstance(text, Damage)]
        rows: list[Row] = [text if isinstance(text, Damage) else [] for text in texts]
        read = [text for text in texts if not isinstance(text, Damage)]
        examples = self._examples(read, [keys[i] for i in good])
        for i, example in zip(good, examples, strict=True):
            rows[i] = [example]
        return rows

    def _examples(self, texts: list[np.ndarray], keys: list[tuple[int, int, int]]) -> list[Example]:
        assert self.corruption is not None
        return _corrupt(self.corruption, texts, keys) if texts else []

    def target_counts(self) -> np.ndarray:
        assert self.corruption is not None
        return _corrupted_counts(self.counts(), np.asarray([self.window]), self.corruption)


class LanguageModel(Windows):
    """Running text for a decoder alone: windows as they are, as targets without inputs, of a stream
    in which an end of sequence (EOS) follows each document ("full_lm" of T5).
    """

    ends = False

    def __init__(self, name: str, cache: Cache, vocabulary: Vocabulary, tokens: int):
        documents = np.cumsum([0, *(shard.documents for shard in cache.shards)])
        # Of each shard, the first document and where it begins in the stream.
        self.firsts, self.begins = documents, cache.starts + documents
        self._index: list[np.ndarray] | None = None
        cache.check_index("ends")  # once, before there are worker processes
        super().__init__(name, cache, vocabulary, None, tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}  # maps of files would travel as their content

    def _total(self) -> int:
        return int(self.begins[-1])

    def _ends(self, shard: int) -> np.ndarray:
        if self._index is None:
            self._index = self.cache.array("ends")
        return self._index[shard]

    def _before(self, position: int) -> int:
        """Returns how many documents have their EOS before a position of the stream."""
        shard = min(int(np.searchsorted(self.begins, position, "right")), len(self.begins) - 1) - 1
        ends, own = self._ends(shard), position - int(self.begins[shard])
        inside = bisect.bisect_left(range(len(ends)), own, key=lambda i: int(ends[i]) + i)
        return int(self.firsts[shard]) + inside

    def _end(self, document: int) -> int:
        """Returns where the EOS of a document stands in the stream."""
        shard = int(np.searchsorted(self.firsts, document, "right")) - 1
        own = document - int(self.firsts[shard])
        return int(self.begins[shard]) + int(self._ends(shard)[own]) + own

    def _read(self, start: int, stop: int) -> np.ndarray | Damage:
        first, last = self._before(start), self._before(stop)
        text: np.ndarray | Damage = np.zeros(0, np.int32)
        if stop - last > start - first:
            text = super()._read(start - first, stop - last)
        if isinstance(text, Damage):
            return text
        # `insert` counts places before anything is inserted.
        places = [self._end(d) - start - (d - first) for d in range(first, last)]
        return np.insert(text, places, EOS)

    def _examples(self, texts: list[np.ndarray], keys: list[tuple[int, int, int]]) -> list[Example]:
        return [(text[:0], text) for text in texts]

    def target_counts(self) -> np.ndarray:
        counts = self.counts()
        counts[EOS] += self.cache.documents
        return counts


@functools.lru_cache(maxsize=64)
def _shift(seed: int, epoch: int) -> int:
    bits = np.random.Philox(np.random.SeedSequence((_SHIFT_ROLE, seed, epoch)))
    return int(bits.random_raw())


class Examples(_Cached):
    """Documents that stay apart: pairs of inputs and targets, or text that is corrupted.

    Text is first cut into pieces of at most n tokens. A row is one example, or as many as fit when
    they are packed; which ones share a row is fixed, so that a row is a record. The places of all
    examples are held in each process, about 40 bytes an example.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        vocabulary: Vocabulary,
        lengths: tuple[int, int],
        pack: bool,
        corruption: SpanCorruption | None,
        tokens: int,
    ):
        super().__init__(name, cache, vocabulary, (lengths, pack, corruption, tokens))
        self.corruption = corruption
        ends = np.concatenate(
            [e + start for e, start in zip(cache.array("ends"), cache.starts, strict=False)]
        )
        starts = np.concatenate([[0], ends[:-1]])
        if corruption is None:
            self.starts, self.sizes = starts, ends - starts
            self.inputs = np.concatenate(cache.array("inputs")).astype(np.int64)
        else:
            self.starts, self.sizes = _pieces(starts, ends, tokens)
            self.inputs = np.zeros(len(self.starts), np.int64)
        self.order = record_order(_PACK_SEED, 0, len(self.starts))
        self.row_starts = self._row_starts(lengths) if pack else np.arange(len(self.starts) + 1)

    def _row_starts(self, limits: tuple[int, int]) -> np.ndarray:
        sizes = self.sizes[self.order]
        if self.corruption is None:
            encoder = self.inputs[self.order]
            decoder = sizes - encoder
        else:
            encoder, decoder = self.corruption.lengths(sizes)
        trimmed = [
            np.minimum(x, limit - 1) + 1
            for x, limit in zip((encoder, decoder), limits, strict=True)
        ]
        return pack_starts(*trimmed, *limits)

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def _members(self, record: int) -> list[int]:
        return self.order[self.row_starts[record] : self.row_starts[record + 1]].tolist()

    def rows(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Row]:
        rows: list[Row] = []
        for i, record in enumerate(records.tolist()):
            key = (_EVAL_SEED, 0) if epochs is None else (seed, int(epochs[i]))
            rows.append(self._row(self._members(record), key))
        return rows

    def _row(self, members: list[int], key: tuple[int, int]) -> Row:
        texts = []
        for example in members:
            start = int(self.starts[example])
            text = self._read(start, start + int(self.sizes[example]))
            if isinstance(text, Damage):
                return text
            texts.append(text)
        if self.corruption is not None:
            return _corrupt(self.corruption, texts, [(*key, example) for example in members])
        cuts = [int(self.inputs[example]) for example in members]
        return [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]

    def longer(self, inputs: int, targets: int) -> np.ndarray:
        """int64 [3]: pairs with more inputs, and with more targets, than so many tokens, and all
        pairs; nothing of text that is corrupted.
        """
        if self.corruption is not None:
            return np.zeros(3, np.int64)
        own = self.sizes - self.inputs
        return np.asarray([(self.inputs > inputs).sum(), (own > targets).sum(), len(own)])

    def target_counts(self) -> np.ndarray:
        counts = self.counts()
        if self.corruption is not None:
            return _corrupted_counts(counts, self.sizes, self.corruption)
        counts[EOS] += len(self.starts)
        return counts


def _pieces(starts: np.ndarray, ends: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (starts, sizes) of the pieces of at most `tokens` into which documents are cut."""
    number = -(-(ends - starts) // tokens)
    first = np.repeat(np.cumsum(number) - number, number)
    place = np.arange(len(first)) - first
    piece_starts = np.repeat(starts, number) + place * tokens
    return piece_starts, np.minimum(np.repeat(ends, number) - piece_starts, tokens)


class Mixture:
    """Several sources at fixed rates; each is read through in its own epochs.

    Rates are exact in every 65,536 rows of training, whose order over the sources is random.
    Evaluation reads each source once, one after the other; a run evaluates its `parts`.
    """

    def __init__(self, name: str, sources: Sequence[Source], rates: Sequence[float]):
        """Raises ConfigError for rates that are not above 0, DataError for other vocabularies."""
        if min(rates) <= 0:
            raise ConfigError(f"{name}: the rates {tuple(rates)} must all be above 0.")
        self.name, self.sources = name, list(sources)
        self.rates = np.asarray(rates, np.float64) / np.sum(rates)
        self.vocabulary = sources[0].vocabulary
        for source in sources:
            if source.vocabulary.digest != self.vocabulary.digest:
                raise DataError(
                    f"{name}: {source.name} and {sources[0].name} have different vocabularies "
                    f"({source.vocabulary.name}, {self.vocabulary.name}); one model reads one."
                )
        self.ends = sources[0].ends
        self.notes = tuple(note for source in sources for note in source.notes)
        self.in_memory = all(source.in_memory for source in sources)
        parts = [(s.digest, rate) for s, rate in zip(sources, self.rates.tolist(), strict=True)]
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self._starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()
        self._each = tuple(_whole_counts(self.rates).tolist())

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        cycles, offsets = np.divmod(positions, _CYCLE)
        owners, own = np.empty_like(positions), np.empty_like(positions)
        for cycle in np.unique(cycles):
            here = cycles == cycle
            cycle_owners, turns = _cycle(seed, int(cycle), self._each)
            owners[here], own[here] = cycle_owners[offsets[here]], turns[offsets[here]]
        epochs, records = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(owners).tolist():
            here = owners == number
            before = cycles[here] * self._each[number]
            epochs[here], found = self.sources[number].locate(before + own[here], seed)
            records[here] = found + self._starts[number]
        return epochs, records

    def rows(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Row]:
        rows: list[Row] = [[] for _ in records]
        owners = np.searchsorted(self._starts, records, side="right") - 1
        for number in np.unique(owners).tolist():
            here = np.flatnonzero(owners == number)
            own = None if epochs is None else epochs[here]
            found = self.sources[number].rows(records[here] - self._starts[number], own, seed)
            for i, row in zip(here.tolist(), found, strict=True):
                rows[i] = row
        return rows

    def counts(self) -> np.ndarray:
        return _weighted([source.counts() for source in self.sources], self.rates)

    def target_counts(self) -> np.ndarray:
        return _weighted([source.target_counts() for source in self.sources], self.rates)

    def parts(self) -> list[tuple[Source, float]]:
        return list(zip(self.sources, self.rates.tolist(), strict=True))


def _weighted(counts: list[np.ndarray], rates: np.ndarray) -> np.ndarray:
    return np.sum([c / c.sum() * r for c, r in zip(counts, rates, strict=True)], axis=0)


def _whole_counts(rates: np.ndarray) -> np.ndarray:
    """Returns int64: rows of a cycle for each rate, at least 1, in all _CYCLE (largest
    remainders)."""
    exact = rates * _CYCLE
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for i in np.argsort(counts - exact, kind="stable").tolist() * 2:
        missing = _CYCLE - int(counts.sum())
        if missing > 0:
            counts[i] += 1
    counts[np.argmax(counts)] += _CYCLE - int(counts.sum())
    return counts


@functools.lru_cache(maxsize=4)
def _cycle(seed: int, cycle: int, each: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 [_CYCLE] twice: each row's source, and which of its rows of the cycle."""
    bits = np.random.Philox(np.random.SeedSequence((_MIX_ROLE, seed, cycle)))
    order = np.argsort(bits.random_raw(_CYCLE), kind="stable")
    owners = np.repeat(np.arange(len(each)), each)[order]
    turns = np.empty(_CYCLE, np.int64)
    for number, count in enumerate(each):
        turns[owners == number] = np.arange(count)
    return owners, turns


def unigram_entropy(counts: np.ndarray) -> float:
    """Returns the entropy in nats of ids with these counts.

    No model that ignores context gets a lower mean loss on tokens that occur so often:
    `source.counts()` for the text, `source.target_counts()` for what the decoder predicts.
    """
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def from_cache(name: str, cache: Cache, vocabulary: Vocabulary, config: Any) -> Windows | Examples:
    """Makes the source that a cache and the settings of a run give.

    Raises:
      ConfigError: a setting of the objective cannot work.
      DataError: the cache has another vocabulary.
    """
    if cache.manifest["vocabulary"] != vocabulary.digest:
        raise DataError(
            f"{cache.directory} was tokenised with {cache.manifest['vocabulary_name']} and the run "
            f"has the vocabulary {vocabulary.name}, another one. Prepare the data again."
        )
    lengths = config.encoder_length, config.decoder_length
    if config.objective == "language_model":
        if cache.pairs:
            raise ConfigError(
                f"{name} holds pairs of inputs and targets, and data.objective='language_model' "
                "reads running text. Give it text alone, or train an encoder-decoder on the pairs "
                "with data.objective=span_corruption."
            )
        return LanguageModel(name, cache, vocabulary, config.decoder_length)
    if cache.pairs:
        return Examples(name, cache, vocabulary, lengths, config.pack, None, 0)
    corruption = SpanCorruption(config.noise_density, config.mean_span, vocabulary.size)
    tokens = window_length(*lengths, vocabulary.extra_ids, corruption)
    if config.merge_documents:
        return Windows(name, cache, vocabulary, corruption, tokens)
    return Examples(name, cache, vocabulary, lengths, config.pack, corruption, tokens)
