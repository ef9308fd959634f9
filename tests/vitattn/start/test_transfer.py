"""Weights from another run: what is taken, interpolated, new and refused; frozen parts stay put."""

import dataclasses

import jax
import numpy as np
import pytest

import configs
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.config import override
from trainlib.errors import CheckpointError, ConfigError
from trainlib.model import statistics
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step
from vitattn.classification.objective import loss_function
from vitattn.labels import class_names
from vitattn.plan import make
from vitattn.start import transfer
from vitattn.start.origin import open_origin

SMALL = {
    "blocks": (1, 1, 1, 1),
    "width": 0.25,
    "attention": {"num_heads": 2, "min_key_depth": 4},
}


def small_config(**changes):
    config = configs.load("aa_resnet50:digits", model=SMALL)
    for key, value in changes.items():
        override(config, key.replace("__", "."), value, "test")
    return config


def filled(like, seed):
    """Positive numbers in place of every array; nothing is compiled for them."""
    rng = np.random.default_rng(seed)
    floats = jax.numpy.floating

    def fill(x):
        if not jax.numpy.issubdtype(x.dtype, floats):
            return np.zeros(x.shape, x.dtype)
        return rng.uniform(0.01, 0.1, x.shape).astype(x.dtype)

    return jax.tree.map(fill, like)


