"""Prefix language models and UL2, against what the papers say, written plainly."""

import itertools
from collections import Counter

import numpy as np
import pytest

from moe.data import eval_batches, make_source, make_vocabulary, train_batches
from moe.data.denoisers.prefix_lm import PrefixLM
from moe.data.denoisers.ul2 import SPANS
from moe.data.sources.from_cache import texts_of
from moe.data.sources.packing import fill_batch
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError

# Tay et al. 2022, table 1: mean length of a span, share of the text; S has one span, at the end.
PUBLISHED = {
    "R": {(3, 0.15), (8, 0.15)},
    "X": {(3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)},
}
BASE = 259  # the first sentinel of bytes


def ids(length, start=3):
    """Tokens that count up, so that each says where it stood."""
    return np.arange(start, start + length, dtype=np.int32)


def plain_original(inputs, targets, first_sentinel):
    """The text, the lengths of its hidden spans and their sentinels, from a pair of T5's format."""
    spans, order = {}, []
    for token in targets.tolist():
        if token >= first_sentinel:
            assert token not in spans, "a sentinel is used twice"
            spans[token] = current = []
            order.append(token)
        else:
            current.append(token)
    text = []
    for token in inputs.tolist():
        text += spans[token] if token >= first_sentinel else [token]
    return text, [len(spans[s]) for s in order], order


def plain_most(tokens, share):
    """Most tokens that a prefix language model predicts, so that 1..most has the mean share * n."""
    return max(1, min(round(2 * share * tokens) - 1, max(tokens - 1, 1)))


def test_the_denoisers_are_the_published_ones():
    for kind in "RX":
        assert {(mean, share) for k, mean, share in SPANS if k == kind} == PUBLISHED[kind]
    assert len(SPANS) == 6  # and S


@pytest.mark.parametrize("length", [2, 3, 7, 12])
def test_prefix_lm_cuts_where_t5_cuts(length):
    """`random_prefix_noise_mask`: the prefix has 1 to n - 1 tokens, all as likely."""
    rows = 600 * (length - 1)
    text = ids(length)
    pairs = PrefixLM(0.5).examples([text] * rows, [(0, 0, r) for r in range(rows)])
    seen = Counter()
    for ((inputs, targets),) in pairs:
        assert np.concatenate([inputs, targets]).tolist() == text.tolist()
        seen[len(inputs)] += 1
    assert set(seen) == set(range(1, length))
    # Chi-squared with 10 degrees of freedom, the most here, is above 29.6 once in 1,000.
    assert sum((n - 600) ** 2 / 600 for n in seen.values()) < 29.6


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_both_windows_of_a_row_are_cut_alike_and_fill_it_exactly(share):
    most = plain_most(20, share)
    rows = 500 * most
    made = PrefixLM(share, 2).examples([ids(40)] * rows, [(1, 2, r) for r in range(rows)])
    for seen in (Counter(len(pairs[window][1]) for pairs in made) for window in (0, 1)):
        assert set(seen) == set(range(1, most + 1))
        # Chi-squared with 18 degrees of freedom is above 42.3 once in 1,000.
        assert sum((n - 500) ** 2 / 500 for n in seen.values()) < 42.3
    assert {sum(len(targets) for _, targets in pairs) for pairs in made} == {most + 1}
    mean = np.mean([len(targets) for pairs in made for _, targets in pairs])
    assert mean == 20 * share  # exactly, since both ends of a row add up


@pytest.mark.parametrize(("share", "windows"), [(0.5, 1), (0.5, 2), (0.25, 1), (0.25, 2)])
def test_no_text_is_longer_than_its_lengths_say(share, windows):
    """Of every size, odd ones and single tokens too, and nothing of a text is lost."""
    denoiser = PrefixLM(share, windows)
    longest = np.maximum.accumulate(np.stack(denoiser.lengths(np.arange(1, 60))), axis=1)
    for size in range(1, 60):
        most = denoiser.lengths(np.asarray(size))
        for record in range(25):
            ((*pairs,),) = denoiser.examples([ids(size)], [(3, 0, record)])
            assert [t for pair in pairs for side in pair for t in side.tolist()] == ids(
                size
            ).tolist()
            sides = [sum(len(pair[side]) for pair in pairs) for side in (0, 1)]
            assert sides[0] <= most[0]
            assert sides[1] <= most[1]
            assert all(len(targets) for _, targets in pairs)
        # A shorter text, such as the last of an evaluation, fits where longer ones do.
        assert tuple(longest[:, size - 1]) == most


