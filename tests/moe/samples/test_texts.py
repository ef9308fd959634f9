"""Samples of texts: gaps, next words and answers, of models whose weights no training made."""

import jax
import numpy as np
import pytest

from configs.common import load
from moe import plan as plan_lib
from moe.data.cache.read import Damage
from moe.eval import scores
from moe.samples import answers, gaps, held_out, next_words, texts
from moe.samples.held_out import HeldOut
from moe.tasks.task import TextExample
from moe.text.vocabulary import EOS, ByteVocabulary
from tests.launch.commands import TINY_MOE
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import CheckpointError, DataError
from trainlib.report.samples import Compared
from trainlib.run.resume import checkpoint_meta
from trainlib.sharding.mesh import make_mesh
from trainlib.step.train_state import TrainState

BYTES = ByteVocabulary(10)


def ids(text: str) -> np.ndarray:
    """Bytes, with the sentinel of gap N where the text has <N>."""
    parts = [BYTES.encode(part) for part in text.replace("<", ">").split(">")]
    for place in range(1, len(parts), 2):
        parts[place] = np.asarray([BYTES.size - int(BYTES.decode(parts[place]))], np.int32)
    return np.concatenate(parts)


# ---------------------------------------------------------------- how one is made
def test_gaps_are_compared_one_by_one():
    example = HeldOut("pydoc, record 3", ids("The <1>sat on <2>mat<3>"), ids("<1>cat <2>a\n<3>."))
    said = np.concatenate([ids("<1>cat <3>!<3>."), [EOS], ids("<2>a\n")])
    sample = gaps.sample(example, said.astype(np.int32), BYTES)
    assert sample.title == "pydoc, record 3"
    assert sample.fields == (("text", "The ⟨1⟩sat on ⟨2⟩mat⟨3⟩"),)
    assert sample.compared == (
        Compared("⟨1⟩", "cat␣", "cat␣", True),
        Compared("⟨2⟩", "a↵", "(left out)", False),
        Compared("⟨3⟩", ".", "!", False),
    )


def test_long_texts_show_their_first_gaps():
    many = "".join(f"x<{n}>" for n in range(1, 11))
    sample = gaps.sample(HeldOut("a", ids(many), ids(many[1:])), ids("<1>"), BYTES)
    (name, text), *_ = sample.fields
    assert name == "text, the first 8 of 10 gaps"
    assert text.endswith("x⟨8⟩x...")
    assert [row.name for row in sample.compared][-1] == "⟨8⟩"


def test_a_sentinel_that_says_the_kind_of_text_is_no_gap():
    kind = np.asarray([BYTES.size - BYTES.extra_ids], np.int32)
    inputs = np.concatenate([kind, ids("a<1>c")])
    sample = gaps.sample(HeldOut("a", inputs, ids("<1>b")), ids("<1>b"), BYTES)
    assert (
        sample.fields == gaps.sample(HeldOut("a", inputs[1:], ids("<1>b")), ids(""), BYTES).fields
    )
    assert [row.right for row in sample.compared] == [True]


def test_pairs_without_gaps_have_one_answer():
    sample = gaps.sample(HeldOut("a", ids("2 + 2"), ids("4")), ids("5"), BYTES)
    assert sample.compared == (Compared("answer", "4", "5", False),)


def test_places_of_next_words_end_with_the_last():
    assert next_words.places(16).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert next_words.places(2).max() == 1


ENTAILED = TextExample("rte ..", ("not",), (0,), 1, ("yes", "not"))
ASKED = TextExample("trivia_qa ..", ("Paris",), (1,), answers=("Paris", "the city of Paris"))
PRONOUN = TextExample("wsc ..", (), (2,), 0, answers=("the cat",))
SUMMED = TextExample("xsum ..", ("A cat sat.",), (3,), answers=("A cat sat.",))
HIDDEN = TextExample("rte ..", (), (4,), -1, ("yes", "not"))


