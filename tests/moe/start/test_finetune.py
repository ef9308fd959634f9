"""Fine-tuning: what learns, what is allocated, where a run starts, and the real loop on samples."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import configs
from moe import evaluate, objective, predict, sweep, train
from moe import plan as plan_lib
from moe.data import data_sets, make_source, make_vocabulary, train_batches
from moe.decoding.answer import Answerer
from moe.eval import held_out
from moe.eval.scores import Scores
from moe.eval.tasks import Tasks
from moe.prediction.lines import check_input
from moe.start import finetune, subsets
from moe.tasks import records
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import CheckpointError, ConfigError, DataError, Preempted
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step
from trainlib.step import train_state as state_lib

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """`config_of(tasks, train=.., **changes)`: a model of one sparse block a stack on samples."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(tasks: str = "copa,cb,wsc", train: str = "all", experts: int = 4, **changes):
        config = configs.load("st_moe_superglue:sample", data={"source": f"sample:{tasks}"})
        config.model.update(d_model=32, d_ff=32, num_heads=2, head_dim=16)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
        config.routing.num_experts = experts
        config.data.update(cache=cache, encoder_length=160, decoder_length=24)
        config.evaluation.split = "validation"
        config.finetune.train = train
        config.schedule.warmup_steps = 0
        config.mesh.update(data=4, replica=2)
        config.update(batch_size=8, eval_batch_size=8, steps=2, eval_every=0)
        config.checkpoint.every = 2
        config.update(changes)
        return config

    return make


def one_device():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def saved_state(plan, directory, number=3):
    """Writes a first state of `plan` as a checkpoint and returns it."""
    state = state_lib.create(plan.abstract, plan.optimizer, jax.random.key(7), plan.shardings)
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoints.save(number, state, {})
    checkpoints.close()
    return state


# ------------------------------------------------------------------ subsets


def test_subsets_part_the_weights(config_of):
    """Each weight is of one kind; the kinds that train nothing in common add up to the whole."""
    names = set(plan_lib.make(config_of(), one_device()).abstract.params)
    found = {train: subsets.trained(train, True, names) for train in subsets.SUBSETS}
    assert found["all"] == names
    assert found["moe"] | found["non_moe"] == names
    assert not found["moe"] & found["non_moe"]
    assert found["moe"] == {n for n in names if ".experts." in n}
    assert {n.rsplit(".", 1)[1] for n in found["attention"]} == {
        *("query", "key", "value", "out", "table")
    }
    assert any("cross_attention" in n for n in found["attention"])
    assert found["ffn"] == {n for n in names if ".ffn." in n}
    assert "embedding.table" in found["non_moe"] - found["ffn"] - found["attention"]
    routers = {n for n in names if n.endswith("experts.router")}
    assert len(routers) == 2
    assert subsets.trained("moe", False, names) == found["moe"] - routers
    assert subsets.trained("non_moe", False, names) == found["non_moe"] | routers


def test_subsets_that_do_not_exist_are_refused(config_of):
    with pytest.raises(ConfigError, match=r"finetune\.train='nonmoe'.*Did you mean 'non_moe'"):
        plan_lib.make(config_of(train="nonmoe"), one_device())
    dense = config_of(train="moe")
    dense.routing.num_experts = 0
    with pytest.raises(ConfigError, match="the model has no such weights"):
        plan_lib.make(dense, one_device())


def test_weights_that_would_stay_random_are_refused_by_the_keys_that_freeze_them(config_of):
    finetune.check_learns(plan_lib.make(config_of(), one_device()))
    frozen = config_of(train="non_moe")
    frozen.finetune.frozen_dtype = "int8"
    frozen.optimizer.frozen = ("^embedding",)
    with pytest.raises(ConfigError, match="weights stay as they start") as error:
        finetune.check_learns(plan_lib.make(frozen, one_device()))
    advice = str(error.value).rpartition("learn with ")[2].rstrip(".").split()
    assert advice == [
        "--config.finetune.train=all",
        "--config.finetune.frozen_dtype=float32",
        "--config.optimizer.frozen=",
    ]
    adapted = config_of()
    adapted.finetune.lora.rank = 2
    with pytest.raises(ConfigError, match=r"finetune\.lora\.rank=2 .* --config\.init_from=DIR"):
        finetune.check_learns(plan_lib.make(adapted, one_device()))