def settings(data_config, **changes):
    given = {"encoder_length": 96, "decoder_length": 96, "objective": "ul2", "workers": 0}
    return data_config(**(given | changes))


@pytest.mark.parametrize("modes", ["words", "ids", "none"])
@pytest.mark.parametrize(("encoder", "decoder"), [(96, 96), (127, 41)])
def test_each_denoiser_of_ul2_hides_what_it_says(data_config, modes, encoder, decoder):
    config = settings(
        data_config, mode_tokens=modes, encoder_length=encoder, decoder_length=decoder
    )
    vocabulary = make_vocabulary(config)
    words = {"R": "[NLU] ", "S": "[S2S] ", "X": "[NLG] "}
    known = texts_of(vocabulary, config)
    assert len(known) == 7
    for name, (denoiser, size) in known.items():
        kind, *figures = name.split("_")
        mode = {
            "words": vocabulary.encode(words[kind]).tolist(),
            "ids": [BASE + "RSX".index(kind)],
            "none": [],
        }[modes]
        rng = np.random.default_rng(size)
        text = rng.integers(3, BASE, size).astype(np.int32)
        keys = [(0, 1, record) for record in range(40)]
        for pairs in denoiser.examples([text] * 40, keys):
            needs = [sum(len(pair[side]) + 1 for pair in pairs) for side in (0, 1)]
            assert needs[0] <= encoder
            assert needs[1] <= decoder
            for inputs, _ in pairs:
                assert inputs[: len(mode)].tolist() == mode
            pairs = [(inputs[len(mode) :], targets) for inputs, targets in pairs]
            if kind == "S":
                assert np.concatenate([np.concatenate(p) for p in pairs]).tolist() == text.tolist()
                continue
            mean, share = map(float, figures)
            ((inputs, targets),) = pairs
            found, lengths, used = plain_original(inputs, targets, BASE + 3 * (modes == "ids"))
            assert found == text.tolist()
            hidden = round(size * share)
            assert sum(lengths) == hidden
            assert len(lengths) == max(1, round(hidden / mean))
            assert used == [vocabulary.size - 1 - k for k in range(len(used))]
    # Each fills one of the two sides of a row up to a step of its lengths, or takes all sentinels.
    for denoiser, size in known.values():
        more = denoiser.lengths(np.asarray(size + denoiser.windows))
        over = [int(side) + denoiser.windows for side in more]
        assert over[0] > encoder or over[1] > decoder


def test_texts_are_no_longer_than_sentinels_allow(data_config):
    """512 and 512 would hide 126 spans of 3 tokens; with T5's 100 sentinels none is used twice."""
    rows = {"encoder_length": 512, "decoder_length": 512}
    for extra_ids, expected in ((100, 100), (131, 126)):
        config = settings(data_config, extra_ids=extra_ids, **rows)
        denoiser, size = texts_of(make_vocabulary(config), config)["X_3_0.5"]
        assert int(denoiser.spans(np.asarray(size))) == expected
        ((pair,),) = denoiser.examples([np.full(size, 50, np.int32)], [(0, 0, 0)])
        _, lengths, _ = plain_original(*pair, first_sentinel=BASE)
        assert len(lengths) == expected


@pytest.mark.parametrize("objective", ["prefix_lm", "ul2"])
@pytest.mark.parametrize("merge", [True, False])
def test_every_token_of_the_text_is_learned_or_read_once(data_config, objective, merge):
    """Of each part, in evaluation: in order, and nothing is cut off when rows are filled."""
    config = settings(data_config, objective=objective, mode_tokens="none", merge_documents=merge)
    source = make_source(config, "holdout")
    for part, _ in source.parts():
        rows = part.read(np.arange(len(part)), None, 0)
        batch = fill_batch(rows, 96, 96, part.ends)
        examples = list(itertools.chain(*rows))
        tokens = Counter()
        for inputs, targets in examples:
            tokens.update(t for t in (*inputs.tolist(), *targets.tolist()) if t < BASE)
        assert tokens == Counter(part.cache.read(0, part.cache.tokens).tolist())
        placed = int((batch["encoder_segments"] > 0).sum() + batch["decoder_weights"].sum())
        assert placed == sum(len(i) + len(t) + 2 for i, t in examples)
        assert int((batch["decoder_targets"] == EOS).sum()) == len(examples)


