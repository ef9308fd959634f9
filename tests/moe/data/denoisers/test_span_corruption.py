"""Span corruption: exact lengths and counts, its distribution, against a transcription of T5's."""

import itertools
from collections import Counter

import numpy as np
import pytest

from moe.data.denoisers.span_corruption import SpanCorruption, noise_counts, window_length
from trainlib.errors import ConfigError

V = 359
T5 = SpanCorruption(0.15, 3.0, V)


def words(rng, rows, corruption, length):
    return rng.integers(0, 2**64, (rows, corruption.words(length)), dtype=np.uint64)


def t5_mask(length, density, mean_span, choose):
    """The published preprocessor as text: lengths of noise and non-noise spans, interleaved.

    `choose(n, k)` returns a 0/1 list of n with k ones: where a new span begins.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)

    def segmentation(items):
        begins = [0, *choose(items - 1, spans - 1)]
        return [sum(1 for s in itertools.accumulate(begins) if s == k) for k in range(spans)]

    noise_lengths, kept_lengths = segmentation(noise), segmentation(length - noise)
    mask = []
    for kept, hidden in zip(kept_lengths, noise_lengths, strict=True):
        mask += [False] * kept + [True] * hidden
    return mask


def t5_pair(tokens, mask):
    """Each run of hidden tokens becomes one sentinel in the input, each run of kept ones in the
    target; sentinels count down from V - 1."""

    def with_sentinels(away):
        out, sentinel = [], V - 1
        for i, token in enumerate(tokens):
            if not away[i]:
                out.append(token)
            elif i == 0 or not away[i - 1]:
                out.append(sentinel)
                sentinel -= 1
        return out

    return with_sentinels(mask), with_sentinels([not hidden for hidden in mask])


def mask_of(tokens, inputs):
    """Which tokens are hidden, from tokens that all differ."""
    return ~np.isin(tokens, inputs)


def test_512_and_114_come_from_568_tokens():
    # 85 of 568 hidden (85.2) in 28 spans (28.3): 568 - 85 + 28 + EOS = 512, 85 + 28 + EOS = 114.
    tokens = window_length(512, 114, 100, T5)
    inputs, targets = T5.lengths(np.asarray([tokens]))
    assert (tokens, int(inputs[0]), int(targets[0])) == (568, 511, 113)
    with pytest.raises(ConfigError, match="decoder_length=114 or a lower"):
        window_length(512, 113, 100, T5)


@pytest.mark.parametrize("length", [3, 4, 17, 64, 256, 511, 1024, 2048])
@pytest.mark.parametrize(("density", "span"), [(0.15, 3.0), (0.5, 1.0), (0.15, 20.0), (0.9, 8.0)])
def test_window_is_the_longest_that_fits(length, density, span):
    c = SpanCorruption(density, span, 100_000)
    tokens = window_length(length, 10**6, 10**6, c)
    fits, exceeds = c.lengths(np.asarray([tokens, tokens + 1]))[0] + 1
    assert fits <= length < exceeds


def test_noise_counts_of_every_length():
    """In float32, as TensorFlow computes them: 190 * 0.15 is 28.500002 and becomes 29."""
    lengths = np.arange(2, 3000)
    hidden, spans = noise_counts(lengths, 0.15, 3.0)
    products = [float(np.float32(n) * np.float32(0.15)) for n in lengths]
    expected = [min(max(round(p), 1), n - 1) for n, p in enumerate(products, start=2)]
    assert expected[188] == 29
    np.testing.assert_array_equal(hidden, expected)
    np.testing.assert_array_equal(spans, [max(round(h / 3), 1) for h in expected])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 10, 57, 568])
def test_pair_is_the_published_one_for_its_mask(length):
    rng = np.random.default_rng(length)
    tokens = rng.permutation(np.arange(1000, 1000 + length, dtype=np.int32))[None].repeat(20, 0)
    c = SpanCorruption(0.15, 3.0, 700)  # sentinels below the tokens, to tell them apart
    inputs, targets = c.apply(tokens, words(rng, 20, c, length))
    assert inputs.dtype == targets.dtype == np.int32
    for row in range(20):
        hidden = mask_of(tokens[row], inputs[row])
        expected = t5_pair(tokens[row].tolist(), hidden)
        shift = 700 - V
        expected = [[t + shift if t < V else t for t in side] for side in expected]
        assert [inputs[row].tolist(), targets[row].tolist()] == expected
        spans = int(np.sum(np.diff(np.r_[0, hidden]) == 1))
        if length > 1:
            assert (hidden.sum(), spans) == tuple(int(x) for x in noise_counts(length, 0.15, 3.0))


def test_nothing_is_lost():
    """Putting each target's span where its sentinel stands gives the text back."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 259, (30, 568)).astype(np.int32)
    inputs, targets = T5.apply(tokens, words(rng, 30, T5, 568))
    for row in range(30):
        spans, text = {}, []
        for t in targets[row].tolist():
            if t >= 259:
                spans[t] = current = []
            else:
                current.append(t)
        for t in inputs[row].tolist():
            text += spans[t] if t >= 259 else [t]
        assert text == tokens[row].tolist()


