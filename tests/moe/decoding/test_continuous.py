"""Rows that take one question after the other: with programs that are simulated, and with a model
whose answers are those to each question alone.
"""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from moe import plan as plan_lib
from moe.config import default_config
from moe.decoding.answer import Answerer
from moe.decoding.continuous import Continuous
from moe.decoding.model import independent, make_generate, make_score, model_at
from moe.decoding.rows import Programs, make_programs
from moe.decoding.waiting import Question, Waiting, in_order, padded_inputs
from moe.models import architecture
from moe.routing.config import capacity
from moe.text.vocabulary import EOS
from trainlib.errors import NumericAbort
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh

LONGEST = 40


class Simulated:
    """Programs in NumPy. The answer to question n is as long as `sizes[n]` says and made of the
    input, so that an input in the wrong row shows.
    """

    def __init__(self, rows, starts, inputs, parts, sizes):
        self.sizes, self.rows, self.encoded = sizes, rows, 0
        self.programs = Programs(
            *(rows, starts, inputs, parts), self.empty, self.begin, self.proceed, self.pad
        )

    def empty(self, size):
        return {"size": size, "row": [None] * self.rows}

    def begin(self, params, rows, batch):
        programs = self.programs
        here, inputs = programs.rows // programs.parts, programs.inputs // programs.parts
        tokens = batch["encoder_inputs"]
        assert tokens.shape == (programs.inputs, rows["size"])
        self.encoded += int((tokens[:, 0] > 0).sum())
        for n, (row, which, number) in enumerate(
            zip(batch["row"], batch["input"], batch["number"], strict=True)
        ):
            part = n // (programs.starts // programs.parts)
            if row < here:
                at = part * here + row
                assert rows["row"][at] is None or rows["row"][at]["left"] == 0
                size = int(self.sizes[number[0]])
                first = int(tokens[part * inputs + which, 0])
                rows["row"][at] = {"left": size, "words": [first, number[1] + 2] + [9] * size}
        return rows

    def proceed(self, params, rows, enough):
        steps = 0
        while steps < 64 and sum(not r or not r["left"] for r in rows["row"]) < enough:
            steps += 1
            for row in filter(None, rows["row"]):
                row["left"] = max(0, row["left"] - 1)
        return rows, {
            "steps": np.int32(steps),
            "ended": np.asarray([not r or not r["left"] for r in rows["row"]]),
            "words": np.asarray([(r["words"] if r else [0, 0])[:2] for r in rows["row"]]),
            "score": np.asarray([len(r["words"]) - 2.0 if r else 0.0 for r in rows["row"]]),
        }

    def pad(self, rows, size):
        assert size != rows["size"]
        return rows | {"size": size}


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("copies", [1, 3])
def test_every_question_is_answered_once_whatever_the_sizes(parts, copies):
    for seed in range(40):
        rng = np.random.default_rng([parts, copies, seed])
        starts = parts * int(rng.integers(1, 4))
        rows = starts * int(rng.integers(1, 6))
        inputs = parts * (-(-(starts // parts - 1) // copies) + 1)
        count = int(rng.integers(0, 60))
        sizes = np.ceil(rng.exponential(12, count)).astype(int)
        simulated = Simulated(rows, starts, inputs, parts, sizes)
        asked = [Question(np.full(rng.integers(1, 50), 2 + n, np.int32), n) for n in range(count)]
        waiting = Waiting(asked, (10, 20, LONGEST), int(rng.integers(0, 30)), 3)
        checked = []
        continuous = Continuous(simulated.programs, lambda batch: batch, copies, checked.append)
        found = list(in_order(continuous.answers({}, waiting)))
        assert len(found) == count
        for number, one in enumerate(found):
            assert one["words"].tolist() == [[2 + number, 2 + draw] for draw in range(copies)]
            assert one["score"].tolist() == [sizes[number]] * copies
        assert len(checked) >= bool(count)
        # Draws of one question are encoded together, but for those that begin at another time.
        assert count <= simulated.encoded <= count * copies


def test_rows_are_seldom_idle():
    """Answers of 1 to 64 words, most of them short: in batches of 16 every one waits for the
    longest; in rows it is the last ones that do, and those that wait for three others.
    """
    rng = np.random.default_rng(0)
    sizes = np.minimum(64, np.ceil(rng.exponential(15, 400))).astype(int)
    simulated = Simulated(16, 4, 4, 1, sizes)
    asked = [Question(np.full(5, 2 + n, np.int32), n) for n in range(400)]
    continuous = Continuous(simulated.programs, lambda batch: batch, 1, lambda scores: None)
    list(continuous.answers({}, Waiting(asked, (LONGEST,), 128)))
    in_batches = sizes.reshape(-1, 16).max(axis=1).sum()
    least = sizes.sum() / 16
    assert in_batches > 2.5 * least
    assert continuous.steps < 1.3 * least
    assert simulated.encoded == 400


# ------------------------------------------------------------------ with a model


def make_plan(mesh=(1, 1, 1), devices=1, experts=4, sharding="fsdp"):
    """A small model whose encoder drops tokens."""
    config = default_config("st_moe_tiny")
    config.model.update(vocab_size=48, d_model=16, d_ff=24, num_heads=2, head_dim=8)
    config.model.update(encoder_blocks=2, decoder_blocks=2, sparse_period=2)
    config.routing.update(num_experts=experts, capacity_factor_eval=0.6, group_sequences=1)
    config.data.update(encoder_length=LONGEST, decoder_length=9, vocabulary="bytes")
    config.update(task="finetune", batch_size=8, eval_batch_size=8, sharding=sharding)
    config.data.source = "sample:copa"
    config.decoding.update(method="sample", temperature=1.0, seed=5)
    config.batching.sorted_batches = 4
    plan = plan_lib.make(config, make_mesh(*mesh, jax.devices()[:devices]))
    rng, weights = np.random.default_rng(0), {}
    for name, spec in sorted(plan.abstract.params.items()):
        values = rng.normal(size=spec.shape)
        if spec.axes[-1] == "norm":
            values = 1 + 0.2 * values
        elif len(spec.shape) > 1 and "table" not in name:
            values *= spec.shape[-2] ** -0.5
        if name == "output.kernel":
            values[:, EOS] *= 3  # some answers end early, some never
        weights[name] = jax.device_put(values.astype(np.float32), plan.shardings.params[name])
    return plan, weights


VOCABULARY = types.SimpleNamespace(size=40)


def answerer_of(plan, **options):
    config = plan.config.copy_and_resolve_references()
    config.decoding.update(options)
    return Answerer(dataclasses.replace(plan, config=config), VOCABULARY)


@pytest.fixture(scope="module")
def planned():
    return make_plan()


def mixed():
    """Inputs of one token, of all that there may be, and of more."""
    rng = np.random.default_rng(1)
    sizes = [1, LONGEST - 1, LONGEST, LONGEST + 9, *rng.integers(1, LONGEST, 33)]
    return [
        Question(rng.integers(2, 48, size).astype(np.int32), number + 100)
        for number, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def asked():
    return mixed()


def alone(plan, weights, answerer, asked):
    """What is found for each question: a batch of this question, padded to the longest."""
    search = make_generate(plan.model, answerer.options, 9, VOCABULARY.size)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, batch):
        with activate(plan.mesh, plan.rules):
            return search(params, {}, batch)

    return [
        jax.device_get(
            run(weights, {**padded_inputs([q], LONGEST), "number": np.asarray([q.number])})
        )
        for q in asked
    ]


def assert_same(found, expected):
    """Equal words; scores are sums of up to nine logarithms of about 4."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        words = other["words"].reshape(-1, 9)
        np.testing.assert_array_equal(one["words"].reshape(-1, 9), words)
        np.testing.assert_allclose(one["score"].ravel(), other["score"].ravel(), atol=5e-5)


METHODS = {
    "greedy": {"method": "greedy"},
    "three draws": {"num_return_sequences": 3, "top_k": 5, "min_length": 2},
    "beams": {"method": "beam", "num_beams": 2, "num_return_sequences": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_answers_are_those_to_each_question_alone(planned, asked, options):
    """In any order, among any others and in any number: rows, neighbours and padding differ."""
    plan, weights = planned
    answerer = answerer_of(plan, **options)
    expected = alone(plan, weights, answerer, asked)
    sizes = np.concatenate([(one["words"] > 0).sum(axis=-1).ravel() for one in expected])
    assert len(set(sizes.tolist())) > 3
    order = np.random.default_rng(2).permutation(len(asked))
    for chosen in (np.arange(len(asked)), order, order[:11], order[:1], order[:0]):
        found = list(in_order(answerer.results(weights, (asked[n] for n in chosen))))
        assert_same(found, [expected[n] for n in chosen])


def test_the_encoder_drops_at_every_length_what_it_drops_at_the_longest(planned, asked):
    """The model above does drop, and a capacity by the padded length would be another one."""
    plan, _ = planned
    routing = plan.model.stack_routing("encoder")
    assert capacity(routing, LONGEST, train=False) == 6
    assert capacity(routing, 20, train=False) == 3
    at = model_at(plan.model, LONGEST, 20)
    assert capacity(at.stack_routing("encoder"), 20, train=False) == 6
    assert at.stack_routing("decoder") == plan.model.stack_routing("decoder")
    assert model_at(plan.model, LONGEST, 4).routing.min_capacity == 4  # more is never needed


def test_models_whose_answers_depend_on_neighbours_are_told():
    def of(**routing):
        return independent(architecture({}, {"num_experts": 4} | routing), 40)

    assert of(group_sequences=1)
    assert of(group_size=40)
    assert of(dispatch="dropless")
    assert of(capacity_factor_eval=4.0)
    assert independent(architecture({}, {"num_experts": 0}), 40)
    assert not of()
    assert not of(group_sequences=4)
    assert not of(group_sequences=1, second_policy_eval="random")


def test_a_model_of_nan_stops_at_once(planned, asked):
    plan, weights = planned
    answerer = answerer_of(plan)
    bad = weights | {"output.kernel": weights["output.kernel"] * np.nan}
    with pytest.raises(NumericAbort, match="NaN"):
        next(answerer.results(bad, asked))


@pytest.mark.thorough
def test_what_is_compiled_is_compiled_once(planned):
    """Five lengths of inputs are padded to two, and a second call compiles nothing."""
    plan, weights = planned
    answerer, counts = answerer_of(plan), []
    asked = [Question(np.full(5 + 8 * (n % 5), 3, np.int32), n) for n in range(48)]
    for _ in range(2):
        counts.append(0)

        def count(name, *_, **__):
            counts[-1] += name == "/jax/core/compile/backend_compile_duration"

        jax.monitoring.register_event_duration_secs_listener(count)
        try:
            list(answerer.results(weights, asked))
        finally:
            jax.monitoring.unregister_event_duration_listener(count)
    # `begin` and `proceed` of both lengths, `empty` of the shorter, `pad` to the longer.
    assert counts == [6, 0]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_eight_devices_answer_as_one(planned, asked, shape):
    plan, weights = planned
    options = {"num_return_sequences": 2}
    expected = list(in_order(answerer_of(plan, **options).results(weights, asked)))
    there, _ = make_plan(shape, 8)
    spread = {
        name: jax.device_put(np.asarray(value), there.shardings.params[name])
        for name, value in weights.items()
    }
    found = list(in_order(answerer_of(there, **options).results(spread, asked)))
    assert_same(found, expected)


def test_rows_begin_where_they_are():
    """The questions that begin in the rows of a device are encoded there: with whole weights on
    each of eight devices nothing is sent, and the caches are written in place.
    """
    plan, _ = make_plan((2, 4, 1), 8, experts=0, sharding="replicated")
    programs = make_programs(plan, lambda _: plan.model, answerer_of(plan).options, 9, 40, 16)
    assert (programs.parts, programs.starts, programs.inputs) == (8, 8, 8)
    rows = programs.empty(20)
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(rows)} == {("replica", "data")}
    of = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=plan.batch_sharding)
    shapes = {"encoder_inputs": (8, 20), "encoder_segments": (8, 20), "number": (8, 2)}
    batch = {name: of(shape) for name, shape in (shapes | {"row": (8,), "input": (8,)}).items()}
    weights = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=plan.shardings.params[name])
        for name, spec in plan.abstract.params.items()
    }
    compiled = programs.begin.lower(weights, rows, batch).compile()
    text = compiled.as_text()
    for sent in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert f" {sent}(" not in text
        assert f" {sent}-start(" not in text
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(rows)) // 8
    assert compiled.memory_analysis().alias_size_in_bytes == held


@pytest.mark.slow
def test_scores_are_those_of_each_question_alone(planned, asked):
    """In any order, and at any padding."""
    plan, weights = planned
    rng = np.random.default_rng(3)
    given = [
        dataclasses.replace(
            question,
            candidates=tuple(rng.integers(2, 40, n % 5).astype(np.int32) for n in range(3)),
        )
        for question in asked
    ]
    score = make_score(plan.model)

    @jax.jit
    def run(params, batch):
        with activate(plan.mesh, plan.rules):
            return score(params, {}, batch)

    found = list(answerer_of(plan).scores(weights, given))
    assert [len(one) for one in found] == [3] * len(given)
    for one, question in zip(found, given, strict=True):
        candidates = np.zeros((1, 3, 8), np.int32)
        for n, ids in enumerate(question.candidates):
            candidates[0, n, : len(ids) + 1] = [*ids, EOS]
        batch = padded_inputs([question], LONGEST) | {"candidates": candidates}
        np.testing.assert_allclose(one, run(weights, batch)[0], atol=5e-5)
