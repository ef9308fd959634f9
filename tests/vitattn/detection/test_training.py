"""A small detector in training: it learns pictures by heart, goes on bit for bit, and eight devices
give what one gives."""

import shutil

import jax
import numpy as np
import pytest

from configs.retinanet_resnet50 import get_config
from launch import train
from tests.launch.commands import losses, records
from trainlib.config import override
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step, train_state
from vitattn import plan as plans
from vitattn.detection.data.shapes import Shapes
from vitattn.detection.data.source import Subset
from vitattn.detection.evaluation.evaluation import over_split
from vitattn.detection.input import splits
from vitattn.detection.objective import objective

# The network of the variant, narrower still, for pictures of 64 pixels.
TINY = {
    "model.width": 0.125,
    "model.features": 16,
    "model.min_level": 4,
    "model.anchor_scale": 1.0,
    "model.image_size": 64,
    "data.max_boxes": 6,
    "data.augment": "none",
    "detection.candidates": 50,
    "batch_size": 8,
    "eval_batch_size": 8,
    "schedule.name": "constant",
    "schedule.warmup_steps": 2,
    "ema_decay": 0.9,
}


def plan_of(devices=1, **changes):
    config = get_config("shapes")
    for key, value in changes.items():
        override(config, key, value, "test")
    return plans.make(config, make_mesh(data=devices, devices=jax.devices()[:devices]))


def training(plan, source, steps):
    """The state after some steps on a source, and the sums of each step."""
    train_step = step.compile_train(objective.make_loss(plan), plan)
    key = jax.random.key(plan.config.seed)
    state = train_state.create(plan.abstract, plan.optimizer, key, plan.shardings)
    series = []
    with splits.train_batches(plan, source, 0) as batches:
        for _ in range(steps):
            batch = (
                {name: next_batch[name] for name in objective.FIELDS}
                if (next_batch := next(batches))
                else {}
            )
            state, sums = train_step(state, step.put_batch(batch, plan.batch_sharding))
            series.append(jax.device_get(sums))
    return state, series


def averages(series, name):
    return np.array([total / max(count, 1e-9) for total, count in (s[name] for s in series)])


def few(images):
    return Subset(Shapes("train"), np.arange(images), "few")


def ap50(plan, state, source):
    """Of a state, on pictures as evaluation shows them."""
    eval_step = step.compile_eval(objective.make_evaluate(plan), plan)
    result = over_split(eval_step, state.params, state.model_state, source, plan)
    return result.flat()["ap50"]


@pytest.fixture(scope="module")
def one_device(compiled_once):
    plan = plan_of(1, **TINY)
    return plan, *training(plan, few(4), 100)


@pytest.mark.thorough
def test_four_pictures_are_learned_by_heart(one_device):
    plan, state, series = one_device
    assert averages(series, "loss")[-1] < 0.2 * averages(series, "loss")[0]
    assert ap50(plan, state, few(4)) >= 0.9


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(one_device):
    """One image a device: the normaliser of the loss and the statistics are those of all images."""
    one = one_device[2][:4]
    eight = training(plan_of(8, **TINY), few(4), 4)[1]
    for name in ("loss", "loss_classes", "loss_boxes", "positives", "boxes_outside", "grad_norm"):
        expected = averages(one, name)
        np.testing.assert_allclose(averages(eight, name), expected, rtol=2e-5, err_msg=name)
    assert len(set(averages(one, "loss"))) == 4
    assert averages(one, "positives").min() > 1


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(compiled_once, tmp_path):
    arguments = [
        "--config=configs/retinanet_resnet50.py:shapes",
        *(f"--config.{key}={value}" for key, value in TINY.items()),
        *("--config.steps=4", "--config.checkpoint.every=2", "--config.eval_every=2"),
        "--config.data.augment=jitter",
    ]
    train.main([*arguments, f"--workdir={tmp_path / 'whole'}"])
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    train.main([*arguments, f"--workdir={tmp_path / 'again'}"])
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    ends = [records(tmp_path / name, "eval")[-1] for name in ("whole", "again")]
    for name in ("ap", "ap50", "ar_100"):
        assert ends[0][name] == ends[1][name]


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart():
    """The recipe of the variant, in 300 steps: about a minute on two cores."""
    plan = plan_of(**{"data.augment": "none", "steps": 300})
    state, series = training(plan, few(8), 300)
    assert ap50(plan, state, few(8)) >= 0.95, averages(series, "loss")[-5:]