def test_all_masks_are_equally_likely():
    """12 tokens, 4 hidden in 2 spans: 3 ways to cut 4 and 7 ways to cut 8, each pair 1 in 21."""
    c = SpanCorruption(1 / 3, 2.0, V)
    rng = np.random.default_rng(1)
    rows = 21_000
    tokens = np.tile(np.arange(3, 15, dtype=np.int32), (rows, 1))
    inputs, _ = c.apply(tokens, words(rng, rows, c, 12))
    seen = Counter(tuple(sorted(set(range(3, 15)) - set(row))) for row in inputs.tolist())

    def every_choice(n, k):
        return [
            [int(i in chosen) for i in range(n)] for chosen in itertools.combinations(range(n), k)
        ]

    possible = set()
    for a, b in itertools.product(every_choice(3, 1), every_choice(7, 1)):
        given = iter((a, b))
        mask = t5_mask(12, 1 / 3, 2.0, lambda n, k, given=given: next(given))
        possible.add(tuple(3 + i for i, hidden in enumerate(mask) if hidden))
    assert len(possible) == 21
    assert set(seen) == possible
    # Chi-squared with 20 degrees of freedom is above 45.3 once in 1,000.
    assert sum((n - 1000) ** 2 / 1000 for n in seen.values()) < 45.3


def test_statistics_of_the_real_objective():
    rng = np.random.default_rng(2)
    rows = 4000
    tokens = np.tile(np.arange(1000, 1568, dtype=np.int32), (rows, 1))
    inputs, _ = SpanCorruption(0.15, 3.0, 700).apply(tokens, words(rng, rows, T5, 568))
    hidden = np.stack([mask_of(tokens[0], row) for row in inputs])
    assert (hidden.sum(1) == 85).all()
    starts = hidden & ~np.c_[np.zeros(rows, bool), hidden[:, :-1]]
    assert (starts.sum(1) == 28).all()
    assert not hidden[:, 0].any()
    assert hidden[:, -1].all()
    # Span lengths: 85 cut into 28 uniformly; P(length = 1) = C(83, 26) / C(84, 27) = 27 / 84.
    padded = np.c_[hidden, np.zeros(rows, bool)].astype(np.int8)
    steps = np.diff(np.c_[np.zeros(rows, np.int8), padded], axis=1).ravel()
    lengths = np.flatnonzero(steps == -1) - np.flatnonzero(steps == 1)
    assert lengths.mean() == 85 / 28
    ones = (lengths == 1).mean()
    assert abs(ones - 27 / 84) < 5 * np.sqrt(27 / 84 * 57 / 84 / len(lengths))


def test_too_few_sentinels():
    with pytest.raises(ConfigError, match=r"hides 28 spans.*extra_ids=28"):
        window_length(512, 114, 27, T5)
    assert window_length(512, 114, 28, T5) == 568


@pytest.mark.parametrize(
    ("density", "span", "length", "key"),
    [
        (0.0, 3.0, 512, "noise_density"),
        (1.0, 3.0, 512, "noise_density"),
        (0.15, 0.5, 512, "mean_span"),
        (0.15, 3.0, 2, "encoder_length"),
    ],
)
def test_impossible_settings(density, span, length, key):
    with pytest.raises(ConfigError, match=key):
        window_length(length, 114, 100, SpanCorruption(density, span, V))