@pytest.mark.parametrize(
    ("task", "example", "answer", "right", "truth"),
    [
        ("rte", ENTAILED, " not ", True, "not"),
        ("rte", ENTAILED, "no", False, "not"),
        ("trivia_qa", ASKED, "paris", True, "Paris / the city of Paris"),
        ("trivia_qa", ASKED, "Paris, Texas", False, "Paris / the city of Paris"),
        ("wsc", PRONOUN, "a dog", True, "not the cat"),
        ("wsc", PRONOUN, "The cat", False, "not the cat"),
        pytest.param(
            *("xsum", SUMMED, "A cat sat.", None, "A cat sat."), marks=pytest.mark.thorough
        ),  # imports a stemmer
        ("rte", HIDDEN, "yes", None, "(not published)"),
    ],
)
def test_single_answers_are_judged_as_their_task_is_scored(task, example, answer, right, truth):
    assert scores.right(task, example, answer) is right
    sample = answers.sample(task, example, answer)
    assert sample.right is right
    assert sample.compared[0].truth == truth
    named = {name for name, _ in sample.fields}
    rouge = {"rouge1", "rouge2", "rougeL", "rougeLsum"} if task == "xsum" else set()
    assert named == {"input"} | rouge


# ---------------------------------------------------------------- asking a model
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(**changes)`: a configuration, and a workdir with weights for it."""

    def make(**changes):
        flags = dict(flag.removeprefix("--config.").split("=") for flag in TINY_MOE[1:])
        path = TINY_MOE[0].removeprefix("--config=")
        config = load.from_flags(path, {**flags, "eval_batch_size": "4", **changes}).config
        workdir, random = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
        plan = plan_lib.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
        made = {
            name: np.asarray(random.normal(size=spec.shape) * 0.3, np.float32)
            for name, spec in sorted(plan.abstract.params.items())
        }
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        biases = {n: np.ones(s.shape, np.float32) for n, s in plan.abstract.model_state.items()}
        state = TrainState(np.int32(7), made, biases, (), None, np.zeros(2, np.int32))
        checkpoints.save(7, state, checkpoint_meta(config, {}))
        checkpoints.close()
        return config, workdir

    return make


def test_a_pre_trained_model_fills_gaps(run):
    config, workdir = run(**{"routing.balance_bias": "True"})
    taken = texts.take(config, workdir, None, 3)
    source = held_out.open_held_out(config, 384)
    assert taken.step == 7
    assert taken.about.startswith(f"3 of the {len(source):,} held-out records of pydoc, at equal ")
    assert taken.about.endswith("gaps are filled right.")
    for number, sample in enumerate(taken.samples):
        record = number * len(source) // 3
        assert sample.title == f"pydoc, record {record:,}"
        (read,) = source.read(np.asarray([record]), None, 0)
        assert not isinstance(read, Damage)
        ((_, targets),) = read
        whole = source.vocabulary.decode(targets)
        true = "".join(row.truth for row in sample.compared).replace("␣", " ").replace("↵", "\n")
        assert whole.startswith(true)
        assert len(sample.compared) == min(8, (targets >= 384 - 100).sum() or 1) or true == whole
        assert "⟨1⟩" in sample.fields[0][1]
    with pytest.raises(CheckpointError):
        texts.take(config, workdir, 8, 3)
    config.data.source = f"text:{workdir / 'gone'}"
    with pytest.raises(DataError, match="gone"):
        texts.take(config, workdir, None, 3)


@pytest.mark.thorough
def test_a_decoder_alone_says_what_comes_next(run):
    kind = {"model.kind": "decoder", "data.objective": "language_model"}
    config, workdir = run(**kind, **{"routing.balance_bias": "True"})
    taken = texts.take(config, workdir, None, 6)
    assert len(taken.samples) == 4  # a batch of an evaluation
    assert "places the likeliest word is the true one." in taken.about
    source = held_out.open_held_out(config, 384)
    for sample in taken.samples:
        assert len(sample.compared) == 8
        text = sample.fields[0][1]
        last = sample.compared[-1]
        before = last.name.removeprefix("after “").removesuffix("”").replace("↵", "\n")
        assert text.rstrip("\n").startswith(text[: text.find(before)])
        assert last.truth.endswith("%)")
    assert len(source) > 4


@pytest.mark.thorough
def test_a_fine_tuned_model_answers_its_tasks(run):
    changes = {"task": "finetune", "data.source": "sample:rte,copa", "data.encoder_length": 64}
    config, workdir = run(**changes, **{"evaluation.classify": "rank", "data.dir": ""})
    taken = texts.take(config, workdir, None, 3)
    assert [sample.title.split(",")[0] for sample in taken.samples] == ["rte", "copa", "rte"]
    assert all(isinstance(sample.right, bool) for sample in taken.samples)
    right = sum(bool(sample.right) for sample in taken.samples)
    assert taken.about == (
        "The first examples of each task in the split validation of sample:rte,copa; "
        f"{right} of 3 answers are right."
    )