@pytest.mark.slow
def test_non_moe_allocates_nothing_for_experts_and_leaves_them_bit_identical(config_of):
    """AdamW keeps two numbers a learned weight and nothing of the others; the compiled step needs
    less memory by more than the moments and gradients that are not there.
    """
    compiled, sizes = {}, {}
    for name in ("all", "non_moe"):
        plan = plan_lib.make(config_of(train=name), one_device())
        learned = sum(plan.abstract.params[weight].size for weight in plan.trained)
        slots = jax.tree.leaves(plan.abstract_state().opt_state)
        # Beside the moments two counters: of Adam and of the learning rate.
        assert sum(leaf.size for leaf in slots) == 2 * learned + 2
        train_step = step.compile_train(objective.make_loss(plan), plan)
        lowered = train_step.lower(plan.abstract_state(), plan_lib.abstract_batch(plan))
        compiled[name] = lowered.compile()
        memory = compiled[name].memory_analysis()
        sizes[name] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    frozen = plan.abstract.param_count - learned
    assert frozen > 0.1 * plan.abstract.param_count
    # Two moments and a gradient of each frozen weight, 4 bytes.
    assert sizes["all"] - sizes["non_moe"] > 12 * frozen

    state = state_lib.create(plan.abstract, plan.optimizer, jax.random.key(0), plan.shardings)
    before = {name: np.asarray(value).copy() for name, value in state.params.items()}
    source = make_source(plan.config.data, "train")
    with train_batches(source, plan.config.data, 8, 0, 0, 0, 1) as batches:
        for _ in range(2):
            batch = {n: v for n, v in next(batches).items() if n in objective.fields(plan)}
            state, sums = compiled["non_moe"](state, step.put_batch(batch, plan.batch_sharding))
    assert float(sums["skipped"][0]) == 0
    same = {name: np.array_equal(before[name], state.params[name]) for name in before}
    experts = {name for name in same if ".experts." in name}
    assert len(experts) == 8
    assert all(same[name] for name in experts)
    assert not any(same[name] for name in set(same) - experts)


# ------------------------------------------------------------------ starting from a checkpoint


def test_a_run_starts_from_weights_and_slots(config_of, tmp_path):
    config = config_of()
    plan = plan_lib.make(config, one_device())
    stored = saved_state(plan, tmp_path)
    slots = jax.tree.map(lambda x: x + 1, stored.opt_state)  # none is zero
    stored = state_lib.TrainState(**{**vars(stored), "opt_state": slots})
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, stored, {})
    checkpoints.close()

    def begun(train: str, keep: bool):
        config = config_of(train=train, init_from=str(tmp_path), seed=1)
        config.finetune.keep_slots = keep
        plan = plan_lib.make(config, one_device())
        new = state_lib.create(plan.abstract, plan.optimizer, jax.random.key(1), plan.shardings)
        return *finetune.start(plan, new), new

    for train_, keep in (("all", True), ("non_moe", True), ("all", False)):
        state, text, new = begun(train_, keep)
        for name, value in stored.params.items():
            np.testing.assert_array_equal(state.params[name], value)
        assert state.step == 0
        moments, fresh = state.opt_state["adam"], new.opt_state["adam"]
        kept = stored.opt_state["adam"] if keep else fresh
        for name in moments.mu:
            np.testing.assert_array_equal(moments.mu[name], kept.mu[name])
        assert int(moments.count) == int(kept.count)
        assert int(jax.tree.leaves(state.opt_state["rate"])[0]) == 0  # the warm-up begins anew
        assert ("new" in text) == (not keep)
        assert "step 5" in text


@pytest.mark.thorough
def test_a_checkpoint_that_does_not_fit_is_told_as_a_table(config_of, tmp_path):
    """Other width, one block more, another output: missing, unexpected and of another shape."""
    config = config_of()
    config.model.update(encoder_blocks=2, extra_ffn="none", d_ff=48)
    saved_state(plan_lib.make(config, one_device()), tmp_path)
    plan = plan_lib.make(config_of(init_from=str(tmp_path)), one_device())
    state = state_lib.create(plan.abstract, plan.optimizer, jax.random.key(1), plan.shardings)
    with pytest.raises(CheckpointError, match="Nothing was loaded") as error:
        finetune.start(plan, state)
    table = error.value.details
    assert "in this model and not in the checkpoint" in table
    assert "params/encoder.sparse.ffn.up (1, 32, 32)" in table
    assert "params/encoder.sparse.experts.up (2, 4, 32, 48) there, (1, 4, 32, 32) here" in table

    config = config_of()
    config.model.extra_ffn = "none"
    smaller = plan_lib.make(config_of(init_from=str(tmp_path / "more")), one_device())
    (tmp_path / "more").mkdir()
    bigger = config_of()
    bigger.model.expert_bias = "additive"
    saved_state(plan_lib.make(bigger, one_device()), tmp_path / "more")
    with pytest.raises(CheckpointError) as error:
        finetune.start(smaller, state)
    assert "in the checkpoint and not in this model" in error.value.details
    assert "params/decoder.sparse.experts.bias (1, 4, 32)" in error.value.details


