"""The public names of `moe`, as a stranger uses them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import configs
import moe
from configs.common import load as config_files
from launch import export
from moe import plan as plan_lib
from moe.models import architecture, named
from tests.launch.commands import ROOT, environment
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import CheckpointError, ConfigError, DataError
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config
from trainlib.sharding.mesh import make_mesh


def test_importing_moe_imports_nothing_heavy_and_names_are_there():
    code = (
        "import sys, moe\n"
        "bad = [n for n in ('jax', 'flax', 'numpy', 'ml_collections') if n in sys.modules]\n"
        "assert not bad, bad\n"
        "assert dir(moe) == sorted(moe.__all__), dir(moe)\n"
        "from moe import RoutingConfig\n"
        "assert RoutingConfig.__module__ == 'moe.routing.config'\n"
        "assert 'jax' not in sys.modules or moe.route\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert all(getattr(moe, name).__doc__ for name in moe.__all__)
    with pytest.raises(AttributeError, match="'moe' has no attribute 'creat_model'"):
        moe.creat_model  # noqa: B018


SHIPPED = [path.stem for path in config_files.shipped() if path.stem in moe.list_models()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_means_the_same_model_as_the_configuration_of_that_name(name):
    config = configs.load(name)
    assert named(name) == architecture(config.model, config.routing)


def test_names_are_listed_and_mistakes_named():
    assert len(SHIPPED) == 4
    assert moe.list_models("st_moe_") == sorted(SHIPPED)
    assert {"t5_1_1_small", "switch_base"} < set(moe.list_models())
    for message, name, options in (
        ("Did you mean 'st_moe_tiny'", "st_moe_tny", {}),
        ("Did you mean 'd_model'", "st_moe_tiny", {"d_modl": 3}),
        ("Did you mean 'top_k'", "st_moe_tiny", {"routing": {"topk": 3}}),
        (r"routing=\{'num_experts': 8\}", "st_moe_tiny", {"num_experts": 8}),
        ("top_k=5 is more than", "st_moe_tiny", {"routing": {"top_k": 5}}),
    ):
        with pytest.raises(ConfigError, match=message):
            moe.create_model(name, rngs=None, **options)


# --------------------------------------------------------------------------- models by name
TINY = {"d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8, "vocab_size": 32}
TINY |= {"encoder_blocks": 1, "decoder_blocks": 1, "sparse_period": 1, "init_scale": 1.0}


@pytest.fixture(scope="module")
def model():
    roomy = {"capacity_factor_eval": 4.0}  # a decoder that generates drops no token
    return moe.create_model("st_moe_tiny", rngs=nnx.Rngs(0), routing=roomy, **TINY)


@pytest.mark.slow
def test_a_model_by_name_learns_under_nnx():
    model = moe.create_model("st_moe_tiny", rngs=nnx.Rngs(0), dropout=0.1, **TINY)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    inputs = jax.random.randint(jax.random.key(0), (8, 6), 2, 32)

    @nnx.jit
    def step(model, optimizer, key):
        def loss_of(model):
            shifted = jnp.pad(inputs[:, :-1], ((0, 0), (1, 0)))
            out = model(inputs, shifted, train=True, key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, inputs)
            return losses.mean() + out.auxiliary_loss

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer, jax.random.key(number))) for number in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.thorough
def test_padding_and_the_first_column_are_found_without_segments(model):
    """What stands in padding, which zeros mark, changes no logit before it."""
    inputs = np.array([[5, 6, 7, 0, 0], [8, 9, 3, 4, 1]], np.int32)
    targets = np.array([[4, 1, 0, 0], [3, 5, 7, 1]], np.int32)
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    forward = nnx.jit(lambda model, *args, **options: model(*args, **options))
    given = forward(
        model,
        inputs,
        shifted,
        encoder_segments=jnp.int32(inputs > 0),
        decoder_segments=jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]]),  # after EOS comes padding
    )
    found = forward(model, inputs, shifted)
    assert found.logits.shape == (2, 4, 32)
    real = targets > 0
    np.testing.assert_allclose(found.logits[real], given.logits[real], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.auxiliary_loss, given.auxiliary_loss, rtol=1e-5)
    assert found.routers["encoder"].metrics["load"][0].shape == (1, 4)  # [blocks, experts]
    with pytest.raises(ValueError, match="decoder_inputs is missing"):
        model(inputs)


@pytest.mark.thorough
def test_generated_tokens_are_the_likeliest_of_the_whole_model(model):
    """Token by token with a cache, against a forward of all tokens at once; and so the scores."""
    inputs = np.random.default_rng(0).integers(2, 32, (3, 6)).astype(np.int32)
    inputs[1, 4:] = 0
    tokens, scores = moe.generate(model, inputs, max_length=4)
    assert (tokens.shape, tokens.dtype) == ((3, 4), np.int32)

    @nnx.jit
    def forward(model, words):
        real = jnp.int32(inputs > 0)
        encoded, _ = model.encode(inputs, real)
        shifted = jnp.pad(words[:, :-1], ((0, 0), (1, 0)))
        return model.logits(model.decode(shifted, jnp.ones_like(shifted), encoded, real)[0])

    logits = np.array(forward(model, tokens))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    ended = np.cumsum(np.asarray(tokens) == 1, axis=1) - (np.asarray(tokens) == 1) > 0
    logits[..., 0] = np.where(ended, np.inf, -1e9)  # padding is no word, and follows the end
    np.testing.assert_array_equal(np.argmax(logits, -1), tokens)
    taken = np.take_along_axis(log_probs, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores, np.where(ended, 0, taken).sum(1), rtol=1e-4)


def test_options_of_decoding_choose_their_method(model):
    inputs = np.ones((2, 3), np.int32)
    for message, options in (
        ("needs max_length", {}),
        ("Did you mean 'num_beams'", {"max_length": 2, "num_beam": 2}),
        ("beam search and temperature one of sampling", {"num_beams": 2, "temperature": 0.5}),
        ("'greedy' has one answer", {"max_length": 2, "num_return_sequences": 2}),
        ("at most decoding.num_beams=2", {"num_beams": 2, "num_return_sequences": 3}),
    ):
        with pytest.raises(ConfigError, match=message):
            moe.generate(model, inputs, **options)
    with pytest.raises(ConfigError, match=r"of the shape \[batch, length\], and these have \(3,\)"):
        moe.generate(model, inputs[0], max_length=2)
    for message, other in (
        (r"encoder_segments of the shape \(2, 3\)", {"encoder_segments": np.ones((2, 4))}),
        (r"numbers of the shape \(2,\)", {"numbers": np.arange(1), "seed": 1}),
        ("vocabulary_size=-3 is not", {"vocabulary_size": -3}),
        ("has 32 ids", {"vocabulary_size": 33}),
    ):
        with pytest.raises(ConfigError, match=message):
            moe.generate(model, inputs, max_length=2, **other)
    beams, draws = (
        jax.eval_shape(lambda inputs, o=o: moe.generate(model, inputs, max_length=2, **o), inputs)
        for o in ({"num_beams": 3, "num_return_sequences": 2}, {"seed": 1})
    )
    assert (beams.tokens.shape, beams.scores.shape) == ((2, 2, 2), (2, 2))
    assert (draws.tokens.shape, draws.scores.shape) == ((2, 2), (2,))


# --------------------------------------------------------------------------- trained runs
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a fine-tuning run with experts, whose answers differ from text to text."""
    workdir = tmp_path_factory.mktemp("run")
    config = configs.load("st_moe_superglue:sample", data={"source": "sample:copa,cb"})
    config.model.update(TINY | {"vocab_size": 384})
    config.data.update(cache=str(workdir / "cache"), encoder_length=64)
    config.decoding.update(method="sample", temperature=3.0, max_length=3)
    config.mesh.update(data=1)
    config.update(batch_size=8, eval_batch_size=8)
    plan = plan_lib.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    state, rng = plan.abstract_state(), np.random.default_rng(3)
    flat = {
        name: jax.device_put(
            rng.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype), leaf.sharding
        )
        for name, leaf in checkpoint.to_flat(state).items()
    }
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    checkpoints.save(2, checkpoint.from_flat(flat, state), checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, workdir)
    return workdir


