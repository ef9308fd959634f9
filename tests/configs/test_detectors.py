"""Every shipped configuration of detection and variant: builds, and counts as published."""

import math
import re

import pytest

import configs
from configs.common import load
from trainlib.config import flatten
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_parts
from trainlib.step import schedules
from trainlib.step.optimizers import make_optimizer, trained_names
from vitattn import config as config_lib
from vitattn import papers
from vitattn.models import build

FILES = {path.stem: load.load_module(path) for path in load.shipped()}
MODULES = {
    stem: module
    for stem, module in FILES.items()
    if module.get_config("").get("task") == "detection"
}
NAMES = [(stem, v) for stem, module in MODULES.items() for v in ("", *module.VARIANTS)]
# Exact parameters of the models that the files are named after.
EXPECTED = {
    "retinanet_resnet50": 33_420_404,
    "retinanet_resnet101": 52_412_532,
    "retinanet_aa_resnet50": 32_990_860,
    "retinanet_aa_resnet101": 51_591_104,
    "retinanet_sasa_resnet50": 25_878_876,
}
UNPUBLISHED = re.compile(r":shapes|:own|:torchvision|:heads_and_pyramid|reproduce_detection")


def test_every_published_file_is_there():
    assert set(EXPECTED) == set(MODULES) - {"reproduce_detection"}


@pytest.mark.sample(7)
@pytest.mark.parametrize(("stem", "variant"), NAMES, ids=lambda part: part or "-")
def test_builds_and_cites_exactly_what_it_is(stem, variant):
    config = MODULES[stem].get_config(variant)
    assert config.name == f"{stem}:{variant}".rstrip(":")
    devices = batch_parts(config_lib.sharding_rules(config), make_mesh())
    config_lib.check(config, math.gcd(devices, config.batch_size))  # small runs are for a laptop
    if config.steps:
        schedules.make_schedule(config.schedule, config.steps)
    abstract = nn.abstract(build(config.model))
    make_optimizer(config.optimizer, schedules.of_run(config), abstract.params)
    trained = trained_names(config.optimizer, abstract.params)
    frozen = {name.split(".")[1] for name in set(abstract.params) - set(trained)}
    short = variant in ("own", "short") or variant.startswith("torchvision")
    assert frozen == ({"stem", "conv2_x"} if short else set())
    published = config.published
    if UNPUBLISHED.search(config.name):
        assert not published.source
        assert not published.ap
    else:
        rows = {(f"arXiv {row.source}", row.ap, row.ap50): row for row in papers.published()}
        row = rows[published.source, published.ap, published.ap50]
        assert abstract.param_count == nn.abstract(build(row.model)).param_count
    if not variant and stem in EXPECTED:
        assert abstract.param_count == EXPECTED[stem]


@pytest.mark.parametrize("stem", EXPECTED)
def test_the_docstring_is_the_claim(stem):
    module = MODULES[stem]
    text, published = " ".join(module.__doc__.split()), module.get_config("").published
    words = [f"{EXPECTED[stem]:,} parameters", f"AP {published.ap} %", f"AP50 {published.ap50} %"]
    words += [f"AP75 {published.ap75} %", f"{published.params[:-1]} M parameters", "Never run"]
    words += [f"{published.gflops:g} GFLOP", f"--config=configs/{stem}.py --workdir"]
    for word in (*words, f"--config=configs/{stem}.py:shapes"):
        assert word in text, word
    for variant in module.VARIANTS:
        assert re.search(rf"\b{variant}\b", text), variant


def test_a_task_and_a_model_that_do_not_go_together_are_refused():
    config = configs.load("aa_resnet50", task="detection")
    assert (config.data.source, config.data.augment) == ("coco", "jitter")
    with pytest.raises(ConfigError, match=r"finds no boxes.*--config.model.name=retinanet"):
        config_lib.check(config, 1)
    detector = configs.load("retinanet_resnet50", task="classification")
    with pytest.raises(ConfigError, match="do not go together"):
        config_lib.check(detector, 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"detection.background_iou": 0.6}, "foreground_iou=0.5: an anchor would be of both"),
        ({"data.jitter": (1.2, 0.8)}, "--config.data.jitter=0.8,1.2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, words):
    config = configs.load("retinanet_resnet50", **values)
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_lib.check(config, 1)


def test_the_task_decides_which_keys_there_are():
    keys = flatten(configs.load("retinanet_resnet50"))
    assert "detection.gamma" in keys
    assert "label_smoothing" not in keys
    assert "detection.gamma" not in flatten(configs.load("resnet50"))