def test_slots_of_another_optimizer_are_refused(config_of, tmp_path):
    config = config_of()
    config.optimizer.name = "adafactor"
    saved_state(plan_lib.make(config, one_device()), tmp_path)
    plan = plan_lib.make(config_of(init_from=str(tmp_path)), one_device())
    state = state_lib.create(plan.abstract, plan.optimizer, jax.random.key(1), plan.shardings)
    with pytest.raises(CheckpointError, match=r"finetune\.keep_slots=false"):
        finetune.start(plan, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "a", "upcycle": {"workdir": "b", "step": 0}}, "upcycle.workdir"),
        ({"data": {"source": "pydoc"}}, "names none"),
    ],
)
def test_keys_that_contradict_are_refused(config_of, changes, message):
    plan = plan_lib.make(config_of(**changes), one_device())
    with pytest.raises(ConfigError, match=message):
        finetune.check(plan)


# ------------------------------------------------------------------ the sweep


def test_the_sweep_is_table_20(config_of, capsys, tmp_path):
    config = config_of(sweep="grid")
    config.data.encoder_length = 512
    assert train.run(config, tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    lines = capsys.readouterr().out.strip().splitlines()[2:]
    assert len(lines) == 18
    assert "learning_rate 0.001, batch 1,048,576 tokens (2,048 rows), slots kept" in lines[0]
    assert "published 86.9 (dense 84.8)" in lines[0]
    assert "learning_rate 0.0001, batch 65,536 tokens (128 rows), slots reset" in lines[17]
    config.sweep = "17"
    assert sweep.settle(config)
    assert "sweep=17 sets learning_rate 0.0001, batch 65,536 tokens" in capsys.readouterr().out
    assert (config.schedule.learning_rate, config.batch_size) == (1e-4, 128)
    assert not config.finetune.keep_slots
    # Marginal means over the sparse columns (kept and reset): 85.92, 85.25, 84.88 by rate.
    for rate, mean in ((1e-3, 85.92), (5e-4, 85.25), (1e-4, 84.88)):
        found = [s.sparse for s in sweep.SETTINGS if s.learning_rate == rate]
        assert np.mean(found) == pytest.approx(mean, abs=0.005)
    for wrong in ("18", "x"):
        config.sweep = wrong
        with pytest.raises(ConfigError, match="0 to 17"):
            sweep.settle(config)


# ------------------------------------------------------------------ scores and answers


@pytest.fixture(scope="module")
def finished(config_of, tmp_path_factory):
    """A run of two steps of a dense model, which compiles sooner."""
    workdir = tmp_path_factory.mktemp("run")
    assert train.run(config_of(experts=0), workdir) == 0
    return workdir


@pytest.mark.slow
def test_a_run_scores_its_tasks(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {n for n in summary if n.startswith("score/")} == {
        *("score/copa/accuracy", "score/cb/f1", "score/cb/accuracy", "score/wsc/accuracy"),
        "score/mean",
    }
    assert "accuracy" in summary["rows"]["copa"]


def test_evaluating_the_checkpoint_gives_the_scores_of_the_run(
    config_of, finished, tmp_path, capsys
):
    result = evaluate.run(config_of(experts=0), finished, write_predictions=tmp_path / "board")
    summary = json.loads((finished / "summary.json").read_text())
    for name, value in result.items():
        if name.startswith("score/"):
            assert value == summary[name], name
    table = capsys.readouterr().out
    limit = "of 14 inputs (limit 159 tokens)"
    for text in ("copa", "(5 examples)", "sample:copa,cb,wsc, validation", "answered", limit):
        assert text in table
    lines = (tmp_path / "board" / "CB.jsonl").read_text().splitlines()
    assert [json.loads(line)["idx"] for line in lines] == list(range(5))
    assert json.loads(lines[0])["label"] in ("entailment", "contradiction", "neutral")
    config = config_of(experts=0)
    config.task = "pretrain"
    with pytest.raises(ConfigError, match="--write_predictions"):
        evaluate.run(config, finished, write_predictions=tmp_path)


def noisy(plan, seed=3):
    """Weights whose answers differ from input to input."""
    rng = np.random.default_rng(seed)
    return {
        name: jax.device_put(
            rng.normal(size=spec.shape, scale=0.3).astype(np.float32), plan.shardings.params[name]
        )
        for name, spec in plan.abstract.params.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classify", "large"),
    [("generate", 8), pytest.param("rank", 16, marks=pytest.mark.slow)],
)
def test_one_and_eight_devices_and_any_batch_give_the_same_answers(config_of, classify, large):
    """14 examples: no multiple of 8 or 16. Answers depend on nothing but their own input."""
    found = {}
    for devices, size in ((1, 5), (8, large)):
        config = config_of(eval_batch_size=size, batch_size=size)
        config.evaluation.classify = classify
        config.decoding.max_length = 4
        mesh = one_device() if devices == 1 else make_mesh(2, 2, 2)
        plan = plan_lib.make(config, mesh)
        tasks = Tasks(plan)
        assert tasks.count == 14
        found[devices] = tasks.answers(noisy(plan))
    assert found[1] == found[8]
    answers = found[1]
    assert {name: len(texts) for name, texts in answers.items()} == {"copa": 5, "cb": 5, "wsc": 4}
    if classify == "rank":
        assert set(answers["copa"]) <= {"choice1", "choice2"}
    assert len({text for texts in answers.values() for text in texts}) > 2


def test_a_last_batch_has_no_empty_rows(config_of, monkeypatch):
    """They would search to the length limit, long after the answers have ended."""
    config = config_of()
    config.decoding.update(method="beam", num_beams=2)
    plan = plan_lib.make(config, one_device())
    answerer = Answerer(plan, make_vocabulary(plan.config.data))
    asked = []

    def run(compiled, params, batch):
        asked.append(batch)
        return {"words": np.full((8, 2), 68)}

    monkeypatch.setattr(answerer, "_run", run)
    questions = [answerer.question("x" * (n + 1), n) for n in range(11)]
    assert list(answerer.answers({}, questions)) == [("AA", True)] * 11  # no end of sequence
    assert [batch["number"].tolist() for batch in asked] == [
        [*range(8)],
        [8, 9, 10, 8, 9, 10, 8, 9],
    ]
    assert asked[1]["encoder_segments"].sum(axis=1).tolist() == [10, 11, 12, 10, 11, 12, 10, 11]


def test_long_inputs_are_cut_and_counted(config_of, capsys):
    config = config_of()
    config.data.encoder_length = 100
    config.routing.capacity_factor_eval = 4.0
    tasks = Tasks(plan_lib.make(config, one_device()))
    assert {"score/cb/f1", "score/copa/accuracy", "score/mean"} < set(
        held_out.figure_names(make_source(config.data, "holdout"), tasks, 0.1)
    )
    long = [e for e in tasks.examples["copa"] if len(e.inputs) > 99]
    assert tasks.truncated >= len(long) > 0
    rows = dict(tasks.rows(Scores()))
    assert rows["truncated"] == f"{tasks.truncated} of 14 inputs (limit 99 tokens)"


@pytest.mark.parametrize("sentinels", [0, 1])
def test_training_pairs_that_lose_their_end_are_counted(config_of, sentinels):
    config = config_of("copa,cb")
    config.data.update(encoder_length=110, decoder_length=12, sentinels=sentinels)
    (line,) = train.truncated(config.data, make_source(config.data, "train"))
    examples = [
        example
        for task in ("copa", "cb")
        for example in records.load(config.data, f"sample:{task}", "train")
    ]
    # Bytes and the end; "contradiction" has 13 bytes, "entailment" 10.
    # With sentinels, those that fill the encoder cannot be told from those that were cut to it.
    inputs = sum(len(example.inputs) + sentinels > 109 - sentinels for example in examples)
    targets = sum(len(example.targets[0]) + sentinels > 11 for example in examples)
    assert 0 < inputs < len(examples) > targets > 0
    assert line.split()[1] == ("up" if sentinels else str(inputs))
    assert f"{inputs} of {len(examples)} training inputs (limit 109 tokens)" in line
    assert f", {targets} targets (limit 11)" in line
    config.data.update(source="pydoc", decoder_length=48)
    assert train.truncated(config.data, make_source(config.data, "train")) == []


def test_sentinels_end_inputs_and_begin_targets(config_of):
    config = config_of("copa")
    config.data.update(sentinels=1, pack=False, encoder_length=110)
    source = make_source(config.data, "train")
    rows = source.read(np.arange(len(source)), None, 0)
    sentinel = source.vocabulary.size - 1
    for ((inputs, targets),) in rows:
        assert inputs[-1] == sentinel
        assert targets[0] == sentinel
        assert (inputs == sentinel).sum() == (targets == sentinel).sum() == 1
        assert len(inputs) <= 109  # and EOS
        assert source.vocabulary.decode(targets) in ("choice1", "choice2")
    assert max(len(inputs) for ((inputs, _),) in rows) == 109


def test_the_mixture_takes_each_example_equally_often_up_to_a_limit(config_of, monkeypatch):
    config = config_of("copa,wsc")
    source = make_source(config.data, "train")
    rows = [len(part) for part in source.sources]
    np.testing.assert_allclose(source.rates, np.asarray(rows) / sum(rows))
    limited_kind = dataclasses.replace(data_sets.KINDS["sample"], most_examples=8)
    monkeypatch.setitem(data_sets.KINDS, "sample", limited_kind)
    limited = make_source(config.data, "train")
    # 17 examples of copa and the 9 right spans of wsc count as 8 each.
    shares = np.asarray(rows) * [8 / 17, 8 / 9]
    np.testing.assert_allclose(limited.rates, shares / shares.sum())


# ------------------------------------------------------------------ files of texts


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def request_of(tmp_path):
    texts = [f"rte hypothesis: {'x' * (17 * n % 200)} premise: {n}" for n in range(21)]
    source = tmp_path / "in.jsonl"
    # A field of the input with the name of one of ours, which says nothing here.
    lines = [{"id": n, "inputs": text} for n, text in enumerate(texts)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return predict.Request(source, tmp_path / "out.jsonl")


@pytest.mark.slow
def test_answers_come_in_order_and_a_killed_run_goes_on(config_of, finished, request_of, capsys):
    config = config_of(experts=0)
    config.decoding.update(method="sample", max_length=6, temperature=2.0)
    assert predict.run(config, finished, request_of) == 0
    whole = lines_of(request_of.output)
    assert [line["id"] for line in whole] == list(range(21))
    assert len({line["prediction"] for line in whole}) > 10
    cut = [len(line["inputs"].encode()) > 159 for line in whole]
    assert [line["truncated"] for line in whole] == cut
    assert 0 < sum(cut) < 21
    truncated = f"{sum(cut)} of 21 inputs (limit 159 tokens)"
    assert truncated in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is there already"):
        predict.run(config, finished, request_of)

    # Killed in the middle of line 10: the note and the partial file are what it left.
    partial = request_of.output.with_name("out.jsonl.partial")

    class Stop:
        requested = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    request_of.output.unlink()
    original = predict.StopRequest
    predict.StopRequest = Stop
    try:
        with pytest.raises(Preempted, match="after 8 of 21 lines"):
            predict.run(config, finished, request_of)
    finally:
        predict.StopRequest = original
    with partial.open("a") as file:
        file.write('{"id": 8, "inpu')
    assert predict.run(config, finished, request_of) == 0
    printed = capsys.readouterr().out
    assert "going on after 8 of 21 lines" in printed
    assert truncated in printed
    assert lines_of(request_of.output) == whole
    assert not list(request_of.output.parent.glob("*.partial*"))


def test_what_was_left_of_another_input_is_not_used(config_of, finished, request_of, capsys):
    config = config_of(experts=0)
    config.decoding.update(method="sample", max_length=6, temperature=2.0)
    partial = request_of.output.with_name("out.jsonl.partial")
    partial.write_text('{"id": 0, "prediction": "of another file"}\n')
    partial.with_name("out.jsonl.partial.json").write_text('{"input": "x", "made_by": "y"}')
    assert predict.run(config, finished, request_of) == 0
    assert "another file" not in request_of.output.read_text()
    assert f"{partial} held answers to another input" in capsys.readouterr().out


def test_lines_without_text_are_named(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"inputs": "a"}\n{"input": "b"}\n{"inputs": ""}\nx\n')
    with pytest.raises(DataError) as error:
        check_input(path)
    for part in (
        "rows that cannot be used (3 of 4): line 2",
        "line 2 has no field 'inputs'",
        "line 3 has an empty",
        "line 4 is not",
    ):
        assert part in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        check_input(tmp_path / "none.jsonl")
    path.write_text("")
    with pytest.raises(DataError, match="has no line"):
        check_input(path)