TEXTS = [f"copa premise: {'ab' * (5 * n)} {n}" for n in range(11)]
FRESH = """
import json, sys, warnings, moe
warnings.simplefilter("error")
answers = moe.load(sys.argv[1]).answer(json.loads(sys.argv[2]))
print(json.dumps([(answer.text, answer.truncated, answer.unfinished) for answer in answers]))
"""


def in_a_process(code, *arguments, cache):
    command = [sys.executable, *code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(cache), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_fresh_process_answers_as_the_command_does(run, tmp_path):
    texts, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts.write_text("".join(json.dumps({"inputs": text}) + "\n" for text in TEXTS))
    flags = [f"--workdir={run}", f"--input={texts}", f"--output={answers}"]
    in_a_process(["-m", "launch.predict"], *flags, cache=tmp_path)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    expected = [[line[key] for key in ("prediction", "truncated", "unfinished")] for line in lines]
    assert len({text for text, *_ in expected}) > 5
    found = in_a_process(["-c", FRESH], run, json.dumps(TEXTS), cache=tmp_path)
    assert json.loads(found) == expected
    exported = tmp_path / "exported"
    export.main([f"--workdir={run}", f"--out={exported}", "--names=own", "--format=safetensors"])
    found = in_a_process(["-c", FRESH], exported, json.dumps(TEXTS), cache=tmp_path)
    assert json.loads(found) == expected


@pytest.fixture(scope="module")
def loaded(run):
    return moe.load(run)


@pytest.mark.slow
def test_answers_are_those_of_generate_and_do_not_depend_on_the_batch(run, loaded):
    assert loaded.answer([]) == []
    assert repr(loaded) == f"LoadedModel({str(run)!r}, step=2)"
    answers = loaded.answer(TEXTS, method="greedy", min_length=1)
    again = loaded.answer(TEXTS[-2:], method="greedy", min_length=1)
    for one, other in zip(again, answers[-2:], strict=True):
        assert (one.text, one.truncated) == (other.text, other.truncated)
        np.testing.assert_allclose(one.score, other.score, rtol=1e-4)
    assert [answer.truncated for answer in answers] == [len(text) > 63 for text in TEXTS]
    ids = [np.append(loaded.vocabulary.encode(text)[:63], 1) for text in TEXTS[:8]]
    inputs = np.stack([np.pad(row, (0, 64 - len(row))) for row in ids])
    tokens, scores = moe.generate(
        loaded.model, inputs, max_length=3, min_length=1, vocabulary_size=loaded.vocabulary.size
    )
    for row, score, answer in zip(tokens, scores, answers, strict=False):
        words = row[: np.argmax(np.append(row == 1, True))]
        assert loaded.vocabulary.decode(words) == answer.text
        np.testing.assert_allclose(score, answer.score, rtol=1e-4)


@pytest.mark.slow
def test_several_answers_and_the_scores_of_given_ones(loaded):
    asked = loaded.config.decoding.to_dict()
    answers = loaded.answer(TEXTS[:2], num_beams=3, num_return_sequences=2, alpha=0.0)
    assert loaded.config.decoding.to_dict() == asked
    for answer in answers:
        assert len(answer.all) == 2
        assert answer.all[0].text == answer.text
        assert answer.all[0].rank_score >= answer.all[1].rank_score
    scores = loaded.score(TEXTS[:2], ["True", "False", "not sure"])
    assert [len(row) for row in scores] == [3, 3]
    other = loaded.score(TEXTS[:2], [["False"], ["True", "False"]])
    np.testing.assert_allclose(other[0], scores[0][1:2], rtol=1e-4)
    np.testing.assert_allclose(other[1], scores[1][:2], rtol=1e-4)
    assert loaded.score([], ["True"]) == loaded.answer([]) == []


@pytest.mark.slow
def test_a_run_over_eight_devices_answers_as_on_one(run, loaded):
    spread = moe.load(run, mesh=make_mesh(2, 4, 1))
    experts = spread.model.encoder.sparse.experts.up[...]
    assert len(experts.sharding.device_set) == 8
    assert not experts.sharding.is_fully_replicated
    one, other = (x.answer(TEXTS, method="greedy", min_length=1) for x in (loaded, spread))
    assert [answer.text for answer in one] == [answer.text for answer in other]


def test_a_pre_trained_run_says_that_its_answers_fill_gaps(loaded, monkeypatch):
    assert loaded.config.task == "finetune"
    config = loaded.config.copy_and_resolve_references()
    config.task = "pretrain"
    monkeypatch.setattr(loaded, "config", config)
    with pytest.warns(UserWarning, match=r"pre-trained .*what it would fill into gaps"):
        loaded.answer([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        loaded.answer([])


def test_what_is_no_model_of_ours_is_not_decoded(loaded):
    with pytest.raises(
        ConfigError, match=r"moe\.load\(\.\.\)\.model, and this is of the type Loaded"
    ):
        moe.generate(loaded, np.ones((1, 3), np.int32), max_length=2)


def test_mistakes_in_loading_and_asking_are_named(run, loaded, tmp_path):
    with pytest.raises(ConfigError, match=f"no directory .*Did you mean '{run.name}'"):
        moe.load(run.parent / f"{run.name}x")
    with pytest.raises(ConfigError, match="holds no run: there is no config"):
        moe.load(tmp_path)
    with pytest.raises(CheckpointError, match="no step 7"):
        moe.load(run, step=7)
    for text, message in (
        ("{}", "has no key 'family'"),
        ('{"family": "vitattn"}', "moe.load reads"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            moe.load(tmp_path)
    with pytest.raises(DataError, match="come as a list"):
        loaded.answer("copa")
    with pytest.raises(DataError, match=r"texts\[1\] is ' '"):
        loaded.answer(["copa", " "])
    with pytest.raises(DataError, match=r"texts\[0\] is .*half of a character"):
        loaded.answer(text for text in ["copa \ud800"])
    with pytest.raises(DataError, match=r"come as a list, .* not as None"):
        loaded.answer(None)
    with pytest.raises(ConfigError, match="num_beams is an option of method='beam' and has no eff"):
        loaded.answer(["copa"], method="greedy", num_beams=4)
    with pytest.raises(DataError, match="2 texts and 1 lists of candidates"):
        loaded.score(["a", "b"], [["c"]])
    with pytest.raises(ConfigError, match="Did you mean 'num_beams'"):
        loaded.answer(["copa"], num_beam=2)
