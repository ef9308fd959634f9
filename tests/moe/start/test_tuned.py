"""Frozen experts in few bits, and adapters: what they compute, where they come from, what learns,
what is exported; and keys that cannot work together.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import configs
from moe import describe, interop, objective, train
from moe import plan as plan_lib
from moe.kernels import int8
from moe.layers.sparse import SparseFFN
from moe.models.tuned import Tuned
from moe.routing.config import RoutingConfig
from moe.start import finetune, tuned
from tests.moe import meshes
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats.weight_source import open_weights
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step
from trainlib.step import train_state as state_lib

INT8 = {"train": "non_moe", "frozen_dtype": "int8"}
BF16 = INT8 | {"frozen_dtype": "bfloat16"}
LORA = {"lora": {"rank": 3, "alpha": 12.0}}
BOTH = LORA | {"frozen_dtype": "int8"}


def config_of(finetuned=None, **changes) -> ConfigDict:
    """A model of one sparse block a stack."""
    config = configs.load("st_moe_superglue:sample")
    config.model.update(d_model=16, d_ff=24, num_heads=2, head_dim=8, vocab_size=48)
    config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
    config.data.update(encoder_length=12, decoder_length=7)
    config.schedule.warmup_steps = 0
    config.batch_size = config.eval_batch_size = 8
    config.finetune.keep_slots = False
    options = dict(finetuned or {})
    config.finetune.lora.update(options.pop("lora", {}))
    config.finetune.update(options)
    config.update(changes)
    return config


def plan_of(finetuned=None, mesh=(1, 1, 1), **changes):
    devices = jax.devices()[: int(np.prod(mesh))]
    return plan_lib.make(config_of(finetuned, **changes), make_mesh(*mesh, devices=devices))


def created(plan, seed=0):
    return state_lib.create(plan.abstract, plan.optimizer, jax.random.key(seed), plan.shardings)


def save(plan, directory, state, number=3):
    checkpoints = Checkpoints(directory / "checkpoints")
    meta = {"config": {"finetune": {"lora": plan.config.finetune.lora.to_dict()}}}
    checkpoints.save(number, state, meta)
    checkpoints.close()


def started(finetuned, directory, mesh=(1, 1, 1), seed=5):
    """The plan of a run that starts from a checkpoint, its first state and what it prints."""
    plan = plan_of(finetuned, mesh, init_from=str(directory))
    return plan, *finetune.start(plan, created(plan, seed))


def loss_of(plan):
    """`(params, model_state, batch) -> the training loss`, compiled."""
    losses = objective.Objective()
    loss = objective.loss_function(plan.abstract, plan.model.routing, losses, routers=False)
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda p, s, b: loss(p, s, b, jax.random.key(0))[0], compiler_options=options)


def noisy(params, seed=1):
    """Weights of which none is zero, int8 ones as they are."""
    rng = np.random.default_rng(seed)
    return {
        name: value
        if value.dtype == jnp.int8
        else jax.device_put(value + 0.1 * rng.normal(size=value.shape), value.sharding).astype(
            value.dtype
        )
        for name, value in params.items()
    }


# ------------------------------------------------------------------ what int8 experts compute


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("dispatch", "mesh"),
    [
        *(("index", None), ("index", (2, 2, 2)), ("dropless", None)),
        pytest.param("dropless", (2, 2, 2), marks=pytest.mark.thorough),
    ],
)
def test_int8_experts_compute_as_the_floats_that_they_stand_for(dispatch, mesh, dtype):
    """Output and the gradients of tokens and router, in each dispatch, on one and on eight devices;
    an odd number of experts' columns.
    """
    width, hidden, experts = 6, 10, 4
    routing = RoutingConfig(
        experts, dispatch=dispatch, group_sequences=1, second_policy="all", min_capacity=2
    )
    plain = SparseFFN(width, hidden, routing, expert_bias="additive")
    whole = SparseFFN(width, hidden, routing, expert_bias="additive")
    Tuned("int8").declare(whole, 1.0, None)
    plain, whole = nn.abstract(plain), nn.abstract(whole)
    assert {n for n, s in whole.params.items() if s.dtype == jnp.int8} == set(int8.MATRICES)
    rng = np.random.default_rng(0)
    params = {n: jnp.float32(rng.normal(size=s.shape)) for n, s in plain.params.items()}
    kept = dict(params)
    for name in int8.MATRICES:
        kept[name], kept[int8.scale_of(name)] = int8.rounded(params[name])
        params[name] = int8.restored(kept[name], kept[int8.scale_of(name)], jnp.float32)
    x, dy = rng.normal(size=(2, 8, 5, width)).astype(np.float32)

    def result(spec, weights):
        def loss(learned, fixed, x):
            y, _ = spec.bind(*spec.split(learned | fixed))(x.astype(dtype))
            return jnp.vdot(y.astype(jnp.float32), dy), y.astype(jnp.float32)

        def step(weights, x):
            learned = {"router": weights["router"]}
            return jax.value_and_grad(loss, (0, 2), has_aux=True)(learned, weights, x)

        every = dataclasses.replace(spec, params=spec.params | spec.model_state)
        return meshes.run(step, every, weights, x, shape=mesh)

    meshes.close(result(whole, kept), result(plain, params), 1e-6)


def test_random_experts_are_those_of_float32_rounded():
    """The same draws, on a scale that is known beforehand."""
    floats, whole = created(plan_of({"train": "non_moe"})), created(plan_of(INT8))
    matrices = [name for name in floats.params if tuned.is_expert(name)]
    assert len(matrices) == 6
    for name in matrices:
        scale = whole.model_state[int8.scale_of(name)]
        given = int8.restored(whole.params[name], scale, jnp.float32)
        assert np.abs(whole.params[name]).max() > 100
        error = np.abs(given - floats.params[name])
        assert (error <= 0.5001 * scale[..., None, :]).all()


# ------------------------------------------------------------------ where they come from


@pytest.mark.parametrize("mesh", [(1, 1, 1), pytest.param((1, 4, 2), marks=pytest.mark.thorough)])
def test_experts_are_read_into_the_type_of_the_run(tmp_path, mesh):
    """From float32 to int8, from int8 to itself and back to float32, and to bfloat16; adapters
    start anew, and then are there.
    """
    original = plan_of()
    state = created(original)
    save(original, tmp_path / "a", state)
    _, whole, said = started(INT8, tmp_path / "a", mesh)
    assert "as int8" in said
    for name, value in state.params.items():
        if not tuned.is_expert(name):
            np.testing.assert_array_equal(whole.params[name], value)
            continue
        q, scale = int8.rounded(value)
        np.testing.assert_array_equal(whole.params[name], q)
        np.testing.assert_array_equal(whole.model_state[int8.scale_of(name)], scale)
    save(plan_of(INT8), tmp_path / "b", whole)
    _, again, _ = started(BOTH, tmp_path / "b", mesh)
    plan, floats, _ = started({}, tmp_path / "b", mesh)
    _, half, _ = started(BF16, tmp_path / "a", mesh)
    for name in filter(tuned.is_expert, state.params):
        np.testing.assert_array_equal(again.params[name], whole.params[name])
        scale = whole.model_state[int8.scale_of(name)]
        given = int8.restored(whole.params[name], scale, jnp.float32)
        np.testing.assert_array_equal(floats.params[name], given)
        assert floats.params[name].sharding == plan.shardings.params[name]
        np.testing.assert_array_equal(half.params[name], state.params[name].astype(jnp.bfloat16))
    assert not floats.model_state


def test_int8_experts_take_a_quarter_of_a_checkpoint(tmp_path):
    plans = plan_of({"train": "non_moe"}), plan_of(INT8)
    sizes = [state_lib.whole_bytes(plan.abstract_state()) for plan in plans]
    count = sum(spec.size for n, spec in plans[0].abstract.params.items() if tuned.is_expert(n))
    scales = sum(spec.size for spec in plans[1].abstract.model_state.values())
    assert sizes[0] - sizes[1] == 3 * count - 4 * scales
    state = created(plans[1])
    save(plans[1], tmp_path, state)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    read = checkpoints.restore(3, plans[1].abstract_state())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, read, state)


def test_adapters_go_on_with_their_own_keys_alone(tmp_path):
    plan = plan_of(LORA)
    state = dataclasses.replace(created(plan), params=noisy(created(plan).params))
    save(plan, tmp_path, state)
    _, again, _ = started(LORA, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    with pytest.raises(CheckpointError, match="Merge them first"):
        started({}, tmp_path)
    with pytest.raises(CheckpointError, match=r"alpha 12\.0, and this run has rank 3 and alpha 6"):
        started({"lora": {"rank": 3, "alpha": 6.0}}, tmp_path)


# ------------------------------------------------------------------ what learns


def test_adapters_begin_as_the_base_and_merge_into_it(tmp_path, text):
    """Bit for bit before the first step; after it the merged weights compute what base and adapters
    do, as an export writes them: int8 experts restored, W + alpha / rank A B.
    """
    base, plan = plan_of(), plan_of(BOTH)
    save(base, tmp_path / "base", created(base))
    _, first, said = started(BOTH, tmp_path / "base")
    assert "adapters of rank 3" in said
    batch = text(8)
    moved = dataclasses.replace(first, params=noisy(first.params))
    save(plan, tmp_path / "run", moved)

    def merged(directory):
        source, notes = interop.merged(
            plan.config, open_weights(directory, interop.abstract(plan.config))
        )
        assert len(notes) == 2
        found = dict(source.leaves())
        source.close()
        return {name: jnp.asarray(value) for name, value in found.items()}

    save(plan, tmp_path / "first", first)
    # Experts differ from the base by rounding, so the base is that of the restored ones.
    plain = merged(tmp_path / "first")
    assert set(plain) == set(base.abstract.params)
    ours, theirs = loss_of(plan), loss_of(base)
    begun = ours(first.params, first.model_state, batch)
    assert begun == theirs(plain, {}, batch)
    with_adapters = ours(moved.params, moved.model_state, batch)
    assert abs(with_adapters - begun) > 1e-3
    folded = merged(tmp_path / "run")
    np.testing.assert_allclose(theirs(folded, {}, batch), with_adapters, rtol=1e-5)
    name = "encoder.sparse.attention.query"
    names = (name, f"{name}_lora_a", f"{name}_lora_b")
    w, a, b = (np.asarray(moved.params[name], np.float64) for name in names)
    exact = w + 12.0 / 3 * (a @ b)
    np.testing.assert_allclose(folded[name], exact, rtol=1e-6, atol=1e-7)


@pytest.mark.thorough
def test_a_step_moves_adapters_and_what_is_named_beside_them(text):
    """On eight devices, beside experts in int8: nothing else moves, and nothing else has slots."""
    options = {**BOTH, "lora": {"rank": 3, "also": (r"norm\.scale$",)}}
    plan = plan_of(options, (1, 4, 2))
    named = {n for n in plan.abstract.params if tuned.is_adapter(n) or n.endswith("norm.scale")}
    assert plan.trained == named
    learned = sum(plan.abstract.params[name].size for name in named)
    slots = jax.tree.leaves(plan.abstract_state().opt_state)
    assert sum(leaf.size for leaf in slots) == 2 * learned + 2  # AdamW's moments, and two counters
    train_step = step.compile_train(objective.make_loss(plan), plan)
    state = created(plan)
    before = jax.device_get((state.params, state.model_state))
    batch = {name: text(8)[name] for name in objective.fields(plan)}
    state, sums = train_step(state, step.put_batch(batch, plan.batch_sharding))
    assert float(sums["skipped"][0]) == 0
    same = {name: np.array_equal(before[0][name], state.params[name]) for name in before[0]}
    # The second matrices are zero at first, so the first ones have no gradient yet.
    moved = {name for name in named if not name.endswith("_lora_a")}
    assert {name for name, held in same.items() if not held} == moved
    jax.tree.map(np.testing.assert_array_equal, before[1], state.model_state)


def test_patterns_say_which_matrices_are_adapted():
    plan = plan_of({"lora": {"rank": 2, "patterns": (r"[.]attention[.](query|value)$", r"ffn")}})
    adapted = {n.removesuffix("_lora_a") for n in plan.abstract.params if n.endswith("_lora_a")}
    ffn = {f"{stack}.sparse.ffn.{m}" for stack in ("encoder", "decoder") for m in int8.MATRICES}
    own = {f"{s}.sparse.attention.{m}" for s in ("encoder", "decoder") for m in ("query", "value")}
    assert adapted == ffn | own
    facts = describe.describe(plan.config)["params_by_part"]
    # Rank 2 beside 16 x 16 (4 of them) and 16 x 24 (6).
    assert facts["adapters"] == 2 * (4 * (16 + 16) + 6 * (16 + 24))
    assert describe.describe(config_of())["params_by_part"].get("adapters") is None


# ------------------------------------------------------------------ the real loop


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


@pytest.mark.slow
def test_fine_tuning_in_int8_loses_nothing_and_resumes_bit_for_bit(tmp_path):
    """From one pre-trained checkpoint, on eight devices: the loss of each of 30 steps is within
    0.5 % of that with float32 experts; and a run that goes on from its middle is the unbroken one.
    """

    def run(name, finetuned, **changes):
        config = config_of(finetuned, steps=30, eval_every=0, **changes)
        config.model.vocab_size = 384
        config.data.update(source="sample:copa,cb", cache=str(tmp_path / "cache"))
        config.data.update(encoder_length=160, decoder_length=24)
        config.evaluation.limit = 1
        config.mesh.update(data=4, model=2)
        config.checkpoint.every = 15
        assert train.run(config, tmp_path / name) == 0
        return losses(tmp_path / name)

    run("base", None)
    start = {"init_from": str(tmp_path / "base"), "seed": 1}
    floats = run("floats", {"train": "non_moe"}, **start)
    whole = run("whole", INT8, **start)
    assert len(whole) == 30
    assert 0 < np.abs(whole / floats - 1).max() < 0.005
    run("adapters", BOTH, **start)
    for name, options in (("whole", INT8), ("adapters", BOTH)):
        shutil.copytree(tmp_path / name, tmp_path / f"{name} again")
        shutil.rmtree(tmp_path / f"{name} again" / "checkpoints" / "30")
        run(f"{name} again", options, **start)
        first, again = (
            Checkpoints(tmp_path / run / "checkpoints").manifest(30).leaves
            for run in (name, f"{name} again")
        )
        assert {n: leaf.digest for n, leaf in first.items()} == {
            n: leaf.digest for n, leaf in again.items()
        }


# ------------------------------------------------------------------ keys that cannot work


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"frozen_dtype": "int8"}, {}, r"is for experts that do not learn, and 'decoder\."),
        (INT8, {"routing": {"num_experts": 0}}, "the model has none"),
        (INT8 | {"train": "moe"}, {}, "do not learn"),
        (INT8, {"ema_decay": 0.9}, "are no numbers to average"),
        ({"frozen_dtype": "int4"}, {}, "float32, bfloat16 or int8|bfloat16.*int8"),
        ({"lora": {"patterns": ("query",)}}, {}, r"finetune\.lora\.rank=0 makes none"),
        ({"lora": {"also": ("norm",)}}, {}, r"finetune\.lora\.rank=0 makes none"),
        ({"lora": {"rank": 17}}, {}, r"'.*attention.query', a matrix of 16 x 16. Use at most 16"),
        ({"lora": {"rank": -1}}, {}, r"finetune\.lora\.rank"),
        ({"lora": {"rank": 2, "alpha": 0.0}}, {}, r"finetune\.lora\.alpha"),
        (LORA | {"train": "ffn"}, {}, "both say what learns"),
        ({"lora": {"rank": 2, "patterns": ("queri",)}}, {}, "nearest is '.*query'"),
        ({"lora": {"rank": 2, "patterns": ("norm",)}}, {}, "matches none of"),
        ({"lora": {"rank": 2, "patterns": ("up$",)}}, {}, r"finds '.*\.experts\.up'"),
        ({"lora": {"rank": 2, "also": ("nrom",)}}, {}, r"finetune\.lora\.also.*nearest is '.*norm"),
        (BOTH | {"lora": {"rank": 2, "also": ("experts",)}}, {}, "do not learn, and 'decoder"),
    ],
)
def test_keys_that_cannot_work_are_refused(options, changes, message):
    config = config_of(options)
    config.update(changes)
    with pytest.raises(ConfigError, match=message):
        plan_lib.make(config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))


def test_upcycling_and_imports_are_of_plain_models():
    plan = plan_of(INT8, upcycle={"workdir": "a", "step": 0})
    with pytest.raises(ConfigError, match="Upcycle first"):
        finetune.check(plan)
    with pytest.raises(ConfigError, match="weights of the plain model"):
        interop.layout(config_of(LORA), "safetensors")
    interop.layout(interop.base(config_of(BOTH)), "safetensors")