def test_rows_of_a_prefix_language_model_have_no_padding(data_config):
    source = make_source(settings(data_config, objective="prefix_lm"), "train")
    with train_batches(source, settings(data_config), 16, 0, 5, 0, 1) as batches:
        batch = next(iter(batches))
    assert batch["encoder_segments"].min() == 1
    assert batch["encoder_segments"].max() == 2
    assert batch["decoder_weights"].min() == 1
    assert "100 % of the encoder, 100 % of the decoder" in source.notes[-1]


def test_parts_of_ul2_are_named_share_rows_and_read_other_text(data_config):
    source = make_source(settings(data_config), "train")
    names = [part.name for part, _ in source.parts()]
    assert names == [
        *("pydoc/R_3_0.15", "pydoc/R_8_0.15", "pydoc/S_0.25", "pydoc/X_3_0.5"),
        *("pydoc/X_64_0.15", "pydoc/X_64_0.5", "pydoc/X_8_0.5"),
    ]
    _, records = source.locate(np.arange(1 << 16), 0)
    starts = np.cumsum([0, *(len(part) for part, _ in source.parts())])
    rows = np.histogram(records, starts)[0]
    assert rows.max() - rows.min() <= 1
    # Two denoisers over as many windows have an order each.
    first, second = (part for part, _ in source.parts()[:2])
    positions = np.arange(200)
    _, one = first.locate(positions, 0)
    _, other = second.locate(positions, 0)
    assert np.mean(np.abs(one / len(first) - other / len(second)) < 0.01) < 0.1


@pytest.mark.parametrize("objective", ["prefix_lm", "ul2"])
def test_batches_depend_on_their_number_alone(data_config, objective):
    """Whether a run was resumed, and how many hosts share it."""
    config = settings(data_config, objective=objective)
    source = make_source(config, "train")

    def batches(start, stop, host, hosts):
        with train_batches(source, config, 8, 3, start, host, hosts) as made:
            return [dict(batch) for batch in itertools.islice(made, stop - start)]

    whole = batches(0, 3, 0, 1)
    resumed = batches(2, 3, 0, 1)
    shared = [batches(1, 2, host, 2)[0] for host in (0, 1)]
    for name in ("encoder_inputs", "decoder_targets", "encoder_segments"):
        np.testing.assert_array_equal(resumed[0][name], whole[2][name])
        joined = np.concatenate([part[name] for part in shared])
        np.testing.assert_array_equal(joined, whole[1][name])
    assert not np.array_equal(whole[0]["encoder_inputs"], whole[1]["encoder_inputs"])
    with eval_batches(source.parts()[0][0], config, 8, 0, 1) as held_out:
        assert next(iter(held_out))["index"].tolist() == list(range(8))


def test_denoisers_apply_to_each_source_of_a_mixture(data_config, tmp_path):
    (tmp_path / "a.txt").write_text("some other text to read " * 60)
    parts = (("pydoc", 3.0), (f"text:{tmp_path}", 1.0))
    source = make_source(settings(data_config, source="mixture", parts=parts, holdout=0.0), "train")
    rates = [rate for _, rate in source.parts()]
    np.testing.assert_allclose(rates, [0.75 / 7] * 7 + [0.25 / 7] * 7)
    assert [part.name for part, _ in source.parts()][7] == f"text:{tmp_path}/R_3_0.15"


def test_expected_target_counts(data_config):
    """Those of many epochs, up to the text that the windows happen to hold."""
    for objective in ("prefix_lm", "ul2"):
        source = make_source(settings(data_config, objective=objective), "train")
        for part, _ in source.parts():
            records = np.arange(0, len(part), 7)
            rows = part.read(records, np.full(len(records), 2), 0)
            found = np.zeros(source.vocabulary.size)
            for _, targets in itertools.chain(*rows):
                np.add.at(found, np.append(targets, EOS), 1)
            expected = part.target_counts()
            assert abs(expected / expected.sum() - found / found.sum()).max() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode_tokens": "ids", "extra_ids": 3}, "takes 3 of data.extra_ids=3"),
        ({"extra_ids": 0}, "0 sentinels hold no text"),
        ({"mode_tokens": "word"}, "Did you mean 'words'"),
        ({"encoder_length": 6}, "data.encoder_length=6.*hold no text"),
        ({"objective": "prefix_lm", "decoder_length": 3}, "data.decoder_length=3.*hold no text"),
    ],
)
def test_what_has_no_room_is_refused(data_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_source(settings(data_config, **changes), "train")