def planned(config, devices=1, seed=0):
    """The plan and a first state of a configuration."""
    plan = make(config, make_mesh(1, devices, devices=jax.devices()[:devices]))
    return plan, jax.device_put(filled(plan.abstract_state(), seed), plan.shardings)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose averages, statistics and weights all differ from those of a new one."""
    config = small_config()
    _, first = planned(config, seed=7)
    ema = {name: value + 1 for name, value in first.ema.items()}
    directory = tmp_path_factory.mktemp("run")
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints")
    for number in (3, 5):
        shifted = {name: value + number for name, value in ema.items()}
        checkpoints.save(number, dataclasses.replace(first, ema=shifted), {"config": {}})
        checkpoints.wait()
    checkpoints.close()
    return directory, ema


def started(config, **options):
    plan, first = planned(config, **options)
    return (*transfer.start(plan, first), first)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("place", "step", "number"), [("", 0, 5), ("", 3, 3), ("checkpoints/3", 0, 3)]
)
def test_averages_of_the_step_are_taken_by_name(workdir, place, step, number):
    directory, ema = workdir
    config = small_config(init_from=str(directory / place), init_from_step=step)
    begun, report, _ = started(config)
    for name, value in {**begun.params, **begun.model_state}.items():
        np.testing.assert_array_equal(value, ema[name] + number, err_msg=name)
        np.testing.assert_array_equal(begun.ema[name], value)
    assert f"step {number}" in report
    assert f"{len(ema)} moving averages" in report
    assert int(begun.step) == 0


def test_a_head_of_the_same_classes_is_put_in_their_order(workdir, tmp_path):
    """By name, wherever the other run keeps them; without names the table says so."""
    directory, ema = workdir
    there, here = tuple("abcdefghij"), tuple("cabdefghji")
    config = small_config(init_from=str(directory))
    plan, first = planned(config)
    (directory / class_names.FILE).write_text("\n".join(there))
    try:
        begun, report = transfer.start(plan, first, here)
        same, told = transfer.start(plan, first, there)
        with pytest.raises(ConfigError, match=r"New: z\. Gone: j\..*init_new='\^head\[\.\]'"):
            transfer.start(plan, first, (*there[:9], "z"))
    finally:
        (directory / class_names.FILE).unlink()
    order = [there.index(name) for name in here]
    for name, value in begun.params.items():
        expected = ema[name] + 5
        if name.startswith("head."):
            expected = expected[..., order]
            assert np.any(np.asarray(expected) != np.asarray(ema[name] + 5))
            np.testing.assert_array_equal(same.params[name], ema[name] + 5)
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert "another order" in report
    assert "another order" not in told
    assert "names are not known" in transfer.start(plan, first)[1]


def test_without_averages_weights_and_statistics_are_taken(tmp_path):
    config = small_config(ema_decay=0.0, init_from=str(tmp_path))
    _, other = planned(config, seed=7)
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, other, {"config": {}})
    checkpoints.close()
    begun, _, _ = started(config)
    for name, value in begun.params.items():
        np.testing.assert_array_equal(value, other.params[name])
    assert begun.ema == {}


@pytest.mark.slow
def test_a_new_head_and_interpolated_tables_are_reported(workdir):
    directory, ema = workdir
    changes = {"model__num_classes": 7, "model__image_size": 16, "sharding": "fsdp"}
    config = small_config(init_from=str(directory), **changes)
    begun, report, first = started(config, devices=4)
    for name in ("head.kernel", "head.bias"):
        np.testing.assert_array_equal(begun.params[name], first.params[name])
        assert name in report
    assert begun.params["head.kernel"].sharding == first.params["head.kernel"].sharding
    assert "interpolated" in report
    tables = [n for n in begun.params if n.split(".")[-1] in ("rel_h", "rel_w")]
    assert tables
    for name in tables:
        old, new = np.asarray(ema[name]) + 5, np.asarray(begun.params[name])
        at = np.linspace(0, len(old) - 1, len(new))
        columns = [np.interp(at, np.arange(len(old)), column) for column in old.T]
        np.testing.assert_allclose(new, np.stack(columns, 1), atol=1e-6)
        # Distance 0 stays distance 0: the middle row.
        np.testing.assert_allclose(new[len(new) // 2], old[len(old) // 2], atol=1e-6)
    same = set(begun.params) - set(tables) - {"head.kernel", "head.bias"}
    for name in same:
        np.testing.assert_array_equal(begun.params[name], ema[name] + 5, err_msg=name)


def test_any_other_difference_is_refused_unless_it_starts_anew(workdir):
    directory, _ = workdir
    wider = small_config(init_from=str(directory), model__width=0.5)
    with pytest.raises(CheckpointError, match=r"conv1\.kernel is \(1, 1, 16, 16\) there"):
        started(wider)
    gated = small_config(init_from=str(directory), model__gate="se")
    with pytest.raises(CheckpointError, match=r"gate.* is missing there") as caught:
        started(gated)
    assert "init_new" in str(caught.value)
    allowed = small_config(init_from=str(directory), model__gate="se", init_new=(r"\.gate\.",))
    begun, report, first = started(allowed)
    gate = next(name for name in begun.params if ".gate." in name)
    np.testing.assert_array_equal(begun.params[gate], first.params[gate])
    assert "(init_new)" in report
    with pytest.raises(ConfigError, match="init_new"):
        started(small_config(init_from=str(directory), init_new=("no_such_layer",)))


def test_what_nothing_takes_is_left_over(workdir):
    directory, _ = workdir
    config = small_config(init_from=str(directory), model__attention__position="none")
    _, report, _ = started(config)
    assert "rel_h" in report.split("left over")[1]


@pytest.mark.thorough
def test_counts_of_updates_come_along_with_the_statistics(tmp_path):
    config = small_config(steps=40, init_from=str(tmp_path))
    _, first = planned(config)
    counted = dataclasses.replace(first, counts=1 + np.arange(len(first.counts), dtype=np.int32))
    uncounted = dataclasses.replace(first, counts=first.counts * 0)
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for number, saved in ((3, counted), (5, uncounted)):
        checkpoints.save(number, saved, {"config": {}})
        checkpoints.wait()
    checkpoints.close()
    config.init_new, config.init_from_step = (r"^stem\.norm",), 3
    begun, _, _ = started(config)
    names = statistics.layers(first.model_state)
    expected = [1 if name == "stem.norm" else 1 + at for at, name in enumerate(names)]
    assert names.index("stem.norm") > 0
    assert begun.counts.tolist() == expected
    # Imported statistics, which nobody counted, follow the decay; a run too short for it says so.
    config.init_new, config.init_from_step, config.model.bn_decay = (), 5, 0.9999
    begun, report, _ = started(config)
    assert begun.counts.tolist() == [0] * len(names)
    assert "after 40 steps the running statistics are still 99.6 % those taken" in report
    config.model.bn_decay = 0.9
    assert "statistics are still" not in started(config)[1]


def test_a_place_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_origin(tmp_path, None)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_frozen_weights_do_not_move_and_have_no_slots():
    frozen = (r"^stem\.", r"^conv[23]_x\.")
    factors = ((r"^conv4_x\.", 0.5),)
    config = small_config(optimizer__frozen=frozen, optimizer__lr_multipliers=factors, batch_size=8)
    config.model.zero_init = False
    config.schedule.warmup_steps = 0
    plan, first = planned(config)
    trained = plan.trained
    still = set(plan.abstract.params) - trained
    assert still
    assert {n.split(".")[0] for n in still} == {"stem", "conv2_x", "conv3_x"}
    slots = "".join(n for n in checkpoint.to_flat(first) if n.startswith("opt_state"))
    assert not any(name in slots for name in still)
    run = step.compile_train(loss_function(plan.abstract, 0.0), plan)
    before = jax.tree.map(np.array, (first.params, first.model_state))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "weight": np.ones(8, np.float32),
    }
    batch = step.put_batch(batch, plan.batch_sharding)
    for _ in range(2):
        first, sums = run(first, batch)
    params, statistics = before
    for name in still:
        assert np.asarray(first.params[name]).tobytes() == params[name].tobytes(), name
    moved = {name for name in trained if np.any(np.asarray(first.params[name]) != params[name])}
    assert moved == trained
    # Statistics are no weights: those of frozen parts follow the batches.
    name = "stem.norm.mean"
    assert np.any(np.asarray(first.model_state[name]) != statistics[name])
    assert float(sums["grad_norm"][0]) > 0
