"""Searches and scores are those of the libraries: 50 random T5 v1.1 models, each with inputs of its
own, against `generate` of `transformers`, and against T5X's rule over the logits of `transformers`.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe import interop
from moe.decoding import model as decode
from moe.decoding.model import Decoding
from moe.models import architecture
from tests.moe.interop import t5x_beams
from trainlib.formats import layout as interchange

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

SIZE, WORDS, EOS = 48, 40, 1  # rows of the table; the last 8 are no words
ROWS, INPUT, LENGTH, BEAMS = 3, 9, 7, 3
UNUSED = [0, *range(WORDS, SIZE)]
TOLERANCE = 3e-5  # of sums of 7 float32 log-probabilities of order 3
MODELS = 50


class Random:
    """Random models of one shape: of `transformers`, and the same weights as ours."""

    def __init__(self, path):
        config = transformers.T5Config(
            **{"vocab_size": SIZE, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2},
            **{"num_layers": 1, "num_decoder_layers": 1, "decoder_start_token_id": 0},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        )
        self.theirs = transformers.T5ForConditionalGeneration(config).eval()
        self.theirs.lm_head.weight = torch.nn.Parameter(self.theirs.shared.weight.clone())
        self.encoded = None, None
        self.theirs.save_pretrained(path)
        foreign = interop.open_foreign("hf", path)
        self.specs = interop.abstract(foreign.config).params
        self.leaves = interop.layout(foreign.config, foreign.kind, foreign.names).by_leaf()
        self.shapes = foreign.shapes
        self.model = {**foreign.config.model.to_dict(), "remat": "none"}

    def ours(self, dtype="float32"):
        return architecture(self.model | {"dtype": dtype}, {"num_experts": 0})

    def draw(self, seed):
        """(our weights, a batch); sets the weights of `theirs`. Some answers end, some do not."""
        random = np.random.default_rng(seed)
        with torch.no_grad():
            for name, value in sorted(self.theirs.named_parameters()):
                scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 1.0
                scale *= 2.0 if name == "lm_head.weight" else 1.0
                drawn = random.normal(size=value.shape, scale=scale)
                value.copy_(torch.from_numpy(drawn))
            # EOS rises and falls with the words before it, by another measure in each model.
            self.theirs.lm_head.weight[EOS] *= random.uniform(1, 4)
        there = {name: value.numpy() for name, value in self.theirs.state_dict().items()}
        params = {
            leaf: interchange.take(entries, self.specs[leaf], self.shapes, there.__getitem__)
            for leaf, entries in self.leaves.items()
        }
        seen = (np.arange(INPUT) < random.integers(1, INPUT + 1, (ROWS, 1))).astype(np.int32)
        words = random.integers(2, WORDS, (ROWS, INPUT), dtype=np.int32) * seen
        number = np.arange(ROWS, dtype=np.int32)
        return params, {"encoder_inputs": words, "encoder_segments": seen, "number": number}

    def logits(self, batch, rows, prefixes):
        """Logits [P, t + 1, V] of `transformers` after all words of prefixes [P, t] of rows [P]."""
        seen = torch.from_numpy(batch["encoder_segments"]).long()
        rows, before = torch.tensor(rows), torch.tensor([[0, *prefix] for prefix in prefixes])
        with torch.no_grad():
            if batch is not self.encoded[0]:
                words = torch.from_numpy(batch["encoder_inputs"]).long()
                out = self.theirs.encoder(input_ids=words, attention_mask=seen)
                self.encoded = batch, out.last_hidden_state
            out = self.theirs(
                encoder_outputs=(self.encoded[1][rows],),
                **{"attention_mask": seen[rows], "decoder_input_ids": before, "use_cache": False},
            )
        return out.logits.float().numpy()

    def plain_scores(self, batch, words):
        """The sums of the log-probabilities of words [B, K, L] up to EOS, [B, K]."""
        flat = words.reshape(-1, words.shape[-1])
        rows = np.repeat(np.arange(len(words)), words.shape[1])
        shares = t5x_beams.log_softmax(self.logits(batch, rows, flat[:, :-1].tolist()))
        own = np.take_along_axis(shares, flat[..., None], -1)[..., 0]
        return np.where(flat != 0, own, 0).sum(-1).reshape(words.shape[:2])

    def generate(self, batch, **options):
        """`generate` of `transformers`: words [B * N, L] and what it returns with them."""
        out = self.theirs.generate(
            input_ids=torch.from_numpy(batch["encoder_inputs"]).long(),
            attention_mask=torch.from_numpy(batch["encoder_segments"]).long(),
            **{"max_new_tokens": LENGTH, "suppress_tokens": UNUSED, "do_sample": False},
            **{"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
            **options,
        )
        words = out.sequences[:, 1:].numpy()
        # Beams are filled up with EOS where padding is 0: `pad_token_id or eos_token_id`.
        words = np.where(np.cumsum(words == EOS, axis=1) - (words == EOS) > 0, 0, words)
        return np.pad(words, ((0, 0), (0, LENGTH - words.shape[1]))), out


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small: threads would only wait for one another
    yield Random(tmp_path_factory.mktemp("t5"))
    torch.set_num_threads(threads)


def beam(random_models, quick, rule, alpha, beams=BEAMS, **options):
    """The compiled beam search with all its answers."""
    options = Decoding(
        **{"method": "beam", "num_beams": beams, "num_return_sequences": beams, "beam_rule": rule},
        **{"alpha": alpha, "max_length": LENGTH} | options,
    )
    return quick(decode.make_generate(random_models.ours(), options, 0, WORDS))


def shaped(found, beams=BEAMS):
    """With the axis N, which one answer does not have."""
    return {
        name: np.asarray(x).reshape(ROWS, beams, *((LENGTH,) if name == "words" else ()))
        for name, x in found.items()
    }


def agrees_with_transformers(random_models, search, seed, alpha, beams=BEAMS, min_length=0):
    params, batch = random_models.draw(seed)
    found = shaped(search(params, {}, batch), beams)
    words, theirs = random_models.generate(
        batch,
        **{"num_beams": beams, "num_return_sequences": beams, "length_penalty": alpha},
        min_new_tokens=min_length,
    )
    np.testing.assert_array_equal(found["words"].reshape(-1, LENGTH), words, err_msg=f"{seed}")
    ranks = theirs.sequences_scores.numpy().reshape(ROWS, beams)
    np.testing.assert_allclose(found["rank_score"], ranks, atol=TOLERANCE)
    plain = random_models.plain_scores(batch, found["words"])
    np.testing.assert_allclose(found["score"], plain, atol=TOLERANCE)
    return found["words"]


def agrees_with_t5x(random_models, search, seed, alpha, beams=BEAMS, min_length=0):
    params, batch = random_models.draw(seed)
    found = shaped(search(params, {}, batch), beams)
    for row in range(ROWS):
        expected = t5x_beams.search(
            lambda prefixes, row=row: random_models.logits(batch, [row] * len(prefixes), prefixes)[
                :, -1
            ],
            *(beams, alpha, LENGTH),
            lambda position: {*UNUSED, *([EOS] if position < min_length else ())},
        )
        for own, (rank, score, words) in enumerate(expected):
            padded = [*words, *[0] * (LENGTH - len(words))]
            assert found["words"][row, own].tolist() == padded, (seed, row, own)
            assert found["rank_score"][row, own] == pytest.approx(rank, abs=TOLERANCE)
            assert found["score"][row, own] == pytest.approx(score, abs=TOLERANCE)
        assert (found["score"][row, len(expected) :] <= decode.NEVER).all()
        assert (found["rank_score"][row, len(expected) :] <= decode.NEVER).all()
    return found["words"]


AGREES = {"t5x": agrees_with_t5x, "transformers": agrees_with_transformers}


def sizes(words):
    return (np.asarray(words) != 0).sum(-1)


@pytest.fixture(scope="module")
def fifty(random_models, quick):
    """`fifty(rule)`: words [models, B, K, L] of 50 models, each compared with its library."""

    def run(rule, alpha):
        search = beam(random_models, quick, rule, alpha)
        agrees = AGREES[rule]
        return np.stack([agrees(random_models, search, seed, alpha) for seed in range(MODELS)])

    return {"t5x": run("t5x", 0.6), "transformers": run("transformers", 1.0)}


def test_beams_of_fifty_models_are_those_of_each_library(fifty):
    """All answers and scores; and the inputs are such that something is tested by them."""
    for words in fifty.values():
        ends = (words == EOS).any(-1)
        assert 0.2 < ends[:, :, 0].mean() < 0.98
        assert len(set(sizes(words[ends]).tolist())) == LENGTH  # one token to seven
    other = (fifty["t5x"] != fifty["transformers"])[:, :, 0].any(-1)
    assert other.mean() > 0.2


def test_greedy_answers_and_scores_are_those_of_transformers(random_models, quick):
    """Words, and the sum of the log-probabilities that `compute_transition_scores` gives before
    words are suppressed. The same words as candidates have the same score. At least three tokens.
    """
    model = random_models.ours()
    options = Decoding(max_length=LENGTH, min_length=2)
    search = quick(decode.make_generate(model, options, 0, WORDS))
    score = quick(decode.make_score(model))
    found = []
    for seed in range(12):
        params, batch = random_models.draw(seed)
        words, theirs = random_models.generate(batch, num_beams=1, min_new_tokens=2)
        ours = search(params, {}, batch)
        np.testing.assert_array_equal(ours["words"], words)
        own = random_models.theirs.compute_transition_scores(
            theirs.sequences, theirs.logits, normalize_logits=True
        ).numpy()
        expected = np.where(words[:, : own.shape[1]] != 0, own, 0).sum(1)
        np.testing.assert_allclose(ours["score"], expected, atol=TOLERANCE)
        given = score(params, {}, batch | {"candidates": words[:, None].astype(np.int32)})
        np.testing.assert_allclose(given[:, 0], ours["score"], atol=TOLERANCE)
        found.append(words)
    assert min(sizes(np.stack(found)).ravel()) == 3  # two and EOS


@pytest.mark.slow
@pytest.mark.parametrize("rule", decode.BEAM_RULES)
@pytest.mark.parametrize(
    ("beams", "alpha", "min_length"), [(2, 0.0, 0), (5, 1.5, 0), (4, 0.6, 3), (3, 1.0, LENGTH)]
)
def test_other_options_are_those_of_each_library(
    random_models, quick, rule, beams, alpha, min_length
):
    search = beam(random_models, quick, rule, alpha, beams, min_length=min_length)
    for seed in range(100, 120):
        words = AGREES[rule](random_models, search, seed, alpha, beams, min_length)
        assert (words[..., :min_length] != EOS).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", decode.BEAM_RULES)
def test_scores_in_bfloat16_alone_and_in_a_batch(random_models, quick, rule):
    """The words found have as candidates the score that they were found with, within the rounding
    of bfloat16 (logits of order 3, 7 of them); one input alone is answered as in the batch.
    """
    model = random_models.ours("bfloat16")
    options = Decoding(
        **{"method": "beam", "num_beams": BEAMS, "num_return_sequences": BEAMS, "beam_rule": rule},
        length=LENGTH,
    )
    search = quick(decode.make_generate(model, options, 0, WORDS))
    score = quick(decode.make_score(model))
    for seed in range(200, 206):
        params, batch = random_models.draw(seed)
        found = shaped(search(params, {}, batch))
        real = found["score"] > decode.NEVER / 2
        given = score(params, {}, batch | {"candidates": found["words"]})
        np.testing.assert_allclose(found["score"][real], np.asarray(given)[real], atol=0.15)
        for row in range(ROWS):
            alone = search(params, {}, {name: x[row : row + 1] for name, x in batch.items()})
            np.testing.assert_array_equal(alone["words"][0], found["words"][row])
            np.testing.assert_allclose(alone["score"][0], found["score"][row], atol=1e-5)
